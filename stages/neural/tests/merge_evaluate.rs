//! The kinds `merge` and `evaluate` run as the runner runs them: on a model folder, a folder of
//! saved steps and tokenized rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use contract::{Artifact, Config, Context, Default, Event, Inputs, Reporter, Stage, StageError, Table};
use formats::adapter::Adapter;
use formats::config::{Format, LlamaConfig, QuantizationConfig};
use formats::nf4::Nf4;
use formats::run::{Method, RunInfo, step_dir};
use formats::tokens::{TokenRow, TokenSet};
use formats::weights::{self, Dtype, Tensor, Weights};
use neural::evaluate::Evaluate;
use neural::merge::Merge;
use serde_json::{Map, Value, json};

struct Silent(Mutex<Vec<Event>>);

impl Reporter for Silent {
    fn report(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

fn fixtures() -> PathBuf {
    std::env::var_os("PIPE_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"), PathBuf::from)
}

/// Runs a kind with its defaults under what is given.
fn run(stage: &dyn Stage, inputs: &[(&str, &[&Path])], given: Value, out: &Path) -> Result<(), StageError> {
    let mut map = Map::new();
    for param in stage.params() {
        let value = match param.default {
            Default::Int(value) => json!(value),
            Default::Text(value) => json!(value),
            other => panic!("`{}` has the default {other:?}", param.name),
        };
        map.insert(param.name.into(), value);
    }
    map.insert("device".into(), json!("cpu"));
    map.extend(given.as_object().unwrap().clone());
    let job = stage.plan(&Config(map)).unwrap();
    std::fs::create_dir_all(out).unwrap();
    let artifact = |path: &&Path| Artifact {
        label: path.file_name().unwrap().to_string_lossy().into(),
        path: path.to_path_buf(),
    };
    let inputs: BTreeMap<String, Vec<Artifact>> = inputs
        .iter()
        .map(|(name, paths)| ((*name).to_owned(), paths.iter().map(artifact).collect()))
        .collect();
    let (told, stop) = (Silent(Mutex::default()), AtomicBool::new(false));
    let work = out.with_extension("work");
    job.run(&mut Context::new(Inputs(inputs), out.to_owned(), work, Vec::new(), &told, &stop))
}

/// A checkpoint folder around one of PEFT's adapters.
fn checkpoint(dir: &Path, method: Method) -> PathBuf {
    let folder = dir.join(format!("checkpoint-{}", method.name()));
    let adapter = Adapter::read(&fixtures().join(format!("{}-step", method.name()))).unwrap();
    let step = folder.join(step_dir(7));
    std::fs::create_dir_all(&step).unwrap();
    adapter.write(&step).unwrap();
    let info = RunInfo {
        method,
        steps: vec![7],
        total_steps: 7,
        adapter: Some(adapter.config),
        base_digest: String::new(),
        seed: 1,
        best_step: None,
    };
    info.write(&folder).unwrap();
    folder
}

/// The fixture's model with its linear weights in NF4.
fn quantized(dir: &Path) -> PathBuf {
    let (from, folder) = (fixtures().join("tiny-llama"), dir.join("nf4"));
    let config = LlamaConfig::read(&from).unwrap();
    let weights = Weights::open(&from).unwrap();
    let linears = config.linear_names();
    let (mut tensors, mut packed) = (Vec::new(), Vec::new());
    for (name, shape) in config.tensors() {
        let values = weights.f32(&name).unwrap();
        match name.strip_suffix(".weight").filter(|path| linears.iter().any(|linear| linear == path)) {
            Some(_) => packed.push((Nf4::quantize(&values, [shape[0], shape[1]], true), name)),
            None => tensors.push(Tensor::f32(name, shape, values)),
        }
    }
    tensors.extend(packed.iter().flat_map(|(weight, name)| weight.tensors(name)));
    std::fs::create_dir_all(&folder).unwrap();
    weights::save(&folder.join("model.safetensors"), tensors, &[]).unwrap();
    let quantization = Some(QuantizationConfig::new(Format::Nf4 { double: true }, Dtype::F32));
    LlamaConfig { quantization, ..config }.write(&folder).unwrap();
    folder
}

fn report(out: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("merge.json")).unwrap()).unwrap()
}

