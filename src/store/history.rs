//! What was run: one record a run, in the order of their names.
//!
//! A record names the keys and objects that a run used; `gc` keeps those of the last runs. It also holds
//! what a report needs and no action knows: what took what, where and when each stage ran. Fields that
//! came later have a default, so that records of earlier programs stay readable.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::write_atomic;
use super::{Action, Store};
use crate::digest::Digest;
use crate::error::{Error, io_at};
use crate::key::{Explanation, StageKey};

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
    /// Name and version of the program.
    #[serde(default)]
    pub program: String,
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
    /// The kind.
    #[serde(default)]
    pub kind: String,
    /// The name of its table in the pipeline file: `train` for `train[lora]`.
    #[serde(default)]
    pub table: String,
    /// Matrix axes and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub axes: Vec<(String, Value)>,
    /// Input name → the instances that it took.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Vec<String>>,
    /// The pool that it ran in.
    #[serde(default)]
    pub pool: String,
    /// The slots of that pool; none if it did not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<usize>,
    /// When it started, in seconds from the run's start. Absent if it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<f64>,
    /// When it ended. From `begun` on that is more than `seconds` where it waited for another run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<f64>,
    /// Why it has no output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The key's fields for a person, where no action keeps them: it has no output.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: Explanation,
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
        let path = self.lock_path(key);
        let lock = fs::File::open(&path);
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
            || self.leases.as_ref().is_some_and(|leases| leases.is_foreign(&path.with_extension("lease")))
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

    /// The run that `name` begins; the last one without a name.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn find_run(&self, name: Option<&str>) -> Result<RunRecord, Error> {
        let mut runs = self.runs()?;
        let Some(name) = name else {
            return runs.pop().ok_or_else(|| {
                Error::usage("there are no runs yet").hint("start one with `pipe run PIPELINE`")
            });
        };
        runs.retain(|run| run.id.starts_with(name));
        match runs.len() {
            1 => Ok(runs.remove(0)),
            0 => Err(Error::usage(format!("there is no run `{name}`")).hint("`pipe runs` lists them")),
            many => Err(Error::usage(format!("{many} runs begin with `{name}`"))
                .hint("write more of its name; `pipe runs` lists them")),
        }
    }

    /// The last run of a pipeline, by its file or its name.
    ///
    /// # Errors
    /// If there is none.
    pub fn last_run_of(&self, pipeline: &str) -> Result<RunRecord, Error> {
        let same_file = |file: &str| match (fs::canonicalize(file), fs::canonicalize(pipeline)) {
            (Ok(a), Ok(b)) => a == b,
            _ => file == pipeline,
        };
        let found =
            self.runs()?.into_iter().rev().find(|run| run.pipeline == pipeline || same_file(&run.file));
        found.ok_or_else(|| {
            Error::usage(format!("there is no run of `{pipeline}` in `{}`", self.root.display()))
                .hint(format!("run it: `pipe run {pipeline}`; `pipe runs` lists what was run"))
        })
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
