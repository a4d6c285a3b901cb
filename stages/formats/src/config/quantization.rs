//! `quantization_config`: bitsandbytes' NF4 and 8-bit weights as transformers' `BitsAndBytesConfig` writes it.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::json::Fields;
use crate::{Dtype, Result};

/// What a linear weight became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Four bits a weight in blocks of 64, packed into bytes.
    Nf4 {
        /// Whether the blocks' scales are quantized as well.
        double: bool,
    },
    /// Eight bits a weight and a scale a row.
    Int8,
}

impl Format {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 { .. } => "NF4",
            Self::Int8 => "8-bit",
        }
    }
}

/// How a model's linear weights are quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// What they became.
    pub format: Format,
    /// What transformers multiplies in; of 8-bit weights it is not told.
    pub compute_dtype: Dtype,
    /// Modules that stayed floats.
    pub skip_modules: Vec<String>,
}

impl QuantizationConfig {
    /// All linear layers but the head.
    #[must_use]
    pub fn new(format: Format, compute_dtype: Dtype) -> Self {
        Self { format, compute_dtype, skip_modules: vec!["lm_head".to_owned()] }
    }

    pub(super) fn to_json(&self) -> Value {
        let (four, double) = match self.format {
            Format::Nf4 { double } => (true, double),
            Format::Int8 => (false, false),
        };
        let mut config = json!({
            "_load_in_4bit": four,
            "_load_in_8bit": !four,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": self.skip_modules,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four,
            "load_in_8bit": !four,
            "quant_method": "bitsandbytes",
        });
        if four {
            config["bnb_4bit_compute_dtype"] = json!(self.compute_dtype.name());
            config["bnb_4bit_quant_storage"] = json!("uint8");
            config["bnb_4bit_quant_type"] = json!("nf4");
            config["bnb_4bit_use_double_quant"] = json!(double);
        }
        config
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
        for (field, value) in fields.keys() {
            let is_known = KNOWN.contains(&field) || field.starts_with('_');
            if !is_known && !value.is_null() && value != &Value::Bool(false) {
                return Err(fields.error(field, "is not understood"));
            }
        }
        let (four, eight) = (fields.flag("load_in_4bit")?, fields.flag("load_in_8bit")?);
        let format = match (four, eight) {
            (Some(true), None | Some(false)) => {
                only("bnb_4bit_quant_type", "nf4")?;
                only("bnb_4bit_quant_storage", "uint8")?;
                // transformers' own default is FP4, another code book
                fields.need("bnb_4bit_quant_type", fields.text("bnb_4bit_quant_type")?)?;
                Format::Nf4 { double: fields.flag("bnb_4bit_use_double_quant")?.unwrap_or(false) }
            }
            (None | Some(false), Some(true)) if fields.flag("llm_int8_has_fp16_weight")? == Some(true) => {
                return Err(fields.error("llm_int8_has_fp16_weight", "is `true`: such weights are not 8-bit"));
            }
            (None | Some(false), Some(true)) => Format::Int8,
            _ => {
                let message = "or `load_in_8bit`, one of the two, should be `true`";
                return Err(fields.error("load_in_4bit", message));
            }
        };
        let compute_dtype = match fields.text("bnb_4bit_compute_dtype")? {
            None => Dtype::F32,
            Some(name) => Dtype::by_name(name).ok_or_else(|| {
                fields.error(
                    "bnb_4bit_compute_dtype",
                    format!("is `{name}` and should be one of {:?}", Dtype::NAMES),
                )
            })?,
        };
        Ok(Self { format, compute_dtype, skip_modules: skip_modules(&fields)? })
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
