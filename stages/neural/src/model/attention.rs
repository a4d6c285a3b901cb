//! Causal self-attention with grouped key-value heads (Ainslie et al., arXiv 2305.13245).
//!
//! What lies between the projections is one operation: [`crate::cpu::attention`] on the CPU backend,
//! [`crate::chunked_attention`] everywhere else.

use std::cell::OnceCell;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::Linear;
use super::rope::{Rope, RopePart};
use crate::{chunked_attention, cpu};

/// What a masked score is set to: far below any score, and finite, so that a row in which
/// everything is masked (padding) stays finite.
const MASKED: f32 = -1e9;

/// Which keys a token sees, and where it stands: the same for every block.
#[derive(Clone, Debug)]
pub struct Mask {
    bias: Bias,
    /// `[batch or 1, time, 1, head_dim]`
    rope: RopePart,
    /// Where all keys are at hand and no row is padded on the left: as the CPU backend's own attention
    /// takes it.
    fused: Option<Fused>,
}

/// What is added to the scores, `[batch or 1, 1, time, keys]`.
#[derive(Clone, Debug)]
enum Bias {
    Known(Tensor<4>),
    /// From the first key that each token sees, `[batch, time]`; made when it is asked for.
    Packed(Tensor<2, Int>, Box<OnceCell<Tensor<4>>>),
}

#[derive(Clone, Debug)]
struct Fused {
    /// Of positions within an example.
    rope: RopePart,
    window: usize,
    starts: Arc<[u32]>,
}

impl Mask {
    /// Every token sees itself and what comes before it, at most `window` tokens if given. Padding
    /// on the right needs no more: no real token sees it.
    #[must_use]
    pub fn causal(rope: &Rope, time: usize, window: Option<usize>, device: &Device) -> Self {
        Self::new(rope, 0, time, &[0], window, device)
    }

    /// `time` tokens from position `start` on, whose keys are all positions up to theirs, except
    /// that row b sees nothing before position `first[b]` (padding on the left).
    #[must_use]
    pub fn new(
        rope: &Rope,
        start: usize,
        time: usize,
        first: &[usize],
        window: Option<usize>,
        device: &Device,
    ) -> Self {
        let keys = start + time;
        let mut bias = Vec::with_capacity(first.len() * time * keys);
        for &first in first {
            for position in start..keys {
                let from = window.map_or(first, |window| first.max((position + 1).saturating_sub(window)));
                bias.extend((0..keys).map(|key| if key >= from && key <= position { 0.0 } else { MASKED }));
            }
        }
        let bias = Tensor::from_data(TensorData::new(bias, [first.len(), 1, time, keys]), device);
        let rope = rope.part(start, time, device);
        let fused = (start == 0 && first.iter().all(|&first| first == 0)).then(|| Fused {
            rope: rope.clone(),
            window: window.unwrap_or(usize::MAX),
            starts: Arc::default(),
        });
        Self { bias: Bias::Known(bias), rope, fused }
    }

    /// Rows of `time` tokens that hold several examples, each of which sees itself alone and counts its
    /// positions from 0; `starts` says where in its row the example of each token begins, `[batch, time]`.
    #[must_use]
    #[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "positions of a row")]
    pub fn packed(rope: &Rope, time: usize, starts: &[u32], window: Option<usize>, device: &Device) -> Self {
        let window = window.unwrap_or(usize::MAX);
        let ints = |of: &dyn Fn(usize, usize) -> usize| {
            let values = starts.iter().enumerate().map(|(at, &start)| of(at % time, start as usize) as i32);
            Tensor::<1, Int>::from_data(TensorData::new(values.collect(), [starts.len()]), device)
        };
        let first = ints(&|token, start| start.max((token + 1).saturating_sub(window)));
        let rows = starts.len() / time;
        let part = rope.part(0, time, device);
        Self {
            bias: Bias::Packed(first.reshape([rows, time]), Box::default()),
            rope: part.at(ints(&|token, start| token - start), rows),
            fused: Some(Fused { rope: part, window, starts: starts.into() }),
        }
    }

