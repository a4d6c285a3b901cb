//! The store: objects by content, actions by key.
//!
//! ```text
//! .pipe/
//!   version            format of the store
//!   objects/ab/abcd…/  files/ + manifest.json   what stages made, by content, read-only
//!   actions/KEY        what came of a key; written last
//!   latest/NAME        the last action of a stage by name, for `plan` and `explain`
//!   locks/KEY          one flock a key; KEY.lease beside it where machines share the store
//!   work/KEY/          a stage's own folder, survives crashes
//!   attempts/          half-made outputs, of use to nobody after a crash
//!   running/           one locked file a run that goes on
//!   logs/, runs/       what was said and done
//! ```
//!
//! [`Store::enter`] answers [`Entry::Hit`] or [`Entry::Miss`] with a [`Slot`]; a slot that is [`Prepared`] and
//! stored, as [`Slot::commit`] does, is the only way in. A crash at any moment leaves a miss. The store
//! knows nothing of kinds or graphs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::digest::Digest;
use crate::error::{Error, Exit, io_at};
use crate::executor::TICKET;
use crate::fault::point;
use crate::key::StageKey;

pub use action::Action;
pub use history::{RunRecord, StageRecord};
pub use lock::KeyLock;
pub use object::{Check, Entry as FileEntry, Manifest, Objects, name as object_name};
pub use prepared::{Prepared, Rest};
pub use running::{Announced, Running};
pub use stat_cache::StatCache;

use lease::Leases;

mod action;
pub mod files;
pub mod gc;
mod history;
mod lease;
mod lock;
mod object;
mod prepared;
mod running;
mod stat_cache;

/// Format of the store. A program refuses a store with a higher number.
const VERSION: u32 = 1;

/// In a work folder: what an executor elsewhere keeps.
const ELSEWHERE: &str = ".elsewhere";

/// <https://bford.info/cachedir/>: backup programs leave such a folder out.
const CACHEDIR_TAG: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of `pipe`.\n";

/// An open store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    check: Check,
    /// Where other machines may see the store.
    leases: Option<Leases>,
    /// What stages made.
    pub objects: Objects,
}

/// What the store knows of a key.
#[derive(Debug)]
pub enum Entry {
    /// It was made before, and what was made is sound.
    Hit(Box<Action>),
    /// It must be made.
    Miss(Slot),
    /// The run was asked to stop while it waited for another run.
    GivenUp,
}

/// The right, and the place, to make what a key stands for.
#[derive(Debug)]
pub struct Slot {
    store: Store,
    key: StageKey,
    /// Held until the slot is gone; the stage's process inherits it.
    pub lock: KeyLock,
    attempt: PathBuf,
    /// Whether the output folder is as an order that is still out left it.
    pub resumed: bool,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there.
    ///
    /// # Errors
    /// If it cannot be written, or was made by a newer version.
    pub fn open(root: &Path, check: Check) -> Result<Self, Error> {
        let version = root.join("version");
        match fs::read_to_string(&version) {
            Ok(text) => accept_version(root, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                for folder in ["objects", "actions", "latest", "locks", "work", "attempts", "logs", "runs"] {
                    let path = root.join(folder);
                    point("open: a folder");
                    fs::create_dir_all(&path).map_err(io_at(&path))?;
                }
                files::write_atomic(&root.join("CACHEDIR.TAG"), CACHEDIR_TAG.as_bytes())?;
                files::write_atomic(&version, format!("{VERSION}\n").as_bytes())?;
            }
            Err(error) => return Err(Error::io(&version, &error)),
        }
        let root = fs::canonicalize(root).map_err(io_at(root))?;
        let objects = Objects::new(root.join("objects"), root.join("attempts"));
        let leases = Leases::of(&root).map_err(io_at(&root))?;
        Ok(Self { root, check, leases, objects })
    }

