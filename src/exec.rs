//! The child's side: `pipe exec-stage JOB` runs one stage and tells the runner how it goes.
//!
//! Standard input is the lifeline: a byte asks the stage to save and end; its end means that the runner is
//! gone, and the whole process group goes with it. Standard output carries one [`Event`] a line; standard
//! error is the stage's log. A cluster node runs the very same command. It knows nothing of graphs, keys or
//! the store. A job of several processes is started again as each of them ([`ranks`]).

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use contract::{Config, Context, ErrorKind, Event, Inputs, Job, Reporter, StageError};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, getpgrp, getpid, getsid, kill_process_group, setpgid};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, io_at};
use crate::executor::steps;
use crate::registry::Registry;

mod ranks;

/// Everything that a child must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobFile {
    /// The program that wrote it; another one refuses it.
    pub program: String,
    /// The kind.
    pub kind: String,
    /// Its parameters.
    pub config: Config,
    /// Its inputs.
    pub inputs: Inputs,
    /// The empty folder to fill.
    pub out: PathBuf,
    /// The folder that survives crashes.
    pub work: PathBuf,
    /// The slots of its pool.
    pub devices: Vec<usize>,
}

impl JobFile {
    /// Name and version of this program.
    pub const PROGRAM: &'static str = concat!("pipe ", env!("CARGO_PKG_VERSION"));
}

/// What this process is to the job.
#[derive(Clone, Copy)]
pub enum Role<'a> {
    /// Its only process, or who stands in for its ranks; a runner's or a node's child.
    Stage,
    /// The same as a step of Slurm: this lock is shared with the runner, and so keeps other runs out on its own.
    Step(&'a Path),
    /// Who stands in for ranks that are such a step, begun with these options of `srun`.
    Ranks(&'a Path, &'a [OsString]),
    /// One of the processes that `mpirun` or `srun` has started on it; as a step's, with its lock.
    Rank(Option<&'a Path>),
}

/// Runs the job and reports. Where this process leads a group, as a runner starts it, the whole group
/// ends with it: the runner goes by the last event. Elsewhere the exit code repeats what that event said.
///
/// # Errors
/// If the job file cannot be read, or is not for this program; if another run has a step's lock.
pub fn exec_stage(path: &Path, role: Role<'_>, registry: &Registry) -> Result<Exit, Error> {
    let failed = |error: StageError| Error::new(Exit::Failed, error.message);
    let rank = matches!(role, Role::Rank(_)).then(ranks::number).transpose().map_err(failed)?;
    let text = std::fs::read(path).map_err(io_at(path))?;
    let job: JobFile = serde_json::from_slice(&text)
        .map_err(|error| Error::new(Exit::Failed, format!("`{}`: {error}", path.display())))?;
    if job.program != JobFile::PROGRAM {
        let message = format!("this is `{}`, and the job was written by `{}`", JobFile::PROGRAM, job.program);
        return Err(Error::new(Exit::Failed, message).hint("use the same program on both sides"));
    }
    let follower = rank.filter(|&rank| rank > 0).map(|rank| ranks::Follower { rank, to: &Lines });
    let reporter: &dyn Reporter = follower.as_ref().map_or(&Lines, |follower| follower);
    let signals: &[_] = match rank {
        // TERM is how a launcher ends its ranks.
        Some(_) => &[signal_hook::consts::SIGUSR1],
        None => &[signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT],
    };
    let stop = Arc::new(AtomicBool::new(false));
    for &signal in signals {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Error::new(Exit::Failed, format!("cannot listen to signals: {error}")))?;
    }
    if rank.is_some() {
        ranks::watch_parent();
    }
    if follower.is_none() {
        hold_lifeline(Arc::clone(&stop));
    }
    let shared = match role {
        Role::Step(lock) | Role::Rank(Some(lock)) => Some(share(lock)?),
        _ => None,
    };
    if shared.is_some() && follower.is_none() {
        tell_place();
    }
    let run = || {
        let planned = plan(&job, registry)?;
        if rank.is_none() {
            for note in planned.preview(&job.inputs)? {
                reporter.report(Event::Note { text: note });
            }
            let ranks = planned.ranks().unwrap_or(1);
            if ranks > 1 {
                let step = match role {
                    Role::Ranks(lock, options) => Some((lock, options)),
                    _ => None,
                };
                return ranks::lead(path, ranks, step, &stop, reporter);
            }
        }
        let (out, work) = (job.out.clone(), job.work.clone());
        let devices = job.devices.clone();
        planned.run(&mut Context::new(job.inputs.clone(), out, work, devices, reporter, &stop))
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(StageError::new(format!("the stage broke off: {text}"))
            .hint("this is a bug of the stage kind; its log says more"))
    });
    if let Some(rank) = rank {
        ranks::tell_memory(rank, &Lines);
    }
    let exit = match result {
        Ok(()) => {
            reporter.report(Event::Finished);
            Exit::Ok
        }
        Err(error) => {
            let cancelled = error.kind == ErrorKind::Cancelled;
            reporter.report(Event::Failed { message: error.message, hint: error.hint, cancelled });
            if cancelled { Exit::Stopped } else { Exit::Failed }
        }
    };
    match role {
        Role::Stage | Role::Ranks(..) => end_group(),
        Role::Step(_) => end_others(),
        // A rank that has finished is to end as such for who started it.
        Role::Rank(_) if exit != Exit::Ok => end_group(),
        Role::Rank(_) => {}
    }
    drop(shared);
    Ok(exit)
}