#[test]
fn parity_merge_stage_writes_pefts_merged_weights() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures().join("tiny-llama");
    for method in [Method::Lora, Method::Dora] {
        let adapter = checkpoint(dir.path(), method);
        let out = dir.path().join(format!("merged-{}", method.name()));
        run(&Merge, &[("adapter", &[&adapter]), ("model", &[&model])], json!({}), &out).unwrap();
        let (merged, base) = (Weights::open(&out).unwrap(), Weights::open(&model).unwrap());
        let golden = fixtures().join(format!("merge/{}-merged.safetensors", method.name()));
        let golden = Weights::open(&golden).unwrap();
        merged.check(&LlamaConfig::read(&out).unwrap()).unwrap();
        for (name, _) in LlamaConfig::read(&out).unwrap().tensors() {
            let expected = if golden.contains(&name) { golden.f32(&name) } else { base.f32(&name) }.unwrap();
            let ours = merged.f32(&name).unwrap();
            let far = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            assert!(far.fold(0.0, f32::max) <= 1e-6, "`{name}`");
        }
        let report = report(&out);
        assert_eq!(report["weights"]["max_abs"], 0.0);
        assert!(report["logits"]["max_abs"].as_f64().unwrap() < 2e-5, "{report}");
        assert_eq!(report["same_token"], 1.0);
    }
}

#[test]
fn merging_onto_nf4_tells_what_the_choice_of_base_costs() {
    let dir = tempfile::tempdir().unwrap();
    let (model, original) = (quantized(dir.path()), fixtures().join("tiny-llama"));
    let adapter = checkpoint(dir.path(), Method::Dora);
    let mut costs = Vec::new();
    for base in ["dequantized", "original"] {
        let out = dir.path().join(base);
        let inputs: [(&str, &[&Path]); 3] =
            [("adapter", &[&adapter]), ("model", &[&model]), ("original", &[&original])];
        run(&Merge, &inputs, json!({ "base": base, "dtype": "bfloat16" }), &out).unwrap();
        let config = LlamaConfig::read(&out).unwrap();
        assert!(config.quantization.is_none() && config.dtype == Dtype::Bf16);
        costs.push(report(&out)["weights"]["relative_rms"].as_f64().unwrap());
    }
    // bfloat16 keeps 8 bits: at most 2⁻⁹ off; the NF4 error of normal weights is about 8 %.
    assert!(costs[0] > 0.0 && costs[0] < 0.002, "dequantized: {}", costs[0]);
    assert!(costs[1] > 0.04 && costs[1] < 0.15, "original: {}", costs[1]);
}

#[test]
fn a_merge_that_cannot_be_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let model = quantized(dir.path());
    let adapter = checkpoint(dir.path(), Method::Lora);
    let inputs: [(&str, &[&Path]); 2] = [("adapter", &[&adapter]), ("model", &[&model])];
    let error = run(&Merge, &inputs, json!({}), &dir.path().join("a")).unwrap_err();
    assert!(error.message.contains("`model` is NF4"), "{error}");
    assert!(error.hint.unwrap().contains("`original`"));
    let given = json!({ "base": "dequantized", "step": 8 });
    let error = run(&Merge, &inputs, given, &dir.path().join("b")).unwrap_err();
    assert!(error.message.contains("no step 8") && error.message.contains('7'), "{error}");
}

#[test]
fn an_adapter_is_not_merged_into_a_base_it_was_not_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let (original, model) = (fixtures().join("tiny-llama"), quantized(dir.path()));
    let adapter = checkpoint(dir.path(), Method::Dora);
    let mut info = RunInfo::read(&adapter).unwrap();
    info.base_digest = Weights::open(&model).unwrap().digest().unwrap();
    info.write(&adapter).unwrap();
    let merge = |model: &Path, out: &str| {
        let inputs: [(&str, &[&Path]); 2] = [("adapter", &[&adapter]), ("model", &[model])];
        run(&Merge, &inputs, json!({ "base": "dequantized" }), &dir.path().join(out))
    };
    let error = merge(&original, "other").unwrap_err();
    assert!(error.message.contains("not the weights that the dora run was trained on"), "{error}");
    merge(&model, "same").unwrap();
}

