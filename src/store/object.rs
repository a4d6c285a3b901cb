//! Objects: folders by the digest of their content, written once and read-only from then on.
//!
//! `objects/ab/abcd…/files/` is the folder as the stage left it, usable in place; `manifest.json` beside
//! it lists every file's digest and the stat it had when it was stored. Using an object checks each
//! file's stat; a file whose stat differs is hashed again. So damage done by any write is found and never
//! served; bits that rot under an unchanged stat are found by `pipe verify` or `--check full`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::files::{remove_tree, write_atomic};
use crate::digest::{Digest, files_below};
use crate::error::{Error, Exit, io_at};
use crate::fault::point;

/// How closely an object is looked at before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Check {
    /// The stat of every file; its content where the stat differs.
    #[default]
    Stat,
    /// The content of every file.
    Full,
}

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Sorted by path.
    pub files: Vec<Entry>,
}

/// One file of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the object's folder.
    pub path: PathBuf,
    /// Its content.
    pub digest: Digest,
    /// What it looked like when its content was last known.
    stat: Stat,
}

impl Entry {
    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.stat.size
    }
}

#[cfg(test)]
impl Entry {
    /// The same entry with the stat that the file has now.
    pub(super) fn with_stat_of(file: &Path, entry: &Self) -> Self {
        Self { stat: Stat::of(file).expect("the file is there"), ..entry.clone() }
    }
}

