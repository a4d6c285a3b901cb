//! What a training run leaves: PEFT folders of adapters, model folders of whole models, and how they
//! get from the work folder, which survives crashes, into the result.

use std::fs;
use std::path::Path;

use contract::{StageError, at};
use formats::adapter::{Adapter, AdapterConfig, AdapterTensors};
use formats::config::LlamaConfig;
use formats::weights::{Dtype, ModelWriter, Tensor};

use crate::groups::Leaf;

/// Writes trained adapter tensors as a PEFT folder.
///
/// # Errors
/// If a tensor's name is not one of PEFT's, or the disk says no.
pub fn adapter(
    folder: &Path,
    config: &AdapterConfig,
    tensors: Vec<(Leaf, Vec<f32>)>,
) -> Result<(), StageError> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut adapter = Adapter { config: config.clone(), modules: std::collections::BTreeMap::new() };
    for (leaf, values) in tensors {
        let (module, part) = part(&leaf.name)
            .ok_or_else(|| StageError::new(format!("`{}` is not an adapter's tensor", leaf.name)))?;
        let empty = || AdapterTensors {
            in_features: 0,
            out_features: 0,
            a: Vec::new(),
            b: Vec::new(),
            magnitude: None,
        };
        let tensors = adapter.modules.entry(module.to_owned()).or_insert_with(empty);
        match part {
            Part::A => (tensors.in_features, tensors.a) = (leaf.shape[1], values),
            Part::B => (tensors.out_features, tensors.b) = (leaf.shape[0], values),
            Part::Magnitude => tensors.magnitude = Some(values),
        }
    }
    Ok(adapter.write(folder)?)
}

enum Part {
    A,
    B,
    Magnitude,
}

fn part(name: &str) -> Option<(&str, Part)> {
    let name = name.strip_prefix("base_model.model.")?;
    if let Some(module) = name.strip_suffix(".lora_A.weight") {
        return Some((module, Part::A));
    }
    if let Some(module) = name.strip_suffix(".lora_B.weight") {
        return Some((module, Part::B));
    }
    name.strip_suffix(".lora_magnitude_vector").map(|module| (module, Part::Magnitude))
}

/// Writes a trained model as a model folder without a tokenizer.
///
/// # Errors
/// If the disk says no.
pub fn model(
    folder: &Path,
    base: &LlamaConfig,
    dtype: Dtype,
    tensors: Vec<(Leaf, Vec<f32>)>,
) -> Result<(), StageError> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    let config = LlamaConfig { dtype, quantization: None, ..base.clone() };
    let plan = tensors.iter().map(|(leaf, _)| (leaf.name.clone(), dtype.stored(), leaf.shape.clone()));
    let mut writer = ModelWriter::create(folder, plan.collect(), ModelWriter::SHARD_BYTES)?;
    for (leaf, values) in tensors {
        writer.write(&leaf.name, &Tensor::float("", leaf.shape, &values, dtype).data)?;
    }
    writer.finish()?;
    Ok(config.write(folder)?)
}

/// Puts a file or folder of the work folder into the result as well. Files are hard links where the
/// file system has them: no time, no space, and a crash right after loses neither.
///
/// # Errors
/// If neither a link nor a copy can be made.
pub fn publish(from: &Path, to: &Path) -> Result<(), StageError> {
    if !from.is_dir() {
        return fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)).map_err(at(to));
    }
    fs::create_dir_all(to).map_err(at(to))?;
    let mut names: Vec<_> =
        fs::read_dir(from).map_err(at(from))?.collect::<Result<_, _>>().map_err(at(from))?;
    names.sort_by_key(fs::DirEntry::file_name);
    names.iter().try_for_each(|entry| publish(&entry.path(), &to.join(entry.file_name())))
}
