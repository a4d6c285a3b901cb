//! From `config.json` to [`LlamaConfig`]: what is understood, what is harmless, what is refused.

use std::path::Path;

use serde_json::{Map, Value};

use super::{LlamaConfig, QuantizationConfig, RopeScaling};
use crate::json::{Fields, brief, object};
use crate::{Dtype, Error, Result};

/// Bounds that no model of the family comes near; they keep sums of sizes from overflowing.
const WIDTH: usize = 1 << 20;
const LAYERS: usize = 1 << 12;
const VOCABULARY: usize = 1 << 24;
const POSITIONS: usize = 1 << 32;

/// Fields that this file reads.
const READ: &[&str] = &[
    "architectures",
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vocab_size",
];

/// Fields of transformers that do not change what a forward pass computes: how text is generated,
/// what is returned, how weights were drawn, which program wrote the file.
const HARMLESS: &[&str] = &[
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_sequence_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// transformers' class for a model type.
pub(super) fn architecture(model_type: &str) -> &'static str {
    match model_type {
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "LlamaForCausalLM",
    }
}

impl LlamaConfig {
    /// Reads a config from text; `path` is for errors.
    ///
    /// # Errors
    /// If it is not JSON, or holds a field that is wrong or not understood, by its name.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let map = object(text, path)?;
        let fields = Fields::new(&map, path, "");
        let model_type = model_type(&fields)?;
        refuse_unknown(&fields)?;
        let width = |name: &str| fields.need(name, fields.count(name, WIDTH)?);
        let (hidden_size, heads) = (width("hidden_size")?, width("num_attention_heads")?);
        let num_hidden_layers =
            fields.need("num_hidden_layers", fields.count("num_hidden_layers", LAYERS)?)?;
        let (qkv_bias, o_bias, mlp_bias) = biases(&fields, model_type)?;
        let (rope_theta, rope_scaling) = rope(&map, path)?;
        Ok(Self {
            vocab_size: fields.need("vocab_size", fields.count("vocab_size", VOCABULARY)?)?,
            hidden_size,
            intermediate_size: width("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads(&fields, model_type, heads)?,
            head_dim: head_dim(&fields, hidden_size, heads)?,
            max_position_embeddings: fields
                .count("max_position_embeddings", POSITIONS)?
                .unwrap_or_else(|| default_positions(model_type)),
            rms_norm_eps: positive(&fields, "rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias,
            o_bias,
            mlp_bias,
            sliding_window: sliding_window(&fields, model_type, num_hidden_layers)?,
            bos_token_id: one_id(&fields, "bos_token_id")?,
            eos_token_ids: ids(&fields, "eos_token_id")?,
            pad_token_id: one_id(&fields, "pad_token_id")?,
            dtype: dtype(&fields)?,
            quantization: match fields.object("quantization_config")? {
                Some(map) => Some(QuantizationConfig::parse(map, path)?),
                None => None,
            },
            model_type: model_type.to_owned(),
        })
    }
}

fn model_type<'a>(fields: &Fields<'a>) -> Result<&'a str> {
    let found = fields.need("model_type", fields.text("model_type")?)?;
    if !["llama", "mistral", "qwen2"].contains(&found) {
        let message = format!("is `{found}`; understood are `llama`, `mistral` and `qwen2`");
        return Err(fields.error("model_type", message));
    }
    let wanted = architecture(found);
    let first = match fields.get("architectures") {
        None => return Ok(found),
        Some(Value::Array(names)) if names.is_empty() => return Ok(found),
        Some(Value::Array(names)) if names.len() == 1 => names[0].as_str(),
        Some(_) => None,
    };
    match first {
        Some(name) if name.eq_ignore_ascii_case(wanted) => Ok(found),
        _ => {
            Err(fields.error("architectures", format!("should be [`{wanted}`] for the model type `{found}`")))
        }
    }
}

