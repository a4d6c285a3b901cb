//! Whether a training fits: [`formats::estimate`] for the settings, told before the first weight is
//! read, and held against what there is.
//!
//! How much memory an adapter has, wgpu does not say: there `memory_limit` decides, if it is given. The
//! CPU backend goes by what the operating system has left, in this process's control group.

use std::path::Path;

use contract::{Inputs, StageError};
use formats::adapter::AdapterConfig;
use formats::config::LlamaConfig;
use formats::estimate::{Estimate, Training, bytes};
use formats::run::Method;
use formats::tokens::{TokenMeta, TokenSet};
use serde_json::Value;

use super::Settings;

/// What decides on a training's memory, as far as it is known.
pub struct Plan {
    config: LlamaConfig,
    training: Training,
}

impl Plan {
    /// From the inputs; `None` as long as there is no `config.json`.
    ///
    /// # Errors
    /// If a file is damaged.
    pub fn read(settings: &Settings, inputs: &Inputs, fused: bool) -> Result<Option<Self>, StageError> {
        let Some(model) = inputs.optional("model").filter(|model| model.join("config.json").exists()) else {
            return Ok(None);
        };
        let config = LlamaConfig::read(model)?;
        let (mut rank, mut targets) = (settings.rank, settings.target_modules.clone());
        if let Some(adapter) = inputs.optional("adapter").filter(|adapter| adapter.exists()) {
            let given = AdapterConfig::read(adapter)?;
            (rank, targets) = (given.rank, given.target_modules);
        }
        let longest = match inputs.optional("data") {
            Some(data) => longest(data)?,
            None => None,
        };
        let longest = longest.unwrap_or(usize::MAX).min(config.max_position_embeddings);
        let training = Training {
            method: settings.method(),
            rank,
            targets,
            packed: config.quantization.as_ref().map(|quantization| quantization.format),
            element: settings.compute().size() as u64,
            rows: settings.batch_size as u64,
            length: longest.next_multiple_of(settings.pad_to_multiple_of) as u64,
            checkpointing: settings.checkpointing,
            devices: (settings.devices * settings.ranks) as u64,
            zero: settings.zero > 0,
            fused,
        };
        Ok(Some(Self { config, training }))
    }

    /// Parameters, and memory by what it is for.
    pub fn told(&self) -> Vec<String> {
        let (config, training) = (&self.config, &self.training);
        let all = config.parameters();
        let trained = match training.method {
            Method::Full => all,
            method => config.adapter_parameters(training.rank, &training.targets, method == Method::Dora),
        };
        let estimate = Estimate::new(config, training);
        let parts: Vec<String> =
            estimate.parts().iter().map(|(name, size)| format!("{name} {}", bytes(*size))).collect();
        vec![
            format!("trains {trained} parameters on a model of {all}"),
            format!(
                "takes about {} {}: {}; for {} rows of {} tokens",
                bytes(estimate.total()),
                if training.devices > 1 { "on each device" } else { "on its device" },
                parts.join(", "),
                training.rows,
                training.length
            ),
        ]
    }

    /// Says no to what cannot fit into `limit`, of which `whose` is known.
    ///
    /// # Errors
    /// If it does not fit, with what to change.
    pub fn fits(&self, limit: u64, whose: &str) -> Result<(), StageError> {
        let total = |training: &Training| Estimate::new(&self.config, training).total();
        let needed = total(&self.training);
        if needed <= limit {
            return Ok(());
        }
        let ways: Vec<String> = self
            .training
            .smaller()
            .into_iter()
            .map(|(text, training)| (text, total(&training)))
            .map(|(text, size)| {
                format!("{text} takes {}{}", bytes(size), if size > limit { ", still too much" } else { "" })
            })
            .collect();
        let ways =
            if ways.is_empty() { "a smaller model or `rank` is needed".into() } else { ways.join("; ") };
        Err(StageError::new(format!(
            "this training takes about {}, and {whose} {}",
            bytes(needed),
            bytes(limit)
        ))
        .hint(format!("{ways}. `memory_limit` overrules what is counted as there")))
    }
}

/// The longest row to train on: of the rows, or, before they are there, where they are cut off.
fn longest(data: &Path) -> Result<Option<usize>, StageError> {
    let rows = data.join(TokenSet::TRAIN);
    if rows.exists() {
        return Ok(Some(TokenSet::longest(&rows)?));
    }
    let meta = std::fs::read(data.join(TokenMeta::FILE)).ok();
    let meta: Option<Value> = meta.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(meta.and_then(|meta| usize::try_from(meta.get("cutoff")?.as_u64()?).ok()))
}

/// Bytes that this process may still take: what the system has left, and its control group.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let number = |name: &str| {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok()
    };
    let group = number("memory.max").zip(number("memory.current"));
    Some(group.map_or(system, |(most, used)| system.min(most.saturating_sub(used))))
}