/// A tokenizer whose token k is the word `wK`, tokenized rows, and their texts.
fn exam(dir: &Path, model: &Path, answers: &[Vec<u32>], prompts: &[Vec<u32>]) -> (PathBuf, PathBuf) {
    let (base, data) = (dir.join("base-model"), dir.join("data"));
    std::fs::create_dir_all(&base).unwrap();
    std::fs::create_dir_all(&data).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(name), base.join(name)).unwrap();
    }
    let vocab: Map<String, Value> = (0..512).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    std::fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let words = |ids: &[u32]| ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ");
    let rows: Vec<Value> = prompts
        .iter()
        .zip(answers)
        .map(|(prompt, answer)| json!({ "instruction": words(prompt), "input": "", "output": words(answer) }))
        .collect();
    std::fs::write(data.join("heldout.json"), Value::from(rows).to_string()).unwrap();
    let rows = prompts.iter().zip(answers).map(|(prompt, answer)| TokenRow {
        ids: prompt.iter().chain(answer).copied().collect(),
        prompt_len: prompt.len(),
        turns: Vec::new(),
    });
    let set = TokenSet { rows: rows.collect(), mask_prompt: true };
    set.write(&data.join(TokenSet::HELDOUT)).unwrap();
    (base, data)
}

#[test]
fn evaluate_counts_the_answers_that_match() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures().join("tiny-llama");
    let device = burn::tensor::Device::flex();
    let llama = neural::model::Llama::load(&model, &device).unwrap();
    let prompts: Vec<Vec<u32>> =
        (0..40u32).map(|row| (0..3 + row % 4).map(|k| 5 + row * 7 + k * 3).collect()).collect();
    let mut answers = neural::generate::greedy(&llama, &prompts, 4, &[2], |_| Ok(())).unwrap();
    assert!(answers.iter().all(|answer| answer.len() == 4), "no row ends early with this model");
    // Ten of forty are made wrong: the rest is what the model says.
    answers.iter_mut().take(10).for_each(|answer| answer[0] = (answer[0] + 1) % 512);
    let (base, data) = exam(dir.path(), &model, &answers, &prompts);
    let lora = checkpoint(dir.path(), Method::Lora);
    let merged = dir.path().join("merged");
    run(&Merge, &[("adapter", &[&lora]), ("model", &[&base])], json!({}), &merged).unwrap();
    assert!(merged.join("tokenizer.json").exists(), "the tokenizer travels with the weights");

    let out = dir.path().join("out");
    let given = json!({ "max_new_tokens": 4, "rows": 0 });
    run(&Evaluate, &[("base", &[&base]), ("models", &[&base, &merged]), ("data", &[&data])], given, &out)
        .unwrap();
    let marks: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("evaluation.json")).unwrap()).unwrap();
    assert_eq!(marks[0]["label"], "base");
    assert_eq!(marks[0]["exact_match"], 0.75);
    assert_eq!((&marks[1]["exact_match"], &marks[1]["loss"]), (&marks[0]["exact_match"], &marks[0]["loss"]));
    assert_eq!(marks[0]["label_tokens"], 160);
    let loss = |k: usize| marks[k]["loss"].as_f64().unwrap();
    assert!(loss(2) != loss(0), "the adapter changes the loss");
    assert!((marks[0]["perplexity"].as_f64().unwrap() - loss(0).exp()).abs() < 1e-9);
    let table: Table =
        serde_json::from_str(&std::fs::read_to_string(out.join(Table::FILE)).unwrap()).unwrap();
    assert_eq!(
        table.rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(),
        ["base", "base-model", "merged"]
    );
    assert_eq!(table.rows[0][3], "75.0 %");
    let samples = std::fs::read_to_string(out.join("samples.txt")).unwrap();
    assert_eq!(samples.matches("expected").count(), 8);
}

#[test]
fn evaluate_refuses_rows_of_another_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures().join("tiny-llama");
    let (base, data) = exam(dir.path(), &model, &[vec![600]], &[vec![1, 2]]);
    let inputs: [(&str, &[&Path]); 3] = [("base", &[&base]), ("models", &[&base]), ("data", &[&data])];
    let error = run(&Evaluate, &inputs, json!({}), &dir.path().join("out")).unwrap_err();
    assert!(error.message.contains("token 600") && error.message.contains("512"), "{error}");
}
