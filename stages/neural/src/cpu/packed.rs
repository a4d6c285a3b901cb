//! Packed weights on slices: made floats again, in pieces that stay in the processor's cache, and the
//! product with few rows, which makes floats of one row of weights at a time.

use formats::int8::STEP;
use formats::nf4::{BLOCK, CODEBOOK};
use rayon::prelude::*;

use super::rows::dot;
use crate::packed_linear::{Codes, Layout};

/// Weights of a piece that is made floats as a whole: 4 MiB.
const PIECE: usize = 1 << 20;
/// Weights of one core's task: enough of them to be worth one.
const TASK: usize = 1 << 14;
/// Rows of x up to which a row of weights is made floats, used and forgotten.
const FEW: usize = 8;

/// A packed weight, `[out, in]`.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    /// Codes.
    pub words: &'a [u32],
    /// See [`Codes`].
    pub scales: &'a [f32],
    /// What words and scales are of.
    pub layout: Layout,
}

impl Packed<'_> {
    /// All of it as floats, `[out, in]`.
    #[must_use]
    pub fn floats(&self) -> Vec<f32> {
        let mut floats = vec![0.0; self.layout.rows * self.layout.columns];
        self.fill(0, &mut floats);
        floats
    }

    /// Row `row` as floats, `[in]`.
    #[must_use]
    pub fn row(&self, row: usize) -> Vec<f32> {
        let mut floats = vec![0.0; self.layout.columns];
        self.decode(row * self.layout.columns, &mut floats);
        floats
    }

    /// Shows the weight as floats, some rows at a time: where they start, and they.
    pub fn in_pieces(&self, mut show: impl FnMut(usize, &[f32])) {
        let Layout { rows, columns, .. } = self.layout;
        let many = (PIECE / columns.max(1)).clamp(1, rows.max(1));
        let mut piece = vec![0.0; many * columns];
        for first in (0..rows).step_by(many) {
            let piece = &mut piece[..many.min(rows - first) * columns];
            self.fill(first * columns, piece);
            show(first, piece);
        }
    }

    /// x·Wᵀ where x has few rows; `None` where it has many.
    ///
    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn narrow_product(&self, x: &[f32]) -> Option<Vec<f32>> {
        let Layout { rows: out, columns, .. } = self.layout;
        let n = x.len() / columns.max(1);
        if n > FEW {
            return None;
        }
        let mut turned = vec![0.0; out * n];
        let rows = (TASK / columns.max(1)).max(1);
        turned.par_chunks_mut((rows * n).max(1)).enumerate().for_each(|(task, y)| {
            let mut weight = vec![0.0; columns];
            for (row, y) in y.chunks_mut(n).enumerate() {
                self.decode((task * rows + row) * columns, &mut weight);
                y.iter_mut().zip(x.chunks(columns)).for_each(|(y, x)| *y = dot(x, &weight));
            }
        });
        if n == 1 {
            return Some(turned);
        }
        Some((0..n * out).map(|at| turned[at % out * n + at / out]).collect())
    }

    /// Makes floats of the weights from the flat index `first` on, with all cores.
    fn fill(&self, first: usize, to: &mut [f32]) {
        to.par_chunks_mut(TASK).enumerate().for_each(|(task, to)| self.decode(first + task * TASK, to));
    }

    /// The same on this core.
    fn decode(&self, first: usize, to: &mut [f32]) {
        match self.layout.codes {
            Codes::Nf4 => nf4(self.words, self.scales, first, to),
            Codes::Int8 => int8(self.words, self.scales, self.layout.columns, first, to),
        }
    }
}

/// Eight codes a word, a scale a block; `first` and the end of `to` may lie inside a block.
fn nf4(words: &[u32], scales: &[f32], first: usize, to: &mut [f32]) {
    let each = |first: usize, to: &mut [f32]| {
        for (at, to) in (first..).zip(to) {
            *to = CODEBOOK[(words[at / 8] >> (4 * (at % 8)) & 15) as usize] * scales[at / BLOCK];
        }
    };
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        let (start, to) = to.split_at_mut((first.next_multiple_of(BLOCK) - first).min(to.len()));
        let (block, whole) = ((first + start.len()) / BLOCK, to.len() / BLOCK);
        let (blocks, end) = to.split_at_mut(whole * BLOCK);
        let words = &words[block * (BLOCK / 8)..][..whole * (BLOCK / 8)];
        each(first, start);
        // SAFETY: the processor was just asked for the feature.
        unsafe { nf4_blocks(words, &scales[block..][..whole], blocks) };
        each((block + whole) * BLOCK, end);
        return;
    }
    each(first, to);
}