fn refuse_unknown(fields: &Fields<'_>) -> Result<()> {
    for (field, value) in fields.keys() {
        let is_known = READ.contains(&field) || HARMLESS.contains(&field) || field.starts_with('_');
        if !is_known && !value.is_null() && value != &Value::Bool(false) {
            let message = format!("is {} and not understood", brief(value));
            return Err(fields
                .error(field, message)
                .hint("it may change what the model computes; if it does not, take it out of the file"));
        }
    }
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => {
            return Err(fields.error("hidden_act", format!("is `{other}`; only `silu` is understood")));
        }
    }
    let fixed = |field: &str, wanted: f64| match fields.number(field)? {
        Some(found) if found != wanted => {
            Err(fields.error(field, format!("is {found}; only {wanted} is understood")))
        }
        _ => Ok(()),
    };
    fixed("attention_dropout", 0.0)?;
    fixed("partial_rotary_factor", 1.0)
}

fn biases(fields: &Fields<'_>, model_type: &str) -> Result<(bool, bool, bool)> {
    let (attention, mlp) = (fields.flag("attention_bias")?, fields.flag("mlp_bias")?);
    let fixed =
        |field: &str, found: Option<bool>, wanted: bool| match found {
            Some(found) if found != wanted => Err(fields
                .error(field, format!("is `{found}`, which the model type `{model_type}` does not know"))),
            _ => Ok(()),
        };
    match model_type {
        "llama" => {
            let attention = attention.unwrap_or(false);
            Ok((attention, attention, mlp.unwrap_or(false)))
        }
        other => {
            let qkv = other == "qwen2";
            fixed("attention_bias", attention, qkv)?;
            fixed("mlp_bias", mlp, false)?;
            Ok((qkv, false, false))
        }
    }
}

fn kv_heads(fields: &Fields<'_>, model_type: &str, heads: usize) -> Result<usize> {
    let found = fields.count("num_key_value_heads", WIDTH)?;
    if found.is_none() && !fields.has("num_key_value_heads") && model_type != "llama" {
        return Err(fields.error("num_key_value_heads", "is missing"));
    }
    let found = found.unwrap_or(heads);
    if !heads.is_multiple_of(found) {
        let message = format!("is {found} and does not divide `num_attention_heads` = {heads}");
        return Err(fields.error("num_key_value_heads", message));
    }
    Ok(found)
}

fn head_dim(fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
    let found = match fields.count("head_dim", WIDTH)? {
        Some(found) => found,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let message = format!("is {hidden} and no multiple of `num_attention_heads` = {heads}");
            return Err(fields.error("hidden_size", message));
        }
    };
    if !found.is_multiple_of(2) {
        return Err(fields.error("head_dim", format!("is {found} and should be even")));
    }
    if found * heads > WIDTH {
        return Err(fields.error("head_dim", format!("is {found}, too large for {heads} heads")));
    }
    Ok(found)
}

const fn default_positions(model_type: &str) -> usize {
    match model_type.as_bytes() {
        b"mistral" => 4096 * 32,
        b"qwen2" => 32768,
        _ => 2048,
    }
}

fn positive(fields: &Fields<'_>, field: &str) -> Result<Option<f64>> {
    match fields.number(field)? {
        Some(found) if found <= 0.0 => Err(fields.error(field, format!("is {found} and should be above 0"))),
        other => Ok(other),
    }
}

/// θ and the scaling: from `rope_parameters` (version 5), or `rope_theta` and `rope_scaling`.
fn rope(map: &Map<String, Value>, path: &Path) -> Result<(f64, Option<RopeScaling>)> {
    let top = Fields::new(map, path, "");
    let (name, prefix) = match (top.get("rope_parameters"), top.get("rope_scaling")) {
        (Some(_), _) => ("rope_parameters", "rope_parameters."),
        _ => ("rope_scaling", "rope_scaling."),
    };
    let theta = positive(&top, "rope_theta")?.unwrap_or(10_000.0);
    let Some(inner) = top.object(name)? else { return Ok((theta, None)) };
    let fields = Fields::new(inner, path, prefix);
    let theta = positive(&fields, "rope_theta")?.unwrap_or(theta);
    let kind = match (fields.text("rope_type")?, fields.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(fields.error("type", format!("is `{old}`, but `rope_type` is `{new}`")));
        }
        (new, old) => new.or(old),
    };
    let kind = match kind {
        Some(kind) => kind,
        None if name == "rope_parameters" => "default",
        None => return Err(fields.error("rope_type", "is missing")),
    };
    let need = |field: &str| fields.need(field, positive(&fields, field)?);
    let (scaling, used): (_, &[&str]) = match kind {
        "default" => (None, &[]),
        "linear" => (Some(RopeScaling::Linear { factor: need("factor")? }), &["factor"]),
        "llama3" => {
            let scaling = RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: fields.need(
                    "original_max_position_embeddings",
                    fields.count("original_max_position_embeddings", POSITIONS)?,
                )?,
            };
            (
                Some(scaling),
                &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            )
        }
        other => {
            let message = format!("is `{other}`; understood are `default`, `linear` and `llama3`");
            let field = if fields.has("rope_type") { "rope_type" } else { "type" };
            return Err(fields.error(field, message));
        }
    };
    check_rope(&fields, scaling.as_ref(), used)?;
    Ok((theta, scaling))
}

