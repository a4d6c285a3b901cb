//! A PEFT adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Source: PEFT 0.21 `tuners/lora/config.py` and `utils/save_and_load.py`. Keys are
//! `base_model.model.<module>.lora_A.weight`, `.lora_B.weight`, and `.lora_magnitude_vector` without
//! `.weight`. Written in single precision always: a magnitude of about 1 and a step of 4e-4 is no
//! step in 16 bits.
//!
//! It does not know how an adapter computes.

mod settings;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::LlamaConfig;
use crate::json::{text, write_durably};
use crate::weights::{Tensor, Weights, save};
use crate::{Error, Result};

/// File of the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File of the tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";

/// The settings of a LoRA or DoRA adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// r: rows of A, columns of B.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// Share of the branch's input that is zeroed while training.
    pub dropout: f64,
    /// Whether there is a magnitude (DoRA).
    pub dora: bool,
    /// Whether the scale is α/√r (Kalajdzievski, arXiv 2312.03732).
    pub rslora: bool,
    /// Projections by name (`q_proj`), the same in every block.
    pub target_modules: Vec<String>,
    /// Where the base came from; may be empty.
    pub base_model: String,
}

impl AdapterConfig {
    /// What stands before B·A: α/r, or α/√r with rsLoRA.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        if self.rslora { self.alpha / rank.sqrt() } else { self.alpha / rank }
    }

    /// Reads `adapter_config.json` of a folder.
    ///
    /// # Errors
    /// If it is missing, not JSON, or holds a setting that is wrong or not understood, by its name.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::parse(&text(&path)?, &path)
    }

    /// Writes `adapter_config.json` into a folder.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json()).expect("plain values serialize") + "\n";
        write_durably(&dir.join(CONFIG_FILE), text.as_bytes())
    }
}

/// The adapter of one linear layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterTensors {
    /// Columns of the layer's weight.
    pub in_features: usize,
    /// Rows of the layer's weight.
    pub out_features: usize,
    /// A `[r, in]`, row-major.
    pub a: Vec<f32>,
    /// B `[out, r]`, row-major.
    pub b: Vec<f32>,
    /// m `[out]`, with DoRA.
    pub magnitude: Option<Vec<f32>>,
}

/// A whole adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Its settings.
    pub config: AdapterConfig,
    /// Module path in the base model (`model.layers.0.self_attn.q_proj`) → tensors.
    pub modules: BTreeMap<String, AdapterTensors>,
}