/// Holds the runner's lock as well, and so does all that the stage starts.
fn share(lock: &Path) -> Result<File, Error> {
    let file = File::open(lock).map_err(io_at(lock))?;
    match file.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(Error::io(lock, &error)),
        Err(TryLockError::WouldBlock) => {
            let message = format!("another run has the lock `{}` by now", lock.display());
            return Err(Error::new(Exit::Failed, message));
        }
    }
    fcntl_setfd(&file, FdFlags::empty()).map_err(|error| Error::io(lock, &error.into()))?;
    Ok(file)
}

/// Tells where a step runs.
fn tell_place() {
    let told = |name: &str| std::env::var(name).unwrap_or_default();
    let step = format!("{}.{}", told("SLURM_JOB_ID"), told("SLURM_STEP_ID"));
    for (name, value) in [(steps::STEP, step), ("host", told("SLURMD_NODENAME"))] {
        Lines.report(Event::Provenance { name: name.to_owned(), value });
    }
}

fn plan(job: &JobFile, registry: &Registry) -> Result<Box<dyn Job>, StageError> {
    let stage = registry
        .get(&job.kind)
        .ok_or_else(|| StageError::new(format!("this program has no stage kind `{}`", job.kind)))?;
    stage.plan(&job.config).map_err(|errors| {
        StageError::new(
            errors.iter().map(|e| format!("`{}`: {}", e.key, e.message)).collect::<Vec<_>>().join("; "),
        )
    })
}

/// Writes events to standard output.
struct Lines;

impl Reporter for Lines {
    fn report(&self, event: Event) {
        let mut line = serde_json::to_string(&event).expect("an event is plain data");
        line.push('\n');
        // A runner that no longer listens has closed the lifeline as well; that ends this process.
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }
}

/// Ends what the stage left behind, and this process with it. It cannot be left to the runner, which may
/// be gone by now: an orphan would hold the key's lock for as long as it lives.
fn end_group() {
    let group = getpgrp();
    if group == getpid() {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Ends what the stage left behind, but not this process: to `srun` a step that is killed is an error. So
/// it first joins the group that its session began with, which is that of Slurm's own process.
fn end_others() {
    let group = getpgrp();
    let joined = getsid(None).and_then(|session| setpgid(None, Some(session)));
    if joined.is_ok() && group != getpgrp() {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Hears of a request to stop, and ends the whole process group when the runner is gone.
fn hold_lifeline(stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut byte = [0];
        let mut lifeline = std::io::stdin();
        loop {
            match lifeline.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => stop.store(true, Ordering::SeqCst),
                Err(_) => {}
            }
        }
        let _ = kill_process_group(getpgrp(), Signal::KILL);
    });
}