    /// Where the store lies.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What came of `key`, if its action and its object are sound. Takes no lock.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn lookup(&self, key: &StageKey) -> Result<Option<Action>, Error> {
        let path = self.action_path(key);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Ok(None),
            Err(error) => return Err(Error::io(&path, &error)),
        };
        let Some(action) = Action::from_text(&text) else { return Ok(None) };
        Ok(self.objects.check(&action.object, self.check)?.is_ok().then_some(action))
    }

    /// Answers for `key`, waiting where another run is making it. With `force`, a hit is made again.
    /// `who` is what others that wait for this run are told.
    ///
    /// # Errors
    /// If the store cannot be used, or the wait takes longer than `patience`.
    pub fn enter(
        &self,
        key: &StageKey,
        who: &str,
        force: bool,
        patience: Option<Duration>,
        waiting: impl FnMut(&str),
        stop: impl Fn() -> bool,
    ) -> Result<Entry, Error> {
        let path = self.lock_path(key);
        let Some(lock) = KeyLock::take(&path, self.leases.as_ref(), who, patience, waiting, stop)? else {
            return Ok(Entry::GivenUp);
        };
        if !force && let Some(action) = self.lookup(key)? {
            return Ok(Entry::Hit(Box::new(action)));
        }
        // One place a key: whoever holds its lock is alone with it, and what a killed run left goes.
        let attempt = self.root.join("attempts").join(key.to_string());
        // A cluster may still be filling it.
        let resumed = self.is_ordered(key.to_string().as_ref()) && attempt.join("files").is_dir();
        if !resumed {
            files::remove_tree(&attempt)?;
        }
        let slot = Slot { store: self.clone(), key: *key, lock, attempt, resumed };
        point("enter: a folder");
        fs::create_dir_all(slot.out()).map_err(io_at(&slot.out()))?;
        Ok(Entry::Miss(slot))
    }

    /// Whether an executor elsewhere may be at work on the key called `name`.
    fn is_ordered(&self, name: &Path) -> bool {
        self.root.join("work").join(name).join(ELSEWHERE).join(TICKET).exists()
    }

    fn action_path(&self, key: &StageKey) -> PathBuf {
        self.root.join("actions").join(key.to_string())
    }

    fn lock_path(&self, key: &StageKey) -> PathBuf {
        self.root.join("locks").join(key.to_string())
    }

    fn latest_path(&self, pipeline: &str, stage: &str) -> PathBuf {
        let name = Digest::of(format!("{}:{pipeline}{stage}", pipeline.len()).as_bytes());
        self.root.join("latest").join(name.to_string())
    }

    /// The last result of a stage by its name, whatever its key was.
    #[must_use]
    pub fn latest(&self, pipeline: &str, stage: &str) -> Option<Action> {
        Action::from_text(&fs::read_to_string(self.latest_path(pipeline, stage)).ok()?)
    }

    /// Notes `action` as the last result of a stage by its name.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_latest(&self, pipeline: &str, stage: &str, action: &Action) -> Result<(), Error> {
        let path = self.latest_path(pipeline, stage);
        let text = action.to_text();
        if fs::read_to_string(&path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        files::write_quick(&path, text.as_bytes())
    }

    /// Digests of files outside the store.
    #[must_use]
    pub fn stat_cache(&self) -> StatCache {
        StatCache::load(self.root.join("stat-cache.json"))
    }

    /// The log of a key's last attempts.
    #[must_use]
    pub fn log_path(&self, key: &StageKey) -> PathBuf {
        self.root.join("logs").join(key.to_string())
    }

    /// All keys with an action file.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn keys(&self) -> Result<Vec<StageKey>, Error> {
        let folder = self.root.join("actions");
        let names = fs::read_dir(&folder).map_err(io_at(&folder))?.flatten();
        let mut keys: Vec<StageKey> =
            names.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(StageKey)).collect();
        keys.sort();
        Ok(keys)
    }

    /// Removes a key's action.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn forget(&self, key: &StageKey) -> Result<(), Error> {
        let path = self.action_path(key);
        point("forget: before");
        fs::remove_file(&path).map_err(io_at(&path))?;
        point("forget: after");
        Ok(())
    }

    /// Removes half-made outputs that no living run can be working on.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("attempts")) else { return };
        for entry in entries.flatten() {
            let old =
                entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
            if !self.is_ordered(entry.file_name().as_ref())
                && old.is_some_and(|age| age > Duration::from_secs(24 * 3600))
            {
                // Best effort: what cannot be removed now is removed by a later run.
                let _ = files::remove_tree(&entry.path());
            }
        }
    }
}

