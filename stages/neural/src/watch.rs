//! The held-out loss over a run: its best step, and how long there was none better.
//!
//! Part of a checkpoint, so that a resumed run stops where one that was not stopped does.

use serde::{Deserialize, Serialize};

/// What is known of the evaluations so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Step and held-out loss of the best evaluation; of equals the first.
    pub best: Option<(u64, f64)>,
    /// Evaluations since.
    waited: u64,
}

impl Watch {
    /// Takes note of an evaluation; whether it is the best so far. A loss that is no number is not.
    pub fn see(&mut self, step: u64, loss: f64) -> bool {
        let better = loss.is_finite() && self.best.is_none_or(|(_, best)| loss < best);
        if better {
            *self = Self { best: Some((step, loss)), waited: 0 };
        } else {
            self.waited += 1;
        }
        better
    }

    /// Whether `patience` evaluations in a row brought nothing better; with 0 never.
    #[must_use]
    pub fn is_over(&self, patience: u64) -> bool {
        patience > 0 && self.waited >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_evaluations_that_are_not_better() {
        let mut watch = Watch::default();
        let seen = [2.0, 1.5, 1.5, f64::NAN, 1.4, 1.6, 1.7, 1.8];
        let better: Vec<bool> = (1..).zip(seen).map(|(step, loss)| watch.see(step, loss)).collect();
        assert_eq!(better, [true, true, false, false, true, false, false, false]);
        assert_eq!(watch.best, Some((5, 1.4)));
        assert!(watch.is_over(3) && !watch.is_over(4) && !watch.is_over(0));
    }

    #[test]
    fn it_comes_back_from_json_to_the_last_bit() {
        let mut watch = Watch::default();
        watch.see(7, 0.1 + 0.2);
        watch.see(8, 1.0 / 3.0 + 1.0);
        let text = serde_json::to_string(&watch).unwrap();
        assert_eq!(serde_json::from_str::<Watch>(&text).unwrap(), watch);
    }
}
