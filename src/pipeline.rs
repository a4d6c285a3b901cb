//! A pipeline file: TOML text → checked, expanded stage instances.
//!
//! Pure but for [`Pipeline::load`], which reads the one file. It knows nothing of keys, the store or
//! processes. Every value keeps its place in the text until the end, so that each error points at
//! file, line and column, and all errors of a file are found in one go.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use contract::{Config, Pool, Stage};
use serde_json::Value;

#[cfg(test)]
pub(crate) use check::default_fits;
pub use check::{default, describe};
pub use diagnostics::Diagnostics;
pub use duration::duration;
pub use form::RUNNER_KEYS;
pub use resources::{Resources, Slurm};

use crate::error::Error;
use crate::registry::Registry;
use diagnostics::{Source, Span};

mod axes;
mod check;
mod diagnostics;
mod document;
mod duration;
mod form;
mod instance;
mod interpolate;
mod matrix;
pub(crate) mod near;
mod reference;
mod resources;
mod set;
mod settings;
#[cfg(test)]
mod tests;

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
    /// What it asks of the machine that runs it; in no key.
    pub resources: Resources,
    /// Where its table starts.
    pub origin: Place,
}

impl Instance {
    /// How many processes it is, where its kind knows more than one.
    #[must_use]
    pub fn ranks(&self) -> Option<usize> {
        self.kind.plan(&self.config).ok()?.ranks()
    }

    /// The pool that it takes slots of: its kind's, but `gpu` where it asks for GPUs.
    #[must_use]
    pub fn pool(&self) -> Pool {
        if self.resources.gpus.is_some() { Pool::Gpu } else { self.kind.pool() }
    }
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

    /// Expands `text`, which is called `file` in messages. `sets` are the texts of `--set NAME=VALUE`.
    ///
    /// # Errors
    /// Everything that is wrong in it, each with its place.
    pub fn parse(file: &str, text: &str, sets: &[String], registry: &Registry) -> Result<Self, Diagnostics> {
        let sets = sets.iter().map(|set| Source::new("--set", set.as_str()));
        let sources = std::iter::once(Source::new(file, text)).chain(sets);
        let sources: Arc<Vec<Source>> = Arc::new(sources.collect());
        let mut errors = Vec::new();
        let pipeline = expand(file, &sources, registry, &mut errors);
        match pipeline {
            Some(pipeline) if errors.is_empty() => Ok(pipeline),
            _ => Err(Diagnostics::new(sources, errors)),
        }
    }
}

fn expand(
    file: &str,
    sources: &[Source],
    registry: &Registry,
    errors: &mut Vec<diagnostics::Diagnostic>,
) -> Option<Pipeline> {
    let mut root = document::parse(&sources[0].text, errors)?;
    set::apply(&mut root, sources, errors);
    let form = form::read(root, registry, sources, errors);
    let heads: Vec<(String, Span)> =
        form.stages.iter().map(|stage| (stage.name.clone(), stage.span.clone())).collect();
    let names = heads.iter().enumerate().map(|(number, (name, _))| (name.as_str(), number));
    let index: HashMap<&str, usize> = names.collect();
    let instances = axes::resolve(&form, &index, sources, errors);
    let vars = &form.vars;
    let expansion =
        instance::Expansion { vars, heads: &heads, index: &index, instances: &instances, sources };
    let rows = expansion.instances.iter().flatten().map(|instances| instances.rows.rows.len());
    let mut instances = Vec::with_capacity(rows.sum());
    // Each stage's text is let go as its instances come to be: a large file never stands in memory twice.
    for (number, stage) in form.stages.into_iter().enumerate() {
        instances.extend(expansion.stage(number, &stage, errors));
    }
    let stem = || Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = form.name.or_else(stem).unwrap_or_else(|| "pipeline".into());
    Some(Pipeline { name, pools: form.pools, instances })
}
