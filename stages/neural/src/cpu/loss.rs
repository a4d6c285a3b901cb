//! The head with softmax cross entropy, forward and gradient: the logits of a chunk of rows in memory that
//! every chunk uses again. Cross entropy and its gradient are made in one visit of each row: a row of a
//! vocabulary fits the processor's cache, its chunk of rows does not.

use rayon::prelude::*;

use super::product::{Cores, Part, product, product_into};
use super::rows::{exp, sum2};

/// Elements of the logits of one chunk: 128 MiB. For every chunk `gemm` lays the whole weight out anew.
const CHUNK: usize = 32 << 20;

/// What [`head`] is to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The loss alone.
    Loss,
    /// With the gradient of the hidden states.
    Hidden,
    /// With that of the weight as well.
    Weight,
}

/// What [`head`] gives; what was not wanted is empty.
pub struct Head {
    /// The negative log likelihood of each target, `[n]`
    pub nll: Vec<f32>,
    /// `factor · ∂Σnll/∂h`, `[n, hidden]`
    pub hidden: Vec<f32>,
    /// `factor · ∂Σnll/∂W`, `[vocab, hidden]`
    pub weight: Vec<f32>,
}

/// The cross entropy of `targets` under softmax(h·Wᵀ).
///
/// # Shapes
/// h `[n, hidden]`, weight `[vocab, hidden]`, targets `[n]`, each below `vocab`
#[must_use]
pub fn head(h: &[f32], weight: &[f32], targets: &[usize], factor: f32, wanted: Wanted) -> Head {
    let vocab = weight.len() * targets.len() / h.len().max(1);
    in_chunks(h, weight, targets, factor, wanted, (CHUNK / vocab.max(1)).max(1))
}

/// [`head`] with so many rows at a time.
fn in_chunks(h: &[f32], weight: &[f32], targets: &[usize], factor: f32, wanted: Wanted, rows: usize) -> Head {
    let n = targets.len();
    let width = h.len() / n.max(1);
    let vocab = weight.len() / width.max(1);
    let mut logits = Vec::new();
    let mut given = Head { nll: Vec::with_capacity(n), hidden: Vec::new(), weight: Vec::new() };
    if wanted != Wanted::Loss {
        given.hidden = vec![0.0; n * width];
    }
    if wanted == Wanted::Weight {
        given.weight = vec![0.0; weight.len()];
    }
    let w = Part::rows(weight, width);
    for (chunk, (h, targets)) in h.chunks(rows * width).zip(targets.chunks(rows)).enumerate() {
        let m = targets.len();
        let (size, h_rows) = ([m, width, vocab], Part::rows(h, width));
        if chunk == 0 {
            logits = product(size, 1.0, h_rows, w.transposed(), Cores::All);
        } else {
            product_into(&mut logits, vocab, false, size, h_rows, w.transposed(), Cores::All);
        }
        let logits = &mut logits[..m * vocab];
        given.nll.extend(cross_entropy(logits, targets, factor));
        let gradient = Part::rows(logits, vocab);
        if wanted != Wanted::Loss {
            let to = &mut given.hidden[chunk * rows * width..][..m * width];
            product_into(to, width, false, [m, vocab, width], gradient, w, Cores::All);
        }
        if wanted == Wanted::Weight {
            let size = [vocab, m, width];
            product_into(&mut given.weight, width, true, size, gradient.transposed(), h_rows, Cores::All);
        }
    }
    given
}

/// Turns every row of `logits` into `factor · (softmax − onehot(target))` and gives the rows'
/// negative log likelihoods.
///
/// # Shapes
/// logits `[n, vocab]`, targets `[n]`, each below `vocab` → `[n]`
fn cross_entropy(logits: &mut [f32], targets: &[usize], factor: f32) -> Vec<f32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_change_nothing_but_the_order_of_sums() {
        let (n, width, vocab) = (7, 5, 30);
        let mut random = crate::batch::SplitMix64(1);
        let mut values = |n: usize| {
            (0..n).map(|_| (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect::<Vec<_>>()
        };
        let (h, weight) = (values(n * width), values(vocab * width));
        let targets: Vec<usize> = (0..n).map(|row| row * 4).collect();
        let whole = in_chunks(&h, &weight, &targets, 0.5, Wanted::Weight, n);
        let far = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        for rows in [1, 2, 3] {
            let parts = in_chunks(&h, &weight, &targets, 0.5, Wanted::Weight, rows);
            assert!(far(&parts.nll, &whole.nll) < 1e-6 && far(&parts.hidden, &whole.hidden) < 1e-6);
            assert!(far(&parts.weight, &whole.weight) < 1e-6);
        }
        let loss = in_chunks(&h, &weight, &targets, 0.0, Wanted::Loss, 2);
        assert!(far(&loss.nll, &whole.nll) < 1e-6 && loss.hidden.is_empty() && loss.weight.is_empty());
    }
}
