//! One line an event, where there is no terminal.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use contract::Event;
use indicatif::{HumanBytes, HumanDuration};

use super::{Progress, Update, ending, figures, waiting};
use crate::pipeline::StageId;
use crate::schedule::State;

/// A stage's figures appear at most this often.
const EVERY: Duration = Duration::from_secs(10);

/// Plain lines on standard error.
#[derive(Debug, Default)]
pub struct Lines {
    /// Cached stages and figures as well.
    pub verbose: bool,
    last: Mutex<BTreeMap<StageId, Last>>,
}

/// When a stage was last told of, and how far it was then.
#[derive(Clone, Copy, Debug)]
struct Last {
    told: Instant,
    done: u64,
}

impl Lines {
    /// Lines; with `verbose`, also for what was cached.
    #[must_use]
    pub fn new(verbose: bool) -> Self {
        Self { verbose, last: Mutex::default() }
    }

    /// Whether a line is due for a stage that is so far; then, what the last one said.
    fn due(&self, stage: &StageId, done: u64) -> Option<Option<Last>> {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let before = last.get(stage).copied();
        let due = before.is_none_or(|last| now.duration_since(last.told) >= EVERY);
        due.then(|| {
            last.insert(stage.clone(), Last { told: now, done });
            before
        })
    }
}

/// `1.2 GiB of 13.5 GiB, 45.1 MiB/s, 5 minutes left`
fn how_far(done: u64, total: u64, unit: &str, last: Option<Last>) -> String {
    let amount = |count: u64| match unit {
        "bytes" => HumanBytes(count).to_string(),
        _ => count.to_string(),
    };
    let mut text = match (unit, total) {
        ("bytes", 0) => amount(done),
        ("bytes", _) => format!("{} of {}", amount(done), amount(total)),
        _ => format!("{done}/{total} {unit}"),
    };
    let Some(last) = last.filter(|last| done > last.done) else { return text };
    let seconds = last.told.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with three digits")]
    let rate = (done - last.done) as f64 / seconds.max(1e-3);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive rate")]
    let shown =
        if unit == "bytes" { format!("{}/s", HumanBytes(rate as u64)) } else { format!("{rate:.1}/s") };
    text += &format!(", {shown}");
    if total > done {
        #[expect(clippy::cast_precision_loss, reason = "as above")]
        let left = (total - done) as f64 / rate;
        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        text += &format!(", {} left", HumanDuration(left));
    }
    text
}

impl Progress for Lines {
    fn update(&self, stage: &StageId, update: &Update<'_>) {
        match update {
            Update::Waiting { holder } => anstream::eprintln!("{stage}: {}", waiting(holder)),
            Update::Started { .. } => {
                self.due(stage, 0);
                anstream::eprintln!("{stage}: started");
            }
            Update::Retrying { attempt, why } => anstream::eprintln!("{stage}: {why}; retry {attempt}"),
            Update::Told(Event::Note { text }) => anstream::eprintln!("{stage}: {text}"),
            Update::Told(Event::Warning { text }) => anstream::eprintln!("{stage}: warning: {text}"),
            Update::Told(Event::Progress { done, total, unit, metrics }) => {
                if let Some(last) = self.due(stage, *done) {
                    let far = how_far(*done, *total, unit, last);
                    anstream::eprintln!("{}", format!("{stage}: {far}  {}", figures(metrics)).trim_end());
                }
            }
            Update::Told(_) => {}
            Update::Ended { state: State::Cached, .. } if !self.verbose => {}
            Update::Ended { state, seconds, failure } => {
                anstream::eprintln!("{stage}: {}", ending(*state, *seconds));
                for line in failure.iter().flat_map(|failure| failure.lines(stage)) {
                    anstream::eprintln!("{line}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time_left() {
        let ago = |seconds, done| Some(Last { told: Instant::now() - Duration::from_secs(seconds), done });
        assert_eq!(how_far(30, 120, "steps", None), "30/120 steps");
        assert_eq!(how_far(30, 120, "steps", ago(10, 10)), "30/120 steps, 2.0/s, 45 seconds left");
        let gib = 1 << 30;
        let text = how_far(2 * gib, 8 * gib, "bytes", ago(16, gib));
        assert!(text.starts_with("2.00 GiB of 8.00 GiB, 6"), "{text}");
        assert!(
            text.ends_with(" MiB/s, 96 seconds left") || text.ends_with(" MiB/s, 2 minutes left"),
            "{text}"
        );
        assert_eq!(how_far(5, 0, "bytes", None), "5 B");
    }
}
