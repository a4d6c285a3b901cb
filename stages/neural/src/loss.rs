//! Cross entropy over the vocabulary, and its gradient, without ever holding `[tokens, vocab]`.
//!
//! The head is the widest product of a small model and the largest tensor of a big one. Its
//! gradient is known in closed form, `∂/∂logits = softmax − onehot`, so it is written here by hand,
//! row chunk by row chunk, on tensors without autodiff. Knows no model: hidden states, a weight and
//! targets come in. (The same idea as Liger-Kernel's fused linear cross entropy, arXiv 2410.10989.)

use burn::tensor::{DType, Int, Tensor};

use crate::cpu::{self, loss::Wanted};
use crate::fused;
use crate::sum::total;

/// Elements of the logits of one chunk: 32 MiB in f32.
const CHUNK: usize = 8 << 20;

/// What [`cross_entropy`] gives.
pub struct CrossEntropy {
    /// `Σ nll`, `[1]`, f32.
    pub sum: Tensor<1>,
    /// `factor · ∂Σnll/∂h`, shaped and typed like `h`.
    pub hidden: Tensor<2>,
    /// `factor · ∂Σnll/∂W`, if it was asked for.
    pub weight: Option<Tensor<2>>,
}

/// Sum of the negative log likelihoods of `targets` (`[n]`) under `softmax(h·Wᵀ)`, and the gradient
/// of `factor` times that sum.
///
/// # Shapes
/// `h [n, hidden]`, `w [vocab, hidden]`, both without autodiff; `n` is at least 1.
#[must_use]
pub fn cross_entropy(
    h: &Tensor<2>,
    w: &Tensor<2>,
    targets: &Tensor<1, Int>,
    factor: f64,
    weight_grad: bool,
) -> CrossEntropy {
    if cpu::serves(h) && w.dtype() == DType::F32 {
        let wanted = if weight_grad { Wanted::Weight } else { Wanted::Hidden };
        let given = cpu::head(h.clone(), w.clone(), targets.clone(), factor, wanted);
        let weight = weight_grad.then_some(given.weight);
        return CrossEntropy { sum: total(given.nll), hidden: given.hidden, weight };
    }
    let (mut sums, mut hidden, mut weight) = (Vec::new(), Vec::new(), None::<Tensor<2>>);
    for (h, targets) in chunks(h, w, targets) {
        let (g, nll) = fused::cross_entropy(logits(&h, w), targets, factor, w.dtype().into());
        sums.push(total(nll));
        if weight_grad {
            let part = g.clone().transpose().matmul(h.clone());
            weight = Some(match weight {
                Some(sum) => sum + part,
                None => part,
            });
        }
        hidden.push(g.matmul(w.clone()));
    }
    CrossEntropy { sum: total(joined(sums)), hidden: joined(hidden), weight }
}

/// The negative log likelihood of each target, `[n]`, f32.
#[must_use]
pub fn nll(h: &Tensor<2>, w: &Tensor<2>, targets: &Tensor<1, Int>) -> Tensor<1> {
    if cpu::serves(h) && w.dtype() == DType::F32 {
        return cpu::head(h.clone(), w.clone(), targets.clone(), 0.0, Wanted::Loss).nll;
    }
    let parts = chunks(h, w, targets)
        .map(|(h, targets)| fused::cross_entropy(logits(&h, w), targets, 0.0, w.dtype().into()).1);
    joined(parts.collect())
}

fn logits(h: &Tensor<2>, w: &Tensor<2>) -> Tensor<2> {
    h.clone().matmul(w.clone().transpose())
}

fn chunks<'a>(
    h: &'a Tensor<2>,
    w: &Tensor<2>,
    targets: &'a Tensor<1, Int>,
) -> impl Iterator<Item = (Tensor<2>, Tensor<1, Int>)> + 'a {
    let ([n, _], [vocab, _]) = (h.dims(), w.dims());
    let rows = (CHUNK / vocab).max(1);
    (0..n).step_by(rows).map(move |from| {
        let to = n.min(from + rows);
        if to - from == n {
            return (h.clone(), targets.clone());
        }
        (h.clone().slice_dim(0, from..to), targets.clone().slice_dim(0, from..to))
    })
}

fn joined<const D: usize>(mut parts: Vec<Tensor<D>>) -> Tensor<D> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn tensor<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
        let mut random = crate::batch::SplitMix64(seed);
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn targets(values: &[i32]) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
    }

    fn far<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
        (a - b).abs().max().try_into_scalar::<f32>().expect("read")
    }

    #[test]
    fn loss_and_gradients_equal_those_of_autodiff() {
        let (h, w, t) = (tensor([5, 4], 1), tensor([7, 4], 2), targets(&[0, 6, 3, 3, 1]));
        let ours = cross_entropy(&h, &w, &t, 0.25, true);
        let (h, w) = (h.autodiff().require_grad(), w.autodiff().require_grad());
        let logits = h.clone().matmul(w.clone().transpose());
        let picked = burn::tensor::activation::log_softmax(logits, 1).gather(1, t.unsqueeze_dim(1));
        let sum = -picked.sum();
        let mut grads = (sum.clone() * 0.25).backward();
        assert!(far(ours.sum, sum.inner()) < 1e-5);
        assert!(far(ours.hidden, h.grad_remove(&mut grads).expect("h")) < 1e-6);
        assert!(far(ours.weight.expect("asked"), w.grad_remove(&mut grads).expect("w")) < 1e-6);
    }

    #[test]
    fn chunks_change_nothing_but_the_order_of_sums() {
        let vocab = 3 << 20; // two rows a chunk
        // float16: what the CPU backend has no operation of its own for
        let (h, w) = (tensor([5, 1], 1).cast(DType::F16), tensor([vocab, 1], 2).cast(DType::F16));
        let t = targets(&[0, 5, 100_000, 3, 1]);
        let whole = nll(&h, &w, &t);
        assert_eq!(whole.dims(), [5]);
        let one_by_one: Vec<_> = (0..5)
            .map(|row| nll(&h.clone().slice_dim(0, row..row + 1), &w, &t.clone().slice_dim(0, row..row + 1)))
            .collect();
        assert!(far(whole.clone(), Tensor::cat(one_by_one, 0)) < 1e-5);
        let ours = cross_entropy(&h, &w, &t, 1.0, false);
        assert!(far(ours.sum, whole.sum()) < 1e-3);
        assert_eq!(ours.hidden.dims(), [5, 1]);
        assert!(ours.weight.is_none());
    }

    #[test]
    fn huge_logits_stay_finite() {
        let h = Tensor::<2>::full([1, 1], 1e4, &Device::flex());
        let w = tensor([3, 1], 4);
        let ours = cross_entropy(&h, &w, &targets(&[1]), 1.0, false);
        assert!(ours.sum.try_into_scalar::<f32>().expect("read").is_finite());
        assert!(ours.hidden.try_into_scalar::<f32>().expect("read").is_finite());
    }
}
