//! A store elsewhere that several machines share: results by key, objects by content.
//!
//! ```text
//! v1/actions/KEY      an action's text, written last
//! v1/objects/DIGEST   what an object holds: paths, sizes, digests
//! v1/blobs/DIGEST     a file's bytes
//! ```
//!
//! What arrives is hashed before it is stored under its name here, so that a wrong or cut-off fetch is refused
//! and made here instead; nothing here is replaced by anything from there. A place that cannot be reached is
//! told and left alone after a few tries, since a run can do without. How names and bytes get there is
//! [`bucket`]'s business; when, the runner's and [`sharing`]'s.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Exit, io_at};
use crate::executor::Stop;
use crate::key::{Explanation, StageKey};
use crate::store::{Action, Prepared, Slot, Store, object_name};

use bucket::{Bucket, Fault, Wanted};

mod bucket;
mod credentials;
pub mod sharing;

/// After how many failures in a row a direction is given up for the rest of a run.
const TRIES: u32 = 3;

/// As many open files as are asked for.
const MOST_FILES: u64 = 8192;

/// A store elsewhere.
pub struct Remote {
    bucket: Bucket,
    reads: Line,
    writes: Line,
}

/// What an object holds, as written there.
#[derive(Serialize, Deserialize)]
struct Parcel {
    /// Sorted by path.
    files: Vec<Item>,
}

#[derive(Serialize, Deserialize)]
struct Item {
    path: PathBuf,
    size: u64,
    digest: Digest,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    executable: bool,
}

/// What came of asking for a result.
pub enum Fetched {
    /// It is here and what it must be, to be stored.
    Whole(Box<Prepared>),
    /// It must be made here: there is none, or why there is none that can be used.
    Kept(Slot, Option<Trouble>),
}

/// Why a remote was of no use.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// For a person.
    pub text: String,
    /// Whether what lies there is not what it must be, and is to be written anew.
    pub damaged: bool,
}

/// What to do about a result that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// Files that are there are not sent again.
    Missing,
    /// Everything is sent again: what is there is damaged.
    All,
}

/// One direction of the way there.
#[derive(Default)]
struct Line(AtomicU32);

impl Line {
    fn is_down(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= TRIES
    }

    /// Notes how it went; says what to tell of a failure. `None`: enough was told.
    fn note<T>(&self, outcome: Result<T, Fault>, url: &str) -> Result<T, Option<Trouble>> {
        let (message, weight) = match outcome {
            Ok(value) => {
                self.0.store(0, Ordering::Relaxed);
                return Ok(value);
            }
            Err(Fault::Damaged(message)) => {
                return Err(Some(Trouble { text: format!("{url}: {message}"), damaged: true }));
            }
            Err(Fault::Denied(message)) => (message, TRIES),
            Err(Fault::Unreachable(message)) => (message, 1),
            Err(Fault::Here(error)) => (error.message, 1),
        };
        let before = self.0.fetch_add(weight, Ordering::Relaxed);
        let more = if before + weight >= TRIES { "; it is left alone for the rest of this run" } else { "" };
        Err((before < TRIES).then(|| Trouble { text: format!("{url}: {message}{more}"), damaged: false }))
    }
}

impl Remote {
    /// Opens what `s3://BUCKET/PREFIX` or `file:///FOLDER` names. Asks nobody. Waits end early once `stop` is
    /// asked: for what is fetched the first time, for what is sent the second.
    ///
    /// # Errors
    /// If the address is none of these.
    pub fn open(url: &str, stop: &Arc<Stop>) -> Result<Self, Error> {
        open_many();
        Ok(Self {
            bucket: Bucket::open(url, Arc::clone(stop))?,
            reads: Line::default(),
            writes: Line::default(),
        })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        self.bucket.url()
    }

