//! How far weights moved, in magnitude and in direction, and how the two go together.
//!
//! DoRA (arXiv 2402.09353v1), section 3.2, equations 3 and 4. The paper writes W as d × k and takes
//! the norm of each column; weights here are `[out, in]` as in PEFT, so its columns are our OUTPUT
//! ROWS. With w a row of the base, v the row after fine-tuning and m' the magnitude after it:
//!
//! ΔM = mean over rows |m' − ‖w‖|,  ΔD = mean over rows (1 − cos(v, w)).
//!
//! A row of the update s·BA is made, used and forgotten: no `[out, in]` product exists. All sums are
//! in f64 and in a fixed order, so the figures do not depend on the number of threads. Knows nothing
//! of files.

use rayon::prelude::*;
use serde::Serialize;

/// What fine-tuning made of a matrix.
#[derive(Clone, Copy, Debug)]
pub enum Moved<'a> {
    /// Another matrix of the same shape, `[out, in]`.
    Matrix(&'a [f32]),
    /// The base plus `scale`·B·A.
    Adapter {
        /// `[rank, in]`.
        a: &'a [f32],
        /// `[out, rank]`.
        b: &'a [f32],
        /// α/r, or α/√r with rsLoRA.
        scale: f64,
        /// DoRA's m, `[out]`; without it the norms of the moved rows.
        magnitude: Option<&'a [f32]>,
    },
}

/// ΔM and ΔD of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// ΔM, in the unit of the weights.
    #[serde(rename = "delta_magnitude")]
    pub magnitude: f64,
    /// ΔD, 0 (same direction) to 2 (opposite).
    #[serde(rename = "delta_direction")]
    pub direction: f64,
}

/// ΔM and ΔD from `base` (`[out, in]`, row-major) to `moved`. A row that is zero before or after has
/// no direction and counts as unmoved in it.
pub fn change(base: &[f32], [rows, columns]: [usize; 2], moved: Moved<'_>) -> Change {
    let a: Vec<f64> = match moved {
        Moved::Adapter { a, .. } => a.iter().copied().map(f64::from).collect(),
        Moved::Matrix(_) => Vec::new(),
    };
    let by_row: Vec<Change> = (0..rows)
        .into_par_iter()
        .map_init(
            || vec![0.0; columns],
            |update, row| {
                let w = &base[row * columns..][..columns];
                let magnitude = row_update(row, w, moved, &a, update);
                row_change(w, update, magnitude)
            },
        )
        .collect();
    let mean = |pick: fn(&Change) -> f64| by_row.iter().map(pick).sum::<f64>() / rows.max(1) as f64;
    Change { magnitude: mean(|row| row.magnitude), direction: mean(|row| row.direction) }
}

/// Writes v − w of one row into `update`; gives its trained magnitude, if there is one.
fn row_update(row: usize, w: &[f32], moved: Moved<'_>, a: &[f64], update: &mut [f64]) -> Option<f64> {
    match moved {
        Moved::Matrix(matrix) => {
            let v = &matrix[row * w.len()..][..w.len()];
            for ((d, &v), &w) in update.iter_mut().zip(v).zip(w) {
                *d = f64::from(v) - f64::from(w);
            }
            None
        }
        Moved::Adapter { b, scale, magnitude, .. } => {
            let rank = a.len() / w.len().max(1);
            update.fill(0.0);
            for (&b, a) in b[row * rank..][..rank].iter().zip(a.chunks_exact(w.len())) {
                let factor = scale * f64::from(b);
                update.iter_mut().zip(a).for_each(|(d, &a)| *d += factor * a);
            }
            magnitude.map(|m| f64::from(m[row]))
        }
    }
}

