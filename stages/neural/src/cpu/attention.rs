//! Causal attention on slices, forward and backward, without a `[time, time]` matrix: a block of
//! queries at a time against the keys that it may see. Forward keeps each row's maximum and norm,
//! and backward makes the weights again from them (FlashAttention, arXiv 2205.14135; blocks of
//! queries only, as a row of scores fits a processor's cache).
//!
//! A task is one key-value head of one batch row with the query heads that share it.

use std::sync::Arc;

use rayon::prelude::*;

use super::product::{Cores, Part, product_into};
use super::rows::{exp, sum2};

/// Queries of a block.
const BLOCK: usize = 64;

/// The shape of an attention.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Tokens of a row.
    pub time: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head, even.
    pub dim: usize,
    /// Tokens that a token sees at most, itself included.
    pub window: usize,
    /// Where in its row the example of each token begins, `[batch, time]`, never falling within a row;
    /// empty where every row is one example.
    pub starts: Arc<[u32]>,
}

/// Where the examples of one row begin; empty where it is one.
#[derive(Clone, Copy)]
struct Starts<'a>(&'a [u32]);

impl Starts<'_> {
    fn of(self, token: usize) -> usize {
        self.0.get(token).map_or(0, |&start| start as usize)
    }
}

impl Heads {
    /// The first key that a token of a row sees.
    fn first(&self, starts: Starts<'_>, token: usize) -> usize {
        (token + 1).saturating_sub(self.window).max(starts.of(token))
    }

    fn starts(&self, row: usize) -> Starts<'_> {
        if self.starts.is_empty() {
            Starts(&[])
        } else {
            Starts(&self.starts[row * self.time..][..self.time])
        }
    }

    fn query_width(&self) -> usize {
        self.heads * self.dim
    }

    fn key_width(&self) -> usize {
        self.kv_heads * self.dim
    }
}

/// Cosine and sine as the model's tables hold them, `[time, dim]`: both halves alike, the first
/// half of the sine negated.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Cosine.
    pub cos: &'a [f32],
    /// Sine.
    pub sin: &'a [f32],
}

/// One head of a batch row, positions applied, `[time, dim]` with `scale`.
#[inline(always)]
fn turned(
    from: &[f32],
    (width, at): (usize, usize),
    h: &Heads,
    (turn, starts): (Turn<'_>, Starts<'_>),
    scale: f32,
    to: &mut [f32],
) {
    let half = h.dim / 2;
    for t in 0..h.time {
        let x = &from[t * width + at..][..h.dim];
        let angle = (t - starts.of(t)) * h.dim;
        let (cos, sin) = (&turn.cos[angle..][..half], &turn.sin[angle + half..][..half]);
        let (low, high) = to[t * h.dim..][..h.dim].split_at_mut(half);
        for k in 0..half {
            low[k] = scale * (x[k] * cos[k] - x[k + half] * sin[k]);
            high[k] = scale * (x[k + half] * cos[k] + x[k] * sin[k]);
        }
    }
}

/// The transpose of [`turned`]: a gradient `[time, dim]` back into its place.
#[inline(always)]
fn turned_back(
    from: &[f32],
    (width, at): (usize, usize),
    h: &Heads,
    (turn, starts): (Turn<'_>, Starts<'_>),
    scale: f32,
    to: &mut [f32],
) {
    let half = h.dim / 2;
    for t in 0..h.time {
        let x = &from[t * h.dim..][..h.dim];
        let angle = (t - starts.of(t)) * h.dim;
        let (cos, sin) = (&turn.cos[angle..][..half], &turn.sin[angle + half..][..half]);
        let (low, high) = to[t * width + at..][..h.dim].split_at_mut(half);
        for k in 0..half {
            low[k] = scale * (x[k] * cos[k] + x[k + half] * sin[k]);
            high[k] = scale * (x[k + half] * cos[k] - x[k] * sin[k]);
        }
    }
}

/// What forward keeps of a row of weights: they are exp(score − max)·scale.
type Row = [f32; 2];

/// What [`forward`] gives.
pub struct Mixed {
    /// Mixed values like q.
    pub y: Vec<f32>,
    /// `[batch, heads, time]`
    pub rows: Vec<Row>,
}

