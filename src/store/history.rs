//! What was run: one record a run, in the order of their names.
//!
//! A record names the keys and objects that a run used; `gc` keeps those of the last runs.

use std::fs;

use serde::{Deserialize, Serialize};

use super::files::write_atomic;
use super::{Action, Store};
use crate::digest::Digest;
use crate::error::{Error, io_at};
use crate::key::StageKey;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its name: the time it started and a few digits, so that names sort by time.
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file as it was given.
    pub file: String,
    /// The texts of `--set`.
    pub set: Vec<String>,
    /// When it started, ISO-8601 UTC.
    pub started: String,
    /// How long it took.
    pub seconds: f64,
    /// Its exit code.
    pub exit: u8,
    /// Its stages, in the pipeline's order.
    pub stages: Vec<StageRecord>,
}

/// How one stage of a run went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// The instance.
    pub stage: String,
    /// `done`, `cached`, `failed`, `cancelled` or `skipped`.
    pub state: String,
    /// Its key, if it came that far.
    pub key: Option<Digest>,
    /// Its output, if it has one.
    pub object: Option<Digest>,
    /// How long it ran; 0 if it was cached.
    pub seconds: f64,
}

impl RunRecord {
    /// A name for a run that starts now: unique where runs of one second differ in process.
    #[must_use]
    pub fn name(started: jiff::Timestamp) -> String {
        format!("{}-{:05}", started.strftime("%Y%m%d-%H%M%S"), std::process::id() % 100_000)
    }
}

impl Store {
    /// The stored result of a key, unchecked: to be talked about, not used.
    #[must_use]
    pub fn action(&self, key: &StageKey) -> Option<Action> {
        Action::from_text(&fs::read_to_string(self.action_path(key)).ok()?)
    }

    /// Whether some process makes what `key` stands for right now.
    #[must_use]
    pub fn is_running(&self, key: &StageKey) -> bool {
        let lock = fs::File::open(self.root.join("locks").join(key.to_string()));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Whether an attempt that did not finish left something to go on from.
    #[must_use]
    pub fn has_work(&self, key: &StageKey) -> bool {
        let folder = fs::read_dir(self.root.join("work").join(key.to_string()));
        folder.is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Notes a run.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_run(&self, record: &RunRecord) -> Result<(), Error> {
        let text = serde_json::to_vec(record).expect("a record is plain data");
        write_atomic(&self.root.join("runs").join(format!("{}.json", record.id)), &text)
    }

    /// All runs, the oldest first. A record that cannot be read is left out: it is of use to people only.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn runs(&self) -> Result<Vec<RunRecord>, Error> {
        let folder = self.root.join("runs");
        let entries = fs::read_dir(&folder).map_err(io_at(&folder))?.flatten();
        // Others are half-made: what a killed run was about to note.
        let paths = entries.map(|entry| entry.path());
        let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut runs: Vec<RunRecord> =
            paths.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect();
        runs.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(runs)
    }

    /// Removes the record of a run.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn forget_run(&self, id: &str) -> Result<(), Error> {
        let path = self.root.join("runs").join(format!("{id}.json"));
        fs::remove_file(&path).map_err(io_at(&path))
    }
}