impl Adapter {
    /// Reads a folder.
    ///
    /// # Errors
    /// If a file is missing or damaged, a setting is not understood, or tensors and settings do not
    /// fit each other.
    pub fn read(dir: &Path) -> Result<Self> {
        let config = AdapterConfig::read(dir)?;
        let path = dir.join(TENSORS_FILE);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(Error::new(dir, "the adapter is pickled (`adapter_model.bin`)")
                .hint("save it as safetensors with PEFT"));
        }
        let weights = Weights::open(&path)?;
        let mut modules = BTreeMap::new();
        for key in weights.names() {
            let module = module_of(key, &path)?;
            if !modules.contains_key(module) {
                modules.insert(module.to_owned(), read_module(&weights, module, &config, &path)?);
            }
        }
        if modules.is_empty() {
            return Err(Error::new(&path, "it holds no adapter"));
        }
        for target in &config.target_modules {
            if !modules.keys().any(|module| projection(module) == target) {
                return Err(Error::new(&path, format!("no tensors for the target module `{target}`")));
            }
        }
        Ok(Self { config, modules })
    }

    /// Writes a folder that PEFT loads.
    ///
    /// # Errors
    /// If the disk says no, or a tensor's length does not fit its shape.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(crate::error::at(dir))?;
        let rank = self.config.rank;
        let mut tensors = Vec::with_capacity(3 * self.modules.len());
        for (module, parts) in &self.modules {
            let key = |part: &str| format!("{PREFIX}{module}.{part}");
            tensors.push(Tensor::f32(key("lora_A.weight"), [rank, parts.in_features], parts.a.clone()));
            tensors.push(Tensor::f32(key("lora_B.weight"), [parts.out_features, rank], parts.b.clone()));
            if let Some(magnitude) = &parts.magnitude {
                tensors.push(Tensor::f32(
                    key("lora_magnitude_vector"),
                    [parts.out_features],
                    magnitude.clone(),
                ));
            }
        }
        save(&dir.join(TENSORS_FILE), tensors, &[])?;
        self.config.write(dir)
    }

    /// Holds the adapter against the base model: every target in every block, nothing besides,
    /// shapes right.
    ///
    /// # Errors
    /// The first module that does not fit.
    pub fn check(&self, config: &LlamaConfig) -> Result<()> {
        let wrong = |message: String| {
            Err(Error::new(Path::new(""), message).hint("adapter and base belong to different models"))
        };
        let targets = &self.config.target_modules;
        let wanted: Vec<String> = config
            .linear_names()
            .into_iter()
            .filter(|module| targets.iter().any(|target| target == projection(module)))
            .collect();
        for module in &wanted {
            let Some(tensors) = self.modules.get(module) else {
                return wrong(format!("the adapter has no tensors for `{module}`"));
            };
            let found = [tensors.out_features, tensors.in_features];
            let shape = config.linear_shape(module).expect("every linear name has a shape");
            if found != shape {
                return wrong(format!("the adapter of `{module}` is for {found:?}, the base has {shape:?}"));
            }
        }
        match self.modules.keys().find(|module| !wanted.contains(module)) {
            Some(module) => wrong(format!("the adapter is for `{module}`, which the base does not have")),
            None => Ok(()),
        }
    }

    /// How many parameters it trains.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let count = |parts: &AdapterTensors| {
            parts.a.len() + parts.b.len() + parts.magnitude.as_ref().map_or(0, Vec::len)
        };
        self.modules.values().map(|parts| count(parts) as u64).sum()
    }
}

/// The last part of a module path.
fn projection(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The module that a key belongs to.
fn module_of<'a>(key: &'a str, path: &Path) -> Result<&'a str> {
    let parts = [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"];
    key.strip_prefix(PREFIX)
        .and_then(|rest| parts.iter().find_map(|part| rest.strip_suffix(part)))
        .filter(|module| !module.is_empty())
        .ok_or_else(|| {
            Error::new(path, format!("the tensor `{key}` is not understood"))
                .hint("an adapter holds `lora_A.weight`, `lora_B.weight` and, for DoRA, `lora_magnitude_vector` of linear layers")
        })
}

fn read_module(
    weights: &Weights,
    module: &str,
    config: &AdapterConfig,
    path: &Path,
) -> Result<AdapterTensors> {
    let key = |part: &str| format!("{PREFIX}{module}.{part}");
    let (a_key, b_key, m_key) = (key("lora_A.weight"), key("lora_B.weight"), key("lora_magnitude_vector"));
    if !config.target_modules.iter().any(|target| target == projection(module)) {
        return Err(Error::new(path, format!("`{module}` has tensors and is none of `target_modules`")));
    }
    let ([a_rank, in_features], [out_features, b_rank]) = (weights.matrix(&a_key)?, weights.matrix(&b_key)?);
    for (key, found) in [(&a_key, a_rank), (&b_key, b_rank)] {
        if found != config.rank {
            let rank = config.rank;
            return Err(Error::new(
                path,
                format!("`{key}` has the rank {found}, `{CONFIG_FILE}` says `r` = {rank}"),
            ));
        }
    }
    let magnitude = match (config.dora, weights.contains(&m_key)) {
        (true, _) => {
            let shape = weights.shape(&m_key)?;
            if shape != [out_features] {
                let message = format!("`{m_key}` has the shape {shape:?} and should have [{out_features}]");
                return Err(Error::new(path, message));
            }
            Some(weights.f32(&m_key)?)
        }
        (false, true) => {
            let message = format!("`{m_key}` is there, but `use_dora` is `false` in `{CONFIG_FILE}`");
            return Err(Error::new(path, message));
        }
        (false, false) => None,
    };
    let (a, b) = (weights.f32(&a_key)?, weights.f32(&b_key)?);
    Ok(AdapterTensors { in_features, out_features, a, b, magnitude })
}
