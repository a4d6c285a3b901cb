//! A safetensors file of lists whose lengths are not known beforehand: values come one by one and wait in
//! scratch files, not in memory, until the header can be written.

use std::fs::File;
use std::io::{BufWriter, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use super::Stored;
use super::write::{OpenFile, Spec};
use crate::Result;
use crate::error::at;

/// A tensor of one dimension that grows.
pub(crate) struct Column {
    name: &'static str,
    dtype: Stored,
    len: usize,
    dir: PathBuf,
    /// Has no name, so it goes with the process.
    scratch: BufWriter<File>,
}

impl Column {
    /// An empty one; its scratch file lies in `dir`.
    pub(crate) fn new(dir: &Path, name: &'static str, dtype: Stored) -> Result<Self> {
        let scratch = BufWriter::new(tempfile::tempfile_in(dir).map_err(at(dir))?);
        Ok(Self { name, dtype, len: 0, dir: dir.to_owned(), scratch })
    }

    /// Appends a value: as many bytes as its type has, little-endian.
    pub(crate) fn push<const N: usize>(&mut self, value: [u8; N]) -> Result<()> {
        debug_assert_eq!(N * 8, self.dtype.bitsize(), "`{}`", self.name);
        self.len += 1;
        self.scratch.write_all(&value).map_err(at(&self.dir))
    }

    /// Whether nothing was appended.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn spec(&self) -> Spec {
        Spec { name: self.name.to_owned(), dtype: self.dtype, shape: vec![self.len] }
    }

    fn into_scratch(self) -> Result<File> {
        let mut file = self.scratch.into_inner().map_err(|error| at(&self.dir)(error.into_error()))?;
        file.rewind().map_err(at(&self.dir))?;
        Ok(file)
    }
}

/// Writes columns into one file, with the bytes that [`super::save`] gives the same tensors.
pub(crate) fn save_columns(path: &Path, columns: Vec<Column>) -> Result<()> {
    let specs: Vec<Spec> = columns.iter().map(Column::spec).collect();
    let mut file = OpenFile::create(path, &specs, &[])?;
    for column in columns {
        file.write_from(column.name, &mut column.into_scratch()?)?;
    }
    file.finish()
}
