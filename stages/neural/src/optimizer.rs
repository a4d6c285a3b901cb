//! AdamW and clipping over flat vectors.
//!
//! Knows no model: a [`Slab`] is a run of parameters with its two moments, wherever it lies.
//! The update is torch's `_single_tensor_adamw` (decoupled decay, arXiv 1711.05101): scalars in
//! f64, rounded once; `ε` outside the bias-corrected root. The clip is `clip_grad_norm_`.

use burn::tensor::Tensor;

use crate::sum::{runs, total};

/// Parameters and their moments, all `[n]` in f32.
#[derive(Clone, Debug)]
pub struct Slab {
    /// The parameters.
    pub params: Tensor<1>,
    /// First moment.
    pub m: Tensor<1>,
    /// Second moment.
    pub v: Tensor<1>,
    /// Factor of the learning rate per parameter (LoRA+, arXiv 2402.12354); `None`: 1 everywhere.
    pub scale: Option<Tensor<1>>,
    /// Factor of the weight decay per parameter; `None`: 1 everywhere.
    pub decay: Option<Tensor<1>>,
}

impl Slab {
    /// Parameters that no step has touched.
    #[must_use]
    pub fn new(params: Tensor<1>) -> Self {
        let zeros = params.zeros_like();
        Self { params, m: zeros.clone(), v: zeros, scale: None, decay: None }
    }
}

/// The constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl AdamW {
    /// Step `t` (from 1) of `slab` with gradient `g` at learning rate `lr`:
    /// `θ ← θ·(1 − lr·λ) − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.
    #[expect(clippy::cast_possible_truncation, reason = "powi takes i32; β^t is 0 long before 2^31 steps")]
    pub fn update(&self, slab: &mut Slab, g: Tensor<1>, lr: f64, t: u64) {
        let t = t.min(i32::MAX as u64) as i32;
        let correction1 = 1.0 - self.beta1.powi(t);
        let correction2 = (1.0 - self.beta2.powi(t)).sqrt();
        let m = slab.m.clone() * self.beta1 + g.clone() * (1.0 - self.beta1);
        let v = slab.v.clone() * self.beta2 + g.clone() * g * (1.0 - self.beta2);
        slab.m = m.clone();
        slab.v = v.clone();
        if lr == 0.0 {
            return;
        }
        let step = m / (v.sqrt() * (1.0 / correction2) + self.eps) * (lr / correction1);
        let decay = lr * self.weight_decay;
        let params = slab.params.clone();
        if decay != 0.0 && slab.scale.is_none() && slab.decay.is_none() {
            slab.params = params * (1.0 - decay) - step;
            return;
        }
        let step = match &slab.decay {
            _ if decay == 0.0 => step,
            None => params.clone() * decay + step,
            Some(factor) => params.clone() * factor.clone() * decay + step,
        };
        slab.params = match &slab.scale {
            None => params - step,
            Some(scale) => params - step * scale.clone(),
        };
    }
}

/// Gradients of a loss that was multiplied with `scale`, as they are without.
#[must_use]
pub fn unscaled(grads: Vec<Tensor<1>>, scale: Option<f64>) -> Vec<Tensor<1>> {
    let Some(scale) = scale else { return grads };
    grads.into_iter().map(|grad| grad / scale).collect()
}

/// Gradients times the factor that shortens them, if any.
#[must_use]
pub fn clipped(grads: Vec<Tensor<1>>, factor: Option<&Tensor<1>>) -> Vec<Tensor<1>> {
    let Some(factor) = factor else { return grads };
    grads.into_iter().map(|grad| grad * factor.clone()).collect()
}

/// `‖g‖²` over all of `grads`, as `[1]`, in their order.
#[must_use]
pub fn norm_squared(grads: &[Tensor<1>]) -> Tensor<1> {
    joined(grads.iter().map(|g| g.clone() * g.clone()))
}

/// What a piece of a gradient brings to `‖g‖²`: a figure for each run of it.
#[must_use]
pub fn squares(g: &Tensor<1>) -> Tensor<1> {
    runs(g.clone() * g.clone())
}

/// `‖g‖²`, as `[1]`, from what there is of each gradient, in their order: its squares, or the sums of their
/// runs.
#[must_use]
pub fn joined(squares: impl Iterator<Item = Tensor<1>>) -> Tensor<1> {
    total(Tensor::cat(squares.map(total).collect(), 0))
}

