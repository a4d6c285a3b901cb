//! What a person, or a program, sees of a run while it goes on. All of it goes to standard error, but
//! for JSON lines, which are a result.

use std::path::PathBuf;

use contract::Event;
use serde::Serialize;

use crate::error::Exit;
use crate::pipeline::StageId;
use crate::schedule::State;

pub use bars::Bars;
pub use json::JsonLines;
pub use lines::Lines;

mod bars;
mod json;
mod lines;
mod pane;

/// Takes what happens.
pub trait Progress: Sync {
    /// Something happened to a stage.
    fn update(&self, stage: &StageId, update: &Update<'_>);

    /// The run is over; nothing more comes.
    fn finish(&self) {}
}

/// What happened to a stage.
#[derive(Debug)]
pub enum Update<'a> {
    /// Another run makes the same thing; this one waits for it.
    Waiting {
        /// Which.
        holder: &'a str,
    },
    /// Its process starts.
    Started {
        /// The slots of its pool.
        slots: &'a [usize],
    },
    /// It told something.
    Told(&'a Event),
    /// It failed and starts again.
    Retrying {
        /// The number of the retry, from 1.
        attempt: u32,
        /// What went wrong.
        why: &'a str,
    },
    /// It is over.
    Ended {
        /// How.
        state: State,
        /// How long it took.
        seconds: f64,
        /// Why it failed.
        failure: Option<&'a Failure>,
    },
}

/// Why a stage has no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The sentence.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    /// Where its log lies.
    pub log: Option<PathBuf>,
    /// The log's last lines.
    pub tail: Vec<String>,
    /// The exit code that it leads to.
    #[serde(skip)]
    pub exit: Exit,
}

impl Failure {
    /// A failure that left no log.
    #[must_use]
    pub fn new(message: String, hint: Option<String>) -> Self {
        Self { message, hint, log: None, tail: Vec::new(), exit: Exit::Failed }
    }

    /// The lines that tell it.
    #[must_use]
    pub fn lines(&self, stage: &StageId) -> Vec<String> {
        let mut lines = vec![format!("error: {stage}: {}", self.message)];
        lines.extend(self.hint.iter().map(|hint| format!("  hint: {hint}")));
        if let Some(log) = &self.log {
            lines.push(format!("  log: {}", log.display()));
            lines.extend(self.tail.iter().map(|line| format!("  | {line}")));
        }
        lines
    }
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _: &StageId, _: &Update<'_>) {}
}

/// `loss 1.234  lr 0.0004`: figures by name, four digits each.
fn figures(metrics: &std::collections::BTreeMap<String, f64>) -> String {
    let figure = |(name, value): (&String, &f64)| match value.abs() {
        size if size >= 100.0 => format!("{name} {value:.0}"),
        size if size >= 0.01 => format!("{name} {value:.3}"),
        0.0 => format!("{name} 0"),
        _ => format!("{name} {value:.2e}"),
    };
    metrics.iter().map(figure).collect::<Vec<_>>().join("  ")
}

/// For whom a stage waits.
fn waiting(holder: &str) -> String {
    format!("waits for {holder}, which makes the same")
}

/// `ran in 3.2 s`, `cached`, …
fn ending(state: State, seconds: f64) -> String {
    match state {
        State::Done => format!("done in {seconds:.1} s"),
        State::Cached => "cached".to_owned(),
        State::Failed => "failed".to_owned(),
        State::Cancelled => "stopped".to_owned(),
        State::Skipped => "skipped".to_owned(),
        State::Waiting | State::Ready | State::Queued | State::Running => "…".to_owned(),
    }
}
