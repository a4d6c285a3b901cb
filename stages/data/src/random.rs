//! Seeded numbers that are the same on every machine.
//!
//! PCG64 (O'Neill 2014, XSL-RR 128/64) seeded by `seed_from_u64`; whole numbers by Lemire's
//! multiply-and-reject; normal numbers by Box–Muller over `libm`, because the logarithm and the
//! cosine of a system's C library may differ in their last bit. Knows nothing of stages.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// A stream of numbers from a seed.
pub struct Random {
    generator: Pcg64,
    spare: Option<f64>,
}

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { generator: Pcg64::seed_from_u64(seed), spare: None }
    }

    /// A whole number, 0 ≤ x < `bound`, each as likely as the other. `bound` must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        loop {
            let product = u128::from(self.generator.next_u64()) * u128::from(bound);
            // Reject the few low halves that would favour some values (Lemire 2019).
            if product as u64 >= bound.wrapping_neg() % bound {
                return (product >> 64) as usize;
            }
        }
    }

    /// Puts `items` in random order (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// A number from N(0, 1).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = libm::sqrt(-2.0 * libm::log(self.open_unit()));
        let angle = std::f64::consts::TAU * self.open_unit();
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }

    /// 0 < x ≤ 1 in steps of 2⁻⁵³.
    fn open_unit(&mut self) -> f64 {
        ((self.generator.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_numbers() {
        let mut random = Random::new(7);
        let whole: Vec<usize> = (0..5).map(|_| random.below(1000)).collect();
        let mut again = Random::new(7);
        assert_eq!(whole, (0..5).map(|_| again.below(1000)).collect::<Vec<_>>());
        assert_ne!(whole, (0..5).map(|_| Random::new(8).below(1000)).collect::<Vec<_>>());
    }

    #[test]
    fn normal_numbers_have_the_moments_of_a_normal_distribution() {
        let mut random = Random::new(1);
        let sample: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let moment = |power| sample.iter().map(|x| x.powi(power)).sum::<f64>() / sample.len() as f64;
        assert!(moment(1).abs() < 0.01, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.15, "fourth moment {}", moment(4));
    }

    #[test]
    fn every_value_below_the_bound_comes_about_as_often() {
        let mut random = Random::new(3);
        let mut counts = [0; 6];
        (0..60_000).for_each(|_| counts[random.below(6)] += 1);
        assert!(counts.iter().all(|&count: &i32| (count - 10_000).abs() < 500), "{counts:?}");
    }
}