/// # Shapes
/// q `[batch·time, heads·dim]`, k and v `[batch·time, kv_heads·dim]`
pub fn forward(q: &[f32], k: &[f32], v: &[f32], turn: Turn<'_>, h: &Heads) -> Mixed {
    let (qw, kw) = (h.query_width(), h.key_width());
    let batch = q.len() / (h.time * qw);
    let heads: Vec<(Vec<f32>, Vec<Row>)> = (0..batch * h.kv_heads)
        .into_par_iter()
        .map(|task| {
            let (row, kv) = (task / h.kv_heads, task % h.kv_heads);
            let [q, k, v] =
                [(q, qw), (k, kw), (v, kw)].map(|(x, width)| &x[row * h.time * width..][..h.time * width]);
            forward_heads([q, k, v], kv, (turn, h.starts(row)), h)
        })
        .collect();
    let y = together(&heads, batch, h.kv_heads, h, |head| &head.0);
    Mixed { y, rows: heads.into_iter().flat_map(|(_, rows)| rows).collect() }
}

/// The heads' results, each `[n, time, dim]`, side by side: `[batch·time, kv_heads·n·dim]`.
fn together<T: Sync>(
    heads: &[T],
    batch: usize,
    kv_heads: usize,
    h: &Heads,
    of: impl Fn(&T) -> &Vec<f32> + Sync,
) -> Vec<f32> {
    let size = h.time * h.dim;
    let n = heads.first().map_or(0, |head| of(head).len() / size);
    let width = kv_heads * n * h.dim;
    let mut y = vec![0.0; batch * h.time * width];
    y.par_chunks_mut(width.max(1)).enumerate().for_each(|(at, to)| {
        let (row, t) = (at / h.time, at % h.time);
        for (index, to) in to.chunks_exact_mut(h.dim).enumerate() {
            let head = of(&heads[row * kv_heads + index / n]);
            to.copy_from_slice(&head[index % n * size + t * h.dim..][..h.dim]);
        }
    });
    y
}

/// The query heads of one key-value head: `[group, time, dim]` and their rows.
fn forward_heads(
    [q, k, v]: [&[f32]; 3],
    kv: usize,
    turn: (Turn<'_>, Starts<'_>),
    h: &Heads,
) -> (Vec<f32>, Vec<Row>) {
    let starts = turn.1;
    let (qw, kw, time, dim) = (h.query_width(), h.key_width(), h.time, h.dim);
    let group = h.heads / h.kv_heads;
    let size = time * dim;
    let (mut y, mut rows) = (vec![0.0f32; group * size], Vec::with_capacity(group * time));
    let (mut qh, mut kh, mut scores) =
        (vec![0.0f32; size], vec![0.0f32; size], vec![0.0f32; BLOCK.min(time) * time]);
    turned(k, (kw, kv * dim), h, turn, 1.0, &mut kh);
    for (index, y) in y.chunks_exact_mut(size).enumerate() {
        turned(q, (qw, (kv * group + index) * dim), h, turn, (dim as f32).sqrt().recip(), &mut qh);
        for block in (0..time).step_by(BLOCK) {
            let (from, to) = (h.first(starts, block), time.min(block + BLOCK));
            let (n, keys) = (to - block, to - from);
            let scores = &mut scores[..n * keys];
            let queries = Part::rows(&qh[block * dim..], dim);
            product_into(
                scores,
                keys,
                false,
                [n, dim, keys],
                queries,
                Part::rows(&kh[from * dim..], dim).transposed(),
                Cores::One,
            );
            for (t, row) in (block..to).zip(scores.chunks_exact_mut(keys)) {
                rows.push([0.0, 0.0]);
                let kept = rows.last_mut().expect("just pushed");
                softmax(row, h.first(starts, t) - from, t + 1 - from, kept);
            }
            let values = Part::rows(&v[from * kw + kv * dim..], kw);
            product_into(
                &mut y[block * dim..],
                dim,
                false,
                [n, keys, dim],
                Part::rows(scores, keys),
                values,
                Cores::One,
            );
        }
    }
    (y, rows)
}

widest! {
    /// Weights of the keys `from..to`, zero for the others.
    fn softmax(row: &mut [f32], from: usize, to: usize, kept: &mut Row) {
        row[..from].fill(0.0);
        row[to..].fill(0.0);
        let row = &mut row[from..to];
        let mut maxima = [f32::NEG_INFINITY; 8];
        for part in row.chunks(8) {
            for (max, &score) in maxima.iter_mut().zip(part) {
                *max = if score > *max { score } else { *max };
            }
        }
        let max = maxima.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        for score in row.iter_mut() {
            *score = exp(*score - max);
        }
        let scale = sum2(row, row, |x, _| x).recip();
        for weight in row.iter_mut() {
            *weight *= scale;
        }
        *kept = [max, scale];
    }
}

/// What [`forward`] saw and gave.
pub struct Seen<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// As [`Mixed::rows`].
    pub rows: &'a [Row],
}