    /// Fetches the result of the slot's key, if there is one that is what `explanation` (the key's fields)
    /// says.
    ///
    /// # Errors
    /// Only if the store here cannot be used.
    pub fn fetch(&self, slot: Slot, explanation: &Explanation) -> Result<Fetched, Error> {
        // A cluster may be filling the slot's folder.
        if self.reads.is_down() || slot.is_ordered() {
            return Ok(Fetched::Kept(slot, None));
        }
        match self.reads.note(self.download(&slot, explanation), self.url()) {
            Ok(Some(action)) => match slot.prepare_as(action)? {
                Ok(result) => Ok(Fetched::Whole(Box::new(result))),
                Err(slot) => {
                    let text = format!("{}: an object's bytes are not those of its name", self.url());
                    Ok(Fetched::Kept(slot, Some(Trouble { text, damaged: true })))
                }
            },
            Ok(None) => Ok(Fetched::Kept(slot, None)),
            Err(trouble) => {
                slot.reset()?;
                Ok(Fetched::Kept(slot, trouble))
            }
        }
    }

    /// The result of `key` there, if there is one that is what `explanation` (the key's fields) says.
    ///
    /// # Errors
    /// What is to be told; nothing if enough was.
    fn look(&self, key: &StageKey, explanation: &Explanation) -> Result<Option<Action>, Option<Trouble>> {
        if self.reads.is_down() {
            return Ok(None);
        }
        self.reads.note(self.action(key, explanation), self.url())
    }

    fn action(&self, key: &StageKey, explanation: &Explanation) -> Result<Option<Action>, Fault> {
        let damaged = |what: &str| Fault::Damaged(what.to_owned());
        let Some(text) = self.bucket.get(&action_name(key))? else { return Ok(None) };
        let action = String::from_utf8(text).ok().and_then(|text| Action::from_text(&text));
        let action = action.ok_or_else(|| damaged("an action is cut off or edited"))?;
        if action.explanation != *explanation {
            return Err(damaged("an action speaks of another key"));
        }
        Ok(Some(action))
    }

    /// Fills the slot's folder. `None`: there is no such result.
    fn download(&self, slot: &Slot, explanation: &Explanation) -> Result<Option<Action>, Fault> {
        let damaged = |what: &str| Fault::Damaged(what.to_owned());
        let Some(action) = self.action(&slot.key(), explanation)? else { return Ok(None) };
        let Some(text) = self.bucket.get(&object_path(&action.object))? else {
            return Err(damaged("an action speaks of an object that is not there"));
        };
        let parcel: Parcel =
            serde_json::from_slice(&text).map_err(|_| damaged("an object's list of files is damaged"))?;
        if parcel.name() != action.object {
            return Err(damaged("an object's list of files is not that of its name"));
        }
        let out = slot.out();
        let wanted: Vec<Wanted> =
            parcel.files.iter().map(|item| item.wanted(&out)).collect::<Result<_, _>>()?;
        for folder in wanted.iter().filter_map(|file| file.path.parent()) {
            fs::create_dir_all(folder).map_err(io_at(folder))?;
        }
        self.bucket.download(&wanted)?;
        for (_, file) in parcel.files.iter().zip(&wanted).filter(|(item, _)| item.executable) {
            fs::set_permissions(&file.path, fs::Permissions::from_mode(0o755)).map_err(io_at(&file.path))?;
        }
        Ok(Some(action))
    }

    /// Sends a result that is stored here: files, then what the object holds, then the action. How many
    /// bytes went.
    ///
    /// # Errors
    /// What is to be told; nothing if enough was.
    pub fn send(
        &self,
        store: &Store,
        key: &StageKey,
        action: &Action,
        how: Send,
    ) -> Result<u64, Option<Trouble>> {
        if self.writes.is_down() {
            return Err(None);
        }
        self.writes.note(self.upload(store, key, action, how), self.url())
    }

