//! Bars on a terminal: one a running stage, with rate, figures and time left.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use contract::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::pane::{BAR, Pane};
use super::{Progress, Update, ending, figures, waiting};
use crate::pipeline::StageId;
use crate::schedule::State;

/// How often a second bars are drawn at most.
const RATE: u8 = 20;

/// Bars on standard error.
#[derive(Debug)]
pub struct Bars {
    all: MultiProgress,
    running: Mutex<BTreeMap<StageId, ProgressBar>>,
}

impl Default for Bars {
    fn default() -> Self {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(Pane::new()), RATE);
        Self { all: MultiProgress::with_draw_target(target), running: Mutex::default() }
    }
}

impl Bars {
    fn say(&self, text: &str) {
        // A terminal that has gone away is no reason to stop a run.
        let _ = self.all.println(text);
    }

    fn bar(&self, stage: &StageId) -> ProgressBar {
        let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let new = || {
            let bar = self.all.add(spinner(stage));
            // Not before it is one of all: it would draw itself somewhere else.
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        };
        running.entry(stage.clone()).or_insert_with(new).clone()
    }
}

impl Progress for Bars {
    fn update(&self, stage: &StageId, update: &Update<'_>) {
        match update {
            Update::Waiting { holder } => self.bar(stage).set_message(waiting(holder)),
            Update::Started { .. } => self.bar(stage).set_message(""),
            Update::Retrying { attempt, why } => self.say(&format!("{stage}: {why}; retry {attempt}")),
            Update::Told(Event::Note { text }) => self.say(&format!("{stage}: {text}")),
            Update::Told(Event::Warning { text }) => self.say(&format!("{stage}: warning: {text}")),
            Update::Told(Event::Progress { done, total, metrics, unit }) => {
                let bar = self.bar(stage);
                if *total > 0 && bar.length() != Some(*total) {
                    bar.set_length(*total);
                    bar.set_style(style(unit));
                    bar.set_position(*done);
                    bar.reset_eta();
                }
                bar.set_position(*done);
                bar.set_message(figures(metrics));
            }
            Update::Told(_) => {}
            Update::Ended { state, seconds, failure } => {
                let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if let Some(bar) = running.remove(stage) {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                }
                drop(running);
                if *state != State::Cached {
                    self.say(&format!("{stage}: {}", ending(*state, *seconds)));
                }
                for line in failure.iter().flat_map(|failure| failure.lines(stage)) {
                    self.say(&line);
                }
            }
        }
    }

    fn finish(&self) {
        // As above: there may be no terminal left to clear.
        let _ = self.all.clear();
    }
}

fn spinner(stage: &StageId) -> ProgressBar {
    let template = format!("{BAR}{{prefix:<20}} {{spinner}} {{elapsed}} {{msg}}");
    let style = ProgressStyle::with_template(&template).expect("a constant template");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        .with_style(style)
        .with_prefix(stage.0.clone())
}

fn style(unit: &str) -> ProgressStyle {
    let (count, rate) = match unit {
        "bytes" => ("{bytes}/{total_bytes}", "{bytes_per_sec}"),
        _ => ("{human_pos}/{human_len}", "{per_sec}"),
    };
    let template = format!("{BAR}{{prefix:<20}} {{bar:24}} {count} {rate}  {{msg}}  {{eta}} left");
    ProgressStyle::with_template(&template).expect("a constant template").progress_chars("━╸─")
}
