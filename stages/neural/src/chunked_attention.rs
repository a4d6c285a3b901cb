//! softmax(q·kᵀ + bias)·v without ever holding all weights: some tokens at a time, and of their keys only
//! those up to the last one's own. As one custom operation with a hand-written backward, which makes the
//! weights of a chunk again ("Self-attention does not need O(n²) memory", arXiv 2112.05682) from q, k and v.
//!
//! Query heads that share a key-value head are stacked along time for the products, so that keys and values
//! are never repeated. Softmax is computed in f32, and rounded to the type of q, as the products are.
//! It serves adapters driven through wgpu; the CPU backend has [`crate::cpu::attention`].

use std::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Cube, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Shape, Slice, Tensor};

use crate::fused::RowOps;

/// Weights of a chunk: 128 MiB in f32, the least that WebGPU promises of one buffer.
const CHUNK: usize = 32 << 20;

/// softmax(q·kᵀ + bias)·v, where token i of `time` stands at position `keys − time + i` and sees no key
/// behind it: whatever the bias says of those may be left out.
///
/// # Shapes
/// q `[batch, heads, time, dim]`, k and v `[batch, kv_heads, keys, dim]`, bias
/// `[batch or 1, 1, time, keys]` → like q
#[must_use]
pub fn attention(q: Tensor<4>, [k, v]: [Tensor<4>; 2], bias: Tensor<4>) -> Tensor<4> {
    let ([batch, heads, ..], keys) = (q.dims(), k.dims()[2]);
    let tokens = (CHUNK / (batch * heads * keys).max(1)).max(1);
    in_chunks(q, [k, v], bias, tokens)
}

/// [`attention`] with so many tokens at a time.
#[must_use]
pub fn in_chunks(q: Tensor<4>, [k, v]: [Tensor<4>; 2], bias: Tensor<4>, tokens: usize) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as AttentionOps>::chunked_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        bias.into_dispatch(),
        tokens,
    ))
}

/// The operation on every backend.
#[backend_extension(Cube, Flex, Autodiff)]
pub trait AttentionOps: Backend {
    /// See [`in_chunks`].
    fn chunked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        tokens: usize,
    ) -> FloatTensor<Self>;
}

impl AttentionOps for Flex {
    fn chunked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        tokens: usize,
    ) -> FloatTensor<Self> {
        Chunks::<Self> { q, k, v, bias, tokens }.forward()
    }
}

impl AttentionOps for Cube {
    fn chunked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        tokens: usize,
    ) -> FloatTensor<Self> {
        Chunks::<Self> { q, k, v, bias, tokens }.forward()
    }
}

/// What goes into the operation.
#[derive(Clone, Debug)]
struct Chunks<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    bias: FloatTensor<B>,
    tokens: usize,
}

/// Some tokens with the keys that they may see.
struct Chunk<B: Backend> {
    /// `[batch, kv_heads, group·tokens, dim]`
    q: FloatTensor<B>,
    /// `[batch, kv_heads, keys, dim]`
    k: FloatTensor<B>,
    /// like k
    v: FloatTensor<B>,
    /// `[batch or 1, 1, tokens, keys]`
    bias: FloatTensor<B>,
    tokens: usize,
}

impl<B: RowOps> Chunks<B> {
    fn forward(&self) -> FloatTensor<B> {
        let parts = self.ranges().map(|tokens| {
            let chunk = self.chunk(&tokens);
            let weights = chunk.stacked(chunk.weights());
            chunk.unstacked(B::float_matmul(weights, chunk.v.clone()))
        });
        joined::<B>(parts.collect())
    }

