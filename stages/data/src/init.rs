//! `init`: a tiny Llama from a seed, with a tokenizer trained on a corpus.
//!
//! The folder has the layout that transformers reads. Linear and embedding weights are drawn from
//! N(0, `init_std`), norms are one; the bytes are the same on every machine ([`Random`]). Of the
//! corpus only the rows to train on are seen.
//!
//! Version log: 1 first.

mod vocabulary;

use std::fs;
use std::path::Path;

use contract::{
    Config, ConfigError, Context, Default, Input, Job, Param, Pool, Ports, Stage, StageError, Type, at,
};
use formats::alpaca::Template;
use formats::config::LlamaConfig;
use formats::example::Example;
use formats::weights::{self, Dtype, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::dataset::Dataset;
use crate::random::Random;

/// The kind `init`.
pub struct Init;

const INPUTS: &[Input] =
    &[Input::several("corpus", "Alpaca rows (folders or files) that the tokenizer is trained on")];

const PARAMS: &[Param] = &[
    Param::new("seed", Type::at_least(0), Default::Int(7), "the weights follow from it"),
    Param::new(
        "template",
        Type::Choice(Template::NAMES),
        Default::Text("alpaca"),
        "how rows become text; its words become tokens",
    ),
    Param::new("hidden_size", Type::Int { min: 2, max: 1 << 16 }, Default::Int(96), "width of the model"),
    Param::new(
        "intermediate_size",
        Type::Int { min: 1, max: 1 << 18 },
        Default::Int(256),
        "width of the feed-forward part",
    ),
    Param::new("layers", Type::Int { min: 1, max: 1024 }, Default::Int(2), "transformer blocks"),
    Param::new(
        "heads",
        Type::Int { min: 1, max: 1024 },
        Default::Int(4),
        "attention heads; their width must be even",
    ),
    Param::new(
        "kv_heads",
        Type::Int { min: 1, max: 1024 },
        Default::Int(4),
        "key and value heads; divides `heads`",
    ),
    Param::new(
        "vocab_size",
        Type::Int { min: 320, max: 1 << 20 },
        Default::Int(1024),
        "most tokens; training stops earlier when no pair is left that occurs twice",
    ),
    Param::new(
        "max_positions",
        Type::Int { min: 1, max: 1 << 24 },
        Default::Int(512),
        "longest text in tokens",
    ),
    Param::new(
        "tie_embeddings",
        Type::Bool,
        Default::Bool(false),
        "whether the output layer shares the embedding's weight",
    ),
    Param::new(
        "init_std",
        Type::Float { min: 1e-6, max: 1.0 },
        Default::Float(0.02),
        "standard deviation of the weights",
    ),
    Param::new(
        "dtype",
        Type::Choice(&["float32", "float16", "bfloat16"]),
        Default::Text("float32"),
        "type of the stored weights",
    ),
];

#[derive(Deserialize)]
struct Settings {
    seed: u64,
    template: String,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab_size: usize,
    max_positions: usize,
    tie_embeddings: bool,
    init_std: f64,
    dtype: Dtype,
}

impl Stage for Init {
    fn kind(&self) -> &'static str {
        "init"
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "makes a tiny Llama with random weights and a BPE tokenizer trained on a corpus"
    }

    fn pool(&self) -> Pool {
        Pool::Cpu
    }

    fn inputs(&self) -> Ports {
        Ports::Listed(INPUTS)
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        let mut errors = Vec::new();
        let (hidden, heads, kv_heads) = (settings.hidden_size, settings.heads, settings.kv_heads);
        if hidden % heads != 0 {
            errors.push(ConfigError::new(
                "hidden_size",
                format!("{hidden} is not a multiple of `heads` = {heads}"),
            ));
        } else if (hidden / heads) % 2 != 0 {
            let message =
                format!("a head is {hidden} / {heads} = {} wide, which must be even", hidden / heads);
            errors.push(ConfigError::new("hidden_size", message));
        }
        if heads % kv_heads != 0 {
            errors
                .push(ConfigError::new("kv_heads", format!("{kv_heads} does not divide `heads` = {heads}")));
        }
        if errors.is_empty() { Ok(Box::new(settings)) } else { Err(errors) }
    }
}

