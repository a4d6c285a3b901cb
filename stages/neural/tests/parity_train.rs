//! Training runs against those of torch, transformers and PEFT: loss, gradient norm and learning
//! rate of every step, and the adapters of the saved ones.
//!
//! Everything comes from the fixture's own files: shapes from tensors, numbers of the recipe from
//! the README's sentence, the rest from `log.json`. `PIPE_FIXTURES=DIR` takes another set of the
//! same form. Tolerances are a few times the distance to a float64 run that `log.json` states.
//! Sets of our own (rsLoRA, LoRA+, 16-bit compute) have the same form and lie in
//! tests/fixtures/own, whatever `PIPE_FIXTURES` says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use formats::adapter::Adapter;
use formats::nf4::Nf4;
use formats::packed::Packed;
use formats::weights::Weights;
use neural::adapter::row_norms;
use neural::batch::Batch;
use neural::device::{self, Opened};
use neural::loss_scale::LossScale;
use neural::model::Llama;
use neural::model::linear::Base;
use neural::optimizer::AdamW;
use neural::packed_linear::PackedWeight;
use neural::ranks::Ranks;
use neural::replicas::{Replica, Team};
use neural::schedule::{Schedule, Shape};
use neural::trainer::{Normalisation, Options, Report, Trainer};
use serde_json::Value;

/// How many times the stated float64 distance may lie between two float32 programs.
const TIMES: f64 = 5.0;

fn fixtures() -> PathBuf {
    std::env::var_os("PIPE_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"), PathBuf::from)
}

fn software() -> Option<Opened> {
    match device::open("software", 0) {
        Ok(opened) => Some(opened),
        Err(error) if std::env::var("PIPE_REQUIRE_WGPU").is_ok_and(|v| v == "1") => {
            panic!("PIPE_REQUIRE_WGPU=1, and {error}")
        }
        Err(error) => {
            eprintln!("SKIPPED on wgpu: {error}");
            None
        }
    }
}

/// The numbers right after `word` in the README.
fn numbers(text: &str, word: &str) -> Vec<f64> {
    let start = text.find(word).unwrap_or_else(|| panic!("the README does not say `{word}`")) + word.len();
    let rest = text[start..].trim_start_matches([' ', '(', '\n']);
    let end = rest.find(|c: char| !(c.is_ascii_digit() || ".,e-".contains(c))).unwrap_or(rest.len());
    rest[..end].split(',').filter_map(|number| number.trim_end_matches('.').parse().ok()).collect()
}

struct Recipe {
    peak: f64,
    warmup: u64,
    total: u64,
    betas: [f64; 2],
    eps: f64,
    clip: f64,
}

impl Recipe {
    fn read(readme: &str) -> Self {
        let one = |word| *numbers(readme, word).first().unwrap_or_else(|| panic!("no number after `{word}`"));
        let betas = numbers(readme, "betas");
        Self {
            peak: one("peak lr"),
            warmup: one("warmup(warmup") as u64,
            total: one(", total") as u64,
            betas: [betas[0], betas[1]],
            eps: one(" eps"),
            clip: one("clip_grad_norm_"),
        }
    }

    fn options(&self, log: &Value) -> Options {
        let token = log["loss_reduction"].as_str().expect("text").contains("token");
        Options {
            adam: AdamW {
                beta1: self.betas[0],
                beta2: self.betas[1],
                eps: self.eps,
                weight_decay: log["weight_decay"].as_f64().expect("number"),
            },
            max_grad_norm: self.clip,
            schedule: Schedule {
                shape: Shape::Cosine,
                peak: self.peak,
                warmup: self.warmup,
                total: self.total,
            },
            normalisation: if token { Normalisation::Token } else { Normalisation::MicroBatchMean },
            lora_plus: log["loraplus_ratio"].as_f64().unwrap_or(1.0),
            loss_scale: if log["dtype"] == "float16" { LossScale::dynamic() } else { LossScale::none() },
            zero: false,
            seed: 0,
        }
    }
}

