//! A pipeline file: TOML text → checked, expanded stage instances.
//!
//! Pure but for [`Pipeline::load`], which reads the one file. It knows nothing of keys, the store or
//! processes. Every value keeps its place in the text until the end, so that each error points at
//! file, line and column, and all errors of a file are found in one go.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use contract::{Config, Stage};
use serde_json::Value;

pub use diagnostics::Diagnostics;

use crate::error::Error;
use crate::registry::Registry;

mod diagnostics;

/// A checked and expanded pipeline.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Its `name`, else the file's stem.
    pub name: String,
    /// `[pools]`: how many stages of a pool may run side by side. Not part of any key.
    pub pools: BTreeMap<String, usize>,
    /// The stages, matrices expanded: in the order of the file, instances in the order of the matrix.
    /// Producers may stand behind their consumers.
    pub instances: Vec<Instance>,
}

/// The name of an instance: `train`, or `train[lora]` where the stage has a matrix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageId(pub String);

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One stage with one set of matrix values.
#[derive(Clone)]
pub struct Instance {
    /// Its name, unique in the pipeline.
    pub id: StageId,
    /// The name of its table: `train` for `train[lora]`.
    pub stage: String,
    /// Matrix axes and values, in the order of the file.
    pub axes: Vec<(String, Value)>,
    /// What runs it.
    pub kind: &'static dyn Stage,
    /// Its parameters: interpolated, type-checked, defaults filled in.
    pub config: Config,
    /// Input name → producers, in the order of the file and the matrix.
    pub inputs: BTreeMap<String, Vec<InputRef>>,
    /// After how long an attempt is stopped.
    pub timeout: Option<Duration>,
    /// How many more attempts follow a failed one.
    pub retries: u32,
    /// Environment variables that reach the stage and belong to its key.
    pub env: BTreeMap<String, EnvVar>,
    /// Where its table starts.
    pub origin: Place,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("id", &self.id.0)
            .field("kind", &self.kind.kind())
            .field("config", &self.config)
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

/// One artifact that an instance takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRef {
    /// The instance whose output it is.
    pub producer: StageId,
    /// What tells it from its siblings: the producer's matrix values joined with `,`, else the
    /// producer's name as written.
    pub label: String,
}

/// A variable of a stage's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvVar {
    /// Passed through from the runner's environment.
    Pass,
    /// Set to this text.
    Set(String),
}

/// A place in a text, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: String,
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Pipeline {
    /// Reads and expands the file at `path`. `sets` are the texts of `--set NAME=VALUE`.
    ///
    /// # Errors
    /// If the file cannot be read, or with everything that is wrong in it.
    pub fn load(path: &Path, sets: &[String], registry: &Registry) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(crate::error::io_at(path))?;
        Ok(Self::parse(&path.display().to_string(), &text, sets, registry)?)
    }
}
