//! The cluster's side: `pipe exec-stage JOB --node FOLDER` watches over one stage where it runs.
//!
//! It starts the stage as a child, as the runner does on its own machine, and leaves in FOLDER, on the
//! file system that both sides see, what happened: `begun.json`, `events.jsonl` as it goes, and at the
//! end `exit.json`, written beside, flushed and renamed, so that it is there as a whole or not at all.
//! USR1 says that the time is nearly up: the stage saves, and the same job waits for another turn. TERM
//! leaves no record: whoever sent it, or the queue, says whether the job comes back.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contract::Event;
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::local::{self, Launch};
use super::{Ended, Stop};
use crate::error::{Error, Exit, io_at};
use crate::store::files::{remove_tree, write_atomic};

/// What the node is told besides the job.
pub const ORDER: &str = "node.json";
/// That the node has begun, and where.
pub const BEGUN: &str = "begun.json";
/// One event a line.
pub const EVENTS: &str = "events.jsonl";
/// That the stage saved and waits for another turn.
pub const AGAIN: &str = "again";
/// How it ended.
pub const RECORD: &str = "exit.json";

/// What provenance calls the most memory that a process held; of a rank, with its name before it.
pub const PEAK: &str = "peak memory";

/// How long a signal to the whole job may take to reach this process after the stage has felt it.
const MOMENT: Duration = Duration::from_millis(100);

/// What a scheduler tells a job of its place: passed on to the stage, in no key.
const PLACE: [&str; 4] =
    ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"];

/// What the node is told besides the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeOrder {
    /// Where the stage's log lies.
    pub log: PathBuf,
    /// The folder to fill.
    pub out: PathBuf,
    /// After how many milliseconds an attempt is stopped.
    pub timeout: Option<u64>,
    /// Variables that reach the stage. Their values come with the job's environment, not in a file,
    /// since some are secrets.
    pub env: Vec<String>,
}

/// Where and when a job began.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begun {
    /// The scheduler's number.
    pub job: String,
    /// The machine.
    pub host: String,
    /// When, ISO-8601 UTC.
    pub begun: String,
}

/// How a job ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Where and when it began.
    pub begun: Begun,
    /// When it ended, ISO-8601 UTC.
    pub ended: String,
    /// How; `cancelled` if its time was up and it could not queue again by itself.
    pub how: Ended,
    /// The most memory that one of its processes held, in bytes: where it is several ranks, on whatever
    /// nodes, the largest of them.
    pub peak_memory: u64,
}

/// Runs the job and records it.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn run(job: &Path, folder: &Path) -> Result<Exit, Error> {
    let path = folder.join(ORDER);
    let text = std::fs::read(&path).map_err(io_at(&path))?;
    let order: NodeOrder = serde_json::from_slice(&text)
        .map_err(|error| Error::new(Exit::Failed, format!("`{}`: {error}", path.display())))?;
    let signals = listen()?;
    // A turn before this one may have left half of an output.
    remove_tree(&order.out)?;
    std::fs::create_dir_all(&order.out).map_err(io_at(&order.out))?;
    let again = folder.join(AGAIN);
    remove_tree(&again)?;
    let begun = Begun { job: std::env::var("SLURM_JOB_ID").unwrap_or_default(), host: host(), begun: now() };
    write_json(&folder.join(BEGUN), &begun)?;
    let mut peak_memory = 0;
    let how = match stage(job, folder, &order, &signals.stop, &mut peak_memory) {
        Ok(how) => how,
        Err(error) => Ended::Failed { message: error.message, hint: error.hint },
    };
    peak_memory = peak_memory.max(held(UsageWho::RUSAGE_CHILDREN));
    if matches!(how, Ended::Failed { .. }) {
        // A scheduler that ends a job sends TERM to all of its processes at once. Then the stage's own
        // end is no failure of its own; the signal that says so may be a moment behind.
        std::thread::sleep(MOMENT);
    }
    let left = match how {
        Ended::Finished => false,
        Ended::Failed { .. } => signals.ended.load(Ordering::SeqCst),
        Ended::Cancelled => {
            signals.ended.load(Ordering::SeqCst) || !signals.time_is_up.load(Ordering::SeqCst) || {
                // Before it is asked for: from then on Slurm may end this process at any moment.
                std::fs::create_dir_all(&again).map_err(io_at(&again))?;
                requeue(&begun.job)
            }
        }
    };
    if left {
        return Ok(Exit::Stopped);
    }
    let exit = match &how {
        Ended::Finished => Exit::Ok,
        Ended::Failed { .. } => Exit::Failed,
        Ended::Cancelled => Exit::Stopped,
    };
    write_json(&folder.join(RECORD), &Record { begun, ended: now(), how, peak_memory })?;
    Ok(exit)
}