impl Job for Settings {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let template =
            Template::by_name(&self.template).ok_or_else(|| StageError::new("unknown template"))?;
        let mut texts = Vec::new();
        for artifact in ctx.inputs.all("corpus") {
            let rows = Dataset::read(&artifact.path, false, ctx)?.rows;
            let sections = rows.sections().collect::<Result<Vec<_>, _>>()?;
            for (number, example) in (1..).zip(sections.into_iter().flatten()) {
                texts.push(match example {
                    Example::Instruction(row) => template.prompt(&row) + &row.output,
                    Example::Completion { prompt, text } => prompt + &text,
                    Example::Chat(_) => {
                        let message = format!("`{}`: row {number} is a chat", artifact.path.display());
                        return Err(
                            StageError::new(message).hint("a corpus is of instructions or plain text")
                        );
                    }
                });
            }
        }
        let tokenizer = vocabulary::train(&texts, self.vocab_size)?;
        if ctx.stopping() {
            return Err(StageError::cancelled());
        }
        let config = self.config(tokenizer.get_vocab_size(true));
        let path = ctx.out().join("tokenizer.json");
        fs::write(&path, tokenizer.to_string(true).map_err(vocabulary::failure)?).map_err(at(&path))?;
        write_json(ctx.out(), "tokenizer_config.json", &vocabulary::tokenizer_config(self.max_positions))?;
        write_json(ctx.out(), "special_tokens_map.json", &vocabulary::special_tokens_map())?;
        write_json(ctx.out(), "generation_config.json", &json!({ "bos_token_id": 1, "eos_token_id": 2 }))?;
        config.write(ctx.out())?;
        self.write_weights(&config, ctx)?;
        ctx.note(format!("{} parameters, {} tokens", config.parameters(), config.vocab_size));
        Ok(())
    }
}

impl Settings {
    fn config(&self, vocab_size: usize) -> LlamaConfig {
        LlamaConfig {
            model_type: "llama".into(),
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            head_dim: self.hidden_size / self.heads,
            max_position_embeddings: self.max_positions,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tie_word_embeddings: self.tie_embeddings,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            sliding_window: None,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            pad_token_id: None,
            dtype: self.dtype,
            quantization: None,
        }
    }

    /// One stream of random numbers through all tensors, in the order of `LlamaConfig::tensors`.
    fn write_weights(&self, config: &LlamaConfig, ctx: &Context<'_>) -> Result<(), StageError> {
        let mut random = Random::new(self.seed);
        let shapes = config.tensors();
        let total = config.parameters();
        let (mut tensors, mut done) = (Vec::with_capacity(shapes.len()), 0);
        for (name, shape) in shapes {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            let count = shape.iter().product();
            let values: Vec<f32> = if shape.len() == 1 {
                vec![1.0; count]
            } else {
                (0..count).map(|_| (random.normal() * self.init_std) as f32).collect()
            };
            tensors.push(Tensor::float(name, shape, &values, self.dtype));
            done += count as u64;
            ctx.progress(done, total, "weights", &[]);
        }
        weights::save(&ctx.out().join("model.safetensors"), tensors, &[("format", "pt")])?;
        Ok(())
    }
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<(), StageError> {
    let path = folder.join(name);
    fs::write(&path, serde_json::to_string_pretty(value)? + "\n").map_err(at(&path))
}

#[cfg(test)]
mod tests {
    use formats::weights::Weights;

    use super::*;
    use crate::synthesize::Synthesize;
    use crate::testing::{Bench, plan_errors};

    fn corpus() -> Bench {
        let corpus = Bench::new();
        corpus.run(&Synthesize, json!({ "tasks": ["copy", "sort"], "rows": 400, "heldout": 10 })).unwrap();
        corpus
    }

    #[test]
    fn the_model_is_whole_and_its_weights_have_the_asked_spread() {
        let corpus = corpus();
        let bench = Bench::new().input("corpus", "corpus", &corpus.path("out"));
        bench.run(&Init, json!({ "template": "plain", "init_std": 0.05 })).unwrap();
        let config = LlamaConfig::read(&bench.path("out")).unwrap();
        let weights = Weights::open(&bench.path("out")).unwrap();
        weights.check(&config).unwrap();
        let w = weights.f32("model.layers.1.mlp.up_proj.weight").unwrap();
        let std = (w.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / w.len() as f64).sqrt();
        assert!((std - 0.05).abs() < 0.001, "{std}");
        assert!(weights.f32("model.norm.weight").unwrap().iter().all(|&x| x == 1.0));
        let tokenizer = tokenizers::Tokenizer::from_file(bench.out("tokenizer.json")).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), config.vocab_size);
    }

    #[test]
    fn the_same_seed_gives_the_same_folder_and_another_seed_other_weights() {
        let corpus = corpus();
        let make = |seed: u64| {
            let bench = Bench::new().input("corpus", "corpus", &corpus.path("out"));
            bench.run(&Init, json!({ "seed": seed, "layers": 1, "dtype": "float16" })).unwrap();
            (
                bench.read("tokenizer.json"),
                bench.read("config.json"),
                fs::read(bench.out("model.safetensors")).unwrap(),
            )
        };
        let (one, two, other) = (make(1), make(1), make(2));
        assert!(one == two && one.0 == other.0 && one.2 != other.2);
    }

    #[test]
    fn shapes_that_do_not_fit_each_other_are_told_at_once() {
        let errors = plan_errors(&Init, json!({ "hidden_size": 50, "heads": 4, "kv_heads": 3 }));
        let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
        assert_eq!(keys, ["hidden_size", "kv_heads"]);
        assert!(plan_errors(&Init, json!({ "hidden_size": 36 }))[0].message.contains("even"));
    }
}
