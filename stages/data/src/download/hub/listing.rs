//! What a repository holds at a revision: from the hub, or from the cache that other programs keep.

use std::fs;
use std::path::{Path, PathBuf};

use contract::{StageError, at};
use serde::Deserialize;

use super::super::checksum::Checksum;
use super::super::stays_inside;
use super::repository::{Repository, is_commit};

/// From so many files on, the hub's list may not be whole (`VERY_LARGE_REPO_THRESHOLD` of `huggingface_hub`).
const TOO_MANY: usize = 50_000;

/// The files of one commit.
#[derive(Debug)]
pub struct Listing {
    /// The commit, whole.
    pub commit: String,
    /// Its files by name.
    pub files: Vec<Entry>,
}

/// One file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its path in the repository.
    pub path: String,
    /// Its length, if the hub told it.
    pub size: Option<u64>,
    /// What it hashes to, if the hub told it.
    pub check: Option<Checksum>,
}

/// What the hub answers about a revision.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Reads the hub's answer. `url` names it.
    pub fn parse(text: &str, url: &str) -> Result<Self, StageError> {
        let strange = |why: String| {
            StageError::new(format!("`{url}` did not answer as a hub does: {why}"))
                .hint("`HF_ENDPOINT` must name a hub, or a mirror of it")
        };
        let answer: Answer = serde_json::from_str(text).map_err(|error| strange(error.to_string()))?;
        if !is_commit(&answer.sha) {
            return Err(strange(format!("`{}` is no commit", answer.sha.escape_debug())));
        }
        if answer.siblings.len() >= TOO_MANY {
            return Err(StageError::new(format!(
                "the repository has {TOO_MANY} files or more, and the hub may not list them all"
            ))
            .hint("fetch it with `hf download` and name the folder"));
        }
        let mut files = Vec::with_capacity(answer.siblings.len());
        for Sibling { rfilename: path, size, blob_id, lfs } in answer.siblings {
            if !stays_inside(&path) {
                return Err(strange(format!("`{}` is no path of a file", path.escape_debug())));
            }
            // A file in Git LFS has its own sha256; git's name is that of the pointer to it.
            let (size, tag) = match lfs {
                Some(lfs) => (lfs.size.or(size), lfs.sha256),
                None => (size, blob_id),
            };
            files.push(Entry { path, size, check: tag.as_deref().and_then(Checksum::from_tag) });
        }
        Ok(Self { commit: answer.sha, files })
    }
}

/// A repository in the hub's cache.
pub struct Cached(PathBuf);

impl Cached {
    /// Its folder below `cache`.
    pub fn new(cache: &Path, repository: &Repository) -> Self {
        Self(cache.join(repository.cache_folder()))
    }

    /// The commit that a revision meant when it was last asked for.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.0.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The file with these bytes.
    pub fn blob(&self, check: &Checksum) -> Option<PathBuf> {
        Some(self.0.join("blobs").join(check.digits())).filter(|path| path.is_file())
    }

    /// What is there of a commit, each file with its place.
    pub fn snapshot(&self, commit: &str) -> Result<Vec<(Entry, PathBuf)>, StageError> {
        let root = self.0.join("snapshots").join(commit);
        let mut files = Vec::new();
        let mut folders = vec![(root, String::new())];
        while let Some((folder, below)) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries {
                let place = entry.map_err(at(&folder))?.path();
                let Some(name) = place.file_name().and_then(|name| name.to_str()) else { continue };
                let path = format!("{below}{name}");
                let meta = fs::metadata(&place).map_err(at(&place))?;
                if meta.is_dir() {
                    folders.push((place, format!("{path}/")));
                    continue;
                }
                // A link to the file that is named by its tag.
                let tag = fs::read_link(&place).ok();
                let tag = tag.as_ref().and_then(|target| target.file_name()?.to_str());
                let check = tag.and_then(Checksum::from_tag);
                files.push((Entry { path, size: Some(meta.len()), check }, place));
            }
        }
        files.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        Ok(files)
    }
}
