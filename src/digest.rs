//! blake3 digests of bytes, files and folders.
//!
//! Knows nothing of stages or the store.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, io_at};

/// Above this size a file is read through a memory map, by all cores.
const PARALLEL_FROM: u64 = 1 << 20;

/// 32 bytes of blake3, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest that a hasher has come to.
    #[must_use]
    pub fn finish(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }

    /// The digest of a file's content.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let mut hasher = blake3::Hasher::new();
        let size = std::fs::metadata(path).map_err(io_at(path))?.len();
        if size < PARALLEL_FROM {
            hasher.update(&std::fs::read(path).map_err(io_at(path))?);
        } else {
            hasher.update_mmap_rayon(path).map_err(io_at(path))?;
        }
        Ok(Self::finish(&hasher))
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight digits, for a person.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hash = blake3::Hash::from_hex(text).map_err(|error| format!("`{text}` is no digest: {error}"))?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// All regular files below `root`, sorted by their path relative to it.
///
/// # Errors
/// If a folder cannot be read, or holds something that is neither file nor folder (a link could point
/// out of the store, and its target could change without its digest).
pub fn files_below(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(io_at(&folder))? {
            let entry = entry.map_err(io_at(&folder))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(io_at(&path))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path.strip_prefix(root).expect("read below root").to_owned());
            } else {
                return Err(Error::new(
                    Exit::Failed,
                    format!("`{}` is neither a file nor a folder", path.display()),
                )
                .hint("write plain files into the output folder; copy what a link points to"));
            }
        }
    }
    found.sort();
    Ok(found)
}