fn accept_version(root: &Path, text: &str) -> Result<(), Error> {
    match text.trim().parse::<u32>() {
        Ok(version) if version <= VERSION => Ok(()),
        Ok(version) => Err(Error::new(
            Exit::DamagedStore,
            format!(
                "the store `{}` has format {version}; this program knows up to {VERSION}",
                root.display()
            ),
        )
        .hint("use a newer `pipe`, or another store with `--store DIR`")),
        Err(_) => Err(Error::new(
            Exit::DamagedStore,
            format!("`{}` does not hold a format number", root.join("version").display()),
        )
        .hint("if this folder is a store of `pipe`, write `1` into that file; otherwise choose another")),
    }
}

impl Slot {
    /// The key.
    #[must_use]
    pub fn key(&self) -> StageKey {
        self.key
    }

    /// Where the key's lock lies.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.store.lock_path(&self.key)
    }

    /// The empty folder to fill.
    #[must_use]
    pub fn out(&self) -> PathBuf {
        self.attempt.join("files")
    }

    /// The folder that survives crashes. What is fetched needs none: [`Slot::make_work`] makes it.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.store.root.join("work").join(self.key.to_string())
    }

    /// Makes the folder that survives crashes, unless it is there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make_work(&self) -> Result<PathBuf, Error> {
        let folder = self.work();
        point("enter: a work folder");
        fs::create_dir_all(&folder).map_err(io_at(&folder))?;
        Ok(folder)
    }

    /// Whether an executor elsewhere may be filling the output folder.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.elsewhere().join(TICKET).exists()
    }

    /// The folder in which an executor elsewhere keeps what it must remember.
    #[must_use]
    pub fn elsewhere(&self) -> PathBuf {
        self.work().join(ELSEWHERE)
    }

    /// Empties the output folder for another attempt.
    ///
    /// # Errors
    /// If it cannot be emptied.
    pub fn reset(&self) -> Result<(), Error> {
        files::remove_tree(&self.out())?;
        fs::create_dir_all(self.out()).map_err(io_at(&self.out()))
    }

    /// Stores what was made. `describe` makes the action from the object's digest.
    ///
    /// # Errors
    /// If it cannot be stored: a full disk, a link in the output. The store is as before.
    pub fn commit(self, describe: impl FnOnce(Digest) -> Action) -> Result<(Action, Rest), Error> {
        let (object, unflushed) = self.store.objects.prepare(&self.attempt)?;
        let action = describe(object);
        Prepared::new(self, action, unflushed)?.store()
    }

    /// Prepares what came from elsewhere, if it is what `action` speaks of; else gives the slot back, its
    /// folder empty, to make it here.
    ///
    /// # Errors
    /// If it cannot be stored. The store is as before.
    pub fn prepare_as(self, action: Action) -> Result<Result<Prepared, Self>, Error> {
        let (object, unflushed) = self.store.objects.prepare(&self.attempt)?;
        if object != action.object {
            self.reset()?;
            return Ok(Err(self));
        }
        Prepared::new(self, action, unflushed).map(Ok)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // After a commit the attempt was renamed away; after a failure its half-made files go, unless they are
        // another machine's by now.
        if self.lock.check().is_ok() && !self.store.is_ordered(self.key.to_string().as_ref()) {
            let _ = files::remove_tree(&self.attempt);
        }
    }
}

#[cfg(test)]
mod tests;
