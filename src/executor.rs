//! Where a stage's process runs. Today: on this machine ([`local`]).
//!
//! An executor gets a [`JobFile`] and says how it ended; it knows nothing of keys, the store or the graph.

use std::sync::atomic::{AtomicU8, Ordering};

pub mod local;

/// How far a run has been asked to stop.
#[derive(Debug, Default)]
pub struct Stop(AtomicU8);

impl Stop {
    /// Asks once more: first to save and end, then to end at once.
    pub fn ask(&self) {
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |level| Some((level + 1).min(2)));
    }

    /// Whether stages are to save and end.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::SeqCst) >= 1
    }

    /// Whether stages are to end at once.
    #[must_use]
    pub fn urgent(&self) -> bool {
        self.0.load(Ordering::SeqCst) >= 2
    }
}

/// How a stage's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It filled its folder.
    Finished,
    /// It said no.
    Failed {
        /// Why.
        message: String,
        /// The way out.
        hint: Option<String>,
    },
    /// It stopped because it was asked to, its work kept.
    Cancelled,
}