    fn bias(&self) -> Tensor<4> {
        match &self.bias {
            Bias::Known(bias) => bias.clone(),
            Bias::Packed(first, made) => made.get_or_init(|| hidden(first)).clone(),
        }
    }
}

/// What hides every key but those from `first` to the token itself: `[batch, time]` →
/// `[batch, 1, time, time]`.
fn hidden(first: &Tensor<2, Int>) -> Tensor<4> {
    let ([rows, time], device) = (first.dims(), first.device());
    let positions = Tensor::<1, Int>::arange(0..i64::try_from(time).unwrap_or(i64::MAX), &device);
    let across = |x: Tensor<4, Int>| x.expand([rows, 1, time, time]);
    let keys = across(positions.clone().reshape([1, 1, 1, time]));
    let tokens = across(positions.reshape([1, 1, time, 1]));
    let first = across(first.clone().reshape([rows, 1, time, 1]));
    let hidden = keys.clone().lower(first).bool_or(keys.greater(tokens));
    Tensor::zeros([rows, 1, time, time], &device).mask_fill(hidden, MASKED)
}

/// Keys and values of the tokens so far, each `[batch, kv_heads, keys, head_dim]`.
#[derive(Clone, Debug, Default)]
pub struct Cache(Option<(Tensor<4>, Tensor<4>)>);

impl Cache {
    fn extend(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let pair = match self.0.take() {
            None => (key, value),
            Some((keys, values)) => (Tensor::cat(vec![keys, key], 2), Tensor::cat(vec![values, value], 2)),
        };
        self.0 = Some(pair.clone());
        pair
    }
}

/// softmax( q·kᵀ/√d + mask )·v, q and k turned by their position
#[derive(Clone, Debug)]
pub struct Attention {
    /// `[heads·head_dim, hidden]`
    pub q: Linear,
    /// `[kv_heads·head_dim, hidden]`
    pub k: Linear,
    /// `[kv_heads·head_dim, hidden]`
    pub v: Linear,
    /// `[hidden, heads·head_dim]`
    pub o: Linear,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl Attention {
    /// # Shapes
    /// x `[batch·time, hidden]` → `[batch·time, hidden]`
    #[must_use]
    pub fn forward(&self, x: Tensor<2>, batch: usize, mask: &Mask, cache: Option<&mut Cache>) -> Tensor<2> {
        let time = x.dims()[0] / batch;
        let (q, k, v) = (self.q.forward(x.clone()), self.k.forward(x.clone()), self.v.forward(x));
        let mixed = match &mask.fused {
            Some(fused) if cache.is_none() && cpu::serves(&q) => {
                let heads = cpu::attention::Heads {
                    time,
                    heads: self.heads,
                    kv_heads: self.kv_heads,
                    dim: self.head_dim,
                    window: fused.window,
                    starts: fused.starts.clone(),
                };
                cpu::attention(q, [k, v], fused.rope.tables(), heads)
            }
            _ => self.plain(q, [k, v], batch, mask, cache),
        };
        self.o.forward(mixed)
    }

    /// The part between the projections as adapters driven through wgpu compute it.
    ///
    /// # Shapes
    /// q `[batch·time, heads·head_dim]`, k and v `[batch·time, kv_heads·head_dim]` → like q
    #[must_use]
    pub fn plain(
        &self,
        q: Tensor<2>,
        [k, v]: [Tensor<2>; 2],
        batch: usize,
        mask: &Mask,
        cache: Option<&mut Cache>,
    ) -> Tensor<2> {
        let (time, dim) = (q.dims()[0] / batch, self.head_dim);
        let q = q.reshape([batch, time, self.heads, dim]);
        let k = k.reshape([batch, time, self.kv_heads, dim]);
        let v = v.reshape([batch, time, self.kv_heads, dim]);
        let (q, k) = (mask.rope.turn(q, (dim as f64).powf(-0.5)), mask.rope.turn(k, 1.0));
        let (k, v) = match cache {
            None => (k, v.swap_dims(1, 2)),
            Some(cache) => cache.extend(k, v.swap_dims(1, 2)),
        };
        let mixed = chunked_attention::attention(q, [k, v], mask.bias()).swap_dims(1, 2);
        mixed.reshape([batch * time, self.heads * dim])
    }
}