/// The factor for every gradient, as `[1]`: `min(1, max_norm / (‖g‖ + 1e-6))`.
#[must_use]
pub fn clip_factor(norm_squared: Tensor<1>, max_norm: f64) -> Tensor<1> {
    ((norm_squared.sqrt() + 1e-6).recip() * max_norm).clamp_max(1.0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
    }

    fn values(tensor: &Tensor<1>) -> Vec<f32> {
        crate::device::read(tensor.clone()).expect("read")
    }

    /// Numbers in (-1, 1) that are the same on every machine.
    fn noise(n: usize, mut state: u64) -> Vec<f32> {
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn adamw_follows_the_float64_reference() {
        let (lr, adam) = (3e-3, AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 });
        let n = 300;
        let start = noise(n, 1);
        let mut slab = Slab::new(tensor(&start));
        let mut reference: Vec<[f64; 3]> = start.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
        for t in 1..=12_u64 {
            let g: Vec<f32> = noise(n, 10 + t).iter().map(|x| x * 0.01).collect();
            adam.update(&mut slab, tensor(&g), lr, t);
            for ([p, m, v], &g) in reference.iter_mut().zip(&g) {
                let (g, t) = (f64::from(g), i32::try_from(t).expect("small"));
                *p *= 1.0 - lr * adam.weight_decay;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                *p -= lr / (1.0 - 0.9_f64.powi(t)) * *m / ((*v / (1.0 - 0.999_f64.powi(t))).sqrt() + 1e-8);
            }
        }
        for (found, [wanted, ..]) in values(&slab.params).iter().zip(&reference) {
            assert!((f64::from(*found) - wanted).abs() < 5e-7, "{found} is not {wanted}");
        }
    }

    #[test]
    fn a_step_of_rate_zero_moves_the_moments_only() {
        let adam = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        let mut slab = Slab::new(tensor(&[1.0, -2.0]));
        adam.update(&mut slab, tensor(&[0.5, 0.5]), 0.0, 1);
        assert_eq!(values(&slab.params), [1.0, -2.0]);
        assert!((values(&slab.m)[0] - 0.05).abs() < 1e-7);
    }

    #[test]
    fn a_scale_multiplies_the_learning_rate() {
        let adam = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        let mut scaled = Slab::new(tensor(&[1.0, -2.0]));
        scaled.scale = Some(tensor(&[4.0, 1.0]));
        let (mut slow, mut fast) = (Slab::new(tensor(&[1.0, -2.0])), Slab::new(tensor(&[1.0, -2.0])));
        for t in 1..=3 {
            let g = tensor(&[0.3, -0.1]);
            adam.update(&mut scaled, g.clone(), 1e-2, t);
            adam.update(&mut slow, g.clone(), 1e-2, t);
            adam.update(&mut fast, g, 4e-2, t);
        }
        let (scaled, slow, fast) = (values(&scaled.params), values(&slow.params), values(&fast.params));
        assert!(
            (scaled[0] - fast[0]).abs() < 1e-6 && (scaled[1] - slow[1]).abs() < 1e-6,
            "{scaled:?} {slow:?} {fast:?}"
        );
        assert!((scaled[0] - slow[0]).abs() > 1e-2);
    }

    #[test]
    fn a_parameter_without_decay_goes_its_way_and_the_others_theirs() {
        let [without, with] =
            [0.0, 0.1].map(|weight_decay| AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay });
        for scale in [None, Some(3.0)] {
            let scaled = |values: &[f32]| {
                let mut slab = Slab::new(tensor(values));
                slab.scale = scale.map(|scale| tensor(&vec![scale; values.len()]));
                slab
            };
            let (mut both, mut spared, mut decayed) = (scaled(&[1.0, -2.0]), scaled(&[1.0]), scaled(&[-2.0]));
            both.decay = Some(tensor(&[0.0, 1.0]));
            for t in 1..=3 {
                with.update(&mut both, tensor(&[0.3, -0.1]), 1e-2, t);
                without.update(&mut spared, tensor(&[0.3]), 1e-2, t);
                with.update(&mut decayed, tensor(&[-0.1]), 1e-2, t);
            }
            let (both, spared, decayed) =
                (values(&both.params), values(&spared.params), values(&decayed.params));
            assert!((both[0] - spared[0]).abs() < 1e-6 && (both[1] - decayed[0]).abs() < 1e-6, "{both:?}");
            assert!((both[1] + 2.0 - 1e-2 * 3.0 * scale.unwrap_or(1.0)).abs() > 1e-3, "it decays");
        }
    }

    #[test]
    fn clipping_shrinks_long_gradients_and_leaves_short_ones() {
        let grads = [tensor(&[3.0]), tensor(&[0.0, 4.0])];
        let squared = norm_squared(&grads);
        assert_eq!(values(&squared), [25.0]);
        let factor = values(&clip_factor(squared.clone(), 1.0))[0];
        assert!((factor - 1.0 / (5.0 + 1e-6)).abs() < 1e-7);
        assert_eq!(values(&clip_factor(squared, 10.0)), [1.0]);
    }
}