    fn ranges(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + use<B> {
        let (time, tokens) = (self.q.shape()[2], self.tokens.max(1));
        (0..time.div_ceil(tokens)).map(move |at| at * tokens..((at + 1) * tokens).min(time))
    }

    fn chunk(&self, tokens: &Range<usize>) -> Chunk<B> {
        let before = self.k.shape()[2] - self.q.shape()[2];
        let keys = 0..before + tokens.end;
        let bias = part::<B>(&self.bias, 2, tokens.clone());
        let chunk = Chunk::<B> {
            q: part::<B>(&self.q, 2, tokens.clone()),
            k: part::<B>(&self.k, 2, keys.clone()),
            v: part::<B>(&self.v, 2, keys.clone()),
            bias: part::<B>(&bias, 3, keys),
            tokens: tokens.len(),
        };
        let q = chunk.stacked(chunk.q.clone());
        Chunk { q, ..chunk }
    }

    /// Gradients of q, k and v. Those of k and v are summed over the chunks in f32.
    fn backward(&self, dy: &FloatTensor<B>) -> [FloatTensor<B>; 3] {
        let dtype = self.q.dtype().into();
        let mut queries = Vec::new();
        let mut sums: Option<[FloatTensor<B>; 2]> = None;
        // the last chunk sees all keys
        for tokens in self.ranges().rev() {
            let chunk = self.chunk(&tokens);
            let keys = 0..chunk.k.shape()[2];
            let found = chunk.backward(&part::<B>(dy, 2, tokens));
            queries.push(chunk.unstacked(found.q));
            let found = [found.k, found.v];
            sums = Some(match sums {
                None if self.tokens >= self.q.shape()[2] => found,
                None => found.map(|found| B::float_cast(found, FloatDType::F32)),
                Some(sums) => {
                    let mut found = found.into_iter();
                    sums.map(|sum| {
                        let found = found.next().expect("as many as there are sums");
                        let seen = part::<B>(&sum, 2, keys.clone());
                        let more = B::float_add(seen, B::float_cast(found, FloatDType::F32));
                        B::float_slice_assign(sum, &slices(2, keys.clone()), more)
                    })
                }
            });
        }
        queries.reverse();
        let [dk, dv] = sums.expect("at least one chunk").map(|sum| B::float_cast(sum, dtype));
        [joined::<B>(queries), dk, dv]
    }
}

/// Gradients of a chunk, shaped as in it.
struct Found<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
}

impl<B: RowOps> Chunk<B> {
    /// `[batch, heads, tokens, x]` → `[batch, kv_heads, group·tokens, x]`
    fn stacked(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let ([batch, heads, tokens, width], kv_heads) = (x.shape().dims(), self.k.shape()[1]);
        B::float_reshape(x, Shape::new([batch, kv_heads, heads / kv_heads * tokens, width]))
    }

    /// The way back.
    fn unstacked(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let [batch, kv_heads, stacked, width] = x.shape().dims();
        let heads = kv_heads * (stacked / self.tokens);
        B::float_reshape(x, Shape::new([batch, heads, self.tokens, width]))
    }

    /// Softmax of the scores, `[batch, heads, tokens, keys]`.
    fn weights(&self) -> FloatTensor<B> {
        let scores = B::float_matmul(self.q.clone(), B::float_transpose(self.k.clone()));
        B::masked_softmax(self.unstacked(scores), self.bias.clone())
    }

    /// With p the weights: ∂v = pᵀ·∂y, ∂p = ∂y·vᵀ, ∂s = p∘(∂p − Σ p∘∂p), ∂q = ∂s·k, ∂k = ∂sᵀ·q.
    fn backward(&self, dy: &FloatTensor<B>) -> Found<B> {
        let dy = self.stacked(dy.clone());
        let p = self.stacked(self.weights());
        let dv = B::float_matmul(B::float_transpose(p.clone()), dy.clone());
        let dp = B::float_matmul(dy, B::float_transpose(self.v.clone()));
        let ds = B::softmax_backward(p, dp);
        Found {
            q: B::float_matmul(ds.clone(), self.k.clone()),
            k: B::float_matmul(B::float_transpose(ds), self.q.clone()),
            v: dv,
        }
    }
}

/// All of a tensor of four dimensions but what lies outside `range` in one of them.
fn slices(dimension: usize, range: Range<usize>) -> [Slice; 4] {
    let mut slices = [Slice::full(); 4];
    slices[dimension] = Slice::from(range);
    slices
}

fn part<B: Backend>(tensor: &FloatTensor<B>, dimension: usize, range: Range<usize>) -> FloatTensor<B> {
    if range == (0..tensor.shape()[dimension]) {
        return tensor.clone();
    }
    B::float_slice(tensor.clone(), &slices(dimension, range))
}

/// One behind the other in time.
fn joined<B: Backend>(mut parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    if parts.len() == 1 { parts.remove(0) } else { B::float_cat(parts, 2) }
}

#[derive(Debug)]
struct ChunkedAttentionBackward;

impl<B: RowOps> Backward<B, 3> for ChunkedAttentionBackward {
    type State = Chunks<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let found = ops.state.backward(&dy);
        for (parent, found) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, found);
            }
        }
    }
}

impl<B: AttentionOps + RowOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn chunked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        tokens: usize,
    ) -> FloatTensor<Self> {
        let bias = bias.into_primitive();
        let ((q, q_node), (k, k_node), (v, v_node)) = (q.into_parts(), k.into_parts(), v.into_parts());
        let y = B::chunked_attention(q.clone(), k.clone(), v.clone(), bias.clone(), tokens);
        match ChunkedAttentionBackward.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Chunks { q, k, v, bias, tokens }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