/// What a write cannot leave as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stat {
    size: u64,
    device: u64,
    inode: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stat {
    pub(super) fn of(path: &Path) -> Result<Self, Error> {
        let meta = fs::symlink_metadata(path).map_err(io_at(path))?;
        let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Ok(Self {
            size: meta.len(),
            device: meta.dev(),
            inode: meta.ino(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Whether the last change, of content or of anything else, lies that far back by this machine's
    /// clock. Nothing in the future does: a clock that was set back makes nothing old.
    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let latest = self.modified_ns.max(self.changed_ns);
        i128::try_from(now.saturating_sub(age).as_nanos()).is_ok_and(|then| latest <= then)
    }
}

impl Manifest {
    /// Hashes every file below `root`.
    fn read(root: &Path) -> Result<Self, Error> {
        let entry = |path: &PathBuf| {
            let full = root.join(path);
            let stat = Stat::of(&full)?;
            Ok(Entry { path: path.clone(), digest: Digest::of_file(&full)?, stat })
        };
        let files = files_below(root)?.par_iter().map(entry).collect::<Result<_, Error>>()?;
        Ok(Self { files })
    }

    fn digest(&self) -> Digest {
        name(self.files.iter().map(|entry| (&*entry.path, entry.stat.size, &entry.digest)))
    }

    /// Bytes of all files.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().map(|entry| entry.stat.size).sum()
    }
}

/// The folder of objects.
#[derive(Clone, Debug)]
pub struct Objects {
    root: PathBuf,
    trash: PathBuf,
}

impl Objects {
    pub(super) fn new(root: PathBuf, trash: PathBuf) -> Self {
        Self { root, trash }
    }

    fn folder(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join(&name[..2]).join(name)
    }

    /// Where the object's files lie.
    #[must_use]
    pub fn files(&self, digest: &Digest) -> PathBuf {
        self.folder(digest).join("files")
    }

    /// All objects' digests.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn list(&self) -> Result<Vec<Digest>, Error> {
        let mut found = Vec::new();
        for shelf in fs::read_dir(&self.root).map_err(io_at(&self.root))?.flatten() {
            for object in fs::read_dir(shelf.path()).map_err(io_at(&shelf.path()))?.flatten() {
                found.extend(object.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The object's manifest as stored.
    ///
    /// # Errors
    /// If it is missing or cannot be read.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, Error> {
        let path = self.folder(digest).join("manifest.json");
        let text = fs::read(&path).map_err(io_at(&path))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::new(Exit::DamagedStore, format!("`{}`: {error}", path.display())))
    }

    /// Whether the object is there and sound. `Ok(Err(reason))`: it is not to be used.
    ///
    /// # Errors
    /// Only if the store itself cannot be used.
    pub fn check(&self, digest: &Digest, check: Check) -> Result<Result<(), String>, Error> {
        let Ok(mut manifest) = self.manifest(digest) else {
            return Ok(Err("missing or without a readable manifest".to_owned()));
        };
        if manifest.digest() != *digest {
            return Ok(Err("its manifest is not that of its name".to_owned()));
        }
        let root = self.files(digest);
        match files_below(&root) {
            Ok(files) if files.iter().eq(manifest.files.iter().map(|entry| &entry.path)) => {}
            _ => return Ok(Err("files are missing or were added".to_owned())),
        }
        let mut restat = false;
        for entry in &mut manifest.files {
            let path = root.join(&entry.path);
            let Ok(stat) = Stat::of(&path) else {
                return Ok(Err(format!("`{}` is gone", entry.path.display())));
            };
            if stat == entry.stat && check == Check::Stat {
                continue;
            }
            if Digest::of_file(&path).ok() != Some(entry.digest) {
                return Ok(Err(format!("`{}` was changed", entry.path.display())));
            }
            restat |= stat != entry.stat;
            entry.stat = stat;
        }
        if restat {
            // A moved or copied store: the content is right, so the next look is quick again. A store
            // that cannot be written just stays slow.
            let _ = self.write_manifest(&self.folder(digest), &manifest);
        }
        Ok(Ok(()))
    }

    fn write_manifest(&self, folder: &Path, manifest: &Manifest) -> Result<(), Error> {
        let text = serde_json::to_vec(manifest).expect("a manifest is plain data");
        write_atomic(&folder.join("manifest.json"), &text)
    }

    /// Makes `attempt/files` ready to be an object: read-only, hashed, its manifest beside it. Gives its
    /// name, and what must be flushed before [`Objects::adopt`].
    ///
    /// # Errors
    /// If something cannot be read or written.
    pub(super) fn prepare(&self, attempt: &Path) -> Result<(Digest, Vec<PathBuf>), Error> {
        let root = attempt.join("files");
        point("object: before");
        let files = files_below(&root)?;
        files.par_iter().try_for_each(|path| seal(&root.join(path)))?;
        point("object: sealed");
        let manifest = Manifest::read(&root)?;
        let path = attempt.join("manifest.json");
        let text = serde_json::to_vec(&manifest).expect("a manifest is plain data");
        fs::write(&path, text).map_err(io_at(&path))?;
        point("object: described");
        let folders: BTreeSet<PathBuf> =
            files.iter().flat_map(|path| path.ancestors().skip(1)).map(|folder| root.join(folder)).collect();
        let mut unflushed = vec![path, attempt.to_owned()];
        unflushed.extend(files.iter().map(|file| root.join(file)));
        unflushed.extend(folders);
        Ok((manifest.digest(), unflushed))
    }

    /// Takes over what was prepared and flushed. Gives the folder whose entries have changed.
    ///
    /// # Errors
    /// If it cannot be renamed. Nothing is then in the store.
    pub(super) fn adopt(&self, attempt: &Path, digest: &Digest) -> Result<PathBuf, Error> {
        let target = self.folder(digest);
        let shelf = target.parent().expect("an object lies on a shelf");
        fs::create_dir_all(shelf).map_err(io_at(shelf))?;
        if target.exists() {
            if self.check(digest, Check::Full)?.is_ok() {
                remove_tree(attempt)?;
                return Ok(shelf.to_owned());
            }
            self.discard(digest)?;
        }
        point("object: before its rename");
        match fs::rename(attempt, &target) {
            // Another run with another key came to the same bytes first.
            Err(_) if target.exists() => remove_tree(attempt)?,
            other => other.map_err(io_at(&target))?,
        }
        point("object: renamed");
        Ok(shelf.to_owned())
    }

    /// Takes an object out of the store.
    ///
    /// # Errors
    /// If it cannot be moved or removed.
    pub fn discard(&self, digest: &Digest) -> Result<(), Error> {
        fs::create_dir_all(&self.trash).map_err(io_at(&self.trash))?;
        let away = tempfile::tempdir_in(&self.trash).map_err(io_at(&self.trash))?;
        let folder = self.folder(digest);
        point("discard: before");
        match fs::rename(&folder, away.path().join("object")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&folder, &error));
            }
            _ => {}
        }
        point("discard: renamed");
        remove_tree(away.path())
    }
}

/// The name of an object: of its files' paths, sizes and contents in the paths' order, nothing else.
pub fn name<'a>(files: impl Iterator<Item = (&'a Path, u64, &'a Digest)>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for (path, size, digest) in files {
        let name = path.as_os_str().as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
        hasher.update(&size.to_le_bytes()).update(digest.bytes());
    }
    Digest::finish(&hasher)
}

/// Makes a file read-only.
fn seal(path: &Path) -> Result<(), Error> {
    let mode = fs::metadata(path).map_err(io_at(path))?.permissions().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444 | (mode & 0o111))).map_err(io_at(path))?;
    point("object: a file sealed");
    Ok(())
}
