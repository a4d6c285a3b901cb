//! Speed and memory of a training step (forward, backward, clip, AdamW) or of generation, on the
//! shapes that `benches/peers/compare.py` also runs through PEFT and transformers. Random weights
//! and ids; every token is predicted. One line of JSON comes out.
//!
//! `cargo bench --bench model_speed -- --shape 24m --method dora`

use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use contract::StageError;
use formats::adapter::AdapterConfig;
use formats::config::{Format, LlamaConfig};
use formats::estimate::{Estimate, Training};
use formats::nf4::Nf4;
use formats::packed::Packed;
use formats::run;
use formats::weights::{self, Tensor, Weights};
use neural::batch::{Batch, SplitMix64};
use neural::device::{self, Opened};
use neural::loss_scale::LossScale;
use neural::model::Llama;
use neural::model::linear::Base;
use neural::optimizer::{self, AdamW, Slab};
use neural::packed_linear::PackedWeight;
use neural::ranks::Ranks;
use neural::replicas::{Replica, Share, Team};
use neural::schedule::{Schedule, Shape};
use neural::trainer::{Normalisation, Options, Trainer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Layers with an adapter: the paper's choice.
const TARGETS: [&str; 5] = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"];

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "24m")]
    shape: ModelShape,
    #[arg(long, default_value = "lora")]
    method: Method,
    /// Rows of a step; the shape's own where left out.
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens of a row.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    #[arg(long, default_value_t = 8)]
    rank: usize,
    #[arg(long, default_value_t = 5)]
    steps: u32,
    #[arg(long, default_value_t = 2)]
    warmup: u32,
    /// NF4 base.
    #[arg(long)]
    nf4: bool,
    /// Block-wise activation checkpointing.
    #[arg(long)]
    checkpointing: bool,
    /// As `pipe devices` names it.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Instead of training, continue a prompt of 16 tokens by so many, one row.
    #[arg(long)]
    generate: Option<usize>,
    /// Also what gradients, update and the way back to the model take by themselves.
    #[arg(long)]
    parts: bool,
    /// Cargo hands this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModelShape {
    /// The quickstart's: hidden 96, 2 layers, vocabulary of 300.
    Quickstart,
    /// Hidden 288, 6 layers, vocabulary of 32,000.
    #[value(name = "24m")]
    M24,
    /// Hidden 768, 12 layers, vocabulary of 32,000.
    #[value(name = "134m")]
    M134,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Full,
    Lora,
    Dora,
}

impl ModelShape {
    /// vocabulary, hidden, intermediate, layers, heads; rows of a step
    fn numbers(self) -> ([usize; 5], usize) {
        match self {
            Self::Quickstart => ([300, 96, 256, 2, 4], 32),
            Self::M24 => ([32_000, 288, 768, 6, 6], 4),
            Self::M134 => ([32_000, 768, 2048, 12, 12], 2),
        }
    }

    fn config(self, positions: usize) -> String {
        let [vocab, hidden, intermediate, layers, heads] = self.numbers().0;
        format!(
            r#"{{ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": {vocab}, "hidden_size": {hidden},
            "intermediate_size": {intermediate}, "num_hidden_layers": {layers}, "num_attention_heads": {heads},
            "num_key_value_heads": {heads}, "max_position_embeddings": {positions}, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32" }}"#
        )
    }
}

