//! `merge`: a trained step and its base become one model folder that any program can load.
//!
//! LoRA: W' = W + s·BA; DoRA: W' = (m/‖W + sBA‖)·(W + sBA); a model trained as a whole is copied.
//! Tensors are fused on the host one at a time, so that a model is never whole in memory. What the
//! merge costs (another base, another element type) is measured and written to `merge.json`.
//!
//! Version log: 1 first.

use std::path::{Path, PathBuf};

use contract::{
    Config, ConfigError, Context, Default, Input, Job, Param, Pool, Ports, Stage, StageError, Type, at,
};
use formats::Dtype;
use formats::adapter::Adapter;
use formats::config::LlamaConfig;
use formats::run::{Method, RunInfo, step_dir};
use formats::weights::{self, ModelWriter, Weights};
use serde::Deserialize;
use serde_json::Value;

use crate::adapter::fuse;

mod report;

/// The kind `merge`.
pub struct Merge;

const VERSION: u32 = 2;

const INPUTS: &[Input] = &[
    Input::one("adapter", "folder of a checkpoint or train stage"),
    Input::one("model", "the base as trained, float or quantized"),
    Input::optional("original", "the float base, for `base = \"original\"` where `model` is quantized"),
];

const PARAMS: &[Param] = &[
    Param::new(
        "step",
        Type::AnyOf(&[Type::Choice(&["last", "best"]), Type::at_least(0)]),
        Default::Text("last"),
        "which saved step; `best`: that with the lowest held-out loss, if `keep_best` saved it",
    ),
    Param::new(
        "base",
        Type::Choice(&["original", "dequantized"]),
        Default::Text("original"),
        "onto the float weights, or onto what the quantized weights stand for",
    ),
    Param::new(
        "dtype",
        Type::Choice(Dtype::NAMES),
        Default::Text("float32"),
        "element type of the merged model",
    ),
    Param::new(
        "device",
        Type::Text,
        Default::Text("auto"),
        "auto | gpu | gpu:N | software | cpu: where logits are compared",
    ),
];

/// Files that travel with a model's weights, where they exist.
const TOKENIZER_FILES: &[&str] =
    &["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
struct Settings {
    step: Value,
    base: String,
    dtype: String,
    device: String,
}

impl Stage for Merge {
    fn kind(&self) -> &'static str {
        "merge"
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn doc(&self) -> &'static str {
        "fuses a trained step into its base, as a model folder; reports what that changes"
    }

    fn pool(&self) -> Pool {
        Pool::Gpu
    }

    fn inputs(&self) -> Ports {
        Ports::Listed(INPUTS)
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        crate::device::check_request(&settings.device)
            .map_err(|error| vec![ConfigError::new("device", error.message)])?;
        Ok(Box::new(MergeJob { settings }))
    }
}

struct MergeJob {
    settings: Settings,
}

impl Job for MergeJob {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let merge = Plan::new(&self.settings, ctx)?;
        merge.write(ctx)?;
        merge.copy_tokenizer(ctx.out())?;
        crate::tuned::keep(ctx.work(), 0)?;
        let opened = crate::device::open(&self.settings.device, ctx.devices().first().copied().unwrap_or(0))?;
        for (name, value) in &opened.provenance {
            ctx.provenance(name, value.clone());
        }
        report::write(&merge, ctx, &opened.device)
    }
}

/// What is merged into what.
struct Plan {
    method: Method,
    step: u64,
    /// The saved step.
    trained: PathBuf,
    /// The base as trained.
    model: PathBuf,
    /// Where the merged weights come from: the original, the base as trained, or the step itself.
    source: PathBuf,
    /// `None` where the whole model was trained.
    adapter: Option<Adapter>,
    /// Of the merged model.
    config: LlamaConfig,
}

