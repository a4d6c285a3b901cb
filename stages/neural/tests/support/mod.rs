//! A tiny model, rows to train on, and one run of the `train` stage as the runner would make it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use contract::{
    Artifact, Config, ConfigError, Context, Default, Event, Inputs, Job, Reporter, Stage, StageError,
};
use formats::config::LlamaConfig;
use formats::tokens::{TokenRow, TokenSet};
use formats::weights::{self, Tensor};
use neural::batch::SplitMix64;
use neural::train::Train;
use serde_json::{Map, Value, json};

pub const VOCAB: usize = 40;

/// Writes a random Llama of 2 layers, hidden 32.
pub fn write_model(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let text = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    });
    let config = LlamaConfig::parse(&text.to_string(), &dir.join("config.json")).unwrap();
    config.write(dir).unwrap();
    let mut random = SplitMix64(3);
    let tensors = config.tensors().into_iter().map(|(name, shape)| {
        let n = shape.iter().product();
        let values = (0..n).map(|_| {
            if shape.len() == 1 {
                1.0
            } else {
                ((random.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.3
            }
        });
        Tensor::f32(name.clone(), shape.clone(), values.collect::<Vec<_>>())
    });
    weights::save(&dir.join("model.safetensors"), tensors.collect(), &[]).unwrap();
}

/// `rows` rows of 6 to 13 tokens that can be learnt: the answer repeats the prompt.
pub fn rows(rows: usize, seed: u64) -> TokenSet {
    let mut random = SplitMix64(seed);
    let rows = (0..rows).map(|_| {
        let half = 3 + random.below(4) as usize;
        let prompt: Vec<u32> = (0..half).map(|_| 3 + random.below(VOCAB as u64 - 3) as u32).collect();
        let ids = prompt.iter().chain(&prompt).copied().chain([2]).collect();
        TokenRow { ids, prompt_len: half, turns: Vec::new() }
    });
    TokenSet { rows: rows.collect(), mask_prompt: true }
}

pub fn write_data(dir: &Path, train: &TokenSet, heldout: &TokenSet) {
    std::fs::create_dir_all(dir).unwrap();
    train.write(&dir.join("train.safetensors")).unwrap();
    heldout.write(&dir.join("heldout.safetensors")).unwrap();
}

/// The parameters of `train`: its defaults under what is given.
pub fn config(given: &Value) -> Config {
    let mut map = Map::new();
    for param in Train.params() {
        let value = match param.default {
            Default::Required | Default::Absent => continue,
            Default::Bool(value) => json!(value),
            Default::Int(value) => json!(value),
            Default::Float(value) => json!(value),
            Default::Text(value) => json!(value),
            Default::Texts(value) => json!(value),
            Default::Ints(value) => json!(value),
        };
        map.insert(param.name.into(), value);
    }
    for (key, value) in given.as_object().unwrap() {
        assert!(Train.params().iter().any(|param| param.name == key), "`{key}` is no parameter");
        map.insert(key.clone(), value.clone());
    }
    Config(map)
}

pub fn plan(given: &Value) -> Result<Box<dyn Job>, Vec<ConfigError>> {
    Train.plan(&config(given))
}

/// Keeps what a job tells.
#[derive(std::default::Default)]
pub struct Told(pub Mutex<Vec<Event>>);

impl Reporter for Told {
    fn report(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Told {
    pub fn warnings(&self) -> Vec<String> {
        let events = self.0.lock().unwrap();
        events
            .iter()
            .filter_map(|event| if let Event::Warning { text } = event { Some(text.clone()) } else { None })
            .collect()
    }

    pub fn notes(&self) -> Vec<String> {
        let events = self.0.lock().unwrap();
        events
            .iter()
            .filter_map(|event| if let Event::Note { text } = event { Some(text.clone()) } else { None })
            .collect()
    }
}

/// `model/`, `data/`, and for each run `NAME/out` and `NAME/work`.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub inputs: Inputs,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(&rows(50, 1), &rows(10, 2))
    }

    pub fn with(train: &TokenSet, heldout: &TokenSet) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"));
        write_data(&dir.path().join("data"), train, heldout);
        let inputs = ["model", "data"].map(|name| {
            (name.to_owned(), vec![Artifact { label: name.into(), path: dir.path().join(name) }])
        });
        Self { inputs: Inputs(inputs.into()), dir }
    }

    pub fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("out")
    }

    pub fn work(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("work")
    }

    /// One attempt; `out` is empty before it, `work` as it was left.
    pub fn attempt(
        &self,
        name: &str,
        given: &Value,
        stop: &AtomicBool,
        told: &Told,
    ) -> Result<(), StageError> {
        attempt(&self.inputs, &self.dir.path().join(name), given, stop, told)
    }

    pub fn run(&self, name: &str, given: &Value) -> Told {
        let told = Told::default();
        self.attempt(name, given, &AtomicBool::new(false), &told).unwrap();
        told
    }

    pub fn metrics(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.out(name).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn losses(&self, name: &str) -> Vec<f64> {
        self.metrics(name).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    }
}

pub fn attempt(
    inputs: &Inputs,
    dir: &Path,
    given: &Value,
    stop: &AtomicBool,
    told: &Told,
) -> Result<(), StageError> {
    let (out, work) = (dir.join("out"), dir.join("work"));
    if out.exists() {
        std::fs::remove_dir_all(&out).unwrap();
    }
    std::fs::create_dir_all(&out).unwrap();
    std::fs::create_dir_all(&work).unwrap();
    let mut ctx = Context::new(inputs.clone(), out, work, Vec::new(), told, stop);
    plan(given).unwrap().run(&mut ctx)
}

/// Every file under a folder with its bytes, by relative path.
pub fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}