    fn upload(&self, store: &Store, key: &StageKey, action: &Action, how: Send) -> Result<u64, Fault> {
        let parcel = Parcel::of(store, &action.object)?;
        let root = store.objects.files(&action.object);
        let blobs: BTreeMap<Digest, &Item> = parcel.files.iter().map(|item| (item.digest, item)).collect();
        let names: Vec<String> = blobs.keys().map(blob_name).collect();
        let there = match how {
            Send::Missing => self.bucket.sizes(&names)?,
            Send::All => vec![None; names.len()],
        };
        let missing =
            blobs.values().zip(names).zip(there).filter(|((item, _), there)| *there != Some(item.size));
        let mut bytes = 0;
        let files: Vec<(PathBuf, String)> = missing
            .map(|((item, name), _)| {
                bytes += item.size;
                (root.join(&item.path), name)
            })
            .collect();
        self.bucket.upload(&files)?;
        let text = serde_json::to_vec(&parcel).expect("a parcel is plain data");
        self.bucket.put(&object_path(&action.object), text)?;
        self.bucket.put(&action_name(key), action.to_text().into_bytes())?;
        Ok(bytes)
    }

    /// Whether the result is there already, as far as its action says.
    fn has(&self, key: &StageKey, action: &Action) -> Result<bool, Fault> {
        let text = self.bucket.get(&action_name(key))?;
        let there = text.and_then(|text| Action::from_text(&String::from_utf8(text).ok()?));
        Ok(there.is_some_and(|there| there.object == action.object))
    }
}

/// Lets this process have as many files open as it may: what is fetched side by side takes some for each.
fn open_many() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it fewer fit, and what does not is told.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(MOST_FILES).max(soft), hard);
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Remote").field(&self.url()).finish()
    }
}

impl Parcel {
    fn of(store: &Store, object: &Digest) -> Result<Self, Error> {
        let root = store.objects.files(object);
        let item = |entry: &crate::store::FileEntry| {
            let path = root.join(&entry.path);
            let mode = fs::metadata(&path).map_err(io_at(&path))?.permissions().mode();
            let (path, executable) = (entry.path.clone(), mode & 0o100 != 0);
            Ok(Item { path, size: entry.size(), digest: entry.digest, executable })
        };
        let files = store.objects.manifest(object)?.files.iter().map(item).collect::<Result<_, Error>>()?;
        let parcel = Self { files };
        if parcel.name() != *object {
            return Err(Error::new(Exit::DamagedStore, format!("object {object} is not what its name says")));
        }
        Ok(parcel)
    }

    fn name(&self) -> Digest {
        object_name(self.files.iter().map(|item| (&*item.path, item.size, &item.digest)))
    }
}

impl Item {
    /// Where it is to come from and lie: below `root`, whatever it is called.
    fn wanted(&self, root: &Path) -> Result<Wanted, Fault> {
        let plain = self.path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || self.path.as_os_str().is_empty() {
            return Err(Fault::Damaged(format!("an object holds a file called `{}`", self.path.display())));
        }
        Ok(Wanted { name: blob_name(&self.digest), path: root.join(&self.path), size: self.size })
    }
}

fn action_name(key: &StageKey) -> String {
    format!("v1/actions/{key}")
}

fn object_path(object: &Digest) -> String {
    format!("v1/objects/{object}")
}

fn blob_name(digest: &Digest) -> String {
    format!("v1/blobs/{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_beside_the_folder_that_it_is_for() {
        let wanted = |path: &str| {
            let item = Item { path: path.into(), size: 0, digest: Digest::of(b""), executable: false };
            item.wanted(Path::new("/out")).ok().map(|wanted| wanted.path)
        };
        assert_eq!(wanted("a/b"), Some(PathBuf::from("/out/a/b")));
        for path in ["", "..", "../a", "a/../../b", "/etc/passwd", "./a"] {
            assert_eq!(wanted(path), None, "{path}");
        }
    }

    #[test]
    fn a_direction_that_fails_three_times_in_a_row_is_told_three_times_and_left_alone() {
        let line = Line::default();
        let fail = || line.note(Err::<(), _>(Fault::Unreachable("no".into())), "u").unwrap_err();
        fail();
        assert!(line.note(Ok(()), "u").is_ok());
        assert!(!fail().unwrap().text.contains("left alone"));
        fail();
        assert!(!line.is_down());
        assert!(fail().unwrap().text.contains("left alone"));
        assert!(line.is_down() && fail().is_none());
        let denied = Line::default();
        assert!(denied.note(Err::<(), _>(Fault::Denied("no right".into())), "u").is_err());
        assert!(denied.is_down());
    }
}