/// Runs the stage. What ranks say that they held goes into `peak`: they may be no children of this process.
fn stage(job: &Path, folder: &Path, order: &NodeOrder, stop: &Stop, peak: &mut u64) -> Result<Ended, Error> {
    let path = folder.join("lock");
    let lock = File::create(&path).map_err(io_at(&path))?;
    let path = folder.join(EVENTS);
    let mut events = OpenOptions::new().create(true).append(true).open(&path).map_err(io_at(&path))?;
    let declared = order.env.iter().filter_map(|name| Some((name.clone(), std::env::var(name).ok()?)));
    let place = std::env::vars().filter(|(name, _)| name.starts_with("SLURM_") || PLACE.contains(&&**name));
    let launch = Launch {
        job,
        lock: &lock,
        instead: Vec::new(),
        lost: None,
        log: &order.log,
        env: place.chain(declared).collect(),
        timeout: order.timeout.map(Duration::from_millis),
    };
    local::run(&launch, stop, |event| {
        if let Event::Provenance { name, value } = &event
            && name.ends_with(PEAK)
        {
            *peak = bytes(value).unwrap_or(0).max(*peak);
        }
        let mut line = serde_json::to_string(&event).expect("an event is plain data");
        line.push('\n');
        // Events are for people who watch; a full disk must not hide how the stage ends.
        let _ = events.write_all(line.as_bytes());
    })
}

/// What signals have said.
#[derive(Default)]
struct Said {
    stop: Stop,
    /// USR1: the job's time is nearly up.
    time_is_up: AtomicBool,
    /// TERM: the job is ended.
    ended: AtomicBool,
}

/// Turns signals into requests to stop.
fn listen() -> Result<Arc<Said>, Error> {
    let mut signals = Signals::new([SIGUSR1, SIGTERM, SIGINT])
        .map_err(|error| Error::new(Exit::Failed, format!("cannot listen to signals: {error}")))?;
    let said = Arc::new(Said::default());
    let noted = Arc::clone(&said);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let flag = if signal == SIGUSR1 { &noted.time_is_up } else { &noted.ended };
            flag.store(true, Ordering::SeqCst);
            noted.stop.ask_to_save();
        }
    });
    Ok(said)
}

/// Gives the machine back and queues again, as the same job.
fn requeue(job: &str) -> bool {
    eprintln!("the job's time is nearly up: it saved what it had and queues again");
    let asked = Command::new("scontrol").args(["requeue", job]).status();
    asked.is_ok_and(|status| status.success())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    write_atomic(path, &serde_json::to_vec_pretty(value).expect("a record is plain data"))
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

fn host() -> String {
    let slurm = std::env::var("SLURMD_NODENAME").ok();
    slurm.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// The most memory that this process, or one that it has waited for, held, in bytes.
pub fn held(who: UsageWho) -> u64 {
    let usage = getrusage(who).ok();
    usage.and_then(|usage| u64::try_from(usage.max_rss()).ok()).unwrap_or(0) * 1024
}

/// Memory for people.
pub fn shown(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// What [`shown`] showed, to its last digit.
fn bytes(shown: &str) -> Option<u64> {
    let (whole, tenths) = shown.strip_suffix(" MB")?.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 1_000_000 + tenths.parse::<u64>().ok()? * 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_shown_is_understood() {
        for (held, understood) in [(0, 0), (1_234_567_890, 1_234_600_000), (99_950_000, 100_000_000)] {
            assert_eq!(bytes(&shown(held)), Some(understood), "{}", shown(held));
        }
        assert_eq!(bytes("much"), None);
    }
}
