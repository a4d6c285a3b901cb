//! DoRA (Liu et al., arXiv 2402.09353): the weight is decomposed into a magnitude m per output row,
//! trained as it is, and a direction V′ = W + sBA, trained through LoRA.
//!
//! The paper normalises columns because its W is transposed; here and in PEFT they are the rows of
//! `[out, in]`. The norm is a constant to the gradient (section 4.3).

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::{Lora, Terms};
use crate::fused::scale_columns;
use crate::model::linear::Base;

/// y = g·(Wx + s·B(Ax)), g = m/n, n = ‖W + sBA‖ by row
#[derive(Clone, Debug)]
pub struct Dora {
    /// A, B, s, and the norms of the base.
    pub lora: Lora,
    /// m, `[out]`
    pub magnitude: Tensor<1>,
    /// n, `[out]`, without gradient; as of the last [`Dora::refresh`]
    pub norm: Tensor<1>,
    /// What n was made of.
    pub terms: Terms,
}

impl Dora {
    /// Puts a magnitude onto a LoRA. [`Dora::refresh`] must follow before it is used.
    #[must_use]
    pub fn from_base(lora: Lora, magnitude: &[f32], device: &Device) -> Self {
        let magnitude = Tensor::from_data(TensorData::new(magnitude.to_vec(), [magnitude.len()]), device);
        let zero = lora.base_norm.zeros_like();
        Self { norm: lora.base_norm.clone(), terms: Terms { c: zero.clone(), g: zero }, magnitude, lora }
    }

    /// Recomputes n from the present A and B. They change once in an optimizer step, so it is
    /// called once in one, and not in every forward.
    pub fn refresh(&mut self, base: &Base) {
        self.terms = self.lora.terms(base);
        self.norm = self.terms.norm(&self.lora.base_norm, self.lora.scale);
    }

    /// g − 1 = (m − n)/n, `[out]`: exactly 0 where m = n, whatever the device's division does, so that
    /// a fresh adapter changes nothing.
    fn gain(&self) -> Tensor<1> {
        let norm = self.norm.clone().clamp_min(f64::from(f32::MIN_POSITIVE));
        (self.magnitude.clone() - self.norm.clone()) / norm
    }

    /// With dropout the base's share that the magnitude adds, (g − 1)·Wx, sees dropout(x) as well:
    /// PEFT's `tuners/lora/dora.py`.
    ///
    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn forward(&self, base: &Base, x: Tensor<2>) -> Tensor<2> {
        let gain = self.gain();
        if self.lora.dropout.active() {
            let dropped = self.lora.dropout.apply(x.clone());
            let moved = scale_columns(base.product(dropped.clone()), gain.clone());
            return base.product(x) + moved + scale_columns(self.lora.branch(dropped), gain + 1.0);
        }
        let gain = gain + 1.0;
        let fused = self.lora.fused(base, &x, Some(gain.clone()));
        fused.unwrap_or_else(|| scale_columns(base.product(x.clone()) + self.lora.branch(x), gain))
    }
}

/// Rescales every row to its magnitude: W ← (m/‖W‖)·W. A row of zeros stays.
pub fn rescale(weight: &mut [f32], columns: usize, magnitude: &[f32]) {
    weight.par_chunks_mut(columns).zip(magnitude).for_each(|(row, &magnitude)| {
        let norm = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
        if norm > 0.0 {
            let gain = (f64::from(magnitude) / norm) as f32;
            row.iter_mut().for_each(|w| *w *= gain);
        }
    });
}