impl Plan {
    fn new(settings: &Settings, ctx: &Context<'_>) -> Result<Self, StageError> {
        let (folder, model) = (ctx.input("adapter")?, ctx.input("model")?);
        let run = RunInfo::read(&folder)?;
        let step = chosen(&settings.step, &run, &folder)?;
        let trained = folder.join(step_dir(step));
        let base = LlamaConfig::read(&model)?;
        run.check_base(&model)?;
        let dtype = Dtype::by_name(&settings.dtype).unwrap_or_default();
        let config = LlamaConfig { dtype, quantization: None, ..base.clone() };
        let adapter = match run.method {
            Method::Full => None,
            Method::Lora | Method::Dora => Some(Adapter::read(&trained)?),
        };
        if let Some(adapter) = &adapter {
            adapter.check(&config)?;
        }
        let original = ctx.inputs.optional("original").map(Path::to_owned);
        let source = match (run.method, settings.base.as_str(), original) {
            (Method::Full, ..) => trained.clone(),
            (_, "original", Some(original)) => original,
            (_, "original", None) if let Some(quantized) = &base.quantization => {
                let format = quantized.format.name();
                return Err(StageError::new(format!(
                    "`base = \"original\"` needs the float model, and `model` is {format}"
                ))
                .hint("give the float model as the input `original`, or take `base = \"dequantized\"`"));
            }
            _ => model.clone(),
        };
        Weights::open(&source)?.check(&LlamaConfig {
            quantization: LlamaConfig::read(&source)?.quantization,
            ..config.clone()
        })?;
        Ok(Self { method: run.method, step, trained, model, source, adapter, config })
    }

    /// One linear weight of a folder as floats, with the adapter in it.
    fn fused(&self, weights: &Weights, path: &str) -> Result<Vec<f32>, StageError> {
        let (mut values, _) = weights::linear_f32(weights, &format!("{path}.weight"))?;
        if let Some(adapter) = &self.adapter
            && let Some(tensors) = adapter.modules.get(path)
        {
            fuse(&mut values, &adapter.config, tensors);
        }
        Ok(values)
    }

    /// Fuses and writes tensor by tensor.
    fn write(&self, ctx: &Context<'_>) -> Result<(), StageError> {
        let weights = Weights::open(&self.source)?;
        let linears = self.config.linear_names();
        let tensors = self.config.tensors();
        let stored = self.config.dtype.stored();
        let plan = tensors.iter().map(|(name, shape)| (name.clone(), stored, shape.clone())).collect();
        let mut writer = ModelWriter::create(ctx.out(), plan, ModelWriter::SHARD_BYTES)?;
        for (done, (name, _)) in tensors.iter().enumerate() {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            let linear = name.strip_suffix(".weight").filter(|path| linears.iter().any(|name| name == path));
            let values = match linear {
                Some(path) => self.fused(&weights, path)?,
                None => weights.f32(name)?,
            };
            writer.write(name, &self.config.dtype.encode(&values))?;
            ctx.progress(done as u64 + 1, tensors.len() as u64, "tensors", &[]);
        }
        writer.finish()?;
        Ok(self.config.write(ctx.out())?)
    }

    fn copy_tokenizer(&self, out: &Path) -> Result<(), StageError> {
        for name in TOKENIZER_FILES {
            let found = [&self.model, &self.source].map(|folder| folder.join(name));
            if let Some(from) = found.iter().find(|path| path.exists()) {
                std::fs::copy(from, out.join(name)).map_err(at(from))?;
            }
        }
        Ok(())
    }
}

/// The step that `step` names, of those that were saved.
fn chosen(step: &Value, run: &RunInfo, folder: &Path) -> Result<u64, StageError> {
    let saved = |step: &u64| run.steps.contains(step);
    let wanted = match (step.as_u64(), step.as_str()) {
        (Some(step), _) => Some(step).filter(saved),
        (None, Some("best")) => run.best_step.filter(saved),
        (None, _) => run.steps.iter().copied().max(),
    };
    wanted.ok_or_else(|| {
        let saved: Vec<String> = run.steps.iter().map(u64::to_string).collect();
        StageError::new(format!(
            "`{}` holds no step {step}; saved are: {}",
            folder.display(),
            saved.join(", ")
        ))
        .hint("one of these as `step`, or `save_steps` or `keep_best` in the train stage")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_is_chosen_by_number_or_as_the_last_or_the_best() {
        let run = |best_step| RunInfo {
            method: Method::Lora,
            steps: vec![10, 15, 20],
            total_steps: 20,
            adapter: None,
            base_digest: String::new(),
            seed: 0,
            best_step,
        };
        let chosen = |step: Value, best| chosen(&step, &run(best), Path::new("run"));
        assert_eq!(chosen(json!("last"), Some(15)).unwrap(), 20);
        assert_eq!(chosen(json!("best"), Some(15)).unwrap(), 15);
        assert_eq!(chosen(json!(10), None).unwrap(), 10);
        for (step, best) in [(json!("best"), None), (json!("best"), Some(12)), (json!(12), Some(12))] {
            let error = chosen(step, best).unwrap_err();
            assert!(error.message.ends_with("saved are: 10, 15, 20"), "{error}");
        }
    }
}
