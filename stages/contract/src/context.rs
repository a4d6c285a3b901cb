//! What a running job is given.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::{Event, StageError, Table, at};

/// One input as it lies on disk: a file or a folder, read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What tells it from its siblings: the matrix values (`lora`, `dora,8`), else the name as
    /// written in `inputs`.
    pub label: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// Input name → artifacts, in the order of the pipeline file and the matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(pub BTreeMap<String, Vec<Artifact>>);

impl Inputs {
    /// The one artifact behind `name`.
    ///
    /// # Errors
    /// If there is none or more than one.
    pub fn one(&self, name: &str) -> Result<&Path, StageError> {
        match self.all(name) {
            [artifact] => Ok(&artifact.path),
            other => {
                Err(StageError::new(format!("input `{name}` needs one artifact and has {}", other.len())))
            }
        }
    }

    /// The artifact behind `name`, if it was given.
    #[must_use]
    pub fn optional(&self, name: &str) -> Option<&Path> {
        self.all(name).first().map(|artifact| artifact.path.as_path())
    }

    /// All artifacts behind `name`.
    #[must_use]
    pub fn all(&self, name: &str) -> &[Artifact] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Takes what a job tells.
pub trait Reporter: Sync {
    /// Takes one event.
    fn report(&self, event: Event);
}

/// Everything a running job can see and say.
pub struct Context<'a> {
    /// The stage's inputs.
    pub inputs: Inputs,
    out: PathBuf,
    work: PathBuf,
    devices: Vec<usize>,
    reporter: &'a dyn Reporter,
    stop: &'a AtomicBool,
}

impl<'a> Context<'a> {
    /// A context for one attempt. `out` is empty; `work` is what the last attempt of the key left.
    #[must_use]
    pub fn new(
        inputs: Inputs,
        out: PathBuf,
        work: PathBuf,
        devices: Vec<usize>,
        reporter: &'a dyn Reporter,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { inputs, out, work, devices, reporter, stop }
    }

    /// The one artifact behind `name`.
    ///
    /// # Errors
    /// If there is none or more than one.
    pub fn input(&self, name: &str) -> Result<PathBuf, StageError> {
        self.inputs.one(name).map(Path::to_owned)
    }

    /// The empty folder to fill. What stands in it when the job returns `Ok` is the result.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// A folder that survives crashes, one per key: partial downloads, training state.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The slots of the `gpu` pool that this job was given: indices into the machine's adapters.
    #[must_use]
    pub fn devices(&self) -> &[usize] {
        &self.devices
    }

    /// Whether the job was asked to stop. Look often; then save, and return
    /// [`StageError::cancelled`].
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells how far the job is. `total` is 0 if not known; `metrics` are current figures.
    pub fn progress(&self, done: u64, total: u64, unit: &str, metrics: &[(&str, f64)]) {
        let metrics = metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        self.reporter.report(Event::Progress { done, total, unit: unit.to_owned(), metrics });
    }

    /// Tells something worth reading once.
    pub fn note(&self, text: impl Into<String>) {
        self.reporter.report(Event::Note { text: text.into() });
    }

    /// Writes to the log alone, for those who look there.
    pub fn log(&self, text: &str) {
        // A stage's standard error is its log. Where it cannot be written to, the stage goes on.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Tells something that may be wrong.
    pub fn warn(&self, text: impl Into<String>) {
        self.reporter.report(Event::Warning { text: text.into() });
    }

    /// Tells where the job ran.
    pub fn provenance(&self, name: &str, value: impl Into<String>) {
        self.reporter.report(Event::Provenance { name: name.to_owned(), value: value.into() });
    }

    /// Stores a table that the runner shows when the run ends, also when it was cached.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn summary(&self, table: &Table) -> Result<(), StageError> {
        let path = self.out.join(Table::FILE);
        let text = serde_json::to_string_pretty(table)?;
        std::fs::write(&path, text).map_err(at(&path))
    }
}
