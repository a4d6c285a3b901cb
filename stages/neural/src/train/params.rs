//! The parameters of `train`, with defaults and what they mean.

use contract::{Default, Param, Type};

use crate::schedule::Shape;
use crate::trainer::Normalisation;

/// The linear layers of a Llama block.
const PROJECTIONS: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// All of them.
pub const PARAMS: &[Param] = &[
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
        "1: the devices of all ranks share out the optimizer's state and work (ZeRO-1, arXiv 1910.02054); 0: the host, that of rank 0, has it",
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
