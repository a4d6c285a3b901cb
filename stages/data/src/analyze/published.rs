//! ΔM and ΔD as the reproduced repository (github.com/shreyassks/DoRA, `notebooks/mistral-lora.ipynb`
//! and `mistral-dora.ipynb`) computes them, mistakes included, to compare with its published figures.
//!
//! * LoRA is merged as W + 2r·(BA)ᵀ: a scale of 2r (128) instead of α/r (2), and a transpose, which
//!   only a square matrix survives. (DoRA goes through PEFT and has neither.)
//! * The checkpoints of a DoRA run are merged one upon the other, in the order of the directory
//!   listing. A listing has no certain order; here it is that of the names `checkpoint-STEP`.
//! * The norm runs over rows, the cosine over the COLUMNS of the matrix of normalised rows, and its
//!   sum is divided by the number of rows.
//! * Only the layers 1 to 6 count, and figures are rounded to six decimals.
//!
//! Full fine-tuning does not occur there; it goes through the same formulas.

use std::ops::RangeInclusive;

use contract::StageError;
use rayon::prelude::*;

use super::statistics::{Change, Moved};

/// The layers that are looked at.
pub const LAYERS: RangeInclusive<usize> = 1..=6;

/// A matrix `[out, in]` after a checkpoint was merged onto `before`.
///
/// # Errors
/// If a LoRA merge meets a matrix that is not square.
pub fn merged(before: &[f64], [rows, columns]: [usize; 2], moved: Moved<'_>) -> Result<Vec<f64>, StageError> {
    let (a, b, scale, magnitude) = match moved {
        Moved::Matrix(matrix) => return Ok(matrix.iter().copied().map(f64::from).collect()),
        Moved::Adapter { a, b, scale, magnitude } => (a, b, scale, magnitude),
    };
    let rank = a.len() / columns.max(1);
    if magnitude.is_none() && rows != columns {
        let message = format!(
            "the definition `as-published` adds (BA)ᵀ, which does not fit a matrix of {rows} × {columns}"
        );
        return Err(StageError::new(message)
            .hint("name only square modules in `modules`, or use the definition `paper`"));
    }
    // Row n of BA is Σₖ b[n,k]·a[k,·]; of (BA)ᵀ it is Σₖ a[k,n]·b[·,k].
    let product = |n: usize, j: usize| -> f64 {
        let term = |k: usize| match magnitude {
            Some(_) => f64::from(b[n * rank + k]) * f64::from(a[k * columns + j]),
            None => f64::from(b[j * rank + k]) * f64::from(a[k * columns + n]),
        };
        (0..rank).map(term).sum()
    };
    let scale = if magnitude.is_some() { scale } else { 2.0 * rank as f64 };
    let mut after = before.to_vec();
    after.par_chunks_mut(columns).enumerate().for_each(|(n, row)| {
        row.iter_mut().enumerate().for_each(|(j, w)| *w += scale * product(n, j));
        if let Some(m) = magnitude {
            let factor = f64::from(m[n]) / norm(row);
            row.iter_mut().for_each(|w| *w *= factor);
        }
    });
    Ok(after)
}

/// ΔM and ΔD between two matrices `[out, in]`.
pub fn change(before: &[f64], after: &[f64], [rows, columns]: [usize; 2]) -> Change {
    let mut magnitude = 0.0;
    let mut sums = vec![[0.0; 3]; columns];
    for (w, v) in before.chunks(columns.max(1)).zip(after.chunks(columns.max(1))) {
        let (norm_w, norm_v) = (norm(w), norm(v));
        magnitude += (norm_v - norm_w).abs();
        for ((sum, w), v) in sums.iter_mut().zip(w).zip(v) {
            let (w, v) = (w / norm_w, v / norm_v);
            sum[0] += w * v;
            sum[1] += w * w;
            sum[2] += v * v;
        }
    }
    let direction: f64 = sums.iter().map(|[wv, ww, vv]| 1.0 - wv / (ww.sqrt() * vv.sqrt())).sum();
    let rounded = |sum: f64| (sum / rows as f64 * 1e6).round() / 1e6;
    Change { magnitude: rounded(magnitude), direction: rounded(direction) }
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|w| w * w).sum::<f64>().sqrt()
}
