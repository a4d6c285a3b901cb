//! Writing safetensors: in one go, or tensor by tensor into shards.
//!
//! A file gets its name only when it is whole and flushed to the disk. Equal tensors give equal
//! bytes: the header is ordered by name, the data by alignment and then as given.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::{INDEX, SINGLE, Stored, Tensor, beside};
use crate::error::at;
use crate::json::write_durably;
use crate::{Error, Result};

/// Writes tensors into one file.
///
/// # Errors
/// If two tensors have one name, a tensor's bytes do not fit its shape, or the disk says no.
pub fn save(path: &Path, tensors: Vec<Tensor<'_>>, metadata: &[(&str, &str)]) -> Result<()> {
    let specs: Vec<Spec> = tensors
        .iter()
        .map(|tensor| Spec { name: tensor.name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() })
        .collect();
    let mut file = OpenFile::create(path, &specs, metadata)?;
    for tensor in &tensors {
        file.write(&tensor.name, &tensor.data)?;
    }
    file.finish()
}

/// A tensor before its bytes are known.
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) dtype: Stored,
    pub(super) shape: Vec<usize>,
}

impl Spec {
    fn bytes(&self, path: &Path) -> Result<u64> {
        let bits = self.shape.iter().try_fold(self.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        match bits {
            Some(bits) if bits % 8 == 0 => Ok(bits as u64 / 8),
            _ => {
                Err(Error::new(path, format!("`{}` with shape {:?} cannot be stored", self.name, self.shape)))
            }
        }
    }
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: Stored,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

/// One file that is being filled.
pub(super) struct OpenFile {
    path: PathBuf,
    file: File,
    start: u64,
    /// name → offset, length, written
    slots: HashMap<String, (u64, u64, bool)>,
}

impl OpenFile {
    pub(super) fn create(path: &Path, specs: &[Spec], metadata: &[(&str, &str)]) -> Result<Self> {
        let mut order: Vec<&Spec> = specs.iter().collect();
        order.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.bitsize()));
        let (mut header, mut slots, mut offset) = (BTreeMap::new(), HashMap::new(), 0u64);
        for spec in order {
            let bytes = spec.bytes(path)?;
            let end = offset + bytes;
            let entry = Entry { dtype: spec.dtype, shape: &spec.shape, data_offsets: [offset, end] };
            let value = serde_json::to_value(entry).expect("plain numbers and lists serialize");
            if spec.name == "__metadata__" || header.insert(spec.name.as_str(), value).is_some() {
                return Err(Error::new(path, format!("`{}` cannot be stored twice", spec.name)));
            }
            slots.insert(spec.name.clone(), (offset, bytes, false));
            offset = end;
        }
        let mut tags: BTreeMap<&str, &str> = metadata.iter().copied().collect();
        tags.entry("format").or_insert("pt");
        header.insert("__metadata__", json!(tags));
        let mut text = serde_json::to_vec(&header).expect("names and plain values serialize");
        text.resize(text.len().next_multiple_of(8), b' ');
        let partial = beside(path);
        let mut file = File::create(&partial).map_err(at(&partial))?;
        file.write_all(&(text.len() as u64).to_le_bytes()).map_err(at(&partial))?;
        file.write_all(&text).map_err(at(&partial))?;
        let start = 8 + text.len() as u64;
        file.set_len(start + offset).map_err(at(&partial))?;
        Ok(Self { path: path.to_owned(), file, start, slots })
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.place(name, bytes.len() as u64)?;
        self.file.write_all(bytes).map_err(at(&self.path))
    }

    /// Writes a tensor with all that a file holds from its beginning.
    pub(super) fn write_from(&mut self, name: &str, source: &mut File) -> Result<()> {
        let length = source.metadata().map_err(at(&self.path))?.len();
        self.place(name, length)?;
        std::io::copy(source, &mut self.file).map_err(at(&self.path))?;
        Ok(())
    }

