//! Weights on disk: one safetensors file, or shards behind an index.
//!
//! [`Weights`] maps the files into memory and copies a tensor only when asked for, so that a model
//! larger than the memory can be read tensor by tensor; [`ModelWriter`] is its mirror for writing.
//! Format: <https://github.com/huggingface/safetensors#format>.
//!
//! It does not know what the tensors mean, with two exceptions: [`Weights::check`] holds them
//! against a config, and [`linear_f32`] resolves packed weights.

mod columns;
mod read;
mod write;

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use crate::Dtype;
pub(crate) use columns::{Column, save_columns};
pub use read::Weights;
pub use safetensors::Dtype as Stored;
pub use write::{ModelWriter, save};

use crate::Result;
use crate::packed::Packed;

/// The file of a model that fits into one.
pub const SINGLE: &str = "model.safetensors";
/// The list of tensors of a model in shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// One tensor to be written. `data` is little-endian, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Its key.
    pub name: String,
    /// How a value is stored.
    pub dtype: Stored,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub data: Cow<'a, [u8]>,
}

impl Tensor<'static> {
    /// Single-precision values.
    #[must_use]
    pub fn f32(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self::float(name, shape, &values, Dtype::F32)
    }

    /// Values rounded to `dtype`.
    #[must_use]
    pub fn float(
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        values: &[f32],
        dtype: Dtype,
    ) -> Self {
        Self::owned(name, dtype.stored(), shape, dtype.encode(values))
    }

    /// 64-bit whole numbers.
    #[must_use]
    pub fn i64(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &[i64]) -> Self {
        Self::owned(name, Stored::I64, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// 32-bit whole numbers.
    #[must_use]
    pub fn i32(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &[i32]) -> Self {
        Self::owned(name, Stored::I32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Bytes.
    #[must_use]
    pub fn u8(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: Vec<u8>) -> Self {
        Self::owned(name, Stored::U8, shape, values)
    }

    fn owned(name: impl Into<String>, dtype: Stored, shape: impl Into<Vec<usize>>, data: Vec<u8>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), data: Cow::Owned(data) }
    }
}

/// One weight matrix of a model folder as floats `[out, in]`, dequantized if it is packed.
///
/// # Errors
/// If it is missing, not a matrix, or of a type that is not understood.
pub fn linear_f32(weights: &Weights, name: &str) -> Result<(Vec<f32>, [usize; 2])> {
    if Packed::is_quantized(weights, name) {
        let weight = Packed::read(weights, name)?;
        return Ok((weight.dequantize(), weight.shape()));
    }
    let shape = weights.matrix(name)?;
    Ok((weights.f32(name)?, shape))
}

/// The name under which a file is written until it is whole.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
}
