//! `quantize`: the linear weights of a model folder in 4 or 8 bits, as bitsandbytes stores them.
//!
//! NF4 (QLoRA, arXiv 2305.14314, section 3): blocks of 64 values, each scaled by its largest magnitude
//! and rounded to the 16 values of a normal distribution's quantiles; with `double` the scales are
//! 8-bit themselves. 8-bit (LLM.int8(), arXiv 2208.07339): rows scaled by their largest magnitude and
//! rounded to whole numbers up to ±127. Embeddings, norms and the output layer stay as they are. Encoding happens on
//! the host, on all cores and tensor by tensor, so the bytes are the same on every machine and the
//! model never is in memory as a whole. transformers loads the result as a quantized model.
//!
//! Version log: 1 first.

mod shards;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use contract::{
    Config, ConfigError, Context, Default, Input, Inputs, Job, Param, Pool, Ports, Stage, StageError, Table,
    Type, at,
};
use formats::config::{self, Format, LlamaConfig, QuantizationConfig};
use formats::int8::{self, Int8};
use formats::nf4::{BLOCK, Nf4};
use formats::packed::Packed;
use formats::weights::{Tensor, Weights, linear_f32};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::folder::copy_tokenizer;
use shards::Shards;

/// The kind `quantize`.
pub struct Quantize;

const INPUTS: &[Input] = &[Input::one("model", "model folder with float weights")];

const PARAMS: &[Param] = &[
    Param::new(
        "format",
        Type::Choice(&["nf4", "int8"]),
        Default::Text("nf4"),
        "4 bits a weight (QLoRA, arXiv 2305.14314) or 8 (the weights of LLM.int8(), arXiv 2208.07339)",
    ),
    Param::new(
        "double",
        Type::Bool,
        Default::Bool(false),
        "whether NF4's scales are quantized as well: 4.13 instead of 4.5 bits a weight (QLoRA, section 3)",
    ),
];

/// Memory for one file of the result; smaller than what transformers writes (5 GB).
const SHARD_BYTES: usize = 1 << 30;

#[derive(Deserialize)]
struct Settings {
    format: String,
    double: bool,
}

/// What quantization did to one weight.
#[derive(Serialize)]
struct Loss {
    name: String,
    shape: [usize; 2],
    /// ‖dequantized − original‖ / ‖original‖, Frobenius norms.
    relative_rms: f64,
    /// Largest difference of one value.
    largest: f64,
}

impl Stage for Quantize {
    fn kind(&self) -> &'static str {
        "quantize"
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "puts the linear weights of a model into 4 bit (NF4) or 8, in bitsandbytes' layout"
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
        let settings = config.to::<Settings>()?;
        if settings.double && settings.format() == Format::Int8 {
            let message = "is of NF4; 8-bit weights have a scale a row, which stays a float";
            return Err(vec![ConfigError::new("double", message)]);
        }
        Ok(Box::new(settings))
    }
}

impl Job for Settings {
    fn preview(&self, inputs: &Inputs) -> Result<Vec<String>, StageError> {
        let config = LlamaConfig::read(inputs.one("model")?)?;
        Ok(vec![format!("{} parameters", config.parameters())])
    }

    fn foresee(&self, inputs: &Inputs) -> Vec<(String, Vec<u8>)> {
        let model = inputs.optional("model").and_then(|model| LlamaConfig::read(model).ok());
        let Some(mut config) = model.filter(|config| config.quantization.is_none()) else {
            return Vec::new();
        };
        config.quantization = Some(QuantizationConfig::new(self.format(), config.dtype));
        vec![(config::FILE.to_owned(), config.to_json().to_string().into_bytes())]
    }

    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let model = ctx.input("model")?;
        let mut config = LlamaConfig::read(&model)?;
        if config.quantization.is_some() {
            let message = format!("the model `{}` is quantized already", model.display());
            return Err(
                StageError::new(message).hint("use it as it is, or quantize the float model it came from")
            );
        }
        let weights = Weights::open(&model)?;
        weights.check(&config)?;
        let losses = self.write_weights(&weights, &config, ctx)?;
        config.quantization = Some(QuantizationConfig::new(self.format(), config.dtype));
        config.write(ctx.out())?;
        copy_tokenizer(&model, ctx.out())?;
        let path = ctx.out().join("quantization.json");
        let report = match self.format() {
            Format::Nf4 { double } => {
                json!({ "type": "nf4", "block": BLOCK, "double": double, "tensors": losses })
            }
            Format::Int8 => json!({ "type": "int8", "tensors": losses }),
        };
        fs::write(&path, serde_json::to_string_pretty(&report)? + "\n").map_err(at(&path))?;
        ctx.summary(&table(self.format(), &losses))
    }
}

