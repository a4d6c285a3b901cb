//! A linear layer: a frozen or trained base, a bias, and perhaps an adapter.
//!
//! Weights lie as in files, `[out, in]`. The transposed view costs nothing on either backend, and
//! the gradient of the input, g·W, wants them this way.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::Visitor;
use crate::adapter::Adapter;
use crate::cpu;
use crate::packed_linear::PackedWeight;

/// The weight of a linear layer, `[out, in]`.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has few of these, each beside far larger weights")]
pub enum Base {
    /// Floats, which may be trained.
    Float(Tensor<2>),
    /// Four or eight bits a weight, frozen.
    Packed(PackedWeight),
}

impl Base {
    /// x·Wᵀ
    ///
    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn product(&self, x: Tensor<2>) -> Tensor<2> {
        if let Some(weight) = self.fused(&x) {
            return cpu::linear(x, weight, cpu::Beside::Nothing);
        }
        match self {
            Self::Float(weight) => {
                let weight = weight.clone().cast(x.dtype());
                x.matmul(weight.transpose())
            }
            Self::Packed(weight) => weight.forward(x),
        }
    }

    /// As the CPU backend's own operation takes it, where that serves: if it is frozen.
    fn fused(&self, x: &Tensor<2>) -> Option<cpu::Weight<Dispatch>> {
        match self {
            _ if !cpu::serves(x) => None,
            Self::Float(weight) if cpu::serves(weight) && !weight.is_require_grad() => {
                Some(cpu::Weight::floats(weight.clone()))
            }
            Self::Packed(weight) if weight.is_on_cpu() => Some(weight.dispatched()),
            _ => None,
        }
    }

    /// x·Wᵀ + s·(x·Aᵀ)·Bᵀ, times the gain of each output where there is one, in one operation; `None` where
    /// there is none for it.
    ///
    /// # Shapes
    /// x `[n, in]`, a `[r, in]`, b `[out, r]`, gain `[out]` → `[n, out]`
    #[must_use]
    pub fn adapted(
        &self,
        x: &Tensor<2>,
        low: [&Tensor<2>; 2],
        gain: Option<Tensor<1>>,
        scale: f64,
    ) -> Option<Tensor<2>> {
        let weight = self.fused(x)?;
        Some(cpu::linear(x.clone(), weight, cpu::Beside::adapter(low.map(Clone::clone), gain, scale)))
    }
}

/// y = Wx + bias, or what the adapter makes of W
#[derive(Clone, Debug)]
pub struct Linear {
    /// Module path in HF's model: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// W, `[out, in]`
    pub base: Base,
    /// `[out]`
    pub bias: Option<Tensor<1>>,
    /// LoRA or DoRA.
    pub adapter: Option<Adapter>,
    /// `[out, in]`
    pub shape: [usize; 2],
    /// ‖W‖ by row as loaded: where magnitudes start and what movement is measured against.
    pub base_norm: Vec<f32>,
}

impl Linear {
    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = match &self.adapter {
            None => self.base.product(x),
            Some(adapter) => adapter.forward(&self.base, x),
        };
        match &self.bias {
            None => y,
            Some(bias) => {
                let bias = bias.clone().cast(y.dtype());
                y + bias.unsqueeze()
            }
        }
    }

    /// The last part of the path: `q_proj`.
    #[must_use]
    pub fn projection(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// Shows the adapter's tensors.
    pub fn visit_adapter(&mut self, visitor: &mut dyn Visitor) {
        if let Some(adapter) = &mut self.adapter {
            adapter.visit(&self.path, visitor);
        }
    }

    /// Shows weight and bias under their HF names. A packed weight is not trainable and not shown.
    pub fn visit_base(&mut self, visitor: &mut dyn Visitor) {
        if let Base::Float(weight) = &mut self.base {
            visitor.matrix(&format!("{}.weight", self.path), weight);
        }
        if let Some(bias) = &mut self.bias {
            visitor.vector(&format!("{}.bias", self.path), bias);
        }
    }

    /// Recomputes what the adapter derives from its values.
    pub fn refresh(&mut self) {
        if let Some(adapter) = &mut self.adapter {
            adapter.refresh(&self.base);
        }
    }
}
