//! A stage kind and one run of it.

use crate::{Config, ConfigError, Context, Inputs, Param, StageError};

/// A kind of stage: the word behind `kind = "…"` in a pipeline file.
pub trait Stage: Sync {
    /// The TOML `kind`, and the name of the file that implements it.
    fn kind(&self) -> &'static str;

    /// Part of the key. Raise it when equal inputs give different outputs, and log why beside it.
    fn version(&self) -> u32;

    /// One line for `pipe stages`.
    fn doc(&self) -> &'static str;

    /// Which machine resource caps how many of these run side by side.
    fn pool(&self) -> Pool;

    /// The inputs it takes by name.
    fn inputs(&self) -> Ports;

    /// The parameters it takes by name.
    fn params(&self) -> &'static [Param];

    /// Environment variables that carry secrets to it. Passed through, never in a key or a log.
    fn secrets(&self) -> &'static [&'static str] {
        &[]
    }

    /// Environment variables that say where things are for it on this machine (a mirror, a cache of other
    /// programs), not what to compute. Passed through, in no key.
    fn surroundings(&self) -> &'static [&'static str] {
        &[]
    }

    /// The reference in `config` that moves, if there is one: a branch that means another commit tomorrow.
    /// No I/O. The runner has it settled once, keeps the answer in `pipe.lock`, and puts it in the place of
    /// the parameter before there is a key; then nothing may move any more.
    fn moving(&self, config: &Config) -> Option<Moving> {
        let _ = config;
        None
    }

    /// What the moving reference in `config` means now. It may use the network; of `ctx` it may use what is
    /// for telling and stopping.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn settle(&self, config: &Config, ctx: &Context<'_>) -> Result<String, StageError> {
        let _ = (config, ctx);
        Err(StageError::new(format!("kind `{}` has nothing that moves", self.kind())))
    }

    /// Checks what [`Param`] cannot say (conditions across parameters) and makes the job.
    /// No I/O. `config` has passed `params`: types and ranges hold and defaults are filled in.
    ///
    /// # Errors
    /// All of them at once, each with the key it is about.
    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>>;
}

/// A reference that means something else over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moving {
    /// The parameter that takes what it means.
    pub param: &'static str,
    /// What it is called in `pipe.lock`, the same wherever the same is meant.
    pub name: String,
}

/// One validated run of a stage.
pub trait Job: Send {
    /// What the inputs tell before running (parameter counts, memory). Optional. For `plan` an input may
    /// be absent, or hold no more than was foreseen of it.
    ///
    /// # Errors
    /// When it is already certain that the run cannot succeed.
    fn preview(&self, inputs: &Inputs) -> Result<Vec<String>, StageError> {
        let _ = inputs;
        Ok(Vec::new())
    }

    /// Small files of the output that are known before it is made (a model's `config.json`), by name, so
    /// that stages after this one can be previewed. Optional; may hold less than the file will.
    fn foresee(&self, inputs: &Inputs) -> Vec<(String, Vec<u8>)> {
        let _ = inputs;
        Vec::new()
    }

    /// How many processes do the work together over MPI, for a kind that can. With more than one, each of
    /// them runs the job, and rank 0 alone tells events and writes files.
    fn ranks(&self) -> Option<usize> {
        None
    }

    /// Does the work: reads `ctx.input(…)`, fills `ctx.out()`, keeps resumable state in `ctx.work()`.
    ///
    /// # Errors
    /// A message for a person, with the way out as its hint. Nothing of `ctx.out()` is then kept;
    /// `ctx.work()` is, and the next run of the same key finds it as it was left.
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError>;
}

/// The machine resource a stage occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pool {
    /// Processor cores.
    Cpu,
    /// Network transfers.
    Network,
    /// Adapters: a stage takes as many as its `devices` parameter says (1 without one), for each of its
    /// ranks.
    Gpu,
}

impl Pool {
    /// The pool's name in `[pools]`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Network => "network",
            Self::Gpu => "gpu",
        }
    }
}

/// Which input names a kind takes.
#[derive(Clone, Copy, Debug)]
pub enum Ports {
    /// Exactly these.
    Listed(&'static [Input]),
    /// Any name (the `command` kind).
    Any,
}

/// One named input of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Its key in `inputs = { … }`.
    pub name: &'static str,
    /// How many artifacts may stand behind it.
    pub many: Many,
    /// One line for `pipe stages`.
    pub doc: &'static str,
}

/// How many artifacts an input takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Many {
    /// Exactly one.
    One,
    /// One or none.
    Optional,
    /// One or more: `stage[*]` or a list.
    Several,
}

impl Input {
    /// An input that must be given, once.
    #[must_use]
    pub const fn one(name: &'static str, doc: &'static str) -> Self {
        Self { name, many: Many::One, doc }
    }

    /// An input that may be left out.
    #[must_use]
    pub const fn optional(name: &'static str, doc: &'static str) -> Self {
        Self { name, many: Many::Optional, doc }
    }

    /// An input that takes one artifact or several.
    #[must_use]
    pub const fn several(name: &'static str, doc: &'static str) -> Self {
        Self { name, many: Many::Several, doc }
    }
}
