//! Stages as batch jobs of a Slurm cluster, over a file system that both sides see.
//!
//! What is needed to go on is on disk before anything is waited for: a [`Ticket`] names the job before
//! `sbatch` is called and holds its number right after. A run that is killed leaves its jobs alone; the
//! next one finds the tickets and goes on with the jobs, whether they wait, run or have ended. [`node`]
//! is the other side: its record says how a job ended, the [`queue`] says which are gone without one.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::Event;
use serde::{Deserialize, Serialize};

use super::node::{self, Begun, NodeOrder, Record};
use super::{Ended, Executor, Order, Stop, TICKET};
use crate::error::{Error, Exit, io_at};
use crate::store::files::{remove_tree, write_atomic};
use queue::{Queue, Seen};

mod queue;
mod submit;

/// How often a job's files are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How long after a job's end its record may still be on its way through the file system.
const LAG: Duration = Duration::from_secs(3);

/// How often a job that was asked to stop is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Runs stages as batch jobs.
pub struct Slurm {
    program: PathBuf,
    queue: Queue,
}

/// An order that is out. It lies on disk from before the job is submitted until its end is dealt with.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ticket {
    /// The job's name, and with it that of its folder.
    name: String,
    /// Its number; absent while `sbatch` has not answered.
    job: Option<String>,
}

impl Slurm {
    /// A cluster whose programs are on PATH.
    ///
    /// # Errors
    /// If they are not.
    pub fn open() -> Result<Self, Error> {
        for program in ["sbatch", "squeue", "scancel", "scontrol"] {
            ask(Command::new(program).arg("--version"))?;
        }
        let program = std::env::current_exe()
            .map_err(|error| Error::new(Exit::Failed, format!("cannot find this program: {error}")))?;
        Ok(Self { program, queue: Queue::default() })
    }

    /// The job that a run before this one ordered, if it goes on or has left a record.
    ///
    /// # Errors
    /// If the queue cannot be read, or the run is asked to stop before it answers.
    fn attach(&self, order: &Order<'_>, stop: &Stop) -> Result<Option<Job>, Error> {
        let path = order.elsewhere.join(TICKET);
        let Ok(text) = fs::read(&path) else { return Ok(None) };
        let Ok(ticket) = serde_json::from_slice::<Ticket>(&text) else { return Ok(None) };
        let folder = order.elsewhere.join(&ticket.name);
        let id = match &ticket.job {
            Some(id) => Some(id.clone()),
            None => self.number(&path, &ticket.name, &folder)?,
        };
        let Some(id) = id else { return Ok(None) };
        if !order.resumed {
            // Its output folder is gone, so whatever it still writes is of no use.
            cancel(&[&id]);
            return Ok(None);
        }
        let job = Job { id, folder, since: Instant::now() };
        if job.record().is_none() {
            // Without an answer from the queue nothing is known, and nothing is submitted twice.
            self.queue.hurry();
            loop {
                match self.queue.see(&job.id, job.since) {
                    Some(Some(seen)) if seen.is_alive() => break,
                    Some(_) if job.record().is_none() => return Ok(None),
                    Some(_) => break,
                    None if stop.asked() => {
                        let message = format!("stopped before the queue told how job {} is", job.id);
                        return Err(Error::new(Exit::Stopped, message)
                            .hint("the job may go on; the next run goes on with it"));
                    }
                    None => std::thread::sleep(TICK),
                }
            }
        }
        if ticket.job.is_none() {
            write_ticket(&order.elsewhere, &Ticket { job: Some(job.id.clone()), ..ticket })?;
        }
        Ok(Some(job))
    }

    /// The number of a job whose run was killed while `sbatch` was answering.
    fn number(&self, ticket: &Path, name: &str, folder: &Path) -> Result<Option<String>, Error> {
        let age = || fs::metadata(ticket).and_then(|meta| meta.modified()).ok()?.elapsed().ok();
        while age().is_some_and(|age| age < LAG) {
            std::thread::sleep(TICK);
        }
        let begun = fs::read(folder.join(node::BEGUN)).ok();
        let begun: Option<Begun> = begun.and_then(|text| serde_json::from_slice(&text).ok());
        match begun {
            Some(begun) => Ok(Some(begun.job)),
            None => self.queue.find(name),
        }
    }

