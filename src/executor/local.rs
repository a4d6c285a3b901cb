//! A stage as a child process on this machine.
//!
//! The child leads a process group of its own; its standard input is a pipe that ends when this process
//! does, however it ends, and it inherits the key's lock. A byte in that pipe asks it to save and end.
//! Where another program starts the stage elsewhere, that program is the child, and the pipe goes through
//! it. See [`crate::exec`] for the stage's side.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use contract::Event;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Ended, Executor, Order, Stop, TICKET};
use crate::error::{Error, Exit, io_at};
use crate::fault::point;

/// Variables that say where things are, not what to compute: passed to every stage, in no key.
const MACHINE: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "LANG",
    "TZ",
    "LD_LIBRARY_PATH",
    "RUST_BACKTRACE",
    "RAYON_NUM_THREADS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Beginnings of such variables.
const MACHINE_PREFIXES: &[&str] =
    &["XDG_", "LC_", "VK_", "MESA_", "LP_", "SSL_CERT_", "DRI_", "OMPI_MCA_", "PMIX_MCA_", "UCX_"];

/// How long a stage may take to save when it is asked to stop because its time is up.
const GRACE: Duration = Duration::from_secs(10);

/// How often a silent child is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Which file descriptor holds the key's lock in the child.
const LOCK_FD: i32 = 3;

/// A child to start.
pub struct Launch<'a> {
    /// The job file.
    pub job: &'a Path,
    /// The command line that starts it, where this machine does not.
    pub instead: Vec<String>,
    /// The key's lock, inherited.
    pub lock: &'a File,
    /// Where standard error goes, appended.
    pub log: &'a Path,
    /// Set when the lock is held no longer: another machine is at this stage by now.
    pub lost: Option<Arc<AtomicBool>>,
    /// Declared variables and secrets.
    pub env: Vec<(String, String)>,
    /// After how long it is stopped.
    pub timeout: Option<Duration>,
}

/// Runs stages as children of this process.
pub struct Local;

impl Executor for Local {
    fn is_here(&self) -> bool {
        true
    }

    fn goes_on(&self, elsewhere: &Path) -> Result<bool, Error> {
        let ticket = elsewhere.join(TICKET);
        if !ticket.exists() {
            return Ok(false);
        }
        let message = format!("a job on a cluster may still be at this stage: `{}`", ticket.display());
        Err(Error::new(Exit::Failed, message).hint(
            "`--executor slurm` goes on with it; to give it up, `scancel` the job and remove that file",
        ))
    }

    fn run(&self, order: &Order<'_>, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<Ended, Error> {
        run(&order.launch, stop, tell)
    }
}

