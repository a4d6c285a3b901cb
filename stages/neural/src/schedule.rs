//! The learning rate of every step: warm-up, then cosine, linear or constant.
//!
//! Knows nothing of optimizers or tensors. The formulas are transformers' `optimization.py`
//! (`get_cosine_schedule_with_warmup` with half a cycle, `get_linear_schedule_with_warmup`,
//! `get_constant_schedule_with_warmup`); as there, the first of `w` warm-up steps has rate 0 and
//! step `w + 1` the peak.

use std::f64::consts::PI;

/// What the rate does after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Half a cosine from the peak to 0.
    Cosine,
    /// A line from the peak to 0.
    Linear,
    /// The peak.
    Constant,
}

impl Shape {
    /// The words for [`Shape::by_name`].
    pub const NAMES: &'static [&'static str] = &["cosine", "linear", "constant"];

    /// The shape called `name`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "cosine" => Some(Self::Cosine),
            "linear" => Some(Self::Linear),
            "constant" => Some(Self::Constant),
            _ => None,
        }
    }
}

/// The learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What it does after the warm-up.
    pub shape: Shape,
    /// The largest rate.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Schedule {
    /// Warm-up steps of a run of `total` steps: `steps` if it is not 0, else the share `ratio`,
    /// rounded up (transformers' `TrainingArguments.get_warmup_steps`).
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of `total`, rounded up, lies in 0..=total"
    )]
    pub fn warmup_steps(total: u64, steps: u64, ratio: f64) -> u64 {
        if steps > 0 { steps } else { (total as f64 * ratio).ceil() as u64 }
    }

    /// The rate of step `step`, counted from 1.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.warmup {
            return self.peak * (done as f64 / self.warmup as f64);
        }
        let decay = self.total.saturating_sub(self.warmup).max(1) as f64;
        self.peak
            * match self.shape {
                Shape::Cosine => {
                    let progress = (done - self.warmup) as f64 / decay;
                    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
                }
                Shape::Linear => self.total.saturating_sub(done) as f64 / decay,
                Shape::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape, warmup: u64, total: u64) -> Vec<f64> {
        let schedule = Schedule { shape, peak: 1.0, warmup, total };
        (1..=total).map(|step| schedule.rate(step)).collect()
    }

    fn close(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        for (a, b) in found.iter().zip(wanted) {
            assert!((a - b).abs() < 1e-12, "{found:?} is not {wanted:?}");
        }
    }

    #[test]
    fn cosine_follows_the_hand_computed_table() {
        // two warm-up steps, then cos over 4 steps: 1, (1+cos 45°)/2, 1/2, (1-cos 45°)/2
        let quarter = std::f64::consts::FRAC_1_SQRT_2;
        close(
            &rates(Shape::Cosine, 2, 6),
            &[0.0, 0.5, 1.0, f64::midpoint(1.0, quarter), 0.5, (1.0 - quarter) / 2.0],
        );
    }

    #[test]
    fn linear_and_constant_follow_the_hand_computed_table() {
        close(&rates(Shape::Linear, 2, 6), &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        close(&rates(Shape::Constant, 2, 4), &[0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak() {
        close(&rates(Shape::Linear, 0, 4), &[1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_only_rises() {
        close(&rates(Shape::Cosine, 4, 4), &[0.0, 0.25, 0.5, 0.75]);
        let schedule = Schedule { shape: Shape::Cosine, peak: 2.0, warmup: 4, total: 4 };
        assert!((schedule.rate(5) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_ratio_is_rounded_up_and_steps_win_over_it() {
        assert_eq!(Schedule::warmup_steps(780, 0, 0.1), 78);
        assert_eq!(Schedule::warmup_steps(775, 0, 0.1), 78);
        assert_eq!(Schedule::warmup_steps(20, 3, 0.5), 3);
        assert_eq!(Schedule::warmup_steps(20, 0, 0.0), 0);
    }
}
