//! What stands along an axis: a power of ten for all its numbers, and as many digits as its ticks need.

use std::ops::Range;

use plotters::coord::ranged1d::Ranged;
use plotters::coord::types::RangedCoordf64;

/// Digits behind the point: at least, and at most.
const DIGITS: Range<usize> = 2..12;

/// How the numbers of an axis are written.
pub struct Axis {
    /// About how many ticks it has.
    pub ticks: usize,
    exponent: i32,
    digits: usize,
}

impl Axis {
    /// An axis of a chart over a range, with at most so many ticks.
    pub fn new((low, high): (f64, f64), ticks: usize) -> Self {
        let exponent = exponent(high);
        let unit = 10f64.powi(exponent);
        let places: Vec<f64> =
            RangedCoordf64::from(low..high).key_points(ticks).iter().map(|tick| tick / unit).collect();
        let step = places.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        // With fewer digits two ticks would read the same, or their distances would seem uneven.
        let is_told = |digits: usize| {
            let shift = 10f64.powi(digits as i32);
            places.iter().all(|place| ((place * shift).round() / shift - place).abs() < 0.01 * step)
        };
        Self { ticks, exponent, digits: DIGITS.clone().find(|&digits| is_told(digits)).unwrap_or(DIGITS.end) }
    }

    /// The axis' name with its unit.
    pub fn name(&self, name: &str) -> String {
        if self.exponent == 0 { name.to_owned() } else { format!("{name}, in units of 1e{}", self.exponent) }
    }

    /// A tick's number.
    pub fn label(&self, value: f64) -> String {
        format!("{:.*}", self.digits, value / 10f64.powi(self.exponent)).replace('-', "\u{2212}")
    }
}

/// The power of ten to take out of an axis' numbers.
fn exponent(high: f64) -> i32 {
    let exponent = high.abs().max(f64::MIN_POSITIVE).log10().floor() as i32;
    if (-1..3).contains(&exponent) { 0 } else { exponent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        let axis = Axis::new((low, high), 7);
        RangedCoordf64::from(low..high).key_points(7).into_iter().map(|tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_have_the_digits_that_tell_them_apart() {
        assert_eq!(labels(0.151, 0.169), ["0.155", "0.160", "0.165"]);
        assert_eq!(labels(0.1, 0.9), ["0.20", "0.40", "0.60", "0.80"]);
        assert_eq!(
            labels(12.0, 12.000_32),
            ["12.00000", "12.00005", "12.00010", "12.00015", "12.00020", "12.00025", "12.00030"]
        );
        assert_eq!(Axis::new((1e-5, 3e-5), 6).name("ΔD"), "ΔD, in units of 1e-5");
    }

    #[test]
    fn no_two_neighbours_read_the_same() {
        for low in [-3.0, -0.02, 0.0, 0.123, 7.5, 4e3] {
            for span in [1e-5, 3e-4, 0.007, 0.04, 0.049, 0.5, 30.0, 2e4] {
                let labels = labels(low, low + span);
                assert!(labels.len() > 1 && labels.windows(2).all(|pair| pair[0] != pair[1]), "{labels:?}");
            }
        }
    }
}