    /// Hands the stage to Slurm. An answer that is no job's number is the stage's failure.
    fn submit(&self, order: &Order<'_>) -> Result<Result<Job, Ended>, Error> {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("pipe.{}.{:x}", order.key, nanos);
        let folder = order.elsewhere.join(&name);
        fs::create_dir_all(&folder).map_err(io_at(&folder))?;
        let launch = &order.launch;
        let told = NodeOrder {
            log: launch.log.to_owned(),
            out: order.out.clone(),
            timeout: launch.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            env: launch.env.iter().map(|(name, _)| name.clone()).collect(),
        };
        let text = serde_json::to_vec_pretty(&told).expect("an order is plain data");
        write_atomic(&folder.join(node::ORDER), &text)?;
        let script = folder.join("script.sh");
        write_atomic(&script, submit::script(&self.program, launch.job, &folder).as_bytes())?;
        let mut ticket = Ticket { name, job: None };
        write_ticket(&order.elsewhere, &ticket)?;
        let mut command = Command::new("sbatch");
        command.args(["--parsable", "--open-mode=append", "--export=ALL"]);
        command.arg(format!("--job-name={}", ticket.name)).arg(format!("--comment={}", order.stage));
        command.arg(format!("--output={}", launch.log.display().to_string().replace('%', "%%")));
        command.args(submit::options(order.resources, order.ranks)).arg(&script);
        command.env(super::ALLOCATOR.0, super::ALLOCATOR.1);
        command.envs(launch.env.iter().map(|(name, value)| (name, value)));
        let answer = match ask(&mut command) {
            Ok(answer) => answer,
            Err(error) => {
                forget(&order.elsewhere)?;
                return Ok(Err(Ended::Failed { message: error.message, hint: error.hint }));
            }
        };
        let id = answer.trim().split(';').next().unwrap_or_default().to_owned();
        ticket.job = Some(id.clone());
        write_ticket(&order.elsewhere, &ticket)?;
        self.queue.hurry();
        Ok(Ok(Job { id, folder, since: Instant::now() }))
    }

