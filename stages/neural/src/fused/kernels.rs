//! The kernels, in CubeCL. A cube takes a row where something is summed along it, else a unit an element.
//! Inputs are contiguous.

use cubecl::prelude::*;

/// Partial sums that every unit adds up at the end.
const LAST: usize = 8;

/// The row of a cube. There may be more cubes than rows, since there are two dimensions of them: those left
/// do the last row once more, so that no unit waits alone at a barrier.
#[cube]
fn row_of_cube(rows: u32) -> usize {
    min(CUBE_POS, rows as usize - 1)
}

/// The sum over the units of a cube, given to each; in an order that is the same every time.
#[cube]
fn cube_sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut values = Shared::<[f32]>::new_slice(units);
    let mut sums = Shared::<[f32]>::new_slice(LAST);
    let unit = UNIT_POS as usize;
    values[unit] = value;
    sync_cube();
    if unit < LAST {
        let mut sum = 0.0f32;
        for k in 0..units / LAST {
            sum += values[k * LAST + unit];
        }
        sums[unit] = sum;
    }
    sync_cube();
    let mut sum = 0.0f32;
    for k in 0..LAST {
        sum += sums[k];
    }
    sum
}

/// The largest of the units' values, given to each.
#[cube]
fn cube_max(value: f32, #[comptime] units: usize) -> f32 {
    let mut values = Shared::<[f32]>::new_slice(units);
    let mut largest = Shared::<[f32]>::new_slice(LAST);
    let unit = UNIT_POS as usize;
    values[unit] = value;
    sync_cube();
    if unit < LAST {
        let mut max = values[unit];
        for k in 1..units / LAST {
            max = f32::max(max, values[k * LAST + unit]);
        }
        largest[unit] = max;
    }
    sync_cube();
    let mut max = largest[0];
    for k in 1..LAST {
        max = f32::max(max, largest[k]);
    }
    max
}

#[cube(launch_unchecked)]
pub fn rms_norm<F: Float>(
    x: &[F],
    weight: &[f32],
    y: &mut [F],
    rows: u32,
    epsilon: f32,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let columns = weight.len();
    let from = row_of_cube(rows) * columns;
    let mut squares = 0.0f32;
    let mut k = UNIT_POS as usize;
    while k < columns {
        let x = f32::cast_from(x[from + k]);
        squares += x * x;
        k += units;
    }
    let r = 1.0f32 / (cube_sum(squares, units) / columns as f32 + epsilon).sqrt();
    let mut k = UNIT_POS as usize;
    while k < columns {
        y[from + k] = F::cast_from(f32::cast_from(x[from + k]) * r * weight[k]);
        k += units;
    }
}

#[cube(launch_unchecked)]
pub fn rms_norm_backward<F: Float>(
    x: &[F],
    weight: &[f32],
    dy: &[F],
    dx: &mut [F],
    rows: u32,
    epsilon: f32,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let columns = weight.len();
    let from = row_of_cube(rows) * columns;
    let mut squares = 0.0f32;
    let mut along = 0.0f32;
    let mut k = UNIT_POS as usize;
    while k < columns {
        let x = f32::cast_from(x[from + k]);
        squares += x * x;
        along += x * weight[k] * f32::cast_from(dy[from + k]);
        k += units;
    }
    let r = 1.0f32 / (cube_sum(squares, units) / columns as f32 + epsilon).sqrt();
    let along = cube_sum(along, units) * r * r / columns as f32;
    let mut k = UNIT_POS as usize;
    while k < columns {
        let toward = weight[k] * f32::cast_from(dy[from + k]);
        dx[from + k] = F::cast_from(r * (toward - f32::cast_from(x[from + k]) * along));
        k += units;
    }
}

#[cube(launch_unchecked)]
pub fn swiglu<F: Float>(gate: &[F], up: &[F], y: &mut [F], #[define(F)] _float: ElemType) {
    let at = ABSOLUTE_POS;
    if at < y.len() {
        let gate = f32::cast_from(gate[at]);
        y[at] = F::cast_from(gate / (1.0f32 + (-gate).exp()) * f32::cast_from(up[at]));
    }
}

#[cube(launch_unchecked)]
pub fn swiglu_backward<F: Float>(
    gate: &[F],
    up: &[F],
    dy: &[F],
    dgate: &mut [F],
    dup: &mut [F],
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < dy.len() {
        let gate = f32::cast_from(gate[at]);
        let dy = f32::cast_from(dy[at]);
        let sigma = 1.0f32 / (1.0f32 + (-gate).exp());
        let slope = sigma * (1.0f32 + gate * (1.0f32 - sigma));
        dgate[at] = F::cast_from(dy * f32::cast_from(up[at]) * slope);
        dup[at] = F::cast_from(dy * gate * sigma);
    }
}

#[cube(launch_unchecked)]
pub fn scale_columns<F: Float>(x: &[F], factor: &[f32], y: &mut [F], #[define(F)] _float: ElemType) {
    let at = ABSOLUTE_POS;
    if at < y.len() {
        y[at] = F::cast_from(f32::cast_from(x[at]) * factor[at % factor.len()]);
    }
}

