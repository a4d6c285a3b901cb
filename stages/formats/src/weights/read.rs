//! Reading safetensors that others wrote: every size is held against the file before it is used.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::{INDEX, SINGLE, Stored};
use crate::config::LlamaConfig;
use crate::dtype::PIECE;
use crate::packed::{self, Packed};
use crate::{Error, Result, json, mapped};

/// Largest header that is parsed: the limit of the safetensors library.
const HEADER_LIMIT: u64 = 100_000_000;

/// The tensors of a model folder or of one file, mapped into memory.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    files: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Stored,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Weights {
    /// Opens a file, or a folder with `model.safetensors` or `model.safetensors.index.json`.
    ///
    /// # Errors
    /// If there is none, one is cut off, too long or damaged, or a shard or a tensor that the index
    /// names is missing.
    pub fn open(path: &Path) -> Result<Self> {
        let mut weights = Self { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        if !path.is_dir() {
            weights.add(path, None)?;
        } else if path.join(SINGLE).exists() {
            weights.add(&path.join(SINGLE), None)?;
        } else if path.join(INDEX).exists() {
            weights.add_shards(&path.join(INDEX))?;
        } else {
            return Err(nothing_there(path));
        }
        Ok(weights)
    }

    fn add_shards(&mut self, index: &Path) -> Result<()> {
        let text = json::text(index)?;
        let fields = json::object(&text, index)?;
        let fields = json::Fields::new(&fields, index, "");
        let map = fields.need("weight_map", fields.object("weight_map")?)?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, shard) in map {
            let Some(shard) = shard.as_str().filter(|shard| is_plain_name(shard)) else {
                return Err(fields.error("weight_map", format!("names no file beside it for `{name}`")));
            };
            shards.entry(shard).or_default().push(name);
        }
        for (shard, names) in shards {
            let file = index.with_file_name(shard);
            if !file.exists() {
                return Err(Error::new(index, format!("the shard `{shard}` is missing"))
                    .hint("fetch it, or the whole folder, again"));
            }
            self.add(&file, Some(&names))?;
        }
        Ok(())
    }

    /// Takes all tensors of a file, or those in `only`.
    fn add(&mut self, path: &Path, only: Option<&[&str]>) -> Result<()> {
        let map = mapped::map(path)?;
        let (start, header) = header(path, &map)?;
        let take = |name: &str| -> Option<Entry> {
            let info = header.info(name)?;
            let (from, to) = info.data_offsets;
            let bytes = start + from..start + to;
            Some(Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), bytes })
        };
        let names: Vec<String> = match only {
            Some(names) => names.iter().map(|&name| name.to_owned()).collect(),
            None => header.offset_keys(),
        };
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let Some(entry) = take(&name) else {
                return Err(Error::new(path, format!("`{name}` is not in the shard that the index names")));
            };
            found.push((name, entry));
        }
        self.tensors.extend(found);
        self.files.push(map);
        Ok(())
    }

    /// What was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is such a tensor.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::new(&self.path, format!("the tensor `{name}` is missing")))
    }

    /// A tensor's shape, outermost first.
    ///
    /// # Errors
    /// If it is missing.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// The shape of a matrix.
    ///
    /// # Errors
    /// If it is missing or not a matrix.
    pub fn matrix(&self, name: &str) -> Result<[usize; 2]> {
        let shape = self.shape(name)?;
        shape.try_into().map_err(|_| {
            Error::new(&self.path, format!("`{name}` has the shape {shape:?} and should be a matrix"))
        })
    }

    /// How a tensor's values are stored.
    ///
    /// # Errors
    /// If it is missing.
    pub fn dtype(&self, name: &str) -> Result<Stored> {
        Ok(self.entry(name)?.dtype)
    }

    /// A tensor's bytes as they lie in the file: little-endian, row-major.
    ///
    /// # Errors
    /// If it is missing.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let entry = self.entry(name)?;
        Ok(&self.files[entry.file][entry.bytes.clone()])
    }

    /// BLAKE3 over names and bytes of all tensors, in hexadecimal: the same however they are split
    /// into files. Shapes and types are not in it, since names and bytes of one model decide them.
    ///
    /// # Errors
    /// Never, for a folder that opened.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for name in self.names() {
            let bytes = self.bytes(name)?;
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// A float tensor's values, whatever float type they are stored in (f64 is rounded).
    ///
    /// # Errors
    /// If it is missing or holds no floats.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.bytes(name)?;
        match self.dtype(name)? {
            Stored::F32 => Ok(each(bytes, f32::from_le_bytes)),
            Stored::F16 => Ok(each(bytes, |b| f16::from_le_bytes(b).to_f32())),
            Stored::BF16 => Ok(each(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Stored::F64 => Ok(each(bytes, |b| f64::from_le_bytes(b) as f32)),
            other => Err(self.wrong_type(name, other, "floats (F32, F16, BF16 or F64)")),
        }
    }

    /// A whole-number tensor's values, whatever width they are stored in.
    ///
    /// # Errors
    /// If it is missing, holds no whole numbers, or one that does not fit.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>> {
        let bytes = self.bytes(name)?;
        match self.dtype(name)? {
            Stored::I64 => Ok(each(bytes, i64::from_le_bytes)),
            Stored::I32 => Ok(each(bytes, |b| i32::from_le_bytes(b).into())),
            Stored::U32 => Ok(each(bytes, |b| u32::from_le_bytes(b).into())),
            Stored::I16 => Ok(each(bytes, |b| i16::from_le_bytes(b).into())),
            Stored::U16 => Ok(each(bytes, |b| u16::from_le_bytes(b).into())),
            Stored::I8 => Ok(each(bytes, |b| i8::from_le_bytes(b).into())),
            Stored::U8 | Stored::BOOL => Ok(bytes.iter().map(|&b| b.into()).collect()),
            Stored::U64 => each(bytes, u64::from_le_bytes)
                .into_iter()
                .map(|value| value.try_into().map_err(|_| self.too_large(name, value)))
                .collect(),
            other => Err(self.wrong_type(name, other, "whole numbers")),
        }
    }

    fn wrong_type(&self, name: &str, found: Stored, wanted: &str) -> Error {
        Error::new(&self.path, format!("`{name}` holds {found:?} and should hold {wanted}"))
    }

    fn too_large(&self, name: &str, value: u64) -> Error {
        Error::new(&self.path, format!("`{name}` holds {value}, which is too large"))
    }

    /// Holds every tensor against the config: all there, none besides, shapes and types right.
    ///
    /// # Errors
    /// The first tensor that does not fit, with both shapes.
    pub fn check(&self, config: &LlamaConfig) -> Result<()> {
        let mut wanted = HashMap::new();
        for (name, shape) in config.tensors() {
            if !self.contains(&name) {
                return Err(Error::new(
                    &self.path,
                    format!("the tensor `{name}` {shape:?} of `config.json` is missing"),
                )
                .hint("the folder holds another model's config, or a part of the weights"));
            }
            self.check_one(&name, &shape)?;
            wanted.insert(name, shape);
        }
        for name in self.names() {
            let is_known = wanted.contains_key(name)
                || name.ends_with(".rotary_emb.inv_freq")
                || (config.tie_word_embeddings && name == "lm_head.weight")
                || packed::owner(name).is_some_and(|owner| wanted.contains_key(&owner));
            if !is_known {
                return Err(Error::new(
                    &self.path,
                    format!("the tensor `{name}` has no place in `config.json`"),
                )
                .hint("the folder holds another model's config, or a model that is not understood"));
            }
        }
        Ok(())
    }

    fn check_one(&self, name: &str, shape: &[usize]) -> Result<()> {
        let found = if Packed::is_quantized(self, name) {
            Packed::check(self, name)?.to_vec()
        } else {
            let dtype = self.dtype(name)?;
            if !matches!(dtype, Stored::F32 | Stored::F16 | Stored::BF16 | Stored::F64) {
                return Err(self.wrong_type(name, dtype, "floats (F32, F16, BF16 or F64)"));
            }
            self.shape(name)?.to_vec()
        };
        if found == shape {
            return Ok(());
        }
        Err(Error::new(
            &self.path,
            format!("`{name}` has the shape {found:?}, `config.json` asks for {shape:?}"),
        )
        .hint("weights and config belong to different models"))
    }
}