fn model(base: &Path, log: &Value, opened: &Opened) -> Llama {
    let quantized = log["kind"] == "qdora";
    let compute = match log["dtype"].as_str() {
        Some("float16") => DType::F16,
        Some("bfloat16") => DType::BF16,
        _ => DType::F32,
    };
    let mut llama = Llama::load_frozen(base, &opened.device, compute).expect("the base loads");
    if quantized {
        let weights = Weights::open(base).expect("weights");
        for linear in llama.linears_mut() {
            let values = weights.f32(&format!("{}.weight", linear.path)).expect("weight");
            let packed = Nf4::quantize(&values, linear.shape, true);
            linear.base_norm = row_norms(&packed.dequantize(), linear.shape[1]);
            linear.base = Base::Packed(PackedWeight::new(&Packed::Nf4(packed), &opened.device));
        }
    }
    llama
}

/// `[step][micro-batch]`
fn batches(path: &Path) -> Vec<Vec<Batch>> {
    let weights = Weights::open(path).expect("batches");
    let shape = weights.shape("input_ids").expect("shape").to_vec();
    let [_, micro, rows, time] = shape[..] else { panic!("batches of shape {shape:?}") };
    let read = |name: &str| weights.ints(name).expect("integers");
    let (ids, attention, labels) = (read("input_ids"), read("attention_mask"), read("labels"));
    let all = ids.chunks(rows * time).zip(attention.chunks(rows * time)).zip(labels.chunks(rows * time));
    let all: Vec<Batch> =
        all.map(|((ids, attention), labels)| Batch::dense(rows, ids, attention, labels)).collect();
    all.chunks(micro).map(<[Batch]>::to_vec).collect()
}

#[derive(Default, Debug)]
struct Worst {
    loss: f64,
    grad_norm: f64,
    lr: f64,
    adapter: f64,
}

fn check_report(report: &Report, wanted: &Value, worst: &mut Worst) {
    let number = |key: &str| wanted[key].as_f64().expect("number");
    worst.loss = worst.loss.max((report.loss - number("loss")).abs());
    worst.grad_norm = worst.grad_norm.max((report.grad_norm / number("grad_norm") - 1.0).abs());
    worst.lr = worst.lr.max((report.lr - number("lr")).abs());
    let labels: u64 =
        wanted["label_tokens"].as_array().expect("list").iter().map(|n| n.as_u64().expect("count")).sum();
    assert_eq!(report.label_tokens, labels, "label tokens of step {}", report.step);
}

fn check_adapter(trainer: &Trainer, folder: &Path, worst: &mut Worst) {
    let wanted = Weights::open(&folder.join("adapter_model.safetensors")).expect("adapter");
    let found: BTreeMap<String, Vec<f32>> =
        trainer.tensors().expect("read").into_iter().map(|(leaf, values)| (leaf.name, values)).collect();
    let names: Vec<&str> = wanted.names().collect();
    assert_eq!(names.len(), found.len());
    for name in names {
        let values = wanted.f32(name).expect("tensor");
        let ours = found.get(name).unwrap_or_else(|| panic!("`{name}` was not trained"));
        let far = values.iter().zip(ours).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        worst.adapter = worst.adapter.max(far);
    }
}

