//! The kernels, in CubeCL. A cube takes a row where something is summed along it, else a unit takes a vector
//! of N elements. Inputs are contiguous; sizes of rows (`width`) and positions count vectors.

use cubecl::prelude::*;

/// Partial sums that every unit adds up at the end.
const LAST: usize = 8;

/// The row of a cube. There may be more cubes than rows, since there are two dimensions of them: those left
/// do the last row once more, so that no unit waits alone at a barrier.
#[cube]
fn row_of_cube(rows: u32) -> usize {
    min(CUBE_POS, rows as usize - 1)
}

#[cube]
fn floats<F: Float, N: Size>(x: Vector<F, N>) -> Vector<f32, N> {
    Vector::cast_from(x)
}

#[cube]
fn all<N: Size>(value: f32) -> Vector<f32, N> {
    Vector::new(value)
}

#[cube]
fn sum<N: Size>(values: Vector<f32, N>) -> f32 {
    let mut sum = values.extract(0usize);
    #[unroll]
    for k in 1..N::value() {
        sum += values.extract(k);
    }
    sum
}

#[cube]
fn max_of<N: Size>(values: Vector<f32, N>) -> f32 {
    let mut largest = values.extract(0usize);
    #[unroll]
    for k in 1..N::value() {
        largest = f32::max(largest, values.extract(k));
    }
    largest
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

/// 1/√(mean(x²) + ε)
#[cube]
fn inverse_rms<N: Size>(squares: f32, width: usize, epsilon: f32, #[comptime] units: usize) -> f32 {
    1.0f32 / (cube_sum(squares, units) / (width * N::value()) as f32 + epsilon).sqrt()
}

#[cube(launch_unchecked)]
pub fn rms_norm<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let width = width as usize;
    let from = row_of_cube(rows) * width;
    let mut squares = all::<N>(0.0f32);
    let mut k = UNIT_POS as usize;
    while k < width {
        let x = floats::<F, N>(x[from + k]);
        squares += x * x;
        k += units;
    }
    let r = inverse_rms::<N>(sum::<N>(squares), width, epsilon, units);
    let mut k = UNIT_POS as usize;
    while k < width {
        y[from + k] = Vector::cast_from(floats::<F, N>(x[from + k]) * all::<N>(r) * weight[k]);
        k += units;
    }
}

#[cube(launch_unchecked)]
pub fn rms_norm_backward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<f32, N>],
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let width = width as usize;
    let from = row_of_cube(rows) * width;
    let mut squares = all::<N>(0.0f32);
    let mut along = all::<N>(0.0f32);
    let mut k = UNIT_POS as usize;
    while k < width {
        let x = floats::<F, N>(x[from + k]);
        squares += x * x;
        along += x * weight[k] * floats::<F, N>(dy[from + k]);
        k += units;
    }
    let r = inverse_rms::<N>(sum::<N>(squares), width, epsilon, units);
    let along = cube_sum(sum::<N>(along), units) * r * r / (width * N::value()) as f32;
    let mut k = UNIT_POS as usize;
    while k < width {
        let toward = weight[k] * floats::<F, N>(dy[from + k]);
        let off = floats::<F, N>(x[from + k]) * all::<N>(along);
        dx[from + k] = Vector::cast_from(all::<N>(r) * (toward - off));
        k += units;
    }
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    all::<N>(1.0f32) / (all::<N>(1.0f32) + (-x).exp())
}

#[cube(launch_unchecked)]
pub fn swiglu<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    count: u32,
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let gate = floats::<F, N>(gate[at]);
        y[at] = Vector::cast_from(gate * sigmoid::<N>(gate) * floats::<F, N>(up[at]));
    }
}

#[cube(launch_unchecked)]
pub fn swiglu_backward<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    dy: &[Vector<F, N>],
    dgate: &mut [Vector<F, N>],
    dup: &mut [Vector<F, N>],
    count: u32,
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let gate = floats::<F, N>(gate[at]);
        let dy = floats::<F, N>(dy[at]);
        let sigma = sigmoid::<N>(gate);
        let one = all::<N>(1.0f32);
        let slope = sigma * (one + gate * (one - sigma));
        dgate[at] = Vector::cast_from(dy * floats::<F, N>(up[at]) * slope);
        dup[at] = Vector::cast_from(dy * gate * sigma);
    }
}

#[cube(launch_unchecked)]
pub fn scale_columns<F: Float, N: Size>(
    x: &[Vector<F, N>],
    factor: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    count: u32,
    width: u32,
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        y[at] = Vector::cast_from(floats::<F, N>(x[at]) * factor[at % width as usize]);
    }
}

/// Σ a∘b of each column over a piece of the rows: `[pieces, columns]`.
#[cube(launch_unchecked)]
pub fn column_dots<F: Float, N: Size>(
    a: &[Vector<F, N>],
    b: &[Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    count: u32,
    width: u32,
    rows: u32,
    #[comptime] piece: usize,
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let width = width as usize;
        let column = at % width;
        let from = at / width * piece;
        let to = min(from + piece, rows as usize);
        let mut sum = all::<N>(0.0f32);
        for row in from..to {
            let at = row * width + column;
            sum += floats::<F, N>(a[at]) * floats::<F, N>(b[at]);
        }
        sums[at] = sum;
    }
}