/// With d = v − w: ‖v‖ − ‖w‖ = (2w·d + d·d)/(‖v‖ + ‖w‖), and 1 − cos = sin²/(1 + cos) with
/// sin² = (d·d − (w·d)²/w·w)/v·v. Both keep their digits when d is small.
fn row_change(w: &[f32], update: &[f64], magnitude: Option<f64>) -> Change {
    let (mut ww, mut wd, mut dd) = (0.0, 0.0, 0.0);
    for (&w, &d) in w.iter().zip(update) {
        let w = f64::from(w);
        ww += w * w;
        wd += w * d;
        dd += d * d;
    }
    let vv = (ww + 2.0 * wd + dd).max(0.0);
    let (before, after) = (ww.sqrt(), vv.sqrt());
    let moved = match magnitude {
        Some(m) => m - before,
        None if before + after > 0.0 => (2.0 * wd + dd) / (before + after),
        None => 0.0,
    };
    let direction = if before == 0.0 || after == 0.0 {
        0.0
    } else {
        let cos = (ww + wd) / (before * after);
        let sin2 = ((dd - wd * wd / ww) / vv).max(0.0);
        if cos > 0.0 { sin2 / (1.0 + cos) } else { 1.0 - cos }
    };
    Change { magnitude: moved.abs(), direction }
}

/// How ΔM (y) goes with ΔD (x).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Correlation {
    /// How many points.
    pub n: usize,
    /// Pearson's r; none if either does not vary.
    pub r: Option<f64>,
    /// Of the least-squares line.
    pub slope: Option<f64>,
    /// Of the least-squares line.
    pub intercept: Option<f64>,
}