/// Gradients of q, k and v, shaped like them.
pub fn backward(seen: &Seen<'_>, turn: Turn<'_>, h: &Heads, dy: &[f32]) -> [Vec<f32>; 3] {
    let (qw, kw, time) = (h.query_width(), h.key_width(), h.time);
    let batch = seen.q.len() / (time * qw);
    let heads: Vec<[Vec<f32>; 3]> = (0..batch * h.kv_heads)
        .into_par_iter()
        .map(|task| {
            let (row, kv) = (task / h.kv_heads, task % h.kv_heads);
            let [q, k, v, dy] = [(seen.q, qw), (seen.k, kw), (seen.v, kw), (dy, qw)]
                .map(|(x, width)| &x[row * time * width..][..time * width]);
            let rows = &seen.rows[row * h.heads * time..][..h.heads * time];
            backward_heads(&Seen { q, k, v, rows }, kv, (turn, h.starts(row)), h, dy)
        })
        .collect();
    [0, 1, 2].map(|which| together(&heads, batch, h.kv_heads, h, |head| &head[which]))
}

/// Gradients of one key-value head and its query heads: `[group, time, dim]` and twice `[time, dim]`.
fn backward_heads(
    seen: &Seen<'_>,
    kv: usize,
    turn: (Turn<'_>, Starts<'_>),
    h: &Heads,
    dy: &[f32],
) -> [Vec<f32>; 3] {
    let starts = turn.1;
    let (qw, kw, time, dim) = (h.query_width(), h.key_width(), h.time, h.dim);
    let group = h.heads / h.kv_heads;
    let (size, scale) = (time * dim, (dim as f32).sqrt().recip());
    let zeros = |n: usize| vec![0.0f32; n];
    let (mut qh, mut kh, mut dqh, mut dkh) = (zeros(size), zeros(size), zeros(size), zeros(size));
    let (mut weights, mut ds) = (zeros(BLOCK.min(time) * time), zeros(BLOCK.min(time) * time));
    let (mut dq, mut dk, mut dv) = (zeros(group * size), zeros(size), zeros(size));
    turned(seen.k, (kw, kv * dim), h, turn, 1.0, &mut kh);
    for (index, dq) in dq.chunks_exact_mut(size).enumerate() {
        let head = kv * group + index;
        turned(seen.q, (qw, head * dim), h, turn, scale, &mut qh);
        for block in (0..time).step_by(BLOCK) {
            let (from, to) = (h.first(starts, block), time.min(block + BLOCK));
            let (n, keys) = (to - block, to - from);
            let (weights, ds) = (&mut weights[..n * keys], &mut ds[..n * keys]);
            let (queries, key) = (Part::rows(&qh[block * dim..], dim), Part::rows(&kh[from * dim..], dim));
            let dy = Part::rows(&dy[block * qw + head * dim..], qw);
            let values = Part::rows(&seen.v[from * kw + kv * dim..], kw);
            product_into(weights, keys, false, [n, dim, keys], queries, key.transposed(), Cores::One);
            product_into(ds, keys, false, [n, dim, keys], dy, values.transposed(), Cores::One);
            let rows = weights.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys));
            for (t, (weights, ds)) in (block..to).zip(rows) {
                softmax_backward(
                    weights,
                    ds,
                    h.first(starts, t) - from,
                    t + 1 - from,
                    seen.rows[head * time + t],
                );
            }
            let (weights, ds) = (Part::rows(weights, keys), Part::rows(ds, keys));
            product_into(
                &mut dv[from * dim..],
                dim,
                true,
                [keys, n, dim],
                weights.transposed(),
                dy,
                Cores::One,
            );
            product_into(&mut dqh[block * dim..], dim, false, [n, keys, dim], ds, key, Cores::One);
            product_into(
                &mut dkh[from * dim..],
                dim,
                true,
                [keys, n, dim],
                ds.transposed(),
                queries,
                Cores::One,
            );
        }
        turned_back(&dqh, (dim, 0), h, turn, scale, dq);
    }
    turned_back(&dkh, (dim, 0), h, turn, 1.0, &mut dk);
    [dq, dk, dv]
}

widest! {
    /// Scores → weights, their gradient → the scores' gradient, for the keys `from..to`; zero for
    /// the others.
    fn softmax_backward(weights: &mut [f32], ds: &mut [f32], from: usize, to: usize, kept: Row) {
        for row in [&mut *weights, &mut *ds] {
            row[..from].fill(0.0);
            row[to..].fill(0.0);
        }
        let (weights, ds) = (&mut weights[from..to], &mut ds[from..to]);
        let [max, scale] = kept;
        for weight in weights.iter_mut() {
            *weight = exp(*weight - max) * scale;
        }
        let along = sum2(weights, ds, |p, d| p * d);
        for (d, &p) in ds.iter_mut().zip(weights.iter()) {
            *d = p * (*d - along);
        }
    }
}
