//! Where a stage's process runs: on this machine ([`local`]), as a job of a cluster ([`slurm`]), or as a
//! step of the job that this command runs in ([`steps`]).
//!
//! An executor gets an [`Order`] with a job file and says how it ended; it knows nothing of keys, the
//! store or the graph. [`node`] is the other end of an executor that is not here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use contract::{Event, Pool};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::pipeline::Resources;

pub mod local;
pub mod node;
pub mod slurm;
pub mod steps;

/// In a stage's folder for executors elsewhere: the order that is out. As long as it is there, something
/// may be filling the stage's output folder, whoever runs.
pub const TICKET: &str = "job.json";

/// What a stage's process is told about memory. A training step frees and takes the same large buffers over
/// and over: pages that are given back before the next step takes them (mimalloc's default is 10 ms) cost a
/// tenth of its time and more.
const ALLOCATOR: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "60000");

/// Runs stages.
pub trait Executor: Sync {
    /// Whether stages run on this machine, and so share its adapters and cores.
    fn is_here(&self) -> bool;

    /// How many slots of `pool` there are elsewhere; `None`: a queue says what runs side by side.
    fn slots(&self, _pool: Pool) -> Option<usize> {
        None
    }

    /// Whether a run that is gone has ordered the stage already, so that this one goes on with it.
    ///
    /// # Errors
    /// If it was ordered from an executor that is not this one.
    fn goes_on(&self, elsewhere: &std::path::Path) -> Result<bool, Error>;

    /// Runs a stage to its end, passing its events on.
    ///
    /// # Errors
    /// If it cannot be started or followed.
    fn run(&self, order: &Order<'_>, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<Ended, Error>;
}

/// A stage to run.
pub struct Order<'a> {
    /// Its process.
    pub launch: local::Launch<'a>,
    /// Where the key's lock lies.
    pub lock: PathBuf,
    /// Its name, for people.
    pub stage: &'a str,
    /// The first letters of its key, for people as well.
    pub key: String,
    /// A folder for what an executor elsewhere must remember; it survives crashes.
    pub elsewhere: PathBuf,
    /// The folder that it fills.
    pub out: PathBuf,
    /// Whether that folder is as an earlier order left it.
    pub resumed: bool,
    /// What it asks for.
    pub resources: &'a Resources,
    /// How many processes it is.
    pub ranks: usize,
}

/// How far a run has been asked to stop.
#[derive(Debug, Default)]
pub struct Stop(AtomicU8);

impl Stop {
    /// Asks once more: first to save and end, then to end at once.
    pub fn ask(&self) {
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |level| Some((level + 1).min(2)));
    }

    /// Asks to save and end; asking again changes nothing.
    pub fn ask_to_save(&self) {
        self.0.fetch_max(1, Ordering::SeqCst);
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
