//! The operations under autodiff: what each keeps of its forward, and its backward.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Flex};

use super::attention::{self, Heads, Mixed, Seen, Turn};
use super::layer::{Beside, Layer, Weight};
use super::{CpuOps, Primitive, floats, like, loss};

/// Of x, and with an adapter of a, b and the gain, in this order: as many as are tensors of the layer.
#[derive(Debug)]
struct LinearBackward;

impl<const N: usize> Backward<Flex, N> for LinearBackward {
    type State = Layer;

    fn backward(self, ops: Ops<Layer, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (layer, ids) = (ops.state, ops.parents.map(|parent| parent.map(|node| node.id)));
        let found = layer.backward(&dy, ids[0].is_some());
        let beside = match &layer.beside {
            Beside::Nothing => [None; 3],
            Beside::Lora { a, b, .. } => [Some(a), Some(b), None],
            Beside::Dora { a, b, gain, .. } => [Some(a), Some(b), Some(gain)],
        };
        let shapes = std::iter::once(&layer.x).chain(beside.into_iter().flatten());
        register(grads, ids, [found.x, found.a, found.b, found.gain].into_iter().zip(shapes));
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
fn register<'a, const N: usize>(
    grads: &mut Gradients,
    parents: [Option<NodeId>; N],
    values: impl IntoIterator<Item = (Vec<f32>, &'a Primitive)>,
) {
    for (parent, (value, shaped)) in parents.into_iter().zip(values) {
        if let Some(parent) = parent {
            grads.register::<Flex>(parent, like(value, shaped));
        }
    }
}

/// What the layer gives that `layer` makes of these tensors.
fn linear<const N: usize, C: CheckpointStrategy>(
    parents: [FloatTensor<Autodiff<Flex, C>>; N],
    layer: impl FnOnce([Primitive; N]) -> Layer,
) -> FloatTensor<Autodiff<Flex, C>> {
    let parts = parents.map(|parent| parent.into_parts());
    let mut layer = layer(parts.each_ref().map(|(value, _)| value.clone()));
    let y = layer.forward();
    match LinearBackward.prepare::<C>(parts.map(|(_, node)| node)).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(layer, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

impl<C: CheckpointStrategy> CpuOps for Autodiff<Flex, C> {
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

    fn cpu_head(
        h: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        factor: f64,
        wanted: loss::Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let inner = <Self as AutodiffBackend>::from_inner;
        let (h, weight) = (h.into_primitive(), weight.into_primitive());
        let (nll, hidden, weight) = Flex::cpu_head(h, weight, targets, factor, wanted);
        (inner(nll), inner(hidden), inner(weight))
    }

    fn cpu_linear(x: FloatTensor<Self>, weight: Weight<Self>, beside: Beside<Self>) -> FloatTensor<Self> {
        let weight = match weight {
            Weight::Floats(weight) => Weight::Floats(weight.into_primitive()),
            Weight::Packed { words, scales, layout } => {
                Weight::Packed { words, scales: scales.into_primitive(), layout }
            }
        };
        match beside {
            Beside::Nothing => linear::<1, C>([x], |[x]| Layer::new(x, weight, Beside::Nothing)),
            Beside::Lora { a, b, scale } => {
                linear::<3, C>([x, a, b], |[x, a, b]| Layer::new(x, weight, Beside::Lora { a, b, scale }))
            }
            Beside::Dora { a, b, gain, scale } => linear::<4, C>([x, a, b, gain], |[x, a, b, gain]| {
                Layer::new(x, weight, Beside::Dora { a, b, gain, scale })
            }),
        }
    }
}
