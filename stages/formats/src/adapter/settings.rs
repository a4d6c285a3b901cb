//! `adapter_config.json`: what is understood of PEFT's settings, what is harmless, what is refused.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::AdapterConfig;
use crate::Result;
use crate::config::PROJECTIONS;
use crate::json::{Fields, brief, object};

/// Largest rank taken; no layer of the family is as wide.
const RANK: usize = 1 << 20;

/// Settings that this file reads.
const READ: &[&str] = &[
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

/// Settings that say nothing as long as what they belong to is off, or that only tell a story.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Ways to begin that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, …) change the
/// base weights as well, which the adapter's file does not say.
const BEGINNINGS: &[&str] = &["gaussian", "eva", "orthogonal"];

impl AdapterConfig {
    /// Reads settings from text; `path` is for errors.
    ///
    /// # Errors
    /// If it is not JSON, or holds a setting that is wrong or not understood, by its name.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let map = object(text, path)?;
        let fields = Fields::new(&map, path, "");
        refuse_unknown(&fields)?;
        let rank = fields.need("r", fields.count("r", RANK)?)?;
        let dropout = fields.number("lora_dropout")?.unwrap_or(0.0);
        if !(0.0..1.0).contains(&dropout) {
            return Err(fields.error("lora_dropout", format!("is {dropout} and should be from 0 to below 1")));
        }
        Ok(Self {
            rank,
            alpha: fields.need("lora_alpha", fields.number("lora_alpha")?)?,
            dropout,
            dora: fields.flag("use_dora")?.unwrap_or(false),
            rslora: fields.flag("use_rslora")?.unwrap_or(false),
            target_modules: targets(&fields)?,
            base_model: fields.text("base_model_name_or_path")?.unwrap_or_default().to_owned(),
        })
    }

    /// The form of PEFT; settings left out are off there.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": if self.base_model.is_empty() { Value::Null } else { json!(self.base_model) },
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(self.alpha),
            "lora_bias": false,
            "lora_dropout": self.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": self.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": self.dora,
            "use_rslora": self.rslora,
        })
    }
}

/// α as PEFT writes it: whole if it is.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn refuse_unknown(fields: &Fields<'_>) -> Result<()> {
    let only = |field: &str, wanted: &str| match fields.text(field)? {
        Some(found) if found != wanted => {
            Err(fields.error(field, format!("is `{found}`; only `{wanted}` is understood")))
        }
        _ => Ok(()),
    };
    only("peft_type", "LORA")?;
    only("bias", "none")?;
    only("task_type", "CAUSAL_LM")?;
    fields.need("peft_type", fields.get("peft_type"))?;
    if fields.flag("fan_in_fan_out")? == Some(true) {
        return Err(fields.error("fan_in_fan_out", "is `true`, which no model of the family needs"));
    }
    match fields.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(way)) if BEGINNINGS.contains(&way.as_str()) => {}
        Some(other) => {
            let message =
                format!("is {}, which changes the base weights and is not understood", brief(other));
            return Err(fields.error("init_lora_weights", message));
        }
    }
    for (field, value) in fields.keys() {
        let is_known = READ.contains(&field) || HARMLESS.contains(&field);
        if !is_known && !is_off(value) {
            return Err(fields.error(field, format!("is {} and not understood", brief(value))));
        }
    }
    Ok(())
}

/// Whether a setting says nothing: null, false, or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => is_off_map(map),
        Value::String(text) => text == "megatron.core",
        Value::Number(_) => false,
    }
}

fn is_off_map(map: &Map<String, Value>) -> bool {
    map.is_empty()
}

/// The targets in the order of computation, each once.
fn targets(fields: &Fields<'_>) -> Result<Vec<String>> {
    let known = PROJECTIONS.map(|(_, name)| name);
    let listed = match fields.need("target_modules", fields.get("target_modules"))? {
        Value::String(text) if text == "all-linear" => known.to_vec(),
        Value::String(text) => {
            return Err(fields
                .error("target_modules", format!("is the pattern `{text}`; patterns are not understood"))
                .hint("list the projections: `q_proj`, `k_proj`, …"));
        }
        Value::Array(names) => names
            .iter()
            .map(|name| name.as_str().ok_or_else(|| wrong_target(fields, name)))
            .collect::<Result<_>>()?,
        other => return Err(wrong_target(fields, other)),
    };
    if let Some(name) = listed.iter().find(|name| !known.contains(name)) {
        return Err(wrong_target(fields, &json!(name)));
    }
    if listed.is_empty() {
        return Err(fields.error("target_modules", "is empty"));
    }
    Ok(known.iter().filter(|name| listed.contains(name)).map(|&name| name.to_owned()).collect())
}

fn wrong_target(fields: &Fields<'_>, found: &Value) -> crate::Error {
    let known = PROJECTIONS.map(|(_, name)| format!("`{name}`")).join(", ");
    fields.error("target_modules", format!("holds {}; understood are {known}", brief(found)))
}
