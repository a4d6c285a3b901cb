//! Row-wise kernels on slices: root mean square normalisation, SwiGLU and a factor for every column
//! (DoRA's gain), forward and backward.
//!
//! Rows are handled in chunks of a fixed size, so that sums over rows come out the same for any
//! number of threads. Sums along a row use eight lanes, which compilers turn into vectors.

use rayon::prelude::*;

/// Elements of a task: small enough to share a small batch, large enough to be worth a task.
const TASK: usize = 1 << 14;

fn rows_a_task(columns: usize) -> usize {
    (TASK / columns.max(1)).max(1)
}

/// Σ f(aᵢ, bᵢ) in eight lanes.
#[inline(always)]
pub(super) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let n = a.len().min(b.len());
    let whole = n - n % 8;
    let mut lanes = [0.0f32; 8];
    for at in (0..whole).step_by(8) {
        let (a, b) = (&a[at..at + 8], &b[at..at + 8]);
        for k in 0..8 {
            lanes[k] += f(a[k], b[k]);
        }
    }
    let tail: f32 = (whole..n).map(|k| f(a[k], b[k])).sum();
    lanes.iter().sum::<f32>() + tail
}

/// Σ aᵢ·bᵢ in 32 lanes: four sums of eight that do not wait for each other.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    dot_into(a, b, &mut sum);
    sum
}

widest! {
    fn dot_into(a: &[f32], b: &[f32], sum: &mut f32) {
        let n = a.len().min(b.len());
        let whole = n - n % 32;
        let mut lanes = [0.0f32; 32];
        for at in (0..whole).step_by(32) {
            let (a, b) = (&a[at..at + 32], &b[at..at + 32]);
            for k in 0..32 {
                lanes[k] += a[k] * b[k];
            }
        }
        let tail: f32 = (whole..n).map(|k| a[k] * b[k]).sum();
        *sum = lanes.iter().sum::<f32>() + tail;
    }
}

/// 1/√(mean(x²) + ε)
#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    (sum2(x, x, |a, b| a * b) / x.len() as f32 + epsilon).sqrt().recip()
}

/// y = x·r∘w, r = 1/√(mean(x²) + ε) by row.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let task = rows_a_task(weight.len()) * weight.len();
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| rms_norm_rows(x, weight, epsilon, y));
    y
}

widest! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
        let columns = weight.len();
        for (y, x) in y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
            let r = inverse_rms(x, epsilon);
            for k in 0..columns {
                y[k] = x[k] * r * weight[k];
            }
        }
    }
}

/// ∂x = r·(w∘∂y − x·r²·mean(x∘w∘∂y)), and if it is wanted ∂w = Σ rows ∂y∘x·r.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    dy: &[f32],
    weight_wanted: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let columns = weight.len();
    let mut dx = vec![0.0; x.len()];
    let task = rows_a_task(columns) * columns;
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(task)
        .zip(x.par_chunks(task).zip(dy.par_chunks(task)))
        .map(|(dx, (x, dy))| {
            let mut dw = vec![0.0f32; if weight_wanted { columns } else { 0 }];
            rms_norm_backward_rows(x, weight, epsilon, dy, dx, &mut dw);
            dw
        })
        .collect();
    (dx, weight_wanted.then(|| summed(parts, columns)))
}

widest! {
    fn rms_norm_backward_rows(x: &[f32], weight: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
        let columns = weight.len();
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for (dx, (x, dy)) in dx.chunks_exact_mut(columns).zip(rows) {
            let r = inverse_rms(x, epsilon);
            for k in 0..columns {
                dx[k] = weight[k] * dy[k];
            }
            let along = sum2(x, dx, |x, wdy| x * wdy) * r * r / columns as f32;
            for k in 0..columns {
                dx[k] = r * (dx[k] - x[k] * along);
            }
            for (dw, (x, dy)) in dw.iter_mut().zip(x.iter().zip(dy)) {
                *dw += dy * x * r;
            }
        }
    }
}

/// y = x∘w, one factor a column.
pub fn scale_columns(x: &[f32], factor: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let task = rows_a_task(factor.len()) * factor.len();
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| scale_columns_rows(x, factor, y));
    y
}

