//! The operations under autodiff: what each keeps of its forward, and its backward.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend};
use burn::tensor::FloatDType;

use super::{FusedOps, RowOps};

/// Hands every tracked parent its gradient.
fn register<B: RowOps, const N: usize>(
    grads: &mut Gradients,
    parents: [Option<NodeId>; N],
    found: [Option<FloatTensor<B>>; N],
) {
    for (parent, found) in parents.into_iter().zip(found) {
        if let (Some(parent), Some(found)) = (parent, found) {
            grads.register::<B>(parent, found);
        }
    }
}

#[derive(Debug)]
struct RmsNorm;

impl<B: RowOps> Backward<B, 2> for RmsNorm {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let (x, weight, epsilon) = ops.state;
        let (dx, dw) = B::rms_norm_backward(x, weight, epsilon, dy, ids[1].is_some());
        register::<B, 2>(grads, ids, [Some(dx), dw]);
    }
}

#[derive(Debug)]
struct Swiglu;

impl<B: RowOps> Backward<B, 2> for Swiglu {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let [gate, up] = ops.state;
        register::<B, 2>(grads, ids, B::swiglu_backward(gate, up, dy).map(Some));
    }
}

#[derive(Debug)]
struct ScaleColumns;

impl<B: RowOps> Backward<B, 2> for ScaleColumns {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let [x, factor] = ops.state;
        register::<B, 2>(grads, ids, B::scale_columns_backward(x, factor, dy).map(Some));
    }
}

#[derive(Debug)]
struct Turn;

impl<B: RowOps> Backward<B, 1> for Turn {
    type State = ([FloatTensor<B>; 2], f64);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let ids = ops.parents.map(|parent| parent.map(|node| node.id));
        let (tables, scale) = ops.state;
        register::<B, 1>(grads, ids, [Some(B::turn(dy, tables, scale, true))]);
    }
}

impl<B: RowOps + FusedOps, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let y = B::rms_norm(x.clone(), weight.clone(), epsilon);
        match RmsNorm.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight, epsilon), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        let y = B::swiglu(gate.clone(), up.clone());
        match Swiglu.prepare::<C>([gate_node, up_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([gate, up], y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn fused_scale_columns(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_node), (factor, factor_node)) = (x.into_parts(), factor.into_parts());
        let y = B::scale_columns(x.clone(), factor.clone());
        match ScaleColumns.prepare::<C>([x_node, factor_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([x, factor], y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn fused_turn(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let tables = [cos, sin].map(|table| table.into_primitive());
        let (x, node) = x.into_parts();
        let y = B::turn(x, tables.clone(), scale, false);
        match Turn.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((tables, scale), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        factor: f64,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let inner = <Self as AutodiffBackend>::from_inner;
        let (gradient, nll) = B::cross_entropy(logits.into_primitive(), targets, factor, dtype);
        (inner(gradient), inner(nll))
    }
}
