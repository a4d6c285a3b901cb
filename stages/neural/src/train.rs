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
use contract::{
    Config, ConfigError, Context, Default, Input, Inputs, Job, Param, Pool, Ports, Stage, StageError, Type,
};
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

mod export;
mod memory;
mod resume;
mod samples;
mod session;
mod setup;

/// The kind `train`.
pub struct Train;

const VERSION: u32 = 2;

/// The linear layers of a Llama block.
const PROJECTIONS: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

const INPUTS: &[Input] = &[
    Input::one("model", "model folder, float or quantized"),
    Input::one("data", "folder of a tokenize stage"),
    Input::optional("adapter", "PEFT folder to start from instead of a fresh adapter"),
    Input::optional("resume", "a finished train stage with `save_state`, to go on from its last step"),
];

const PARAMS: &[Param] = &[
    Param::new(
        "method",
        Type::Choice(&["full", "lora", "dora"]),
        Default::Text("lora"),
        "what is trained: the whole model, LoRA (arXiv 2106.09685) or DoRA (arXiv 2402.09353)",
    ),
    Param::new("rank", Type::Int { min: 1, max: 4096 }, Default::Int(16), "r: rank of the adapter"),
    Param::new("alpha", Type::float_from(0.0), Default::Float(32.0), "α: the adapter is scaled by α/r"),
    Param::new(
        "dropout",
        Type::Float { min: 0.0, max: 0.95 },
        Default::Float(0.0),
        "share of the adapter's inputs that is dropped in training",
    ),
    Param::new(
        "target_modules",
        Type::List(&Type::Choice(PROJECTIONS)),
        Default::Texts(PROJECTIONS),
        "linear layers that get an adapter",
    ),
    Param::new("rslora", Type::Bool, Default::Bool(false), "scale by α/√r (arXiv 2312.03732)"),
    Param::new(
        "loraplus_ratio",
        Type::float_from(0.0),
        Default::Float(1.0),
        "learning rate of B over that of A (LoRA+, arXiv 2402.12354)",
    ),
    Param::new("lr", Type::float_from(0.0), Default::Float(2e-4), "peak learning rate"),
    Param::new(
        "full_lr",
        Type::float_from(0.0),
        Default::Absent,
        "peak learning rate where `method` is `full`, which in a matrix of methods needs a smaller one; else `lr`",
    ),
    Param::new(
        "schedule",
        Type::Choice(Shape::NAMES),
        Default::Text("cosine"),
        "what the rate does after the warm-up",
    ),
    Param::new(
        "warmup_steps",
        Type::at_least(0),
        Default::Int(0),
        "steps of linear warm-up; wins over `warmup_ratio`",
    ),
    Param::new(
        "warmup_ratio",
        Type::fraction(),
        Default::Float(0.0),
        "share of all steps that warms up, rounded up",
    ),
    Param::new(
        "weight_decay",
        Type::float_from(0.0),
        Default::Float(0.0),
        "decoupled decay of what is trained, norms and biases left out",
    ),
    Param::new(
        "beta1",
        Type::Float { min: 0.0, max: 0.999_999 },
        Default::Float(0.9),
        "decay of Adam's first moment",
    ),
    Param::new(
        "beta2",
        Type::Float { min: 0.0, max: 0.999_999_9 },
        Default::Float(0.999),
        "decay of Adam's second moment",
    ),
    Param::new(
        "eps",
        Type::Float { min: 1e-30, max: 1.0 },
        Default::Float(1e-8),
        "added to the root of Adam's second moment",
    ),
    Param::new(
        "max_grad_norm",
        Type::float_from(0.0),
        Default::Float(1.0),
        "longer gradients are shortened to it; 0: never",
    ),
    Param::new(
        "epochs",
        Type::float_from(0.0),
        Default::Float(1.0),
        "passes over the rows, if `max_steps` is 0",
    ),
    Param::new(
        "max_steps",
        Type::at_least(0),
        Default::Int(0),
        "optimizer steps; 0: as many as `epochs` give",
    ),
    Param::new(
        "batch_size",
        Type::Int { min: 1, max: 65_536 },
        Default::Int(8),
        "rows per micro-batch and device",
    ),
    Param::new(
        "accumulation",
        Type::Int { min: 1, max: 65_536 },
        Default::Int(1),
        "micro-batches per step and device",
    ),
    Param::new(
        "loss_normalisation",
        Type::Choice(Normalisation::NAMES),
        Default::Text("token"),
        "mean over all predicted tokens of the step, or of the means of its micro-batches",
    ),
    Param::new(
        "group_by_length",
        Type::Bool,
        Default::Bool(false),
        "rows of like length share a step: less padding",
    ),
    Param::new(
        "packing",
        Type::Bool,
        Default::Bool(false),
        "rows of a micro-batch stand behind each other where they fit, unseen by each other: the same step with less padding",
    ),
    Param::new(
        "pad_to_multiple_of",
        Type::Int { min: 1, max: 4096 },
        Default::Int(4),
        "row lengths of a batch are rounded up to it: fewer shapes to compile kernels for",
    ),
    Param::new(
        "seed",
        Type::at_least(0),
        Default::Int(42),
        "fresh adapters, order of the rows and dropout follow from it",
    ),
    Param::new(
        "save_every",
        Type::at_least(0),
        Default::Int(0),
        "keep the result of every n-th step; the last is always kept",
    ),
    Param::new(
        "save_steps",
        Type::List(&Type::at_least(1)),
        Default::Ints(&[]),
        "keep the result of these steps as well",
    ),
    Param::new(
        "save_state",
        Type::Bool,
        Default::Bool(false),
        "keep parameters and moments after the last step, for a longer run's input `resume`",
    ),
    Param::new(
        "eval_every",
        Type::at_least(0),
        Default::Int(0),
        "held-out loss every n-th step and at the last; 0: never",
    ),
    Param::new(
        "eval_rows",
        Type::at_least(0),
        Default::Int(0),
        "held-out rows for that, from the first; 0: all",
    ),
    Param::new(
        "early_stop_patience",
        Type::at_least(0),
        Default::Int(0),
        "training ends when so many evaluations in a row brought no lower held-out loss; 0: never",
    ),
    Param::new(
        "keep_best",
        Type::Bool,
        Default::Bool(false),
        "keep the result of the evaluated step with the lowest held-out loss as well",
    ),
    Param::new(
        "generate_every",
        Type::at_least(0),
        Default::Int(0),
        "answers to held-out prompts into `samples.jsonl` every n-th step and at the last; 0: never",
    ),
    Param::new(
        "generate_rows",
        Type::Int { min: 1, max: 4096 },
        Default::Int(4),
        "held-out rows for that, from the first",
    ),
    Param::new(
        "generate_tokens",
        Type::Int { min: 1, max: 4096 },
        Default::Int(64),
        "such an answer is cut off after so many tokens",
    ),
    Param::new(
        "movement_every",
        Type::at_least(0),
        Default::Int(0),
        "an adapter's ΔM and ΔD in the metrics of every n-th step; saved steps have them anyway",
    ),
    Param::new(
        "checkpointing",
        Type::Bool,
        Default::Bool(false),
        "keep block inputs only and re-run blocks in backward: less memory, a third more time",
    ),
    Param::new(
        "save_dtype",
        Type::Choice(&["float32", "float16", "bfloat16"]),
        Default::Text("float32"),
        "element type of a saved model (`method = \"full\"`); adapters are float32",
    ),
    Param::new(
        "compute_dtype",
        Type::Choice(&["float32", "float16", "bfloat16"]),
        Default::Text("float32"),
        "element type of frozen weights and activations; what is trained, and its moments, are float32",
    ),
    Param::new("device", Type::Text, Default::Text("auto"), "auto | gpu | gpu:N | software | cpu"),
    Param::new("devices", Type::Int { min: 1, max: 64 }, Default::Int(1), "adapters that share every batch"),
    Param::new(
        "ranks",
        Type::Int { min: 1, max: 4096 },
        Default::Int(1),
        "processes under MPI that share every batch, each with `devices` adapters; needs the cargo feature `mpi`",
    ),
    Param::new(
        "zero",
        Type::Int { min: 0, max: 1 },
        Default::Int(0),
        "1: several devices share out the optimizer's state and work (ZeRO-1, arXiv 1910.02054); 0: the host has it",
    ),
    Param::new(
        "memory_limit",
        Type::float_from(0.0),
        Default::Float(0.0),
        "GB that a device has, for the check before training; 0: the memory left, where that is the CPU's",
    )
    .cosmetic(),
    Param::new(
        "checkpoint_every",
        Type::at_least(1),
        Default::Int(50),
        "steps between checkpoints from which a stopped run goes on",
    )
    .cosmetic(),
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
        if self.ranks > 1 && self.zero > 0 {
            errors.push(ConfigError::new(
                "zero",
                "is 1, which is for the devices of one process; over `ranks` it must be 0: rank 0 has the optimizer's state",
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
            return ranks.end();
        }
        let setup = setup::prepare(&self.settings, Rc::clone(&ranks), ctx)?;
        let mut session = session::Session::start(&self.settings, setup, ctx)?;
        session.walk(ctx)?;
        session.finish(ctx)?;
        ranks.end()
    }
}
