//! A weight matrix in one of the quantized forms that are understood: which one, a file's tensors tell.

use crate::Result;
use crate::int8::{self, Int8};
use crate::nf4::{self, Nf4};
use crate::weights::{Tensor, Weights};

/// One quantized weight matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum Packed {
    /// Four bits a weight.
    Nf4(Nf4),
    /// Eight bits a weight.
    Int8(Int8),
}

impl Packed {
    /// Whether `name` is quantized by bitsandbytes (in a way that may yet be refused by
    /// [`Packed::read`]).
    #[must_use]
    pub fn is_quantized(weights: &Weights, name: &str) -> bool {
        Nf4::is_quantized(weights, name) || Int8::is_quantized(weights, name)
    }

    /// The shape of a quantized weight, once everything about it fits together.
    ///
    /// # Errors
    /// If a part is missing, has a wrong size, or is not understood.
    pub fn check(weights: &Weights, name: &str) -> Result<[usize; 2]> {
        if Int8::is_quantized(weights, name) { Int8::check(weights, name) } else { Nf4::check(weights, name) }
    }

    /// Reads a quantized weight.
    ///
    /// # Errors
    /// If a part is missing, has a wrong size, or is not understood.
    pub fn read(weights: &Weights, name: &str) -> Result<Self> {
        if Int8::is_quantized(weights, name) {
            Int8::read(weights, name).map(Self::Int8)
        } else {
            Nf4::read(weights, name).map(Self::Nf4)
        }
    }

    /// `[out, in]`
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Nf4(weight) => weight.shape,
            Self::Int8(weight) => weight.shape,
        }
    }

    /// The weights `[out, in]`, row-major, in single precision.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Nf4(weight) => weight.dequantize(),
            Self::Int8(weight) => weight.dequantize(),
        }
    }

    /// The layout's tensors for a weight of this name.
    #[must_use]
    pub fn tensors(&self, name: &str) -> Vec<Tensor<'_>> {
        match self {
            Self::Nf4(weight) => weight.tensors(name),
            Self::Int8(weight) => weight.tensors(name),
        }
    }
}

/// The weight that a tensor of either layout belongs to, if it stands beside one.
pub(crate) fn owner(name: &str) -> Option<String> {
    nf4::owner(name).map(str::to_owned).or_else(|| int8::owner(name))
}
