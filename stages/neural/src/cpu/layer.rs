//! A linear layer with a frozen weight, bare or with an adapter, as burn's tensors: what goes in, and what
//! is kept from forward for backward.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, ExtensionType, Flex, TensorMetadata};
use burn::tensor::Tensor;

use super::{Primitive, floats, linear, packed, shaped};
use crate::packed_linear::Layout;

/// A frozen weight, `[out, in]`.
#[derive(Clone, Debug, ExtensionType)]
pub enum Weight<B: Backend> {
    /// As it is.
    Floats(FloatTensor<B>),
    /// See [`crate::packed_linear`].
    Packed {
        /// Codes.
        words: IntTensor<B>,
        /// See [`crate::packed_linear::Codes`].
        scales: FloatTensor<B>,
        /// Form and size.
        layout: Layout,
    },
}

/// What stands beside the weight: A `[r, in]`, B `[out, r]`, and for DoRA a gain `[out]`.
#[derive(Clone, Debug, ExtensionType)]
pub enum Beside<B: Backend> {
    /// y = x·Wᵀ
    Nothing,
    /// y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ
    Lora {
        /// A
        a: FloatTensor<B>,
        /// B
        b: FloatTensor<B>,
        /// s
        scale: f64,
    },
    /// y = g∘(x·Wᵀ + s·(x·Aᵀ)·Bᵀ)
    Dora {
        /// A
        a: FloatTensor<B>,
        /// B
        b: FloatTensor<B>,
        /// g
        gain: FloatTensor<B>,
        /// s
        scale: f64,
    },
}

impl Weight<Dispatch> {
    /// Of floats.
    #[must_use]
    pub fn floats(weight: Tensor<2>) -> Self {
        Self::Floats(weight.into_dispatch())
    }
}

impl Beside<Dispatch> {
    /// A and B, and with DoRA the gain.
    #[must_use]
    pub fn adapter([a, b]: [Tensor<2>; 2], gain: Option<Tensor<1>>, scale: f64) -> Self {
        let [a, b] = [a, b].map(Tensor::into_dispatch);
        match gain {
            None => Self::Lora { a, b, scale },
            Some(gain) => Self::Dora { a, b, gain: gain.into_dispatch(), scale },
        }
    }
}

/// A layer with its input, and after forward what backward needs.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) x: Primitive,
    weight: Weight<Flex>,
    pub(super) beside: Beside<Flex>,
    /// With an adapter: s·x·Aᵀ
    h: Vec<f32>,
    /// With DoRA: what it gave.
    y: Option<Primitive>,
}

impl Layer {
    pub(super) fn new(x: Primitive, weight: Weight<Flex>, beside: Beside<Flex>) -> Self {
        let weight = match weight {
            Weight::Floats(weight) => Weight::Floats(weight.to_contiguous()),
            packed @ Weight::Packed { .. } => packed,
        };
        let beside = match beside {
            Beside::Nothing => Beside::Nothing,
            Beside::Lora { a, b, scale } => {
                Beside::Lora { a: a.to_contiguous(), b: b.to_contiguous(), scale }
            }
            Beside::Dora { a, b, gain, scale } => {
                let [a, b, gain] = [a, b, gain].map(|tensor| tensor.to_contiguous());
                Beside::Dora { a, b, gain, scale }
            }
        };
        Self { x: x.to_contiguous(), weight, beside, h: Vec::new(), y: None }
    }

    fn on_slices(&self) -> linear::Layer<'_> {
        let (weight, inner) = match &self.weight {
            Weight::Floats(weight) => (linear::Weight::Floats(floats(weight)), self.x.shape()[1]),
            Weight::Packed { words, scales, layout } => {
                let (words, scales) = (words.storage(), floats(scales));
                let packed = packed::Packed { words, scales, layout: *layout };
                (linear::Weight::Packed(packed), layout.columns)
            }
        };
        let low = |a, b, scale: f64| linear::Low { a: floats(a), b: floats(b), scale: scale as f32 };
        let (low, gain) = match &self.beside {
            Beside::Nothing => (None, None),
            Beside::Lora { a, b, scale } => (Some(low(a, b, *scale)), None),
            Beside::Dora { a, b, gain, scale } => (Some(low(a, b, *scale)), Some(floats(gain))),
        };
        linear::Layer { weight, inner, low, gain }
    }

    pub(super) fn forward(&mut self) -> Primitive {
        let layer = self.on_slices();
        let shape = [self.x.shape()[0], layer.out()];
        let (y, h) = layer.forward(floats(&self.x));
        let y = shaped(y, shape);
        (self.h, self.y) = (h, matches!(self.beside, Beside::Dora { .. }).then(|| y.clone()));
        y
    }

    pub(super) fn backward(&self, dy: &Primitive, with_x: bool) -> linear::Gradients {
        let y = self.y.as_ref().map_or(&[][..], floats);
        self.on_slices().backward(floats(&self.x), &self.h, y, floats(dy), with_x)
    }
}
