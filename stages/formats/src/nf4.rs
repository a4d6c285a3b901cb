//! NF4 (Dettmers et al., arXiv 2305.14314, section 3): 4-bit codes in blocks of 64, as bitsandbytes
//! computes and stores them, byte for byte.
//!
//! Source: bitsandbytes 0.50 `backends/default/ops.py` (`quantize_4bit`) and `functional.py`
//! (`create_dynamic_map`, `QuantState.as_dict`). Encoding happens on the host, so that the bytes are
//! the same on every device.
//!
//! It does not know devices or layers.

mod mean;
mod scales;
mod stored;

use rayon::prelude::*;

pub use scales::{Absmax, dynamic_map};
pub use stored::Quantized;
pub(crate) use stored::owner;

/// Weights that share a scale.
pub const BLOCK: usize = 64;
/// Scales that share a scale of their own, with double quantization.
pub const NESTED_BLOCK: usize = 256;

/// The 16 values: quantiles of a normal distribution, scaled to [−1, 1] (QLoRA, appendix E).
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Between two values: the greatest number that still takes the lower code.
pub const MIDPOINTS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_9,
    -0.459_995_27,
    -0.339_679_42,
    -0.234_607_4,
    -0.137_911_74,
    -0.045_525_018,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_76,
    0.389_312_54,
    0.501_663_45,
    0.642_786_9,
    0.861_478_45,
];

/// Smallest divisor of a block: keeps an all-zero block from dividing by zero.
const SMALLEST: f32 = 1e-38;

/// Blocks that one thread takes at a time.
const RUN: usize = 1024;

/// One quantized weight matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4 {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Two codes a byte, row-major, the first in the high nibble; `⌈out·in/2⌉`.
    pub packed: Vec<u8>,
    /// One scale a block; blocks run across row ends.
    pub absmax: Absmax,
}

impl Nf4 {
    /// Quantizes a matrix `[out, in]` of finite numbers. Uses all cores; the result does not depend
    /// on how many there are.
    ///
    /// # Panics
    /// If the number of weights is not the shape's.
    #[must_use]
    pub fn quantize(w: &[f32], shape: [usize; 2], double: bool) -> Self {
        assert_eq!(w.len(), shape[0] * shape[1], "the weights do not fit the shape {shape:?}");
        let mut packed = vec![0u8; w.len().div_ceil(2)];
        let mut absmax = vec![0f32; w.len().div_ceil(BLOCK)];
        w.par_chunks(BLOCK * RUN)
            .zip(packed.par_chunks_mut(BLOCK / 2 * RUN))
            .zip(absmax.par_chunks_mut(RUN))
            .for_each(|((w, packed), absmax)| {
                let blocks = w.chunks(BLOCK).zip(packed.chunks_mut(BLOCK / 2)).zip(absmax);
                blocks.for_each(|((w, packed), absmax)| *absmax = encode_block(w, packed));
            });
        let absmax = if double { Absmax::nest(&absmax) } else { Absmax::Plain(absmax) };
        Self { shape, packed, absmax }
    }

    /// The scale of every block, in single precision.
    #[must_use]
    pub fn absmax(&self) -> Vec<f32> {
        self.absmax.resolve()
    }

    /// The weights `[out, in]`, row-major: code book entry times scale, in single precision.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let absmax = self.absmax();
        let mut w = vec![0f32; self.shape[0] * self.shape[1]];
        w.par_chunks_mut(BLOCK * RUN)
            .zip(self.packed.par_chunks(BLOCK / 2 * RUN))
            .zip(absmax.par_chunks(RUN))
            .for_each(|((w, packed), absmax)| {
                let blocks = w.chunks_mut(BLOCK).zip(packed.chunks(BLOCK / 2)).zip(absmax);
                blocks.for_each(|((w, packed), &absmax)| decode_block(packed, absmax, w));
            });
        w
    }

    /// The codes as a device takes them: eight a word, code k of a word is `(word >> 4k) & 15`. What
    /// is left of the last word is 0.
    #[must_use]
    pub fn words(&self) -> Vec<u32> {
        let swap = |byte: u8| byte.rotate_left(4);
        let word = |bytes: &[u8]| {
            let mut four = [0u8; 4];
            four.iter_mut().zip(bytes).for_each(|(to, &from)| *to = swap(from));
            u32::from_le_bytes(four)
        };
        self.packed.chunks(4).map(word).collect()
    }

    /// Bytes of codes and scales together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.absmax.bytes()
    }
}

/// Fills a block's bytes and returns its scale. A whole block is multiplied by the scale's inverse,
/// an incomplete one, which is the last, is divided by the scale: bitsandbytes' own oddity.
fn encode_block(w: &[f32], packed: &mut [u8]) -> f32 {
    let absmax = w.iter().fold(0f32, |most, x| most.max(x.abs()));
    let divisor = absmax.max(SMALLEST);
    // 0.0 fills up an odd tail
    let mut scaled = [0f32; BLOCK];
    let is_whole = w.len() == BLOCK;
    let inverse = 1.0 / divisor;
    for (to, &x) in scaled.iter_mut().zip(w) {
        *to = if is_whole { x * inverse } else { x / divisor };
    }
    let codes = scaled.map(code);
    for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = (pair[0] << 4) | pair[1];
    }
    if is_whole { absmax } else { divisor }
}

/// How many midpoints lie below a number: a tie goes to the lower code.
fn code(scaled: f32) -> u8 {
    MIDPOINTS.iter().map(|&midpoint| u8::from(midpoint < scaled)).sum()
}

fn decode_block(packed: &[u8], absmax: f32, w: &mut [f32]) {
    for (pair, &byte) in w.chunks_mut(2).zip(packed) {
        pair[0] = CODEBOOK[usize::from(byte >> 4)] * absmax;
        if let [_, second] = pair {
            *second = CODEBOOK[usize::from(byte & 15)] * absmax;
        }
    }
}
