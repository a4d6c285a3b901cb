//! One line an event, where there is no terminal.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use contract::Event;

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
    last: Mutex<BTreeMap<StageId, Instant>>,
}

impl Lines {
    /// Lines; with `verbose`, also for what was cached.
    #[must_use]
    pub fn new(verbose: bool) -> Self {
        Self { verbose, last: Mutex::default() }
    }

    fn due(&self, stage: &StageId) -> bool {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let due = last.get(stage).is_none_or(|last| now.duration_since(*last) >= EVERY);
        if due {
            last.insert(stage.clone(), now);
        }
        due
    }
}

impl Progress for Lines {
    fn update(&self, stage: &StageId, update: &Update<'_>) {
        match update {
            Update::Waiting { holder } => anstream::eprintln!("{stage}: {}", waiting(holder)),
            Update::Started { .. } => {
                self.due(stage);
                anstream::eprintln!("{stage}: started");
            }
            Update::Retrying { attempt, why } => anstream::eprintln!("{stage}: {why}; retry {attempt}"),
            Update::Told(Event::Note { text }) => anstream::eprintln!("{stage}: {text}"),
            Update::Told(Event::Warning { text }) => anstream::eprintln!("{stage}: warning: {text}"),
            Update::Told(Event::Progress { done, total, unit, metrics }) if self.due(stage) => {
                anstream::eprintln!("{stage}: {done}/{total} {unit}  {}", figures(metrics));
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
