//! `run.json`: what `train` and `checkpoint` tell the stages after them about their folders.
//!
//! It does not know how training goes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::adapter::AdapterConfig;
use crate::json::{text, write_durably};
use crate::weights::Weights;
use crate::{Error, Result};

/// What was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// All weights.
    Full,
    /// A low-rank adapter (Hu et al., arXiv 2106.09685).
    Lora,
    /// The same with a trained magnitude (Liu et al., arXiv 2402.09353).
    Dora,
}

impl Method {
    /// All names.
    pub const NAMES: &'static [&'static str] = &["full", "lora", "dora"];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Lora => "lora",
            Self::Dora => "dora",
        }
    }

    /// The method of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Full, Self::Lora, Self::Dora].into_iter().find(|method| method.name() == name)
    }
}

/// What a folder of saved steps is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// What was trained.
    pub method: Method,
    /// The saved steps that stand in the folder, ascending.
    pub steps: Vec<u64>,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The adapter's settings; absent if all weights were trained.
    pub adapter: Option<AdapterConfig>,
    /// [`Weights::digest`] of the base model as trained; empty where nobody knows.
    pub base_digest: String,
    /// The run's seed.
    pub seed: u64,
    /// The step with the lowest held-out loss; absent if none was measured. Saved if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
}

impl RunInfo {
    /// Its file in the folder of `train` and of `checkpoint`.
    pub const FILE: &'static str = "run.json";

    /// Reads it from a folder.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(Self::FILE);
        serde_json::from_str(&text(&path)?).map_err(|error| {
            Error::new(&path, error.to_string())
                .hint("the folder should be the output of `train` or `checkpoint`")
        })
    }

    /// Holds a model folder against the base that was trained on.
    ///
    /// # Errors
    /// If it holds other weights: an adapter means nothing on another base.
    pub fn check_base(&self, model: &Path) -> Result<()> {
        if self.base_digest.is_empty() || Weights::open(model)?.digest()? == self.base_digest {
            return Ok(());
        }
        Err(Error::new(
            model,
            format!("these are not the weights that the {} run was trained on", self.method.name()),
        )
        .hint("give the model that the train stage had as its `model`, quantized if that was"))
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain values serialize") + "\n";
        write_durably(&dir.join(Self::FILE), text.as_bytes())
    }
}

/// The folder of one saved step: `step-000100`.
#[must_use]
pub fn step_dir(step: u64) -> String {
    format!("step-{step:06}")
}