impl Settings {
    fn format(&self) -> Format {
        match self.format.as_str() {
            "int8" => Format::Int8,
            _ => Format::Nf4 { double: self.double },
        }
    }

    fn quantize(&self, name: &str, values: &[f32], shape: [usize; 2]) -> Result<Packed, StageError> {
        match self.format() {
            Format::Nf4 { double } => Ok(Packed::Nf4(Nf4::quantize(values, shape, double))),
            Format::Int8 => match int8::too_large(values) {
                None => Ok(Packed::Int8(Int8::quantize(values, shape))),
                Some(value) => Err(StageError::new(format!(
                    "`{name}` holds {value}, and 8-bit weights are made from float16, which ends at 65504"
                ))
                .hint("`format = \"nf4\"` has no such limit")),
            },
        }
    }

    fn write_weights(
        &self,
        weights: &Weights,
        config: &LlamaConfig,
        ctx: &Context<'_>,
    ) -> Result<Vec<Loss>, StageError> {
        let linear: BTreeSet<String> =
            config.linear_names().into_iter().map(|path| path + ".weight").collect();
        let mut shards = Shards::new(ctx.out(), SHARD_BYTES);
        let (mut losses, mut done, mut before) = (Vec::new(), 0, 0);
        for (name, shape) in config.tensors() {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            before += weights.bytes(&name)?.len();
            if linear.contains(&name) {
                let (values, shape) = linear_f32(weights, &name)?;
                check_finite(&name, &values)?;
                let quantized = self.quantize(&name, &values, shape)?;
                losses.push(loss(&name, shape, &values, &quantized.dequantize()));
                quantized.tensors(&name).into_iter().try_for_each(|tensor| shards.push(tensor))?;
            } else {
                let data = weights.bytes(&name)?.into();
                shards.push(Tensor { dtype: weights.dtype(&name)?, shape: shape.clone(), data, name })?;
            }
            done += shape.iter().product::<usize>() as u64;
            ctx.progress(done, config.parameters(), "weights", &[]);
        }
        ctx.note(format!("{before} bytes became {}", shards.bytes()));
        shards.finish()?;
        Ok(losses)
    }
}

fn check_finite(name: &str, values: &[f32]) -> Result<(), StageError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(StageError::new(format!("`{name}` holds {} at position {index}", values[index]))
            .hint("the model is damaged, or its training diverged")),
    }
}

/// What came of `before`. Sums are in f64 and in order.
fn loss(name: &str, shape: [usize; 2], before: &[f32], after: &[f32]) -> Loss {
    let (mut error, mut norm, mut largest) = (0.0, 0.0, 0.0_f64);
    for (&before, &after) in before.iter().zip(after) {
        let (before, difference) = (f64::from(before), f64::from(after) - f64::from(before));
        error += difference * difference;
        norm += before * before;
        largest = largest.max(difference.abs());
    }
    let relative_rms = if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    Loss { name: name.to_owned(), shape, relative_rms, largest }
}