/// `outer` and `inner` are time and heads as they follow each other in x; `own` says whether every example
/// has tables of its own.
#[cube(launch_unchecked)]
pub fn turn<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    count: u32,
    outer: u32,
    inner: u32,
    scale: f32,
    #[comptime] width: usize,
    #[comptime] own: bool,
    #[comptime] back: bool,
    #[define(F)] _float: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let (outer, inner) = (outer as usize, inner as usize);
        let k = at % width;
        let other = (k + width / 2) % width;
        // in y inner comes first
        let o = at / width % outer;
        let i = at / width / outer % inner;
        let example = at / width / outer / inner;
        let from = ((example * outer + o) * inner + i) * width;
        let mut row = if back { i } else { o };
        if own {
            row += example * if back { inner } else { outer };
        }
        let table = row * width;
        let sin = if back { sin[table + other] } else { sin[table + k] };
        let turned = floats::<F, N>(x[from + k]) * cos[table + k] + floats::<F, N>(x[from + other]) * sin;
        y[at] = Vector::cast_from(turned * all::<N>(scale));
    }
}

/// Rows of `width`; a bias row for each of `time` tokens, of every example where `own`.
#[cube(launch_unchecked)]
pub fn masked_softmax<F: Float, N: Size>(
    scores: &[Vector<F, N>],
    bias: &[Vector<f32, N>],
    p: &mut [Vector<F, N>],
    rows: u32,
    width: u32,
    time: u32,
    heads: u32,
    #[comptime] own: bool,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let (width, time) = (width as usize, time as usize);
    let row = row_of_cube(rows);
    let from = row * width;
    let mut token = row % time;
    if own {
        token += row / (heads as usize * time) * time;
    }
    let bias_from = token * width;
    let mut largest = floats::<F, N>(scores[from]) + bias[bias_from];
    let mut k = UNIT_POS as usize;
    while k < width {
        largest = max(largest, floats::<F, N>(scores[from + k]) + bias[bias_from + k]);
        k += units;
    }
    let max = all::<N>(cube_max(max_of::<N>(largest), units));
    let mut norm = all::<N>(0.0f32);
    let mut k = UNIT_POS as usize;
    while k < width {
        norm += (floats::<F, N>(scores[from + k]) + bias[bias_from + k] - max).exp();
        k += units;
    }
    let share = all::<N>(1.0f32 / cube_sum(sum::<N>(norm), units));
    let mut k = UNIT_POS as usize;
    while k < width {
        let weight = (floats::<F, N>(scores[from + k]) + bias[bias_from + k] - max).exp();
        p[from + k] = Vector::cast_from(weight * share);
        k += units;
    }
}

#[cube(launch_unchecked)]
pub fn softmax_backward<F: Float, N: Size>(
    p: &[Vector<F, N>],
    dp: &[Vector<F, N>],
    ds: &mut [Vector<F, N>],
    rows: u32,
    width: u32,
    #[comptime] units: usize,
    #[define(F)] _float: ElemType,
) {
    let width = width as usize;
    let from = row_of_cube(rows) * width;
    let mut along = all::<N>(0.0f32);
    let mut k = UNIT_POS as usize;
    while k < width {
        along += floats::<F, N>(p[from + k]) * floats::<F, N>(dp[from + k]);
        k += units;
    }
    let along = all::<N>(cube_sum(sum::<N>(along), units));
    let mut k = UNIT_POS as usize;
    while k < width {
        let found = floats::<F, N>(p[from + k]) * (floats::<F, N>(dp[from + k]) - along);
        ds[from + k] = Vector::cast_from(found);
        k += units;
    }
}

#[cube(launch_unchecked)]
pub fn cross_entropy<L: Float, G: Float, N: Size>(
    logits: &[Vector<L, N>],
    targets: &[i32],
    gradient: &mut [Vector<G, N>],
    nll: &mut [f32],
    rows: u32,
    width: u32,
    factor: f32,
    #[comptime] units: usize,
    #[define(L)] _given: ElemType,
    #[define(G)] _wanted: ElemType,
) {
    let width = width as usize;
    let row = row_of_cube(rows);
    let from = row * width;
    let mut largest = floats::<L, N>(logits[from]);
    let mut k = UNIT_POS as usize;
    while k < width {
        largest = max(largest, floats::<L, N>(logits[from + k]));
        k += units;
    }
    let max = cube_max(max_of::<N>(largest), units);
    let mut norm = all::<N>(0.0f32);
    let mut k = UNIT_POS as usize;
    while k < width {
        norm += (floats::<L, N>(logits[from + k]) - all::<N>(max)).exp();
        k += units;
    }
    let norm = cube_sum(sum::<N>(norm), units);
    let target = targets[row] as usize;
    let (at, within) = (target / N::value(), target % N::value());
    let share = factor / norm;
    let mut k = UNIT_POS as usize;
    while k < width {
        let logits = floats::<L, N>(logits[from + k]);
        let mut found = (logits - all::<N>(max)).exp() * all::<N>(share);
        if k == at {
            #[unroll]
            for j in 0..N::value() {
                if j == within {
                    nll[row] = norm.ln() + max - logits.extract(j);
                    found.insert(j, found.extract(j) - factor);
                }
            }
        }
        gradient[from + k] = Vector::cast_from(found);
        k += units;
    }
}
