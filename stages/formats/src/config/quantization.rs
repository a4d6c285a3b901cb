//! `quantization_config`: bitsandbytes' NF4 as transformers' `BitsAndBytesConfig` writes it.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::json::Fields;
use crate::{Dtype, Result};

/// How a model's linear weights are quantized: NF4, blocks of 64, packed into bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// Whether the blocks' scales are quantized as well.
    pub double: bool,
    /// What transformers multiplies in.
    pub compute_dtype: Dtype,
    /// Modules that stayed floats.
    pub skip_modules: Vec<String>,
}

impl QuantizationConfig {
    /// NF4 on all linear layers but the head.
    #[must_use]
    pub fn nf4(double: bool, compute_dtype: Dtype) -> Self {
        Self { double, compute_dtype, skip_modules: vec!["lm_head".to_owned()] }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": self.compute_dtype.name(),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.double,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": self.skip_modules,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        })
    }

    pub(super) fn parse(map: &Map<String, Value>, path: &Path) -> Result<Self> {
        let fields = Fields::new(map, path, "quantization_config.");
        let only = |field: &str, wanted: &str| match fields.text(field)? {
            Some(found) if found != wanted => {
                Err(fields.error(field, format!("is `{found}`; only `{wanted}` is understood")))
            }
            _ => Ok(()),
        };
        only("quant_method", "bitsandbytes")?;
        only("bnb_4bit_quant_type", "nf4")?;
        only("bnb_4bit_quant_storage", "uint8")?;
        if fields.flag("load_in_8bit")? == Some(true) {
            return Err(fields.error("load_in_8bit", "is `true`; only 4-bit NF4 is understood"));
        }
        if fields.flag("load_in_4bit")? != Some(true) {
            return Err(fields.error("load_in_4bit", "is not `true`; only 4-bit NF4 is understood"));
        }
        // transformers' own default is FP4, another code book
        fields.need("bnb_4bit_quant_type", fields.text("bnb_4bit_quant_type")?)?;
        for (field, value) in fields.keys() {
            let is_known = KNOWN.contains(&field) || field.starts_with('_');
            if !is_known && !value.is_null() && value != &Value::Bool(false) {
                return Err(fields.error(field, "is not understood"));
            }
        }
        let compute_dtype = match fields.text("bnb_4bit_compute_dtype")? {
            None => Dtype::F32,
            Some(name) => Dtype::by_name(name).ok_or_else(|| {
                fields.error(
                    "bnb_4bit_compute_dtype",
                    format!("is `{name}` and should be one of {:?}", Dtype::NAMES),
                )
            })?,
        };
        Ok(Self {
            double: fields.flag("bnb_4bit_use_double_quant")?.unwrap_or(false),
            compute_dtype,
            skip_modules: skip_modules(&fields)?,
        })
    }
}

const KNOWN: &[&str] = &[
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules",
    "llm_int8_threshold",
    "load_in_4bit",
    "load_in_8bit",
    "quant_method",
];

fn skip_modules(fields: &Fields<'_>) -> Result<Vec<String>> {
    match fields.get("llm_int8_skip_modules") {
        None => Ok(Vec::new()),
        Some(Value::Array(names)) => names
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| fields.error("llm_int8_skip_modules", "should hold texts only")),
        Some(_) => Err(fields.error("llm_int8_skip_modules", "should be a list")),
    }
}
