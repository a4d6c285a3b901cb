//! The scale of the loss in float16 (Micikevicius et al., arXiv 1710.03740): gradients are computed
//! of `scale · loss`, so that small ones do not vanish, and divided by it in f32.
//!
//! The rule is torch's `GradScaler`: where a gradient overflows, the step is left out and the scale
//! halved; after [`GROWTH`] good steps it is doubled. It is a function of the steps before, and part
//! of a checkpoint. A scale is a power of two: scaling is exact.

use serde::{Deserialize, Serialize};

/// Good steps after which the scale is doubled.
pub const GROWTH: u32 = 2000;
/// log₂ of the first scale.
const FIRST: u32 = 16;
/// log₂ of the largest scale: beyond it, factor and norm could leave f32.
const LARGEST: u32 = 24;

/// The present scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossScale {
    /// log₂ of the scale.
    exponent: u32,
    /// Steps since it last changed.
    good: u32,
    /// Whether it ever changes.
    dynamic: bool,
}

impl LossScale {
    /// 1, for number formats with the range of f32.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// 2¹⁶ at first.
    #[must_use]
    pub fn dynamic() -> Self {
        Self { exponent: FIRST, good: 0, dynamic: true }
    }

    /// Whether an overflow of the gradient is answered by a smaller scale.
    #[must_use]
    pub fn is_dynamic(self) -> bool {
        self.dynamic
    }

    /// The factor of the loss.
    #[must_use]
    pub fn value(self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// The scale after a step; `None` where it overflowed at scale 1.
    #[must_use]
    pub fn after(self, overflowed: bool) -> Option<Self> {
        if !self.dynamic {
            return Some(self);
        }
        if overflowed {
            return Some(Self { exponent: self.exponent.checked_sub(1)?, good: 0, ..self });
        }
        if self.good + 1 >= GROWTH && self.exponent < LARGEST {
            return Some(Self { exponent: self.exponent + 1, good: 0, ..self });
        }
        Some(Self { good: (self.good + 1).min(GROWTH), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_halves_it_and_many_good_steps_double_it() {
        let scale = LossScale::dynamic().after(true).expect("above 1");
        assert_eq!(scale.value(), 32768.0);
        let mut scale = scale.after(true).expect("above 1");
        for _ in 1..GROWTH {
            scale = scale.after(false).expect("no overflow");
            assert_eq!(scale.value(), 16384.0);
        }
        assert_eq!(scale.after(false).expect("no overflow").value(), 32768.0);
    }

    #[test]
    fn it_ends_at_one_and_at_its_largest() {
        let mut scale = LossScale::dynamic();
        for _ in 0..FIRST {
            scale = scale.after(true).expect("above 1");
        }
        assert_eq!((scale.value(), scale.after(true)), (1.0, None));
        let mut scale = LossScale::dynamic();
        for _ in 0..20 * GROWTH {
            scale = scale.after(false).expect("no overflow");
        }
        assert_eq!(scale.value(), f64::from(1u32 << LARGEST));
        assert_eq!(LossScale::none().after(true), Some(LossScale::none()));
    }
}
