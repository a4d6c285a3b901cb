//! `train`: full fine-tuning (or pre-training), LoRA or DoRA of a Llama on tokenized rows.
//!
//! Thin: reads model and data, makes a [`Trainer`](crate::trainer::Trainer), and hands it to
//! `session`, which walks the steps, and `export`, which writes what is kept.
//! Names of parameters are those of transformers' `TrainingArguments` and PEFT's `LoraConfig`
//! where they have one.
//!
//! Version log: 1 first.

use std::rc::Rc;

use burn::tensor::DType;
use contract::{Config, ConfigError, Context, Input, Inputs, Job, Param, Pool, Ports, Stage, StageError};
use formats::adapter::AdapterConfig;
use formats::run::Method;
use formats::tokens::TokenSet;
use formats::weights::Dtype;
use serde::{Deserialize, Serialize};

use crate::batch::{self, Batch};
use crate::loss_scale::LossScale;
use crate::optimizer::AdamW;
use crate::ranks::{self, Ranks};
use crate::schedule::{Schedule, Shape};
use crate::trainer::{Normalisation, Options};
use crate::tuned;
use params::PARAMS;

mod export;
mod memory;
mod params;
mod resume;
mod samples;
mod session;
mod setup;

/// The kind `train`.
pub struct Train;

const VERSION: u32 = 3;

const INPUTS: &[Input] = &[
    Input::one("model", "model folder, float or quantized"),
    Input::one("data", "folder of a tokenize stage"),
    Input::optional("adapter", "PEFT folder to start from instead of a fresh adapter"),
    Input::optional("resume", "a finished train stage with `save_state`, to go on from its last step"),
    Input::optional(
        "kernels",
        "a finished train stage of a build with `autotune`, to compute with the kernels that it chose",
    ),
];

/// The parameters.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Settings {
    method: String,
    rank: usize,
    alpha: f64,
    dropout: f64,
    target_modules: Vec<String>,
    rslora: bool,
    loraplus_ratio: f64,
    lr: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    full_lr: Option<f64>,
    schedule: String,
    warmup_steps: u64,
    warmup_ratio: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    max_grad_norm: f64,
    epochs: f64,
    max_steps: u64,
    batch_size: usize,
    accumulation: usize,
    loss_normalisation: String,
    group_by_length: bool,
    packing: bool,
    pad_to_multiple_of: usize,
    seed: u64,
    save_every: u64,
    save_steps: Vec<u64>,
    save_state: bool,
    eval_every: u64,
    eval_rows: usize,
    early_stop_patience: u64,
    keep_best: bool,
    generate_every: u64,
    generate_rows: usize,
    generate_tokens: usize,
    movement_every: u64,
    checkpointing: bool,
    save_dtype: String,
    compute_dtype: String,
    device: String,
    devices: usize,
    ranks: usize,
    zero: u8,
    #[serde(skip_serializing)]
    memory_limit: f64,
    #[serde(skip_serializing)]
    checkpoint_every: u64,
}

impl Settings {
    fn method(&self) -> Method {
        match self.method.as_str() {
            "full" => Method::Full,
            "dora" => Method::Dora,
            _ => Method::Lora,
        }
    }

    fn save_dtype(&self) -> Dtype {
        match self.save_dtype.as_str() {
            "float16" => Dtype::F16,
            "bfloat16" => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }

    fn compute(&self) -> DType {
        match self.compute_dtype.as_str() {
            "float16" => DType::F16,
            "bfloat16" => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Bytes that a device has, if they were given.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at least 0; too much saturates"
    )]
    fn memory_limit(&self) -> Option<u64> {
        (self.memory_limit > 0.0).then_some((self.memory_limit * 1e9) as u64)
    }

    /// The peak learning rate.
    fn peak(&self) -> f64 {
        self.full_lr.filter(|_| self.method() == Method::Full).unwrap_or(self.lr)
    }

    /// Rows of a set as a micro-batch.
    fn batch(&self, set: &TokenSet, rows: &[usize]) -> Batch {
        let lay = if self.packing { batch::packed } else { batch::of_rows };
        lay(set, rows, self.pad_to_multiple_of)
    }

    /// The adapter that the parameters describe.
    fn adapter(&self) -> AdapterConfig {
        AdapterConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            dora: self.method() == Method::Dora,
            rslora: self.rslora,
            target_modules: self.target_modules.clone(),
            base_model: String::new(),
        }
    }

