//! Fused operations of the CPU backend, each with a hand-written backward.
//!
//! burn-flex runs one operation after another on one core, and a small model spends more time in
//! element-wise passes than in products. These do a norm, a SwiGLU, a whole attention or a cross entropy in
//! one pass with all cores. Adapters driven through wgpu take the same formulas as plain tensor operations
//! (`model::{norm, mlp, attention}`), which are also what the tests hold these against.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
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
pub mod loss;
pub mod rows;

use attention::{Heads, Mixed, Seen, Turn};

/// Whether a tensor is of the kind, and lies where, these operations run.
#[must_use]
pub fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device().inner() == burn::tensor::Device::flex()
}

/// x / √(mean(x²) + ε) · w
///
/// # Shapes
/// x `[n, hidden]`, weight `[hidden]` → `[n, hidden]`
#[must_use]
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::cpu_rms_norm(
        x.into_dispatch(),
        weight.into_dispatch(),
        epsilon,
    ))
}

/// silu(gate)∘up
///
/// # Shapes
/// gate, up `[n, intermediate]` → the same
#[must_use]
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::cpu_swiglu(gate.into_dispatch(), up.into_dispatch()))
}

/// x∘factor: a gain for every output of a layer.
///
/// # Shapes
/// x `[n, out]`, factor `[out]` → `[n, out]`
#[must_use]
pub fn scale_columns(x: Tensor<2>, factor: Tensor<1>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::cpu_scale_columns(x.into_dispatch(), factor.into_dispatch()))
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

/// `factor · ∂Σnll/∂logits` and the negative log likelihood of each target. Autodiff does not see it.
///
/// # Shapes
/// logits `[n, vocab]`, targets `[n]` → `[n, vocab]`, `[n]`
#[must_use]
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>, factor: f64) -> (Tensor<2>, Tensor<1>) {
    let (gradient, nll) =
        <Dispatch as CpuOps>::cpu_cross_entropy(logits.into_dispatch(), targets.into_dispatch(), factor);
    (Tensor::from_dispatch(gradient), Tensor::from_dispatch(nll))
}

/// The operations, as burn dispatches them.
#[backend_extension(Flex, Autodiff)]
pub trait CpuOps: Backend {
    /// See [`rms_norm`].
    fn cpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self>;

    /// See [`swiglu`].
    fn cpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`scale_columns`].
    fn cpu_scale_columns(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`attention`].
    fn cpu_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self>;

    /// See [`cross_entropy`].
    fn cpu_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        factor: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

type Primitive = FloatTensor<Flex>;

fn floats(tensor: &Primitive) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor: every operation here makes its inputs so")
}

fn like(values: Vec<f32>, tensor: &Primitive) -> Primitive {
    Flex::float_from_data(TensorData::new(values, tensor.shape()), &Default::default())
}

impl CpuOps for Flex {
    fn cpu_rms_norm(x: Primitive, weight: Primitive, epsilon: f64) -> Primitive {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        like(rows::rms_norm(floats(&x), floats(&weight), epsilon as f32), &x)
    }

    fn cpu_swiglu(gate: Primitive, up: Primitive) -> Primitive {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        like(rows::swiglu(floats(&gate), floats(&up)), &gate)
    }

    fn cpu_scale_columns(x: Primitive, factor: Primitive) -> Primitive {
        let (x, factor) = (x.to_contiguous(), factor.to_contiguous());
        like(rows::scale_columns(floats(&x), floats(&factor)), &x)
    }

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

    fn cpu_cross_entropy(logits: Primitive, targets: IntTensor<Self>, factor: f64) -> (Primitive, Primitive) {
        let mut logits = logits.to_contiguous();
        let targets: Vec<usize> = targets.into_data().iter::<u32>().map(|target| target as usize).collect();
        let nll = loss::cross_entropy(logits.storage_mut(), &targets, factor as f32);
        let shape = [nll.len()];
        (logits, Flex::float_from_data(TensorData::new(nll, shape), &Default::default()))
    }
}

#[derive(Debug)]
struct RmsNormBackward;

impl Backward<Flex, 2> for RmsNormBackward {
    type State = (Primitive, Primitive, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let (x, weight, epsilon) = ops.state;
        let (dx, dw) = rows::rms_norm_backward(floats(&x), floats(&weight), epsilon as f32, floats(&dy));
        register(grads, ids, [(dx, &x), (dw, &weight)]);
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl Backward<Flex, 2> for SwigluBackward {
    type State = [Primitive; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let [gate, up] = ops.state;
        let (dgate, dup) = rows::swiglu_backward(floats(&gate), floats(&up), floats(&dy));
        register(grads, ids, [(dgate, &gate), (dup, &up)]);
    }
}

#[derive(Debug)]
struct ScaleColumnsBackward;

impl Backward<Flex, 2> for ScaleColumnsBackward {
    type State = [Primitive; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let [x, factor] = ops.state;
        let (dx, dw) = rows::scale_columns_backward(floats(&x), floats(&factor), floats(&dy));
        register(grads, ids, [(dx, &x), (dw, &factor)]);
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    /// q, k, v, cos, sin; maximum and norm of the rows of weights; shape
    type State = ([Primitive; 5], Vec<[f32; 2]>, Heads);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let ([q, k, v, cos, sin], rows, heads) = ops.state;
        let turn = Turn { cos: floats(&cos), sin: floats(&sin) };
        let seen = Seen { q: floats(&q), k: floats(&k), v: floats(&v), rows: &rows };
        let [dq, dk, dv] = attention::backward(&seen, turn, &heads, floats(&dy));
        register(grads, ids, [(dq, &q), (dk, &k), (dv, &v)]);
    }
}

/// Hands every tracked parent its gradient.
fn register<const N: usize>(
    grads: &mut Gradients,
    parents: [Option<NodeId>; N],
    values: [(Vec<f32>, &Primitive); N],
) {
    for (parent, (value, shaped)) in parents.into_iter().zip(values) {
        if let Some(parent) = parent {
            grads.register::<Flex>(parent, like(value, shaped));
        }
    }
}

impl<C: CheckpointStrategy> CpuOps for Autodiff<Flex, C> {
    fn cpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let y = Flex::cpu_rms_norm(x.clone(), weight.clone(), epsilon);
        match RmsNormBackward.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight, epsilon), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn cpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let y = Flex::cpu_swiglu(gate.clone(), up.clone());
        match SwigluBackward.prepare::<C>([gate_node, up_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([gate, up], y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn cpu_scale_columns(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_node), (factor, factor_node)) = (x.into_parts(), factor.into_parts());
        let (x, factor) = (x.to_contiguous(), factor.to_contiguous());
        let y = Flex::cpu_scale_columns(x.clone(), factor.clone());
        match ScaleColumnsBackward.prepare::<C>([x_node, factor_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([x, factor], y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn cpu_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node), (v, v_node)) = (q.into_parts(), k.into_parts(), v.into_parts());
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let turn = Turn { cos: floats(&cos), sin: floats(&sin) };
        let Mixed { y, rows } = attention::forward(floats(&q), floats(&k), floats(&v), turn, &heads);
        let y = like(y, &q);
        match AttentionBackward.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([q, k, v, cos, sin], rows, heads), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn cpu_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        factor: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (gradient, nll) = Flex::cpu_cross_entropy(logits.into_primitive(), targets, factor);
        (<Self as AutodiffBackend>::from_inner(gradient), <Self as AutodiffBackend>::from_inner(nll))
    }
}
