//! How long a training step takes, and where: the quickstart's model (hidden 96, 2 layers, 0.25M
//! parameters, 32 rows of 30 tokens, NF4 base for adapters) on the CPU backend or a named device.
//!
//! `cargo run --release -p neural --example step_time -- [device]`

use std::time::{Duration, Instant};

use contract::StageError;
use formats::adapter::AdapterConfig;
use formats::config::LlamaConfig;
use formats::nf4::Nf4;
use formats::weights::{self, Tensor};
use neural::batch::{Batch, SplitMix64};
use neural::device::{self, Opened};
use neural::loss_scale::LossScale;
use neural::model::Llama;
use neural::model::linear::Base;
use neural::nf4_linear::Nf4Weight;
use neural::optimizer::{self, AdamW, Slab};
use neural::replicas::{Replica, Share, Team};
use neural::schedule::{Schedule, Shape};
use neural::trainer::{Normalisation, Options, Trainer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONFIG: &str = r#"{ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300, "hidden_size": 96, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32" }"#;
const STEPS: u32 = 60;

fn main() -> Result<(), StageError> {
    let request = std::env::args().nth(1).unwrap_or_else(|| "cpu".into());
    let opened = device::open(&request, 0)?;
    let dir = std::env::temp_dir().join(format!("step-time-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    write_model(&dir)?;
    println!("{}; milliseconds a step, mean of {STEPS}", opened.label);
    println!("method   step   (processor)   gradients   norm+clip+AdamW   slices+refresh   evaluate");
    for method in ["full", "lora", "dora"] {
        let [step, busy, gradients, update, set, evaluate] =
            measure(&dir, method, &opened)?.map(|time| time.as_secs_f64() * 1e3);
        println!(
            "{method:6} {step:6.2} {busy:13.2} {gradients:11.2} {update:17.2} {set:16.2} {evaluate:10.2}"
        );
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn measure(dir: &std::path::Path, method: &str, opened: &Opened) -> Result<[Duration; 6], StageError> {
    let mut trainer = Trainer::new(Team::One(Box::new(replica(dir, method, opened)?)), options())?;
    let batches: Vec<Batch> = (0..8).map(batch).collect();
    let pick = |index: u32| batches[index as usize % 8].clone();
    for index in 0..5 {
        trainer.step(vec![vec![pick(index)]])?;
    }
    let busy = processor();
    let step = timed(|index| trainer.step(vec![vec![pick(index)]]).map(drop))?;
    let busy = (processor() - busy) / STEPS;
    let evaluate = timed(|index| trainer.evaluate(&[pick(index)]).map(drop))?;
    let mut replica = replica(dir, method, opened)?;
    let share = |index: u32| Share { batches: vec![pick(index)], factors: vec![1e-3], keys: vec![1] };
    let gradients = timed(|index| {
        device::read(replica.gradients(&share(index))?.grads.remove(0).slice_dim(0, 0..1)).map(drop)
    })?;
    let grads = replica.gradients(&share(0))?.grads;
    let mut slabs: Vec<Slab> = replica.groups().into_iter().map(|(_, params)| Slab::new(params)).collect();
    let adam = options().adam;
    let update = timed(|index| {
        let squared = optimizer::norm_squared(&grads);
        let factor = optimizer::clip_factor(squared, 1.0);
        for (slab, grad) in slabs.iter_mut().zip(&grads) {
            adam.update(slab, grad.clone() * factor.clone(), 1e-3, u64::from(index) + 1);
        }
        device::read(slabs[0].params.clone().slice_dim(0, 0..1)).map(drop)
    })?;
    let params: Vec<_> = slabs.iter().map(|slab| slab.params.clone()).collect();
    let set = timed(|_| {
        replica.set(&params);
        device::read(replica.model().norm.weight.clone().slice_dim(0, 0..1)).map(drop)
    })?;
    Ok([step, busy, gradients, update, set, evaluate])
}

/// Processor time of all threads so far, in steps of 10 ms; 0 where `/proc` is not.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks =
        stat.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    Duration::from_millis(10 * ticks)
}

fn timed(mut work: impl FnMut(u32) -> Result<(), StageError>) -> Result<Duration, StageError> {
    let start = Instant::now();
    (0..STEPS).try_for_each(&mut work)?;
    Ok(start.elapsed() / STEPS)
}

fn options() -> Options {
    Options {
        adam: AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
        max_grad_norm: 1.0,
        schedule: Schedule { shape: Shape::Constant, peak: 1e-3, warmup: 0, total: 1000 },
        normalisation: Normalisation::Token,
        lora_plus: 1.0,
        loss_scale: LossScale::none(),
        zero: false,
        seed: 1,
    }
}

fn replica(dir: &std::path::Path, method: &str, opened: &Opened) -> Result<Replica, StageError> {
    let mut llama = Llama::load(dir, &opened.device)?;
    if method != "full" {
        let weights = weights::Weights::open(dir)?;
        for linear in llama.linears_mut() {
            let packed = Nf4::quantize(&weights.f32(&format!("{}.weight", linear.path))?, linear.shape, true);
            linear.base_norm = neural::adapter::row_norms(&packed.dequantize(), linear.shape[1]);
            linear.base = Base::Nf4(Nf4Weight::new(&packed, &opened.device));
        }
        let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let config = AdapterConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            dora: method == "dora",
            rslora: false,
            target_modules: targets.map(str::to_owned).into(),
            base_model: String::new(),
        };
        let adapter = llama.fresh_adapter(&config, 1)?;
        llama.attach(&adapter)?;
    }
    Ok(Replica::new(llama, false))
}

fn batch(seed: u64) -> Batch {
    let mut random = SplitMix64(seed);
    let rows: Vec<Vec<u32>> =
        (0..32).map(|_| (0..24 + random.below(7)).map(|_| random.below(300) as u32).collect()).collect();
    Batch::ragged(rows.iter().map(|ids| (ids.as_slice(), ids.len() - 8)), 4)
}

fn write_model(dir: &std::path::Path) -> Result<(), StageError> {
    let config = LlamaConfig::parse(CONFIG, &dir.join("config.json"))?;
    config.write(dir)?;
    let mut random = SplitMix64(3);
    let mut value = |wide: bool| {
        if wide { ((random.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.1 } else { 1.0 }
    };
    let tensors = config.tensors().into_iter().map(|(name, shape)| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value(shape.len() > 1)).collect();
        Tensor::f32(name, shape, values)
    });
    Ok(weights::save(&dir.join(weights::SINGLE), tensors.collect(), &[])?)
}
