//! Fused operations of the CPU backend, each with a hand-written backward.
//!
//! burn-flex runs one operation after another on one core, and a small model spends more time in
//! element-wise passes than in products. These do a norm, a SwiGLU, a whole attention, a layer with its
//! adapter or the head with its cross entropy in one pass with all cores. Adapters driven through wgpu
//! take the same formulas from `model::{norm, mlp}`, `packed_linear` and `chunked_attention`, which are also
//! what the tests hold these against.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Int, Tensor, TensorData};

/// Compiles a kernel twice, for any processor and for one with AVX2, and picks at run time. Only
/// the width of the vectors differs, not the order of a sum: both give the same bits.
macro_rules! widest {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn plain($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) {
                    plain($($arg),*);
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor was just asked for the feature.
                    unsafe { wide($($arg),*) };
                    return;
                }
            }
            plain($($arg),*);
        }
    };
}

pub mod attention;
mod layer;
pub mod linear;
pub mod loss;
pub mod packed;
mod product;
pub mod rows;
mod tape;

use attention::{Heads, Turn};
pub use layer::{Beside, Weight};

/// Whether a tensor is of the kind, and lies where, these operations run.
#[must_use]
pub fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device().inner() == burn::tensor::Device::flex()
}

/// Causal attention with rotary positions.
///
/// # Shapes
/// q `[batch·time, heads·dim]`, k and v `[batch·time, kv_heads·dim]`, cos and sin of the positions
/// within an example `[1, time, 1, dim]` → like q
#[must_use]
pub fn attention(
    q: Tensor<2>,
    [k, v]: [Tensor<2>; 2],
    [cos, sin]: [Tensor<4>; 2],
    heads: Heads,
) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::cpu_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
        heads,
    ))
}

/// What [`head`] gives.
pub struct Head {
    /// The negative log likelihood of each target, `[n]`
    pub nll: Tensor<1>,
    /// `factor · ∂Σnll/∂h`, `[n, hidden]`; of no rows if it was not wanted
    pub hidden: Tensor<2>,
    /// `factor · ∂Σnll/∂W`, `[vocab, hidden]`; of no rows if it was not wanted
    pub weight: Tensor<2>,
}

/// The cross entropy of `targets` under softmax(h·Wᵀ), and gradients. Autodiff does not see it.
///
/// # Shapes
/// h `[n, hidden]`, weight `[vocab, hidden]`, targets `[n]`
#[must_use]
pub fn head(
    h: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    factor: f64,
    wanted: loss::Wanted,
) -> Head {
    let (nll, hidden, weight) = <Dispatch as CpuOps>::cpu_head(
        h.into_dispatch(),
        weight.into_dispatch(),
        targets.into_dispatch(),
        factor,
        wanted,
    );
    let [hidden, weight] = [hidden, weight].map(Tensor::from_dispatch);
    Head { nll: Tensor::from_dispatch(nll), hidden, weight }
}

/// A linear layer, bare or with an adapter; the weight gets no gradient.
///
/// # Shapes
/// x `[n, in]`, weight `[out, in]` → `[n, out]`
#[must_use]
pub fn linear(x: Tensor<2>, weight: Weight<Dispatch>, beside: Beside<Dispatch>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::cpu_linear(x.into_dispatch(), weight, beside))
}

/// The operations, as burn dispatches them.
#[backend_extension(Flex, Autodiff)]
pub trait CpuOps: Backend {
    /// See [`attention`].
    fn cpu_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self>;

    /// See [`head`].
    fn cpu_head(
        h: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        factor: f64,
        wanted: loss::Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`linear`].
    fn cpu_linear(
        x: FloatTensor<Self>,
        #[extension_type] weight: Weight<Self>,
        #[extension_type] beside: Beside<Self>,
    ) -> FloatTensor<Self>;
}

pub(crate) type Primitive = FloatTensor<Flex>;

pub(crate) fn floats(tensor: &Primitive) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor: every operation here makes its inputs so")
}

fn shaped<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Primitive {
    Flex::float_from_data(TensorData::new(values, shape), &Default::default())
}

fn like(values: Vec<f32>, tensor: &Primitive) -> Primitive {
    Flex::float_from_data(TensorData::new(values, tensor.shape()), &Default::default())
}

impl CpuOps for Flex {
    fn cpu_attention(
        q: Primitive,
        k: Primitive,
        v: Primitive,
        cos: Primitive,
        sin: Primitive,
        heads: Heads,
    ) -> Primitive {
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let turn = Turn { cos: floats(&cos), sin: floats(&sin) };
        like(attention::forward(floats(&q), floats(&k), floats(&v), turn, &heads).y, &q)
    }

    fn cpu_head(
        h: Primitive,
        weight: Primitive,
        targets: IntTensor<Self>,
        factor: f64,
        wanted: loss::Wanted,
    ) -> (Primitive, Primitive, Primitive) {
        let (h, weight) = (h.to_contiguous(), weight.to_contiguous());
        let targets: Vec<usize> = targets.into_data().iter::<u32>().map(|target| target as usize).collect();
        let width = weight.shape()[1];
        let given = loss::head(floats(&h), floats(&weight), &targets, factor as f32, wanted);
        let [hidden, weight] = [given.hidden, given.weight].map(|values| {
            let rows = values.len() / width.max(1);
            shaped(values, [rows, width])
        });
        (shaped(given.nll, [targets.len()]), hidden, weight)
    }

    fn cpu_linear(x: Primitive, weight: Weight<Self>, beside: Beside<Self>) -> Primitive {
        layer::Layer::new(x, weight, beside).forward()
    }
}
