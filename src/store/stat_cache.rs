//! Large files outside the store are hashed once: (device, inode, size, times) → digest.
//!
//! A file changed in the last two seconds is hashed again, since a second write could fall into the same
//! tick of its clock. The cache is advice: a missing or unreadable one costs time, nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::write_atomic;
use super::object::Stat;
use crate::digest::Digest;
use crate::error::{Error, Exit, io_at};

/// How old a change must be before its stat is trusted.
const SETTLED: Duration = Duration::from_secs(2);

/// Digests of files outside the store.
#[derive(Debug)]
pub struct StatCache {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    settled: Duration,
    changed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    stat: Stat,
    digest: Digest,
}

impl StatCache {
    pub(super) fn load(path: PathBuf) -> Self {
        let known = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { path, known: known.unwrap_or_default(), settled: SETTLED, changed: false }
    }

    /// The digest of a file's, or a folder's, content.
    ///
    /// # Errors
    /// If something in it cannot be read.
    pub fn digest(&mut self, path: &Path) -> Result<Digest, Error> {
        let path = std::fs::canonicalize(path).map_err(io_at(path))?;
        if path.is_file() {
            return self.file(&path);
        }
        let mut hasher = blake3::Hasher::new();
        let mut files = Vec::new();
        walk(&path, Path::new(""), &mut Vec::new(), &mut files)?;
        files.sort();
        for (file, target) in files {
            let name = file.as_os_str().as_encoded_bytes();
            let digest = self.file(&target)?;
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(digest.bytes());
        }
        Ok(Digest::finish(&hasher))
    }

    fn file(&mut self, path: &Path) -> Result<Digest, Error> {
        let stat = Stat::of(path)?;
        if let Some(known) = self.known.get(path)
            && known.stat == stat
        {
            return Ok(known.digest);
        }
        // Asked before reading: a change while the file is read must not look old by the end of it.
        let settled = stat.is_older_than(self.settled);
        let digest = Digest::of_file(path)?;
        if settled {
            self.known.insert(path.to_owned(), Known { stat, digest });
            self.changed = true;
        }
        Ok(digest)
    }
}

/// All files below `folder`, with what they lead to. Links are followed, as the stage that copies them
/// does; so what is looked at is the target, not the link.
fn walk(
    folder: &Path,
    below: &Path,
    parents: &mut Vec<PathBuf>,
    found: &mut Vec<(PathBuf, PathBuf)>,
) -> Result<(), Error> {
    let real = std::fs::canonicalize(folder).map_err(io_at(folder))?;
    if parents.contains(&real) {
        let message = format!("folder `{}` contains itself through a link", folder.display());
        return Err(Error::new(Exit::Failed, message).hint("remove the link"));
    }
    for entry in std::fs::read_dir(&real).map_err(io_at(&real))? {
        let entry = entry.map_err(io_at(&real))?;
        let (path, name) = (entry.path(), below.join(entry.file_name()));
        let target = std::fs::canonicalize(&path).map_err(io_at(&path))?;
        if target.is_dir() {
            parents.push(real.clone());
            walk(&target, &name, parents, found)?;
            parents.pop();
        } else {
            found.push((name, target));
        }
    }
    Ok(())
}

impl Drop for StatCache {
    fn drop(&mut self) {
        if self.changed {
            let text = serde_json::to_vec(&self.known).expect("digests are plain data");
            // Advice only: without it the next run hashes again.
            let _ = write_atomic(&self.path, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_file_has_a_new_digest_also_within_one_second() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let mut cache = StatCache::load(folder.path().join("cache"));
        std::fs::write(&file, "one").unwrap();
        let first = cache.digest(&file).unwrap();
        std::fs::write(&file, "two").unwrap();
        assert_ne!(cache.digest(&file).unwrap(), first);
        std::fs::write(&file, "one").unwrap();
        assert_eq!(cache.digest(&file).unwrap(), first);
    }

    #[test]
    fn in_a_folder_of_links_the_targets_count() {
        let folder = tempfile::tempdir().unwrap();
        let (cached, linked, plain) =
            (folder.path().join("cached"), folder.path().join("linked"), folder.path().join("plain"));
        for folder in [&cached, &linked, &plain] {
            std::fs::create_dir_all(folder.join("sub")).unwrap();
        }
        std::fs::write(cached.join("blob"), "text").unwrap();
        std::fs::write(plain.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink(cached.join("blob"), linked.join("sub/file")).unwrap();
        let mut cache = StatCache::load(folder.path().join("cache"));
        cache.settled = Duration::ZERO;
        let before = cache.digest(&linked).unwrap();
        assert_eq!(before, cache.digest(&plain).unwrap());
        std::fs::write(cached.join("blob"), "other").unwrap();
        assert_ne!(before, cache.digest(&linked).unwrap());
        std::os::unix::fs::symlink(&linked, linked.join("sub/again")).unwrap();
        assert!(cache.digest(&linked).unwrap_err().message.contains("contains itself"));
    }

    #[test]
    fn a_settled_file_is_remembered_across_loads_and_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "text").unwrap();
        let mut cache = StatCache::load(folder.path().join("cache"));
        cache.settled = Duration::ZERO;
        let digest = cache.digest(&file).unwrap();
        drop(cache);
        // Another digest than that of the content shows that the content was not looked at.
        let text = std::fs::read_to_string(folder.path().join("cache")).unwrap();
        let other = Digest::of(b"other");
        std::fs::write(folder.path().join("cache"), text.replace(&digest.to_string(), &other.to_string()))
            .unwrap();
        assert_eq!(StatCache::load(folder.path().join("cache")).digest(&file).unwrap(), other);
    }

    #[test]
    fn a_file_from_the_future_or_changed_just_now_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for shift in [-3600_i64, 0, 3600] {
            std::fs::write(&file, "text").unwrap();
            let now = std::time::SystemTime::now();
            let seconds = Duration::from_secs(shift.unsigned_abs());
            let time = if shift < 0 { now - seconds } else { now + seconds };
            std::fs::File::options().append(true).open(&file).unwrap().set_modified(time).unwrap();
            let mut cache = StatCache::load(folder.path().join("cache"));
            cache.digest(&file).unwrap();
            assert!(cache.known.is_empty(), "shifted by {shift} s");
        }
    }
}