/// The loss by projection.
fn table(format: Format, losses: &[Loss]) -> Table {
    let mut groups: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for loss in losses {
        let path = loss.name.trim_end_matches(".weight");
        groups.entry(path.rsplit('.').next().unwrap_or(path)).or_default().push(loss.relative_rms);
    }
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let row = |(projection, losses): (&str, Vec<f64>)| {
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let worst = losses.iter().copied().fold(0.0, f64::max);
        vec![projection.to_owned(), losses.len().to_string(), percent(mean), percent(worst)]
    };
    Table {
        title: format!("What {} changed (‖difference‖ / ‖weight‖)", format.name()),
        columns: ["projection", "weights", "mean", "worst"].map(String::from).to_vec(),
        rows: groups.into_iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;
    use crate::testing::{Bench, fixtures};

    fn tiny() -> PathBuf {
        fixtures().join("tiny-llama")
    }

    #[test]
    fn linear_weights_become_nf4_and_the_rest_stays() {
        for double in [false, true] {
            let bench = Bench::new().input("model", "model", &tiny());
            bench.run(&Quantize, json!({ "double": double })).unwrap();
            let config = LlamaConfig::read(&bench.path("out")).unwrap();
            assert!(config.quantization.is_some());
            let (before, after) =
                (Weights::open(&tiny()).unwrap(), Weights::open(&bench.path("out")).unwrap());
            assert_eq!(before.bytes("lm_head.weight").unwrap(), after.bytes("lm_head.weight").unwrap());
            for path in config.linear_names() {
                let name = format!("{path}.weight");
                let (values, shape) = linear_f32(&before, &name).unwrap();
                let (found, _) = linear_f32(&after, &name).unwrap();
                assert_eq!(found, Nf4::quantize(&values, shape, double).dequantize());
            }
        }
    }

    #[test]
    fn linear_weights_become_8_bit_where_that_is_asked_for() {
        let bench = Bench::new().input("model", "model", &tiny());
        bench.run(&Quantize, json!({ "format": "int8" })).unwrap();
        let config = LlamaConfig::read(&bench.path("out")).unwrap();
        assert_eq!(config.quantization.as_ref().map(|found| found.format), Some(Format::Int8));
        let (before, after) = (Weights::open(&tiny()).unwrap(), Weights::open(&bench.path("out")).unwrap());
        after.check(&config).unwrap();
        for path in config.linear_names() {
            let name = format!("{path}.weight");
            let (values, shape) = linear_f32(&before, &name).unwrap();
            assert_eq!(linear_f32(&after, &name).unwrap().0, Int8::quantize(&values, shape).dequantize());
        }
        // a step is 1/127 of a row's largest magnitude, and the error of rounding is evenly spread within it
        let report: Value = serde_json::from_str(&bench.read("quantization.json")).unwrap();
        for tensor in report["tensors"].as_array().unwrap() {
            let loss = tensor["relative_rms"].as_f64().unwrap();
            assert!((0.003..0.012).contains(&loss), "{tensor}");
        }
    }

    #[test]
    fn what_8_bit_cannot_be_made_from_is_refused() {
        let config = Settings { format: "int8".into(), double: false };
        let error = config.quantize("x.weight", &[1.0, 70_000.0], [1, 2]).unwrap_err();
        assert!(error.message.contains("`x.weight` holds 70000"), "{error}");
        let bench = Bench::new().input("model", "model", &tiny());
        let error = bench.run(&Quantize, json!({ "format": "int8", "double": true })).unwrap_err();
        assert!(error.message.contains("a scale a row"), "{error}");
    }

    #[test]
    fn the_reported_loss_is_that_of_normal_weights() {
        let bench = Bench::new().input("model", "model", &tiny());
        bench.run(&Quantize, json!({})).unwrap();
        let report: Value = serde_json::from_str(&bench.read("quantization.json")).unwrap();
        let tensors = report["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), LlamaConfig::read(&tiny()).unwrap().linear_names().len());
        // NF4 with blocks of 64 loses about 9.5 % (rms) of a normal distribution.
        for tensor in tensors {
            let loss = tensor["relative_rms"].as_f64().unwrap();
            assert!((0.08..0.11).contains(&loss), "{tensor}");
        }
        assert!(bench.read("summary.json").contains("q_proj"));
    }

    #[test]
    fn a_quantized_model_is_refused() {
        let first = Bench::new().input("model", "model", &tiny());
        first.run(&Quantize, json!({})).unwrap();
        let again = Bench::new().input("model", "model", &first.path("out"));
        assert!(again.run(&Quantize, json!({})).unwrap_err().message.contains("quantized already"));
    }

    #[test]
    fn a_weight_that_is_not_a_number_is_named() {
        let error = check_finite("x.weight", &[0.0, f32::NAN]).unwrap_err();
        assert_eq!(error.message, "`x.weight` holds NaN at position 1");
    }

    #[test]
    fn a_cut_off_weight_file_is_named() {
        let bench = Bench::new();
        crate::folder::copy_files(&tiny(), &bench.path("work"), |_| true).unwrap();
        let file = bench.path("work/model.safetensors");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
        let model = bench.path("work");
        let error = bench.input("model", "model", &model).run(&Quantize, json!({})).unwrap_err();
        assert!(error.message.contains("model.safetensors"), "{error}");
    }
}