fn each<const N: usize, T: Send>(bytes: &[u8], read: impl Fn([u8; N]) -> T + Sync) -> Vec<T> {
    bytes.as_chunks::<N>().0.par_iter().with_min_len(PIECE).map(|&chunk| read(chunk)).collect()
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != ".." && name != "." && !name.contains(['/', '\\', '\0'])
}

fn nothing_there(path: &Path) -> Error {
    let error = Error::new(path, format!("neither `{SINGLE}` nor `{INDEX}` is there"));
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if pickled.iter().any(|name| path.join(name).exists()) {
        return error.hint("pickled weights are not read; save the model as safetensors with transformers");
    }
    error.hint("a model folder holds its weights as safetensors")
}

/// Where the data starts, and what the header says.
fn header(path: &Path, bytes: &[u8]) -> Result<(usize, Metadata)> {
    let Some(length) = bytes.first_chunk() else {
        return Err(Error::new(path, format!("{} bytes are too few for a safetensors file", bytes.len()))
            .hint("the file is cut off or something else; fetch it again"));
    };
    let length = u64::from_le_bytes(*length);
    let damaged = |message: String| {
        Error::new(path, message).hint("the file is damaged or no safetensors file; fetch it again")
    };
    if length > HEADER_LIMIT {
        return Err(damaged(format!(
            "its header claims {length} bytes, more than any safetensors header has"
        )));
    }
    let start = 8 + length as usize;
    let Some(text) = bytes.get(8..start) else {
        return Err(damaged(format!(
            "cut off: the header needs {start} bytes, the file has {}",
            bytes.len()
        )));
    };
    check_length(text, bytes.len() - start, path)?;
    SafeTensors::read_metadata(bytes)
        .map(|(_, metadata)| (start, metadata))
        .map_err(|error| damaged(format!("bad safetensors header: {error}")))
}

/// Tells a cut-off file and one with bytes to spare from a header that contradicts itself.
fn check_length(text: &[u8], data: usize, path: &Path) -> Result<()> {
    let Ok(Value::Object(entries)) = serde_json::from_slice::<Value>(text) else {
        return Ok(()); // the library says what is wrong with it
    };
    let end = |entry: &Value| entry.get("data_offsets")?.get(1)?.as_u64();
    let last = entries.iter().filter_map(|(name, entry)| Some((end(entry)?, name))).max();
    let (wanted, name) = last.map_or((0, ""), |(end, name)| (end, name.as_str()));
    let data = data as u64;
    if wanted > data {
        return Err(Error::new(
            path,
            format!("cut off: `{name}` ends at byte {wanted} of the data, {data} are there"),
        )
        .hint("fetch the file again"));
    }
    if wanted < data {
        return Err(Error::new(path, format!("{} bytes stand after the last tensor", data - wanted))
            .hint("the file is damaged; fetch it again"));
    }
    Ok(())
}
