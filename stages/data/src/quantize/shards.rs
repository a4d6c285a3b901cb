//! Writes a model's tensors as they come, in files of limited size, named and indexed as
//! transformers does.
//!
//! `formats::weights::ModelWriter` wants every size beforehand; a doubly quantized weight carries a
//! text whose length depends on its values.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use contract::{StageError, at};
use formats::weights::{INDEX, SINGLE, Tensor, save};
use serde_json::{Value, json};

/// The open end of a model folder.
pub struct Shards {
    folder: PathBuf,
    /// Bytes after which a file is closed.
    limit: usize,
    pending: Vec<Tensor<'static>>,
    pending_bytes: usize,
    total: usize,
    /// The names in each file that is written.
    files: Vec<Vec<String>>,
}

impl Shards {
    /// Files of about `limit` bytes in `folder`.
    pub fn new(folder: &Path, limit: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            limit,
            pending: Vec::new(),
            pending_bytes: 0,
            total: 0,
            files: Vec::new(),
        }
    }

    /// Takes one tensor.
    pub fn push(&mut self, tensor: Tensor<'_>) -> Result<(), StageError> {
        let Tensor { name, dtype, shape, data } = tensor;
        let bytes = data.len();
        if self.pending_bytes > 0 && self.pending_bytes + bytes > self.limit {
            self.close()?;
        }
        self.pending_bytes += bytes;
        self.total += bytes;
        self.pending.push(Tensor { name, dtype, shape, data: data.into_owned().into() });
        Ok(())
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> usize {
        self.total
    }

    /// Gives the files their names and writes the index, if there is more than one.
    pub fn finish(mut self) -> Result<(), StageError> {
        self.close()?;
        let count = self.files.len();
        let name = |index: usize| match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let mut map: BTreeMap<&str, Value> = BTreeMap::new();
        for (index, tensors) in self.files.iter().enumerate() {
            let part = self.part(index);
            fs::rename(&part, self.folder.join(name(index))).map_err(at(&part))?;
            map.extend(tensors.iter().map(|tensor| (tensor.as_str(), json!(name(index)))));
        }
        if count > 1 {
            let index = json!({ "metadata": { "total_size": self.total }, "weight_map": map });
            let path = self.folder.join(INDEX);
            fs::write(&path, serde_json::to_string_pretty(&index)? + "\n").map_err(at(&path))?;
        }
        Ok(())
    }

    fn part(&self, index: usize) -> PathBuf {
        self.folder.join(format!("part-{index}.safetensors"))
    }

    fn close(&mut self) -> Result<(), StageError> {
        let tensors = std::mem::take(&mut self.pending);
        let names = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        save(&self.part(self.files.len()), tensors, &[("format", "pt")])?;
        self.files.push(names);
        self.pending_bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use formats::weights::Weights;

    use super::*;

    fn write(limit: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut shards = Shards::new(dir.path(), limit);
        for (name, value) in [("a", 1.0), ("b", 2.0), ("c", 3.0)] {
            shards.push(Tensor::f32(name, [2], vec![value; 2])).unwrap();
        }
        assert_eq!(shards.bytes(), 24);
        shards.finish().unwrap();
        dir
    }

    #[test]
    fn small_models_are_one_file_and_large_ones_several_with_an_index() {
        for (limit, files) in [(1000, 1), (16, 3), (1, 4)] {
            let dir = write(limit);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), files);
            let weights = Weights::open(dir.path()).unwrap();
            assert_eq!(weights.f32("c").unwrap(), [3.0, 3.0]);
            assert_eq!(weights.names().count(), 3);
        }
    }
}