fn check_rope(fields: &Fields<'_>, scaling: Option<&RopeScaling>, used: &[&str]) -> Result<()> {
    for (field, value) in fields.keys() {
        let is_known = used.contains(&field) || ["rope_type", "type", "rope_theta"].contains(&field);
        let is_whole = field == "partial_rotary_factor" && value.as_f64() == Some(1.0);
        if !is_known && !is_whole && !value.is_null() {
            return Err(fields.error(field, format!("is {} and not understood", brief(value))));
        }
    }
    match scaling {
        Some(RopeScaling::Llama3 { low_freq_factor: low, high_freq_factor: high, .. }) if high <= low => {
            Err(fields.error(
                "high_freq_factor",
                format!("is {high} and should be above `low_freq_factor` = {low}"),
            ))
        }
        _ => Ok(()),
    }
}

fn sliding_window(fields: &Fields<'_>, model_type: &str, layers: usize) -> Result<Option<usize>> {
    let given = fields.count("sliding_window", POSITIONS)?;
    // transformers' default where the field does not stand there at all
    let default = (!fields.has("sliding_window")).then_some(4096);
    let layer_types = layer_types(fields, layers)?;
    let window = match model_type {
        "mistral" => given.or(default),
        "qwen2" if fields.flag("use_sliding_window")? == Some(true) => given.or(default),
        "qwen2" => None,
        _ if given.is_some() => {
            return Err(fields.error("sliding_window", "is set, which the model type `llama` does not know"));
        }
        _ => None,
    };
    let Some(window) = window else {
        return match layer_types {
            Some(true) => {
                Err(fields.error("layer_types", "asks for sliding attention, but there is no window"))
            }
            _ => Ok(None),
        };
    };
    match layer_types {
        Some(true) => Ok(Some(window)),
        Some(false) => Ok(None),
        None if model_type == "mistral" => Ok(Some(window)),
        // Qwen2: layers from this one on slide
        None => match fields.get("max_window_layers").map_or(Some(28), Value::as_u64) {
            Some(0) => Ok(Some(window)),
            Some(first) if first >= layers as u64 => Ok(None),
            _ => Err(fields.error(
                "max_window_layers",
                "makes some layers slide and others not, which is not understood",
            )),
        },
    }
}

/// Whether all layers slide, or none does.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<bool>> {
    let Some(value) = fields.get("layer_types") else { return Ok(None) };
    let Some(list) = value.as_array().filter(|list| list.len() == layers) else {
        return Err(fields.error("layer_types", format!("should name each of the {layers} layers")));
    };
    if list.iter().all(|kind| kind == "full_attention") {
        return Ok(Some(false));
    }
    if list.iter().all(|kind| kind == "sliding_attention") {
        return Ok(Some(true));
    }
    Err(fields.error("layer_types", "mixes kinds of attention, which is not understood"))
}

fn one_id(fields: &Fields<'_>, field: &str) -> Result<Option<u32>> {
    Ok(ids(fields, field)?.first().copied())
}

/// No id (null or −1), one, or a list.
fn ids(fields: &Fields<'_>, field: &str) -> Result<Vec<u32>> {
    let wrong = || fields.error(field, "should be a token id, a list of them, or null");
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    match fields.get(field) {
        None => Ok(Vec::new()),
        Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

fn dtype(fields: &Fields<'_>) -> std::result::Result<Dtype, Error> {
    let field = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match fields.text(field)? {
        None => Ok(Dtype::F32),
        Some(name) => Dtype::by_name(name).ok_or_else(|| {
            fields.error(field, format!("is `{name}` and should be one of {:?}", Dtype::NAMES))
        }),
    }
}