fn run(folder: &Path, variant: &Path, opened: &Opened, checkpointing: bool) {
    let readme = std::fs::read_to_string(folder.join("README.md")).expect("README");
    let log: Value =
        serde_json::from_str(&std::fs::read_to_string(variant.join("log.json")).expect("log")).expect("JSON");
    let base = readme
        .split_whitespace()
        .skip_while(|word| *word != "Base")
        .nth(1)
        .expect("the README names its base");
    let mut llama = model(&folder.join(base.trim_end_matches(['.', ','])), &log, opened);
    llama.attach(&Adapter::read(&folder.join("init")).expect("init")).expect("fits");
    let team = Team::One(Box::new(Replica::new(llama, checkpointing)));
    let mut trainer =
        Trainer::new(team, Ranks::alone().into(), Recipe::read(&readme).options(&log)).expect("trainer");
    let mut worst = Worst::default();
    let (mut saved, steps) = (0, log["steps"].as_array().expect("steps"));
    for (micro, wanted) in batches(&folder.join("batches.safetensors")).into_iter().zip(steps) {
        let report = trainer.step(vec![micro]).expect("step");
        check_report(&report, wanted, &mut worst);
        let step = variant.join(format!("step-{:02}", report.step));
        if step.exists() {
            check_adapter(&trainer, &step, &mut worst);
            saved += 1;
        }
    }
    assert!(saved > 0, "no saved step under {}", variant.display());
    let stated = |key: &str| log[key].as_f64().expect("number");
    let name = variant.strip_prefix(folder.parent().expect("parent")).expect("inside").display().to_string();
    println!(
        "{name} on {}: loss {:.1e} (f64 {:.1e}), grad norm {:.1e} (f64 {:.1e}), lr {:.1e}, adapter {:.1e} (f64 {:.1e})",
        opened.label,
        worst.loss,
        stated("loss_max_abs_diff_vs_f64"),
        worst.grad_norm,
        stated("grad_norm_max_rel_diff_vs_f64"),
        worst.lr,
        worst.adapter,
        stated("final_tensor_max_abs_diff_vs_f64")
    );
    assert!(worst.lr < 1e-12, "{name}: lr");
    assert!(worst.loss <= TIMES * stated("loss_max_abs_diff_vs_f64"), "{name}: loss {worst:?}");
    assert!(
        worst.grad_norm <= TIMES * stated("grad_norm_max_rel_diff_vs_f64"),
        "{name}: grad norm {worst:?}"
    );
    assert!(worst.adapter <= TIMES * stated("final_tensor_max_abs_diff_vs_f64"), "{name}: adapter {worst:?}");
}

/// Every variant in a fixture's folder.
fn all_variants(fixture: &str, opened: &Opened, checkpointing: bool) {
    variants_of(&fixtures().join(fixture), opened, checkpointing);
}

fn variants_of(folder: &Path, opened: &Opened, checkpointing: bool) {
    let mut variants: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("fixture")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.join("log.json").exists())
        .collect();
    variants.sort();
    assert!(!variants.is_empty(), "no variant under {}", folder.display());
    variants.iter().for_each(|variant| run(folder, variant, opened, checkpointing));
}

fn cpu() -> Opened {
    device::open("cpu", 0).expect("the embedded backend is always there")
}

#[test]
fn parity_lora_train_on_flex() {
    all_variants("lora-train", &cpu(), false);
}

#[test]
fn parity_dora_train_on_flex() {
    all_variants("dora-train", &cpu(), false);
}

#[test]
fn parity_qdora_train_on_flex() {
    all_variants("qdora-train", &cpu(), false);
}

#[test]
fn parity_qdora_train_with_checkpointing_on_flex() {
    all_variants("qdora-train", &cpu(), true);
}

#[test]
fn parity_lora_train_on_wgpu() {
    if let Some(opened) = software() {
        all_variants("lora-train", &opened, false);
    }
}

#[test]
fn parity_dora_train_on_wgpu() {
    if let Some(opened) = software() {
        all_variants("dora-train", &opened, false);
    }
}

#[test]
fn parity_qdora_train_on_wgpu() {
    if let Some(opened) = software() {
        all_variants("qdora-train", &opened, false);
    }
}

/// The sets of our own; those in 16 bit only where the device computes so.
fn own(opened: &Opened) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/own");
    let all = std::fs::read_dir(root).expect("own fixtures").map(|entry| entry.expect("entry").path());
    let mut sets: Vec<PathBuf> = all.filter(|path| path.join("batches.safetensors").exists()).collect();
    sets.sort();
    let bf16 = opened.device.supports_dtype(DType::BF16);
    sets.retain(|path| bf16 || !path.ends_with("bf16-train") && !path.ends_with("bf16-dora-train"));
    sets
}

#[test]
fn own_sets_of_peft_are_followed_on_flex() {
    let (cpu, mut seen) = (cpu(), 0);
    for folder in own(&cpu) {
        variants_of(&folder, &cpu, false);
        seen += 1;
    }
    assert_eq!(seen, 5, "rsLoRA, LoRA+, bf16, bf16 DoRA, f16");
}

#[test]
fn own_sets_of_peft_are_followed_on_wgpu() {
    let Some(opened) = software() else { return };
    let sets = own(&opened);
    assert!(sets.len() >= 2, "rsLoRA and LoRA+ at least");
    sets.iter().for_each(|folder| variants_of(folder, &opened, false));
}