/// Whole blocks, with the codebook in two registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn nf4_blocks(words: &[u32], scales: &[f32], to: &mut [f32]) {
    use std::arch::x86_64::{
        _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_permutevar8x32_ps,
        _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_slli_epi32, _mm256_srlv_epi32,
        _mm256_storeu_ps,
    };
    let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    // SAFETY: the codebook has sixteen values.
    let (low, high) =
        unsafe { (_mm256_loadu_ps(CODEBOOK.as_ptr()), _mm256_loadu_ps(CODEBOOK[8..].as_ptr())) };
    for block in 0..scales.len() {
        let scale = _mm256_set1_ps(scales[block]);
        let words = &words[block * (BLOCK / 8)..][..BLOCK / 8];
        let to = &mut to[block * BLOCK..][..BLOCK];
        for k in 0..BLOCK / 8 {
            let codes = _mm256_srlv_epi32(_mm256_set1_epi32(words[k].cast_signed()), shifts);
            // a permutation looks at the three low bits of a code; the fourth chooses the half
            let values = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(low, codes),
                _mm256_permutevar8x32_ps(high, codes),
                _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)),
            );
            // SAFETY: `to` is a block of as many floats as its words have codes.
            unsafe { _mm256_storeu_ps(to[8 * k..].as_mut_ptr(), _mm256_mul_ps(values, scale)) };
        }
    }
}

/// Four codes a word, a scale a row of `columns`; `first` may lie inside a word or a row.
fn int8(words: &[u32], scales: &[f32], columns: usize, first: usize, to: &mut [f32]) {
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let mut rest = to;
    let mut at = first;
    while !rest.is_empty() {
        let row = at / columns;
        let (part, behind) = rest.split_at_mut(rest.len().min((row + 1) * columns - at));
        int8_row(&bytes[at..][..part.len()], scales[row], part);
        at += part.len();
        rest = behind;
    }
}

widest! {
    fn int8_row(codes: &[u8], scale: f32, to: &mut [f32]) {
        for (to, &code) in to.iter_mut().zip(codes) {
            *to = (f32::from(code) - 128.0) * scale * STEP;
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::int8::Int8;
    use formats::nf4::Nf4;
    use formats::packed;

    use super::*;
    use crate::batch::SplitMix64;

    #[test]
    fn pieces_and_rows_are_those_of_the_whole() {
        // more than a piece, and neither rows nor pieces begin with a block
        let shape = [1_101, 1_001];
        let mut random = SplitMix64(1);
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|_| (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            .collect();
        let nf4 = packed::Packed::Nf4(Nf4::quantize(&values, shape, false));
        for weight in [nf4, packed::Packed::Int8(Int8::quantize(&values, shape))] {
            let (codes, words, scales) = match &weight {
                packed::Packed::Nf4(weight) => (Codes::Nf4, weight.words(), weight.absmax()),
                packed::Packed::Int8(weight) => (Codes::Int8, weight.words(), weight.scales.clone()),
            };
            let layout = Layout { codes, rows: shape[0], columns: shape[1] };
            let ours = Packed { words: &words, scales: &scales, layout };
            let exact = weight.dequantize();
            let near = |a: &[f32], b: &[f32]| {
                assert_eq!(a.len(), b.len());
                a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-7 * b.abs())
            };
            assert!(near(&ours.floats(), &exact));
            let mut pieces = Vec::new();
            ours.in_pieces(|first, piece| {
                assert_eq!(first * shape[1], pieces.len());
                pieces.extend_from_slice(piece);
            });
            assert!(pieces.len() > PIECE && near(&pieces, &exact));
            for row in [0, 1, 63, 1_100] {
                assert!(near(&ours.row(row), &exact[row * shape[1]..][..shape[1]]), "row {row}");
            }
            let x = &values[..3 * shape[1]];
            let y = ours.narrow_product(x).expect("three rows are few");
            for (at, y) in y.iter().enumerate() {
                let (row, out) = (at / shape[0], at % shape[0]);
                let terms = x[row * shape[1]..].iter().zip(&exact[out * shape[1]..][..shape[1]]);
                let sum: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(*y) - sum).abs() < 1e-3, "{row}, {out}: {y} is not {sum}");
            }
            assert!(ours.narrow_product(&values[..9 * shape[1]]).is_none());
        }
    }
}