/// Σ a∘b of each column over a piece of the rows: `[pieces, columns]`.
#[cube(launch_unchecked)]
pub fn column_dots<F: Float>(
    a: &[F],
    b: &[F],
    sums: &mut [f32],
    columns: u32,
    rows: u32,
    #[comptime] piece: usize,
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < sums.len() {
        let columns = columns as usize;
        let column = at % columns;
        let from = at / columns * piece;
        let to = min(from + piece, rows as usize);
        let mut sum = 0.0f32;
        for row in from..to {
            let at = row * columns + column;
            sum += f32::cast_from(a[at]) * f32::cast_from(b[at]);
        }
        sums[at] = sum;
    }
}

/// `outer` and `inner` are time and heads as they follow each other in x; `own` says whether every example
/// has tables of its own.
#[cube(launch_unchecked)]
pub fn turn<F: Float>(
    x: &[F],
    cos: &[f32],
    sin: &[f32],
    y: &mut [F],
    outer: u32,
    inner: u32,
    scale: f32,
    #[comptime] dim: usize,
    #[comptime] own: bool,
    #[comptime] back: bool,
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < y.len() {
        let (outer, inner) = (outer as usize, inner as usize);
        let k = at % dim;
        let other = (k + dim / 2) % dim;
        // in y inner comes first
        let o = at / dim % outer;
        let i = at / dim / outer % inner;
        let example = at / dim / outer / inner;
        let from = ((example * outer + o) * inner + i) * dim;
        let mut row = if back { i } else { o };
        if own {
            row += example * if back { inner } else { outer };
        }
        let table = row * dim;
        let sin = if back { sin[table + other] } else { sin[table + k] };
        let turned = f32::cast_from(x[from + k]) * cos[table + k] + f32::cast_from(x[from + other]) * sin;
        y[at] = F::cast_from(turned * scale);
    }
}

/// Rows of `keys`; a bias row for each of `time` tokens, of every example where `own`.
#[cube(launch_unchecked)]
pub fn masked_softmax<F: Float>(
    scores: &[F],
    bias: &[f32],
    p: &mut [F],
    rows: u32,
    keys: u32,
    time: u32,
    heads: u32,
    #[comptime] own: bool,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let (keys, time) = (keys as usize, time as usize);
    let row = row_of_cube(rows);
    let from = row * keys;
    let mut token = row % time;
    if own {
        token += row / (heads as usize * time) * time;
    }
    let bias_from = token * keys;
    let mut largest = f32::cast_from(scores[from]) + bias[bias_from];
    let mut k = UNIT_POS as usize;
    while k < keys {
        largest = f32::max(largest, f32::cast_from(scores[from + k]) + bias[bias_from + k]);
        k += units;
    }
    let max = cube_max(largest, units);
    let mut sum = 0.0f32;
    let mut k = UNIT_POS as usize;
    while k < keys {
        sum += (f32::cast_from(scores[from + k]) + bias[bias_from + k] - max).exp();
        k += units;
    }
    let norm = 1.0f32 / cube_sum(sum, units);
    let mut k = UNIT_POS as usize;
    while k < keys {
        let weight = (f32::cast_from(scores[from + k]) + bias[bias_from + k] - max).exp();
        p[from + k] = F::cast_from(weight * norm);
        k += units;
    }
}

#[cube(launch_unchecked)]
pub fn softmax_backward<F: Float>(
    p: &[F],
    dp: &[F],
    ds: &mut [F],
    rows: u32,
    keys: u32,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let keys = keys as usize;
    let from = row_of_cube(rows) * keys;
    let mut along = 0.0f32;
    let mut k = UNIT_POS as usize;
    while k < keys {
        along += f32::cast_from(p[from + k]) * f32::cast_from(dp[from + k]);
        k += units;
    }
    let along = cube_sum(along, units);
    let mut k = UNIT_POS as usize;
    while k < keys {
        let found = f32::cast_from(p[from + k]) * (f32::cast_from(dp[from + k]) - along);
        ds[from + k] = F::cast_from(found);
        k += units;
    }
}

#[cube(launch_unchecked)]
pub fn cross_entropy<L: Float, G: Float>(
    logits: &[L],
    targets: &[i32],
    gradient: &mut [G],
    nll: &mut [f32],
    vocab: u32,
    factor: f32,
    #[comptime] units: usize,
    #[define(L)] _logits: ElemType,
    #[define(G)] _gradient: ElemType,
) {
    let vocab = vocab as usize;
    let row = row_of_cube(targets.len() as u32);
    let from = row * vocab;
    let mut largest = f32::cast_from(logits[from]);
    let mut k = UNIT_POS as usize;
    while k < vocab {
        largest = f32::max(largest, f32::cast_from(logits[from + k]));
        k += units;
    }
    let max = cube_max(largest, units);
    let mut sum = 0.0f32;
    let mut k = UNIT_POS as usize;
    while k < vocab {
        sum += (f32::cast_from(logits[from + k]) - max).exp();
        k += units;
    }
    let norm = cube_sum(sum, units);
    let target = targets[row] as usize;
    if UNIT_POS == 0 {
        nll[row] = norm.ln() + max - f32::cast_from(logits[from + target]);
    }
    let share = factor / norm;
    let mut k = UNIT_POS as usize;
    while k < vocab {
        let mut found = (f32::cast_from(logits[from + k]) - max).exp() * share;
        if k == target {
            found -= factor;
        }
        gradient[from + k] = G::cast_from(found);
        k += units;
    }
}
