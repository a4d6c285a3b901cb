//! Row-wise operations in one pass each, with hand-written backwards: the norm, SwiGLU, a gain for every
//! output (DoRA's), rotary positions, softmax under a mask, cross entropy.
//!
//! Neither backend's own set has them: made of its operations, a norm is nine kernels and its backward
//! fifteen, each of which reads and writes the whole tensor. Arithmetic is in f32 whatever the element type,
//! rounded once. [`RowOps`] is what a backend must be able to do, in `flex.rs` on slices and in `cube.rs`
//! with the kernels of `kernels.rs`; `tape.rs` makes it differentiable, the same for both.
//! It does not know the model.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Cube, Dispatch, Flex, backend_extension};
use burn::tensor::{FloatDType, Int, Tensor};

mod cube;
mod flex;
mod kernels;
mod tape;

pub use cube::kind;

/// x / √(mean(x²) + ε) · w
///
/// # Shapes
/// x `[n, hidden]`, weight `[hidden]` in f32 → `[n, hidden]`
#[must_use]
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused_rms_norm(x, weight, epsilon))
}

/// silu(gate)∘up
///
/// # Shapes
/// gate, up `[n, intermediate]` → the same
#[must_use]
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused_swiglu(gate.into_dispatch(), up.into_dispatch()))
}

/// x∘factor, rounded once to the type of x: a factor of 1.001 would be 1 in bf16.
///
/// # Shapes
/// x `[n, out]`, factor `[out]` in f32 → `[n, out]`
#[must_use]
pub fn scale_columns(x: Tensor<2>, factor: Tensor<1>) -> Tensor<2> {
    let (x, factor) = (x.into_dispatch(), factor.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused_scale_columns(x, factor))
}

/// (x∘cos + swap(x)∘sin)·scale, where swap exchanges the halves of a head, with the heads moved in front of
/// time.
///
/// # Shapes
/// x `[batch, time, heads, dim]`, cos and sin `[batch or 1, time, 1, dim]` in f32, the first half of sin
/// negated → `[batch, heads, time, dim]`
#[must_use]
pub fn turn(x: Tensor<4>, [cos, sin]: [Tensor<4>; 2], scale: f64) -> Tensor<4> {
    let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused_turn(x.into_dispatch(), cos, sin, scale))
}

/// factor · (softmax(logits) − onehot(target)) in the element type `dtype`, and the negative log likelihood
/// of each target in f32. Autodiff does not see it.
///
/// # Shapes
/// logits `[n, vocab]`, targets `[n]` → `[n, vocab]`, `[n]`
#[must_use]
pub fn cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    factor: f64,
    dtype: FloatDType,
) -> (Tensor<2>, Tensor<1>) {
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    let (gradient, nll) = <Dispatch as FusedOps>::fused_cross_entropy(logits, targets, factor, dtype);
    (Tensor::from_dispatch(gradient), Tensor::from_dispatch(nll))
}

/// What a backend computes, forward and gradients, without autodiff.
pub trait RowOps: Backend {
    /// See [`rms_norm`].
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self>;

    /// With r = 1/√(mean(x²) + ε): ∂x = r·(w∘∂y − x·r²·mean(x∘w∘∂y)) and, if it is wanted,
    /// ∂w = Σ rows ∂y∘x·r.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
        dy: FloatTensor<Self>,
        weight_wanted: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// See [`swiglu`].
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// With σ = 1/(1 + e^−gate): ∂gate = ∂y∘up∘σ∘(1 + gate∘(1 − σ)) and ∂up = ∂y∘gate∘σ.
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];

    /// See [`scale_columns`].
    fn scale_columns(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self>;

    /// ∂x = ∂y∘factor and, in f32, ∂factor = Σ rows ∂y∘x.
    fn scale_columns_backward(
        x: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];

    /// See [`turn`]; `back` is the gradient of it: `[batch, heads, time, dim]` → `[batch, time, heads, dim]`.
    fn turn(
        x: FloatTensor<Self>,
        tables: [FloatTensor<Self>; 2],
        scale: f64,
        back: bool,
    ) -> FloatTensor<Self>;

    /// softmax(scores + bias) of every row in the type of the scores.
    ///
    /// scores `[batch, heads, time, keys]`, bias `[batch or 1, 1, time, keys]` in f32 → like scores
    fn masked_softmax(scores: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// ∂s = p∘(∂p − Σ p∘∂p) of every row, in their type.
    fn softmax_backward(p: FloatTensor<Self>, dp: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`cross_entropy`].
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        factor: f64,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// The operations as burn dispatches them.
#[backend_extension(Cube, Flex, Autodiff)]
pub trait FusedOps: Backend {
    /// See [`rms_norm`].
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self>;

    /// See [`swiglu`].
    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`scale_columns`].
    fn fused_scale_columns(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`turn`].
    fn fused_turn(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self>;

    /// See [`cross_entropy`].
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        factor: f64,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

macro_rules! as_they_are {
    ($($backend:ty)*) => {$(
        impl FusedOps for $backend {
            fn fused_rms_norm(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                epsilon: f64,
            ) -> FloatTensor<Self> {
                Self::rms_norm(x, weight, epsilon)
            }

            fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::swiglu(gate, up)
            }

            fn fused_scale_columns(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::scale_columns(x, factor)
            }

            fn fused_turn(
                x: FloatTensor<Self>,
                cos: FloatTensor<Self>,
                sin: FloatTensor<Self>,
                scale: f64,
            ) -> FloatTensor<Self> {
                Self::turn(x, [cos, sin], scale, false)
            }

            fn fused_cross_entropy(
                logits: FloatTensor<Self>,
                targets: IntTensor<Self>,
                factor: f64,
                dtype: FloatDType,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                Self::cross_entropy(logits, targets, factor, dtype)
            }
        }
    )*};
}

as_they_are!(Flex Cube);