/// Pearson's correlation and the least-squares line through `(ΔD, ΔM)` points.
pub fn correlation(points: &[(f64, f64)]) -> Correlation {
    let n = points.len();
    let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / n as f64;
    let (mx, my) = (mean(|p| p.0), mean(|p| p.1));
    let (mut sxx, mut sxy, mut syy) = (0.0, 0.0, 0.0);
    for (x, y) in points {
        sxx += (x - mx) * (x - mx);
        sxy += (x - mx) * (y - my);
        syy += (y - my) * (y - my);
    }
    let varies = n > 1 && sxx > 0.0;
    let slope = varies.then(|| sxy / sxx);
    let r = (varies && syy > 0.0).then(|| (sxy / (sxx.sqrt() * syy.sqrt())).clamp(-1.0, 1.0));
    Correlation { n, r, slope, intercept: slope.map(|slope| my - slope * mx) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1e-3), "{found} is not {expected}");
    }

    #[test]
    fn a_matrix_that_did_not_move_has_no_change() {
        let w = [1.0, 2.0, 3.0, 4.0];
        let still = change(&w, [2, 2], Moved::Matrix(&w));
        assert_eq!(still, Change { magnitude: 0.0, direction: 0.0 });
    }

    #[test]
    fn by_hand_one_row_turned_by_ninety_degrees_and_one_doubled() {
        let found = change(&[1.0, 0.0, 0.0, 3.0], [2, 2], Moved::Matrix(&[0.0, 1.0, 0.0, 6.0]));
        close(found.magnitude, (0.0 + 3.0) / 2.0);
        close(found.direction, (1.0 + 0.0) / 2.0);
        let back = change(&[1.0, 0.0], [1, 2], Moved::Matrix(&[-2.0, 0.0]));
        assert_eq!(back, Change { magnitude: 1.0, direction: 2.0 });
    }

    #[test]
    fn an_adapter_is_the_matrix_it_stands_for() {
        let base = [0.5, -1.0, 2.0, 1.0, 0.25, -0.75];
        let (a, b, scale) = ([1.0, -0.5, 0.25], [0.5, -2.0], 2.0);
        let product: Vec<f32> =
            (0..6).map(|i| base[i] + (scale * f64::from(b[i / 3]) * f64::from(a[i % 3])) as f32).collect();
        let adapter = Moved::Adapter { a: &a, b: &b, scale, magnitude: None };
        let (found, expected) =
            (change(&base, [2, 3], adapter), change(&base, [2, 3], Moved::Matrix(&product)));
        close(found.magnitude, expected.magnitude);
        close(found.direction, expected.direction);
        let with_magnitude = Moved::Adapter { a: &a, b: &b, scale, magnitude: Some(&[0.0, 0.0]) };
        let norms: f64 = [5.25_f64, 1.625].iter().map(|square| square.sqrt()).sum();
        close(change(&base, [2, 3], with_magnitude).magnitude, norms / 2.0);
    }

    proptest::proptest! {
        /// The equations as they are written, over matrices that exist.
        #[test]
        fn the_row_formulas_are_the_paper_s_equations(
            seed in 0_u64..1000, rows in 1_usize..6, columns in 1_usize..9, rank in 1_usize..4,
        ) {
            let mut random = Random::new(seed);
            let mut draw = |count: usize| (0..count).map(|_| random.normal() as f32).collect::<Vec<f32>>();
            let (w, a, b) = (draw(rows * columns), draw(rank * columns), draw(rows * rank));
            let scale = 0.5;
            let v: Vec<f64> = (0..rows * columns)
                .map(|i| {
                    let ba = |k: usize| f64::from(b[i / columns * rank + k]) * f64::from(a[k * columns + i % columns]);
                    f64::from(w[i]) + scale * (0..rank).map(ba).sum::<f64>()
                })
                .collect();
            // where a row nearly vanishes, rounding turns it
            let (mut dm, mut dd, mut unsure) = (0.0, 0.0, 1.0_f64);
            for (w, v) in w.chunks(columns).zip(v.chunks(columns)) {
                let dot: f64 = w.iter().zip(v).map(|(&w, v)| f64::from(w) * v).sum();
                let before = w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
                let after = v.iter().map(|v| v * v).sum::<f64>().sqrt();
                dm += (after - before).abs() / rows as f64;
                dd += (1.0 - dot / (before * after)) / rows as f64;
                unsure = unsure.max((before / after).powi(2));
            }
            let adapter = Moved::Adapter { a: &a, b: &b, scale, magnitude: None };
            let found = change(&w, [rows, columns], adapter);
            proptest::prop_assert!((found.magnitude - dm).abs() < 1e-12 * (1.0 + dm), "{} {dm}", found.magnitude);
            proptest::prop_assert!((found.direction - dd).abs() < 1e-12 * unsure, "{} {dd}", found.direction);
        }
    }

    #[test]
    fn tiny_turns_keep_their_digits() {
        // A turn by φ = 1e-9: 1 − cos φ = φ²/2, far below what 1 − cos computes in f64.
        let adapter = Moved::Adapter { a: &[0.0, 1.0], b: &[1e-9], scale: 1.0, magnitude: None };
        let found = change(&[1.0, 0.0], [1, 2], adapter).direction;
        let phi = f64::from(1e-9_f32);
        assert!((found / (phi * phi / 2.0) - 1.0).abs() < 1e-9, "{found}");
    }

    #[test]
    fn zero_rows_have_no_direction() {
        let found = change(&[0.0, 0.0, 1.0, 0.0], [2, 2], Moved::Matrix(&[1.0, 0.0, 0.0, 0.0]));
        assert_eq!(found, Change { magnitude: 1.0, direction: 0.0 });
    }

    #[test]
    fn correlation_by_hand() {
        let line = correlation(&[(1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]);
        assert_eq!((line.n, line.slope, line.intercept), (3, Some(2.0), Some(1.0)));
        close(line.r.unwrap(), 1.0);
        let found = correlation(&[(1.0, 2.0), (2.0, 1.0), (3.0, 3.0)]);
        close(found.r.unwrap(), 0.5);
        assert_eq!(correlation(&[(1.0, 2.0)]).r, None);
        assert_eq!(correlation(&[(1.0, 2.0), (1.0, 3.0)]).slope, None);
        assert_eq!(correlation(&[(1.0, 2.0), (2.0, 2.0)]).r, None);
        assert_eq!(correlation(&[]).n, 0);
    }
}