/// Runs the child to its end, passing its events on.
///
/// # Errors
/// If it cannot be started.
pub fn run(launch: &Launch<'_>, stop: &Stop, mut tell: impl FnMut(Event)) -> Result<Ended, Error> {
    let mut log = OpenOptions::new().create(true).append(true).open(launch.log).map_err(io_at(launch.log))?;
    point("process: before");
    let (mut child, lifeline) = spawn(launch, &log)?;
    point("process: started");
    let lines = read_lines(&mut child);
    let mut last = None;
    let mut take = |event: Event| {
        write_log(&mut log, &event);
        match event {
            Event::Finished => last = Some(Ended::Finished),
            Event::Failed { cancelled: true, .. } => last = Some(Ended::Cancelled),
            Event::Failed { message, hint, .. } => last = Some(Ended::Failed { message, hint }),
            event => tell(event),
        }
    };
    let mut watch = Watch::new(&child, lifeline, launch);
    let status = loop {
        match lines.recv_timeout(TICK) {
            Ok(event) => take(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break child.wait().map_err(io_at(launch.job))?,
        }
        watch.look(stop);
        if let Some(status) = child.try_wait().map_err(io_at(launch.job))? {
            break status;
        }
    };
    // Whatever the stage started must not outlive it.
    watch.kill_group();
    watch.lifeline = None;
    lines.into_iter().for_each(take);
    Ok(judge(status, last, &watch, launch, stop))
}

fn spawn(launch: &Launch<'_>, log: &File) -> Result<(Child, PipeWriter), Error> {
    let fail = |error: std::io::Error| Error::new(Exit::Failed, format!("cannot start a stage: {error}"));
    let (read, write) = std::io::pipe().map_err(fail)?;
    let mut command = match launch.instead.split_first() {
        Some((program, args)) => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
        None => this_program(launch.job).map_err(fail)?,
    };
    command.env_clear().envs(std::env::vars().filter(|(name, _)| is_machine(name)));
    command.env(super::ALLOCATOR.0, super::ALLOCATOR.1);
    command.envs(launch.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::from(read)).stdout(Stdio::piped());
    command.stderr(Stdio::from(log.try_clone().map_err(fail)?));
    command.process_group(0);
    let lock = launch.lock.try_clone().map_err(fail)?;
    command
        .fd_mappings(vec![FdMapping { parent_fd: lock.into(), child_fd: LOCK_FD }])
        .map_err(|error| Error::new(Exit::Failed, format!("cannot hand a lock to a stage: {error}")))?;
    Ok((command.spawn().map_err(fail)?, write))
}

fn this_program(job: &Path) -> std::io::Result<Command> {
    let program = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    let mut command = Command::new(program);
    command.arg0("pipe").arg("exec-stage").arg(job);
    Ok(command)
}

fn is_machine(name: &str) -> bool {
    MACHINE.contains(&name) || MACHINE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Reads the child's events on a thread; the channel closes when the child's standard output does.
fn read_lines(child: &mut Child) -> Receiver<Event> {
    let (sender, receiver) = channel();
    let stdout = child.stdout.take().expect("standard output is a pipe");
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // A line that is no event was printed by a library; it is worth a place in the log.
            let event = serde_json::from_str(&line).unwrap_or(Event::Note { text: line });
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

fn write_log(log: &mut File, event: &Event) {
    let line = match event {
        Event::Note { text } => format!("{text}\n"),
        Event::Warning { text } => format!("warning: {text}\n"),
        Event::Provenance { name, value } => format!("{name}: {value}\n"),
        Event::Failed { message, hint, .. } => {
            let hint = hint.as_ref().map_or(String::new(), |hint| format!("hint: {hint}\n"));
            format!("error: {message}\n{hint}")
        }
        Event::Progress { .. } | Event::Finished => return,
    };
    // The log is for people; a full disk must not hide the stage's own error.
    let _ = log.write_all(line.as_bytes());
}

/// Stops the child when it is asked to stop or its time is up.
struct Watch {
    pid: Option<Pid>,
    /// The child ends when this does.
    lifeline: Option<PipeWriter>,
    /// Whether the child only stands for the stage.
    stands_in: bool,
    lost: Option<Arc<AtomicBool>>,
    deadline: Option<Instant>,
    terminated: Option<Instant>,
    timed_out: bool,
}

impl Watch {
    fn new(child: &Child, lifeline: PipeWriter, launch: &Launch<'_>) -> Self {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let deadline = launch.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let stands_in = !launch.instead.is_empty();
        let lost = launch.lost.clone();
        Self { pid, lifeline: Some(lifeline), stands_in, lost, deadline, terminated: None, timed_out: false }
    }

    fn look(&mut self, stop: &Stop) {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.timed_out = true;
        }
        let late = self.terminated.is_some_and(|since| self.timed_out && since.elapsed() >= GRACE);
        let lost = self.lost.as_ref().is_some_and(|lost| lost.load(Ordering::SeqCst));
        if stop.urgent() || late || lost {
            self.end_now();
        } else if self.terminated.is_none() && (stop.asked() || self.timed_out) {
            self.terminated = Some(Instant::now());
            if let Some(lifeline) = &mut self.lifeline {
                // If it does not arrive, the child is about to be gone.
                let _ = lifeline.write_all(b"s");
            }
        }
    }

    fn end_now(&mut self) {
        match self.pid {
            // It must live to end the stage; it takes this as an order to do so.
            Some(pid) if self.stands_in => {
                if self.lifeline.take().is_some() {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            _ => self.kill_group(),
        }
    }

    fn kill_group(&self) {
        if let Some(pid) = self.pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

fn judge(status: ExitStatus, last: Option<Ended>, watch: &Watch, launch: &Launch<'_>, stop: &Stop) -> Ended {
    if let Some(ended @ (Ended::Finished | Ended::Failed { .. })) = last {
        return ended;
    }
    if watch.timed_out {
        let limit = launch.timeout.unwrap_or_default().as_secs_f64();
        return Ended::Failed {
            message: format!("stopped after its `timeout` of {limit} s"),
            hint: Some("raise `timeout`; what the stage had saved is used by the next run".into()),
        };
    }
    if last == Some(Ended::Cancelled) || stop.asked() {
        return Ended::Cancelled;
    }
    // A program that stands for the stage ends as shells do when the stage is killed.
    let signal = status.signal().or_else(|| status.code().filter(|&code| code > 128).map(|code| code - 128));
    match signal {
        Some(signal) => {
            Ended::Failed { message: format!("killed by {}", name_of(signal)), hint: hint_for(signal) }
        }
        None => Ended::Failed {
            message: format!("its process ended with code {} without a word", status.code().unwrap_or(-1)),
            hint: None,
        },
    }
}

fn name_of(signal: i32) -> String {
    let name = signal_hook::low_level::signal_name(signal);
    name.map_or_else(|| format!("signal {signal}"), |name| format!("signal {signal} ({name})"))
}

fn hint_for(signal: i32) -> Option<String> {
    let hint = match signal {
        libc_signals::KILL => {
            "often the kernel, out of memory: see `dmesg`, and lower the stage's batch size"
        }
        libc_signals::SEGV | libc_signals::BUS | libc_signals::ABRT => {
            "a crash in a driver or library: `pipe devices` tries the adapters; `device = \"cpu\"` does without"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Numbers that `signal_hook` names.
mod libc_signals {
    pub use signal_hook::consts::{SIGABRT as ABRT, SIGBUS as BUS, SIGSEGV as SEGV};
    /// `signal_hook` leaves it out, since nothing can listen to it.
    pub const KILL: i32 = 9;
}