    /// Goes to where the tensor's `found` bytes belong.
    fn place(&mut self, name: &str, found: u64) -> Result<()> {
        let Some((offset, length, written)) = self.slots.get_mut(name) else {
            return Err(Error::new(&self.path, format!("`{name}` was not announced")));
        };
        if found != *length {
            let message = format!("`{name}` has {found} bytes, its shape asks for {length}");
            return Err(Error::new(&self.path, message));
        }
        *written = true;
        self.file.seek(SeekFrom::Start(self.start + *offset)).map_err(at(&self.path))?;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<()> {
        if let Some(name) = self.slots.iter().filter(|(_, slot)| !slot.2).map(|(name, _)| name).min() {
            return Err(Error::new(&self.path, format!("`{name}` was announced and never written")));
        }
        self.file.sync_all().map_err(at(&self.path))?;
        drop(self.file);
        std::fs::rename(beside(&self.path), &self.path).map_err(at(&self.path))
    }
}

/// Writes a model folder's weights tensor by tensor, in any order: one file if it all fits, else
/// shards and an index, as transformers names them.
pub struct ModelWriter {
    dir: PathBuf,
    shards: Vec<OpenFile>,
    /// name → shard
    place: HashMap<String, usize>,
    bytes: u64,
}

impl ModelWriter {
    /// Shard size that transformers uses.
    pub const SHARD_BYTES: u64 = 5_000_000_000;

    /// Plans the files and opens them. A tensor larger than `max_shard_bytes` gets its own shard.
    ///
    /// # Errors
    /// If a name comes twice or the disk says no.
    pub fn create(
        dir: &Path,
        tensors: Vec<(String, Stored, Vec<usize>)>,
        max_shard_bytes: u64,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let mut groups: Vec<Vec<Spec>> = vec![Vec::new()];
        let (mut filled, mut total) = (0u64, 0u64);
        for (name, dtype, shape) in tensors {
            let spec = Spec { name, dtype, shape };
            let bytes = spec.bytes(dir)?;
            total += bytes;
            if filled > 0 && filled + bytes > max_shard_bytes {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            groups.last_mut().expect("starts with one group").push(spec);
        }
        let count = groups.len();
        let (mut shards, mut place) = (Vec::new(), HashMap::new());
        for (index, specs) in groups.iter().enumerate() {
            for spec in specs {
                if place.insert(spec.name.clone(), index).is_some() {
                    return Err(Error::new(dir, format!("`{}` cannot be stored twice", spec.name)));
                }
            }
            shards.push(OpenFile::create(&dir.join(shard_name(index, count)), specs, &[])?);
        }
        Ok(Self { dir: dir.to_owned(), shards, place, bytes: total })
    }

    /// Writes one tensor's bytes: little-endian, row-major.
    ///
    /// # Errors
    /// If it was not announced, the length does not fit, or the disk says no.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.place.get(name) {
            Some(&shard) => self.shards[shard].write(name, bytes),
            None => Err(Error::new(&self.dir, format!("`{name}` was not announced"))),
        }
    }

    /// Gives the files their names; the index comes last.
    ///
    /// # Errors
    /// If a tensor was never written or the disk says no.
    pub fn finish(self) -> Result<()> {
        let count = self.shards.len();
        for shard in self.shards {
            shard.finish()?;
        }
        if count > 1 {
            let map: BTreeMap<&String, Value> =
                self.place.iter().map(|(name, &shard)| (name, json!(shard_name(shard, count)))).collect();
            let index = json!({ "metadata": { "total_size": self.bytes }, "weight_map": map });
            let text = serde_json::to_vec_pretty(&index).expect("names and numbers serialize");
            write_durably(&self.dir.join(INDEX), &text)?;
        }
        Ok(())
    }
}

fn shard_name(index: usize, count: usize) -> String {
    match count {
        1 => SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    }
}
