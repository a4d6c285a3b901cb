//! Softmax cross entropy over rows of logits, forward and gradient in one visit of each row: a row
//! of a vocabulary fits the processor's cache, its chunk of rows does not.

use rayon::prelude::*;

use super::rows::{exp, sum2};

/// Turns every row of `logits` into `factor · (softmax − onehot(target))` and gives the rows'
/// negative log likelihoods.
///
/// # Shapes
/// logits `[n, vocab]`, targets `[n]`, each below `vocab` → `[n]`
pub fn cross_entropy(logits: &mut [f32], targets: &[usize], factor: f32) -> Vec<f32> {
    let mut nll = vec![0.0; targets.len()];
    let vocab = logits.len() / targets.len().max(1);
    logits
        .par_chunks_mut(vocab.max(1))
        .zip(targets.par_iter().zip(nll.par_iter_mut()))
        .for_each(|(row, (&target, nll))| cross_entropy_row(row, target, factor, nll));
    nll
}

widest! {
    fn cross_entropy_row(row: &mut [f32], target: usize, factor: f32, nll: &mut f32) {
        let mut maxima = [f32::NEG_INFINITY; 8];
        for part in row.chunks(8) {
            for (max, &logit) in maxima.iter_mut().zip(part) {
                *max = if logit > *max { logit } else { *max };
            }
        }
        let max = maxima.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let picked = row[target] - max;
        for logit in row.iter_mut() {
            *logit = exp(*logit - max);
        }
        let norm = sum2(row, row, |x, _| x);
        *nll = norm.ln() - picked;
        let scale = factor / norm;
        for x in row.iter_mut() {
            *x *= scale;
        }
        row[target] -= factor;
    }
}
