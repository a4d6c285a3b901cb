//! LLM.int8() weights (Dettmers et al., arXiv 2208.07339, section 2): one 8-bit code a weight and one
//! scale a row, as bitsandbytes computes and stores them, byte for byte.
//!
//! Source: bitsandbytes 0.50 `nn/modules.py` (`Int8Params._quantize`, `Linear8bitLt`) and
//! `backends/default/ops.py` (`int8_vectorwise_quant`). It rounds weights to float16 first, and so is it
//! done here. Only the weights are 8-bit: activations are not quantized, as bitsandbytes does for products on
//! the device, so nothing is lost but what the weights lose.
//!
//! It does not know devices or layers.

use half::f16;
use rayon::prelude::*;

use crate::weights::{Stored, Tensor, Weights};
use crate::{Error, Result};

/// The largest code.
const MOST: f32 = 127.0;

/// What a code of 1 is of a row's scale.
pub const STEP: f32 = 1.0 / MOST;

/// The type of the rows' layout in bitsandbytes: by row, which is the only one it still reads.
const ROW: u8 = 0;

/// One quantized weight matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8 {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// One code a weight, −127 to 127, row-major.
    pub codes: Vec<i8>,
    /// The largest magnitude of each row, `[out]`.
    pub scales: Vec<f32>,
}

impl Int8 {
    /// Quantizes a matrix `[out, in]` of numbers that float16 can hold. Uses all cores; the result does
    /// not depend on how many there are.
    ///
    /// # Panics
    /// If the number of weights is not the shape's.
    #[must_use]
    pub fn quantize(w: &[f32], shape: [usize; 2]) -> Self {
        assert_eq!(w.len(), shape[0] * shape[1], "the weights do not fit the shape {shape:?}");
        let mut codes = vec![0i8; w.len()];
        let mut scales = vec![0f32; shape[0]];
        let width = shape[1].max(1);
        let rows = w.par_chunks(width).zip(codes.par_chunks_mut(width)).zip(&mut scales);
        rows.for_each(|((w, codes), scale)| *scale = encode_row(w, codes));
        Self { shape, codes, scales }
    }

    /// The weights `[out, in]`, row-major, in single precision: code times scale times 1/127.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let mut w = vec![0f32; self.codes.len()];
        let width = self.shape[1].max(1);
        let rows = w.par_chunks_mut(width).zip(self.codes.par_chunks(width)).zip(&self.scales);
        rows.for_each(|((w, codes), &scale)| {
            w.iter_mut().zip(codes).for_each(|(w, &code)| *w = f32::from(code) * scale * STEP);
        });
        w
    }

    /// The codes as a device takes them: four a word, code k of a word is `((word >> 8k) & 255) − 128`.
    #[must_use]
    pub fn words(&self) -> Vec<u32> {
        let word = |codes: &[i8]| {
            let mut four = [0u8; 4];
            four.iter_mut().zip(codes).for_each(|(to, &code)| *to = code.cast_unsigned() ^ 0x80);
            u32::from_le_bytes(four)
        };
        self.codes.chunks(4).map(word).collect()
    }

    /// Whether `name` is quantized so.
    #[must_use]
    pub fn is_quantized(weights: &Weights, name: &str) -> bool {
        weights.contains(&part(name, "SCB"))
    }

    /// The shape of a quantized weight, once everything about it fits together.
    ///
    /// # Errors
    /// If a part is missing, has a wrong size, or is not understood.
    pub fn check(weights: &Weights, name: &str) -> Result<[usize; 2]> {
        let shape = weights.matrix(name)?;
        let expect = |name: &str, dtype: Stored, wanted: &[usize]| {
            let (found, shape) = (weights.dtype(name)?, weights.shape(name)?);
            if found == dtype && shape == wanted {
                return Ok(());
            }
            let message = format!("`{name}` is {found:?} {shape:?} and should be {dtype:?} {wanted:?}");
            Err(Error::new(weights.path(), message))
        };
        expect(name, Stored::I8, &shape)?;
        expect(&part(name, "SCB"), Stored::F32, &shape[..1])?;
        let format = part(name, "weight_format");
        if weights.contains(&format) && weights.bytes(&format)? != [ROW] {
            let message = format!("`{format}` is no layout by row");
            return Err(Error::new(weights.path(), message)
                .hint("an old bitsandbytes wrote it for one GPU; quantize the float model again"));
        }
        Ok(shape)
    }

    /// Reads a quantized weight.
    ///
    /// # Errors
    /// If a part is missing, has a wrong size, or is not understood.
    pub fn read(weights: &Weights, name: &str) -> Result<Self> {
        let shape = Self::check(weights, name)?;
        let codes = weights.bytes(name)?.iter().map(|byte| byte.cast_signed()).collect();
        Ok(Self { shape, codes, scales: weights.f32(&part(name, "SCB"))? })
    }

    /// The layout's tensors for a weight of this name, `….weight`.
    #[must_use]
    pub fn tensors(&self, name: &str) -> Vec<Tensor<'_>> {
        let codes = self.codes.iter().map(|code| code.cast_unsigned()).collect();
        let codes: Vec<u8> = codes;
        vec![
            Tensor {
                name: name.to_owned(),
                dtype: Stored::I8,
                shape: self.shape.to_vec(),
                data: codes.into(),
            },
            Tensor::f32(part(name, "SCB"), [self.scales.len()], self.scales.clone()),
            Tensor::u8(part(name, "weight_format"), [], vec![ROW]),
        ]
    }

    /// Bytes of codes and scales together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }
}

/// The first number that float16 cannot hold.
#[must_use]
pub fn too_large(w: &[f32]) -> Option<f32> {
    w.iter().copied().find(|&x| x.is_finite() && f16::from_f32(x).is_infinite())
}

/// `….q_proj.weight` → `….q_proj.PART`
fn part(name: &str, part: &str) -> String {
    format!("{}.{part}", name.strip_suffix(".weight").unwrap_or(name))
}

/// The weight that a tensor of the layout belongs to, if it stands beside one.
pub(crate) fn owner(name: &str) -> Option<String> {
    let path = [".SCB", ".weight_format"].iter().find_map(|suffix| name.strip_suffix(suffix))?;
    Some(format!("{path}.weight"))
}

/// Fills a row's codes and returns its scale. A row of zeros has codes of 0.
fn encode_row(w: &[f32], codes: &mut [i8]) -> f32 {
    let half = |x: f32| f16::from_f32(x).to_f32();
    let scale = w.iter().fold(0f32, |most, &x| most.max(half(x).abs()));
    if scale > 0.0 {
        // torch divides a number by a tensor so
        let factor = scale.recip() * MOST;
        for (code, &x) in codes.iter_mut().zip(w) {
            *code = to_i8((half(x) * factor).round_ties_even());
        }
    }
    scale
}

#[expect(clippy::cast_possible_truncation, reason = "a whole number from −127 to 127")]
fn to_i8(x: f32) -> i8 {
    x as i8
}
