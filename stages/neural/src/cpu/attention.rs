//! Causal attention on slices, forward and backward, for short rows: positions are applied, heads
//! taken apart and put together, and masked scores never computed, all in one pass over a batch
//! row. Inner loops run along keys or channels, so that compilers vectorize them.

use rayon::prelude::*;

use super::rows::{exp, sum2};

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
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
}

impl Heads {
    /// The first key that the token at `position` sees.
    fn first(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
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
fn turned(from: &[f32], width: usize, at: usize, h: &Heads, turn: Turn<'_>, scale: f32, to: &mut [f32]) {
    let half = h.dim / 2;
    for t in 0..h.time {
        let x = &from[t * width + at..][..h.dim];
        let (cos, sin) = (&turn.cos[t * h.dim..][..half], &turn.sin[t * h.dim + half..][..half]);
        let (low, high) = to[t * h.dim..][..h.dim].split_at_mut(half);
        for k in 0..half {
            low[k] = scale * (x[k] * cos[k] - x[k + half] * sin[k]);
            high[k] = scale * (x[k + half] * cos[k] + x[k] * sin[k]);
        }
    }
}

/// The transpose of [`turned`]: a gradient `[time, dim]` back into its place.
#[inline(always)]
fn turned_back(from: &[f32], width: usize, at: usize, h: &Heads, turn: Turn<'_>, scale: f32, to: &mut [f32]) {
    let half = h.dim / 2;
    for t in 0..h.time {
        let x = &from[t * h.dim..][..h.dim];
        let (cos, sin) = (&turn.cos[t * h.dim..][..half], &turn.sin[t * h.dim + half..][..half]);
        let (low, high) = to[t * width + at..][..h.dim].split_at_mut(half);
        for k in 0..half {
            low[k] = scale * (x[k] * cos[k] + x[k + half] * sin[k]);
            high[k] = scale * (x[k + half] * cos[k] - x[k] * sin[k]);
        }
    }
}

/// `[time, dim]` at a stride → `[dim, time]`
#[inline(always)]
fn columns(from: &[f32], width: usize, at: usize, h: &Heads, to: &mut [f32]) {
    for t in 0..h.time {
        for k in 0..h.dim {
            to[k * h.time + t] = from[t * width + at + k];
        }
    }
}

/// y += a·x, eight at a time: rows and heads are too short for longer unrolling.
#[inline(always)]
fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    let n = x.len().min(y.len());
    let (x, y) = (&x[..n], &mut y[..n]);
    let mut at = 0;
    while at + 8 <= n {
        let (x, y) = (&x[at..at + 8], &mut y[at..at + 8]);
        for k in 0..8 {
            y[k] += a * x[k];
        }
        at += 8;
    }
    while at < n {
        y[at] += a * x[at];
        at += 1;
    }
}

/// # Shapes
/// q `[batch·time, heads·dim]`, k and v `[batch·time, kv_heads·dim]` → mixed values like q, and
/// the attention weights `[batch, heads, time, time]`
pub fn forward(q: &[f32], k: &[f32], v: &[f32], turn: Turn<'_>, h: Heads) -> (Vec<f32>, Vec<f32>) {
    let (qw, kw, time) = (h.query_width(), h.key_width(), h.time);
    let batch = q.len() / (time * qw);
    let (mut y, mut weights) = (vec![0.0; q.len()], vec![0.0; batch * h.heads * time * time]);
    y.par_chunks_mut(time * qw)
        .zip(weights.par_chunks_mut(h.heads * time * time))
        .zip(q.par_chunks(time * qw).zip(k.par_chunks(time * kw)).zip(v.par_chunks(time * kw)))
        .for_each(|((y, weights), ((q, k), v))| forward_row(q, k, v, turn, h, y, weights));
    (y, weights)
}

widest! {
    /// All heads of one batch row; `y` and `weights` come as zeros.
    fn forward_row(q: &[f32], k: &[f32], v: &[f32], turn: Turn<'_>, h: Heads, y: &mut [f32], weights: &mut [f32]) {
        let (qw, kw, time, dim) = (h.query_width(), h.key_width(), h.time, h.dim);
        let scale = (dim as f32).sqrt().recip();
        let mut buffers = vec![0.0f32; 3 * time * dim];
        let (qh, rest) = buffers.split_at_mut(time * dim);
        let (kh, kt) = rest.split_at_mut(time * dim);
        for head in 0..h.heads {
            let (at, kv_at) = (head * dim, head / (h.heads / h.kv_heads) * dim);
            turned(q, qw, at, &h, turn, scale, qh);
            turned(k, kw, kv_at, &h, turn, 1.0, kh);
            columns(kh, dim, 0, &h, kt);
            for t in 0..time {
                let (from, to) = (h.first(t), t + 1);
                let row = &mut weights[(head * time + t) * time..][from..to];
                for (c, &q) in qh[t * dim..][..dim].iter().enumerate() {
                    axpy(q, &kt[c * time..][from..to], row);
                }
                softmax(row);
                let y = &mut y[t * qw + at..][..dim];
                for (p, key) in row.iter().zip(from..) {
                    axpy(*p, &v[key * kw + kv_at..][..dim], y);
                }
            }
        }
    }
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let mut max = f32::NEG_INFINITY;
    for &score in row.iter() {
        max = if score > max { score } else { max };
    }
    for score in row.iter_mut() {
        *score = exp(*score - max);
    }
    let norm = sum2(row, row, |x, _| x).recip();
    for weight in row.iter_mut() {
        *weight *= norm;
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
    /// Attention weights.
    pub weights: &'a [f32],
}

/// Gradients of q, k and v, shaped like them.
pub fn backward(seen: &Seen<'_>, turn: Turn<'_>, h: Heads, dy: &[f32]) -> [Vec<f32>; 3] {
    let (qw, kw, time) = (h.query_width(), h.key_width(), h.time);
    let (mut dq, mut dk, mut dv) =
        (vec![0.0; seen.q.len()], vec![0.0; seen.k.len()], vec![0.0; seen.v.len()]);
    dq.par_chunks_mut(time * qw)
        .zip(dk.par_chunks_mut(time * kw).zip(dv.par_chunks_mut(time * kw)))
        .enumerate()
        .for_each(|(b, (dq, (dk, dv)))| {
            let part = |x: &'_ [f32], size: usize| b * size..(b * size + size).min(x.len());
            let row = Seen {
                q: &seen.q[part(seen.q, time * qw)],
                k: &seen.k[part(seen.k, time * kw)],
                v: &seen.v[part(seen.v, time * kw)],
                weights: &seen.weights[part(seen.weights, h.heads * time * time)],
            };
            backward_row(&row, turn, h, &dy[part(dy, time * qw)], dq, dk, dv);
        });
    [dq, dk, dv]
}

widest! {
    fn backward_row(seen: &Seen<'_>,
        turn: Turn<'_>,
        h: Heads,
        dy: &[f32],
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32]) {
        let (qw, kw, time, dim) = (h.query_width(), h.key_width(), h.time, h.dim);
        let scale = (dim as f32).sqrt().recip();
        let size = time * dim;
        let mut buffers = vec![0.0f32; 5 * size + time];
        let (qh, rest) = buffers.split_at_mut(size);
        let (kh, rest) = rest.split_at_mut(size);
        let (vt, rest) = rest.split_at_mut(size);
        let (dqh, rest) = rest.split_at_mut(size);
        let (dkh, ds) = rest.split_at_mut(size);
        let group = h.heads / h.kv_heads;
        for kv in 0..h.kv_heads {
            turned(seen.k, kw, kv * dim, &h, turn, 1.0, kh);
            columns(seen.v, kw, kv * dim, &h, vt);
            dkh.fill(0.0);
            for head in kv * group..(kv + 1) * group {
                turned(seen.q, qw, head * dim, &h, turn, scale, qh);
                dqh.fill(0.0);
                for t in 0..time {
                    let (from, to) = (h.first(t), t + 1);
                    let p = &seen.weights[(head * time + t) * time..][from..to];
                    let dy = &dy[t * qw + head * dim..][..dim];
                    for (&p, key) in p.iter().zip(from..) {
                        axpy(p, dy, &mut dv[key * kw + kv * dim..][..dim]);
                    }
                    let ds = &mut ds[from..to];
                    ds.fill(0.0);
                    for (c, &dy) in dy.iter().enumerate() {
                        axpy(dy, &vt[c * time..][from..to], ds);
                    }
                    let along = sum2(p, ds, |p, d| p * d);
                    for ((d, &p), key) in ds.iter_mut().zip(p).zip(from..) {
                        *d = p * (*d - along);
                        axpy(*d, &kh[key * dim..][..dim], &mut dqh[t * dim..][..dim]);
                        axpy(*d, &qh[t * dim..][..dim], &mut dkh[key * dim..][..dim]);
                    }
                }
                turned_back(dqh, qw, head * dim, &h, turn, scale, dq);
            }
            turned_back(dkh, kw, kv * dim, &h, turn, 1.0, dk);
        }
    }
}