    /// Follows a job to its end. `None`: it gave its machine back and could not queue again by itself.
    fn follow(&self, job: &Job, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Option<Ended> {
        let mut events = Tail::new(job.folder.join(node::EVENTS));
        let (mut asked, mut gone) = (Asked::default(), None::<Instant>);
        let (mut waits, mut silent) = (String::new(), None);
        loop {
            events.read(tell);
            if let Some(record) = job.record() {
                events.read(tell);
                return conclude(job, record, stop, tell);
            }
            match self.queue.see(&job.id, job.since) {
                Some(Some(seen)) if seen.is_alive() => {
                    gone = None;
                    if seen.waits() && seen.reason != waits && seen.reason != "None" {
                        tell(Event::Note { text: format!("job {} waits: {}", job.id, seen.reason) });
                    }
                    waits.clone_from(&seen.reason);
                }
                Some(seen) => {
                    let since = *gone.get_or_insert_with(Instant::now);
                    if stop.asked() {
                        return Some(Ended::Cancelled);
                    }
                    if since.elapsed() >= LAG && job.folder.join(node::AGAIN).exists() {
                        return None;
                    }
                    if since.elapsed() >= LAG {
                        return Some(lost(&job.id, seen.as_ref()));
                    }
                }
                None => {}
            }
            let trouble = self.queue.trouble();
            if let (None, Some(why)) = (&silent, &trouble) {
                tell(Event::Note { text: format!("Slurm does not answer: {why}") });
            }
            if stop.urgent() && trouble.is_some() {
                return Some(Ended::Cancelled);
            }
            silent = trouble;
            if asked.ask(&job.id, stop) {
                self.queue.hurry();
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Executor for Slurm {
    fn is_here(&self) -> bool {
        false
    }

    fn goes_on(&self, elsewhere: &Path) -> Result<bool, Error> {
        Ok(elsewhere.join(TICKET).exists())
    }

    fn run(&self, order: &Order<'_>, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<Ended, Error> {
        let mut job = self.attach(order, stop)?;
        if let Some(job) = &job {
            tell(Event::Note { text: format!("goes on with job {}", job.id) });
        }
        loop {
            let current = match job.take() {
                Some(job) => job,
                None => {
                    forget(&order.elsewhere)?;
                    if stop.asked() {
                        return Ok(Ended::Cancelled);
                    }
                    match self.submit(order)? {
                        Ok(job) => {
                            tell(Event::Note { text: format!("is job {} of Slurm", job.id) });
                            job
                        }
                        Err(refused) => return Ok(refused),
                    }
                }
            };
            match self.follow(&current, stop, tell) {
                // The ticket stays until the output is stored: a crash in between costs no second job.
                Some(Ended::Finished) => return Ok(Ended::Finished),
                // Nobody knows whether the job heard of it: the next run finds out.
                Some(Ended::Cancelled) if self.queue.trouble().is_some() => return Ok(Ended::Cancelled),
                Some(ended) => {
                    forget(&order.elsewhere)?;
                    return Ok(ended);
                }
                None => {
                    cancel(&[&current.id]);
                    tell(Event::Note { text: format!("job {} is submitted again", current.id) });
                }
            }
        }
    }
}

/// A job that was submitted.
struct Job {
    id: String,
    folder: PathBuf,
    /// Looks at the queue from before this say nothing of it.
    since: Instant,
}

impl Job {
    fn record(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.folder.join(node::RECORD)).ok()?).ok()
    }
}

fn conclude(job: &Job, record: Record, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Option<Ended> {
    let mut provenance = |name: &str, value: String| {
        tell(Event::Provenance { name: name.to_owned(), value });
    };
    provenance("slurm job", job.id.clone());
    provenance("host", record.begun.host);
    provenance(node::PEAK, node::shown(record.peak_memory));
    match record.how {
        Ended::Cancelled if !stop.asked() => None,
        how => Some(how),
    }
}

/// A job that is gone without a record.
fn lost(id: &str, seen: Option<&Seen>) -> Ended {
    let shown = ask(Command::new("scontrol").args(["--oneliner", "show", "job", id])).unwrap_or_default();
    let field = |name: &str| {
        let word = shown.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.map(str::to_owned)
    };
    let state = seen.map(|seen| seen.state.clone()).or_else(|| field("JobState"));
    let state = state.unwrap_or_else(|| "unknown".to_owned());
    let more = match (field("Reason").filter(|reason| reason != "None"), field("ExitCode")) {
        (Some(reason), _) => format!(" ({reason})"),
        (None, Some(code)) if code != "0:0" => format!(" (exit code {code})"),
        _ => String::new(),
    };
    let hint = match &*state {
        "TIMEOUT" | "DEADLINE" => "raise `time` in the stage's `resources`; what it had saved is used again",
        "OUT_OF_MEMORY" => "raise `memory` in the stage's `resources`",
        "CANCELLED" => "someone cancelled it; what it had saved is used by the next run",
        _ => "its log may say more; `retries = 1` lets such a stage try again on another node",
    };
    Ended::Failed {
        message: format!("job {id} of Slurm ended as {state}{more} and left no record"),
        hint: Some(hint.to_owned()),
    }
}

/// Asks a job to stop as the run is asked to: first to save, then at once.
#[derive(Default)]
struct Asked {
    last: Option<Instant>,
    urgent: bool,
}

impl Asked {
    /// Whether it asked now.
    fn ask(&mut self, id: &str, stop: &Stop) -> bool {
        let again = self.last.is_none_or(|last| last.elapsed() >= ASK_AGAIN);
        if !stop.asked() || !(again || stop.urgent() && !self.urgent) {
            return false;
        }
        self.urgent = stop.urgent();
        self.last = Some(Instant::now());
        if stop.urgent() {
            cancel(&[id]);
        } else {
            cancel(&["--state=PENDING", id]);
            cancel(&["--state=RUNNING", "--batch", "--signal=TERM", id]);
        }
        true
    }
}

/// A job that is gone needs no cancelling, so an answer is of no use: the queue shows what came of it.
fn cancel(args: &[&str]) {
    let _ = ask(Command::new("scancel").args(args));
}

fn write_ticket(elsewhere: &Path, ticket: &Ticket) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(ticket).expect("a ticket is plain data");
    write_atomic(&elsewhere.join(TICKET), &text)
}

/// The order is dealt with.
fn forget(elsewhere: &Path) -> Result<(), Error> {
    remove_tree(elsewhere)
}

/// Calls one of Slurm's programs. In a process group of its own: Ctrl-C is for the run, not for it.
pub(super) fn ask(command: &mut Command) -> Result<String, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).process_group(0).output().map_err(|error| {
        Error::usage(format!("cannot start `{name}`: {error}"))
            .hint("Slurm's programs must be on PATH; without `--executor slurm` stages run on this machine")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(Error::new(Exit::Failed, format!("`{name}` failed: {}", said.join("; ")))
        .hint("`sinfo` shows the partitions and whether the cluster answers"))
}

/// Events as they come in.
struct Tail {
    path: PathBuf,
    read: u64,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// Tells the whole lines that are new.
    fn read(&mut self, tell: &mut dyn FnMut(Event)) {
        let Ok(mut file) = fs::File::open(&self.path) else { return };
        let mut text = Vec::new();
        if file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut text)).is_err() {
            return;
        }
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        for line in text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            if let Ok(event) = serde_json::from_slice(line) {
                tell(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut tail = Tail::new(path.clone());
        let mut told = Vec::new();
        tail.read(&mut |event| told.push(event));
        let [one, two] = ["a", "b"].map(|text| Event::Note { text: text.into() });
        let (line, next) = (serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap());
        fs::write(&path, format!("{line}\n{}", &next[..9])).unwrap();
        tail.read(&mut |event| told.push(event));
        assert_eq!(told, std::slice::from_ref(&one));
        fs::write(&path, format!("{line}\n{next}\n")).unwrap();
        tail.read(&mut |event| told.push(event));
        tail.read(&mut |event| told.push(event));
        assert_eq!(told, [one, two]);
    }

    #[test]
    fn a_job_that_left_no_record_is_named_with_its_state() {
        let seen = Seen { name: String::new(), state: "OUT_OF_MEMORY".into(), reason: String::new() };
        let Ended::Failed { message, hint } = lost("0", Some(&seen)) else { panic!("a failure") };
        assert!(message.starts_with("job 0 of Slurm ended as OUT_OF_MEMORY"), "{message}");
        assert!(hint.unwrap().contains("`memory`"));
    }
}
