//! Large files outside the store are hashed once: (device, inode, size, times) → digest.
//!
//! A file changed in the last two seconds is hashed again, since a second write could fall into the same
//! tick of its clock. The cache is advice: a missing or unreadable one costs time, nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::files::write_atomic;
use super::object::Stat;
use crate::digest::{Digest, files_below};
use crate::error::{Error, io_at};

/// How old a change must be before its stat is trusted.
const SETTLED: Duration = Duration::from_secs(2);

/// Digests of files outside the store.
#[derive(Debug)]
pub struct StatCache {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
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
        Self { path, known: known.unwrap_or_default(), changed: false }
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
        for file in files_below(&path)? {
            let name = file.as_os_str().as_encoded_bytes();
            let digest = self.file(&path.join(&file))?;
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
        let digest = Digest::of_file(path)?;
        let modified = std::fs::metadata(path).and_then(|meta| meta.modified()).map_err(io_at(path))?;
        if SystemTime::now().duration_since(modified).is_ok_and(|age| age >= SETTLED) {
            self.known.insert(path.to_owned(), Known { stat, digest });
            self.changed = true;
        }
        Ok(digest)
    }
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
    fn a_settled_file_is_remembered_across_loads() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "text").unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        std::fs::File::options().append(true).open(&file).unwrap().set_modified(old).unwrap();
        let digest = StatCache::load(folder.path().join("cache")).digest(&file).unwrap();
        let cache = StatCache::load(folder.path().join("cache"));
        let known: Vec<_> = cache.known.values().map(|known| known.digest).collect();
        assert_eq!(known, [digest]);
    }
}
