//! `config.json` of the Llama family: Llama 2 and 3, Mistral, Qwen2, and what shares their form
//! (TinyLlama, SmolLM), as transformers 4 and 5 write it.
//!
//! Source: transformers `models/{llama,mistral,qwen2}/configuration_*.py`, `modeling_rope_utils.py`
//! and `utils/quantization_config.py`; defaults are theirs. A field that changes what is computed
//! and is not understood is refused by name.
//!
//! It does not know the weights; `weights::Weights::check` holds the two together.

mod parse;
mod quantization;
pub(crate) mod shapes;

use std::path::Path;

use serde_json::{Map, Value, json};

pub use quantization::{Format, QuantizationConfig};
pub use shapes::PROJECTIONS;

use crate::json::{text, write_durably};
use crate::{Dtype, Result};

/// The config's file name in a model folder.
pub const FILE: &str = "config.json";

/// The shape of one model of the Llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// `llama`, `mistral` or `qwen2`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides the heads of queries.
    pub num_key_value_heads: usize,
    /// Channels of a head; even.
    pub head_dim: usize,
    /// Longest text that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are changed for longer texts.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has one.
    pub o_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// How many tokens, itself included, a token sees; `None` is all.
    pub sliding_window: Option<usize>,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills rows up.
    pub pad_token_id: Option<u32>,
    /// What the weights are stored in (of an NF4 model: what they were).
    pub dtype: Dtype,
    /// How the linear weights are quantized, if they are.
    pub quantization: Option<QuantizationConfig>,
}

/// How rotary frequencies are changed (transformers `modeling_rope_utils.py`).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear {
        /// At least 1 in sensible files; any positive number is taken.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns over the original length below which a frequency is low.
        low_freq_factor: f64,
        /// Turns over the original length above which a frequency is high.
        high_freq_factor: f64,
        /// The length of the first training, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl LlamaConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If it is missing, not JSON, or holds a field that is wrong or not understood.
    pub fn read(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join(FILE);
        Self::parse(&text(&path)?, &path)
    }

    /// Writes `config.json` into a folder.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json()).expect("plain values serialize") + "\n";
        write_durably(&dir.join(FILE), text.as_bytes())
    }

    /// The form of transformers 4, which version 5 reads as well.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
        put("architectures", json!([parse::architecture(&self.model_type)]));
        put("model_type", json!(self.model_type));
        put("vocab_size", json!(self.vocab_size));
        put("hidden_size", json!(self.hidden_size));
        put("intermediate_size", json!(self.intermediate_size));
        put("num_hidden_layers", json!(self.num_hidden_layers));
        put("num_attention_heads", json!(self.num_attention_heads));
        put("num_key_value_heads", json!(self.num_key_value_heads));
        put("head_dim", json!(self.head_dim));
        put("hidden_act", json!("silu"));
        put("max_position_embeddings", json!(self.max_position_embeddings));
        put("initializer_range", json!(0.02));
        put("rms_norm_eps", json!(self.rms_norm_eps));
        put("rope_theta", json!(self.rope_theta));
        put("rope_scaling", self.rope_scaling.as_ref().map_or(Value::Null, RopeScaling::to_json));
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        put("attention_dropout", json!(0.0));
        put("use_cache", json!(true));
        put("bos_token_id", json!(self.bos_token_id));
        put("eos_token_id", ids(&self.eos_token_ids));
        put("pad_token_id", json!(self.pad_token_id));
        put("torch_dtype", json!(self.dtype.name()));
        match self.model_type.as_str() {
            "qwen2" => {
                put("use_sliding_window", json!(self.sliding_window.is_some()));
                put("sliding_window", json!(self.sliding_window));
                // The first layer that slides: all of them, or none.
                let first = if self.sliding_window.is_some() { 0 } else { self.num_hidden_layers };
                put("max_window_layers", json!(first));
            }
            "mistral" => {
                put("sliding_window", json!(self.sliding_window));
            }
            _ => {
                put("attention_bias", json!(self.qkv_bias));
                put("mlp_bias", json!(self.mlp_bias));
            }
        }
        if let Some(quantization) = &self.quantization {
            put("quantization_config", quantization.to_json());
        }
        Value::Object(map)
    }
}

impl RopeScaling {
    fn to_json(&self) -> Value {
        match self {
            Self::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                })
            }
        }
    }
}

/// No id, one, or a list, as transformers writes them.
fn ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    }
}