    /// How each of `total` steps is made.
    fn options(&self, total: u64) -> Options {
        let warmup = Schedule::warmup_steps(total, self.warmup_steps, self.warmup_ratio);
        let shape = Shape::by_name(&self.schedule).unwrap_or(Shape::Cosine);
        Options {
            adam: AdamW {
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: self.weight_decay,
            },
            max_grad_norm: self.max_grad_norm,
            schedule: Schedule { shape, peak: self.peak(), warmup, total },
            normalisation: Normalisation::by_name(&self.loss_normalisation).unwrap_or(Normalisation::Token),
            lora_plus: self.loraplus_ratio,
            loss_scale: match self.compute() {
                DType::F16 => LossScale::dynamic(),
                _ => LossScale::none(),
            },
            zero: self.zero > 0,
            seed: self.seed,
        }
    }

    /// Conditions across parameters.
    fn errors(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.method() != Method::Full && self.target_modules.is_empty() {
            errors.push(ConfigError::new("target_modules", "needs at least one of `q_proj` … `down_proj`"));
        }
        if self.max_steps == 0 && self.epochs <= 0.0 {
            errors.push(ConfigError::new("epochs", "must be more than 0 where `max_steps` is 0"));
        }
        if self.max_steps > 0 && self.warmup_steps > self.max_steps {
            errors.push(ConfigError::new(
                "warmup_steps",
                format!("is more than `max_steps` = {}", self.max_steps),
            ));
        }
        if let Some(late) = self.save_steps.iter().find(|&&step| self.max_steps > 0 && step > self.max_steps)
        {
            errors.push(ConfigError::new(
                "save_steps",
                format!("step {late} is after `max_steps` = {}", self.max_steps),
            ));
        }
        let by_loss = [("early_stop_patience", self.early_stop_patience > 0), ("keep_best", self.keep_best)];
        for (key, _) in by_loss.into_iter().filter(|(_, asked)| *asked && self.eval_every == 0) {
            errors.push(ConfigError::new(
                key,
                "goes by the held-out loss, which `eval_every = 0` never measures",
            ));
        }
        if self.ranks > 1 && !cfg!(feature = "mpi") {
            errors.push(ConfigError::new(
                "ranks",
                format!("is {}, and this program was built without MPI: {}", self.ranks, ranks::BUILD),
            ));
        }
        if let Err(error) = crate::device::check_request(&self.device) {
            errors.push(ConfigError::new("device", error.message));
        }
        errors
    }
}

impl Stage for Train {
    fn kind(&self) -> &'static str {
        "train"
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn doc(&self) -> &'static str {
        "trains a Llama: the whole model, LoRA or DoRA, on a float or a quantized base"
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
        let errors = settings.errors();
        if errors.is_empty() { Ok(Box::new(TrainJob { settings })) } else { Err(errors) }
    }
}

struct TrainJob {
    settings: Settings,
}

impl Job for TrainJob {
    fn preview(&self, inputs: &Inputs) -> Result<Vec<String>, StageError> {
        let plan = memory::Plan::read(&self.settings, inputs, self.settings.device == "cpu")?;
        let Some(plan) = plan else { return Ok(Vec::new()) };
        if let Some(limit) = self.settings.memory_limit() {
            plan.fits(limit, "`memory_limit` is")?;
        }
        Ok(plan.told())
    }

    fn ranks(&self) -> Option<usize> {
        Some(self.settings.ranks)
    }

    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let ranks = Rc::new(Ranks::join(self.settings.ranks)?);
        if ranks.place().rank > 0 {
            setup::follow(&self.settings, &ranks, ctx)?;
            tuned::publish(ctx.out(), ranks.place().rank)?;
            return ranks.end();
        }
        let setup = setup::prepare(&self.settings, Rc::clone(&ranks), ctx)?;
        let mut session = session::Session::start(&self.settings, setup, ctx)?;
        session.walk(ctx)?;
        session.finish(ctx)?;
        ranks.end()
    }
}