fn main() -> Result<(), StageError> {
    let arguments = Arguments::parse();
    let opened = device::open(&arguments.device, 0)?;
    let dir = tempfile::tempdir()?;
    write_model(dir.path(), &arguments)?;
    forget_peak();
    if let Some(most) = arguments.generate {
        return generate(dir.path(), &arguments, &opened, most);
    }
    let replica = || replica(dir.path(), &arguments, &opened);
    let mut trainer = Trainer::new(Team::One(Box::new(replica()?)), Ranks::alone().into(), options())?;
    let trainable: usize = trainer.layouts().iter().map(|layout| layout.len).sum();
    let batches: Vec<Batch> = (0..8).map(|seed| batch(seed, &arguments)).collect();
    let pick = |index: u32| batches[index as usize % 8].clone();
    let mut seconds = Vec::new();
    let (mut busy, mut loss) = (Duration::ZERO, f64::NAN);
    for index in 0..arguments.warmup + arguments.steps {
        if index == arguments.warmup {
            busy = processor();
        }
        let start = Instant::now();
        loss = trainer.step(vec![vec![pick(index)]])?.loss;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let busy = (processor() - busy).as_secs_f64() / f64::from(arguments.steps);
    let mut seconds = seconds.split_off(arguments.warmup as usize);
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tokens = batches[0].ids.len();
    let mut line = serde_json::json!({
        "device": opened.label, "batch": batches[0].rows, "seq": arguments.seq, "trainable": trainable,
        "median_step_s": median, "min_step_s": seconds[0], "cpu_s_per_step": busy,
        "tokens_per_s": tokens as f64 / median, "peak_rss_mib": peak_memory(),
        "estimate_mib": estimate(dir.path(), &arguments)?.total() >> 20, "loss": loss,
    });
    if arguments.parts {
        drop(trainer);
        line["parts_s"] = parts(replica()?, &batches, arguments.steps)?;
    }
    println!("{line}");
    Ok(())
}

fn generate(dir: &Path, arguments: &Arguments, opened: &Opened, most: usize) -> Result<(), StageError> {
    let replica = replica(dir, arguments, opened)?;
    let mut seconds = Vec::new();
    for _ in 0..arguments.warmup + arguments.steps {
        let start = Instant::now();
        let answers = neural::generate::greedy(replica.model(), &[(3..19).collect()], most, &[], |_| Ok(()))?;
        assert_eq!(answers[0].len(), most, "nothing stops it early");
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut seconds = seconds.split_off(arguments.warmup as usize);
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!(
        "{}",
        serde_json::json!({ "device": opened.label, "tokens_per_s": most as f64 / median, "peak_rss_mib": peak_memory() })
    );
    Ok(())
}

/// Seconds a step of what a step is made of, each by itself.
fn parts(mut replica: Replica, batches: &[Batch], steps: u32) -> Result<serde_json::Value, StageError> {
    let pick = |index: u32| batches[index as usize % 8].clone();
    let share = |index: u32| Share { batches: vec![pick(index)], factors: vec![1e-3], keys: vec![1] };
    let timed = |work: &mut dyn FnMut(u32) -> Result<(), StageError>| -> Result<f64, StageError> {
        let start = Instant::now();
        (0..steps).try_for_each(work)?;
        Ok(start.elapsed().as_secs_f64() / f64::from(steps))
    };
    let gradients = timed(&mut |index| {
        device::read(replica.gradients(&share(index))?.grads.remove(0).slice_dim(0, 0..1)).map(drop)
    })?;
    let evaluate = timed(&mut |index| device::read_all(replica.losses(&[pick(index)])?).map(drop))?;
    let grads = replica.gradients(&share(0))?.grads;
    let mut slabs: Vec<Slab> = replica.groups().into_iter().map(|(_, params)| Slab::new(params)).collect();
    let adam = options().adam;
    let update = timed(&mut |index| {
        let factor = optimizer::clip_factor(optimizer::norm_squared(&grads), 1.0);
        for (slab, grad) in slabs.iter_mut().zip(&grads) {
            adam.update(slab, grad.clone() * factor.clone(), 1e-3, u64::from(index) + 1);
        }
        device::read(slabs[0].params.clone().slice_dim(0, 0..1)).map(drop)
    })?;
    let params: Vec<_> = slabs.iter().map(|slab| slab.params.clone()).collect();
    let set = timed(&mut |_| {
        replica.set(&params);
        device::read(replica.model().norm.weight.clone().slice_dim(0, 0..1)).map(drop)
    })?;
    Ok(
        serde_json::json!({ "gradients": gradients, "clip_and_adamw": update, "set_and_refresh": set, "forward_only": evaluate }),
    )
}

/// Processor time of all threads so far, in steps of 10 ms; 0 where `/proc` is not.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks =
        stat.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    Duration::from_millis(10 * ticks)
}

/// Writing the model took memory too, which is not to be measured.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory that the process has held since, MiB; 0 where `/proc` is not.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

fn options() -> Options {
    Options {
        adam: AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        max_grad_norm: 1.0,
        schedule: Schedule { shape: Shape::Constant, peak: 1e-4, warmup: 0, total: 1000 },
        normalisation: Normalisation::Token,
        lora_plus: 1.0,
        loss_scale: LossScale::none(),
        seed: 1,
        zero: false,
    }
}

fn replica(dir: &Path, arguments: &Arguments, opened: &Opened) -> Result<Replica, StageError> {
    let mut llama = Llama::load(dir, &opened.device)?;
    if arguments.nf4 {
        let weights = Weights::open(dir)?;
        for linear in llama.linears_mut() {
            let packed = Nf4::quantize(&weights.f32(&format!("{}.weight", linear.path))?, linear.shape, true);
            linear.base_norm = neural::adapter::row_norms(&packed.dequantize(), linear.shape[1]);
            linear.base = Base::Packed(PackedWeight::new(&Packed::Nf4(packed), &opened.device));
        }
    }
    if arguments.method != Method::Full {
        let config = AdapterConfig {
            rank: arguments.rank,
            alpha: 16.0,
            dropout: 0.0,
            dora: arguments.method == Method::Dora,
            rslora: false,
            target_modules: TARGETS.map(str::to_owned).into(),
            base_model: String::new(),
        };
        let adapter = llama.fresh_adapter(&config, 1)?;
        llama.attach(&adapter)?;
    }
    Ok(Replica::new(llama, arguments.checkpointing))
}

/// What `pipe plan` would say of this training.
fn estimate(dir: &Path, arguments: &Arguments) -> Result<Estimate, StageError> {
    let config = LlamaConfig::read(dir)?;
    let training = Training {
        method: match arguments.method {
            Method::Full => run::Method::Full,
            Method::Lora => run::Method::Lora,
            Method::Dora => run::Method::Dora,
        },
        rank: arguments.rank,
        targets: TARGETS.map(str::to_owned).into(),
        packed: arguments.nf4.then_some(Format::Nf4 { double: true }),
        element: 4,
        rows: arguments.batch.unwrap_or(arguments.shape.numbers().1) as u64,
        length: arguments.seq as u64,
        checkpointing: arguments.checkpointing,
        devices: 1,
        zero: false,
        fused: arguments.device == "cpu",
    };
    Ok(Estimate::new(&config, &training))
}

fn batch(seed: u64, arguments: &Arguments) -> Batch {
    let ([vocab, ..], rows) = arguments.shape.numbers();
    let mut random = SplitMix64(seed);
    let mut row = || (0..arguments.seq).map(|_| random.below(vocab as u64) as u32).collect::<Vec<u32>>();
    let rows: Vec<Vec<u32>> = (0..arguments.batch.unwrap_or(rows)).map(|_| row()).collect();
    Batch::ragged(rows.iter().map(|ids| (ids.as_slice(), 0)), 1)
}

fn write_model(dir: &Path, arguments: &Arguments) -> Result<(), StageError> {
    let config = LlamaConfig::parse(
        &arguments.shape.config(arguments.seq.max(16 + arguments.generate.unwrap_or(0))),
        &dir.join("config.json"),
    )?;
    config.write(dir)?;
    let mut random = SplitMix64(3);
    let mut value = |wide: bool| {
        if wide { ((random.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.07 } else { 1.0 }
    };
    let tensors = config.tensors().into_iter().map(|(name, shape)| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value(shape.len() > 1)).collect();
        Tensor::f32(name, shape, values)
    });
    Ok(weights::save(&dir.join(weights::SINGLE), tensors.collect(), &[])?)
}