widest! {
    fn scale_columns_rows(x: &[f32], factor: &[f32], y: &mut [f32]) {
        let columns = factor.len();
        for (y, x) in y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
            for k in 0..columns {
                y[k] = x[k] * factor[k];
            }
        }
    }
}

/// x∘w, one factor a column, in place.
pub fn scale_columns_in_place(x: &mut [f32], factor: &[f32]) {
    x.par_chunks_mut(rows_a_task(factor.len()) * factor.len())
        .for_each(|x| scale_columns_in_place_rows(x, factor));
}

widest! {
    fn scale_columns_in_place_rows(x: &mut [f32], factor: &[f32]) {
        for x in x.chunks_exact_mut(factor.len()) {
            for (x, factor) in x.iter_mut().zip(factor) {
                *x *= factor;
            }
        }
    }
}

/// ∂x = ∂y∘w, ∂w = Σ rows ∂y∘x
pub fn scale_columns_backward(x: &[f32], factor: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let columns = factor.len();
    let mut dx = vec![0.0; x.len()];
    let task = rows_a_task(columns) * columns;
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(task)
        .zip(x.par_chunks(task).zip(dy.par_chunks(task)))
        .map(|(dx, (x, dy))| {
            let mut dw = vec![0.0f32; columns];
            scale_columns_backward_rows(x, factor, dy, dx, &mut dw);
            dw
        })
        .collect();
    (dx, summed(parts, columns))
}

widest! {
    fn scale_columns_backward_rows(x: &[f32], factor: &[f32], dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
        let columns = factor.len();
        let dw = &mut dw[..columns];
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for (dx, (x, dy)) in dx.chunks_exact_mut(columns).zip(rows) {
            for k in 0..columns {
                dx[k] = dy[k] * factor[k];
                dw[k] += dy[k] * x[k];
            }
        }
    }
}

/// The tasks' sums in their order.
fn summed(parts: Vec<Vec<f32>>, columns: usize) -> Vec<f32> {
    let mut sum = vec![0.0; columns];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sum
}

/// eˣ to within 2 units in the last place, in operations that compilers vectorize (Cephes' expf):
/// x = k·ln 2 + f, a polynomial for eᶠ, and k into the exponent.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let f = x - k * 0.693_359_4 + k * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * f + 1.398_199_9e-3;
    let p = p * f + 8.333_452e-3;
    let p = p * f + 4.166_579_6e-2;
    let p = p * f + 1.666_666_5e-1;
    let p = p * f + 0.5;
    let p = p * f * f + f + 1.0;
    // `shifted` holds k in its low mantissa bits.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// y = silu(gate)∘up
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(TASK)
        .zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK)))
        .for_each(|(y, (gate, up))| swiglu_part(gate, up, y));
    y
}

widest! {
    fn swiglu_part(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// ∂gate = ∂y∘up∘σ∘(1 + gate∘(1 − σ)), ∂up = ∂y∘gate∘σ, σ = 1/(1 + e^−gate)
pub fn swiglu_backward(gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    dgate
        .par_chunks_mut(TASK)
        .zip(dup.par_chunks_mut(TASK))
        .zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(dy.par_chunks(TASK)))
        .for_each(|((dgate, dup), ((gate, up), dy))| swiglu_backward_part(gate, up, dy, dgate, dup));
    (dgate, dup)
}

widest! {
    fn swiglu_backward_part(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let n = gate.len();
        let (up, dy, dgate, dup) = (&up[..n], &dy[..n], &mut dgate[..n], &mut dup[..n]);
        for k in 0..n {
            let sigma = 1.0 / (1.0 + exp(-gate[k]));
            dgate[k] = dy[k] * up[k] * sigma * (1.0 + gate[k] * (1.0 - sigma));
            dup[k] = dy[k] * gate[k] * sigma;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_within_three_units_in_the_last_place() {
        for k in -87_000..88_000 {
            let x = k as f32 / 1000.0;
            let (ours, true_) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours - true_).abs() <= 3.0 * f64::from(f32::EPSILON) * true_, "exp({x}) = {ours}");
        }
        assert_eq!(exp(0.0), 1.0);
    }
}
