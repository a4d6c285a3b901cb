//! One stage from its lock to its result, on a thread of its own.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::{Artifact, Event, Inputs, Pool};

use super::Message;
use crate::digest::Digest;
use crate::error::{Error, Exit, io_at};
use crate::exec::JobFile;
use crate::executor::local::Launch;
use crate::executor::{Ended, Executor, Order, Stop};
use crate::fault::point;
use crate::key::{KeyFields, env_value};
use crate::pipeline::Instance;
use crate::progress::Failure;
use crate::remote::{Fetched, Remote, Send, Trouble};
use crate::schedule::Ending;
use crate::store::files::remove_tree;
use crate::store::{Action, Check, Entry, Rest, Slot, StatCache, Store};

/// The first pause before a retry; it doubles from there.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The longest pause before a retry.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);

/// How many letters of a key tell it from others, for people.
const SHORT: usize = 12;

/// Everything a stage's thread needs.
pub struct Attempt<'a> {
    pub task: usize,
    pub pipeline: &'a str,
    pub instance: &'a Instance,
    pub store: &'a Store,
    pub outside: &'a Mutex<StatCache>,
    pub executor: &'a dyn Executor,
    pub stop: &'a Stop,
    pub fields: KeyFields,
    pub inputs: BTreeMap<String, Vec<(String, Digest)>>,
    pub slots: Vec<usize>,
    pub slots_of_pool: usize,
    pub force: bool,
    pub lock_wait: Option<Duration>,
    pub remote: Option<&'a Remote>,
}

/// What came of an attempt.
enum Made {
    Stored(Box<Action>, Rest),
    Found(Box<Action>, Option<Rest>),
    Stopped,
}

/// What a stage told that is kept with its result.
#[derive(Default)]
struct Told {
    provenance: BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Attempt<'_> {
    /// Runs to the end and reports it. What is left to do with a stored result comes after that, so that
    /// the next stage does not wait for the disk.
    pub fn run(self, sender: &Sender<Message>) {
        let ended = |ending, action, failure| {
            // The deciding thread waits for this message; without it there is no one to tell.
            let _ = sender.send(Message::Ended(self.task, ending, action, failure));
        };
        let mut how = Send::Missing;
        match self.attempt(sender, &mut how) {
            Ok(Made::Stored(action, rest)) => {
                ended(Ending::Done, Some(action.clone()), None);
                self.finish(rest, sender);
                let sent =
                    self.remote.map(|remote| remote.send(self.store, &self.fields.key(), &action, how));
                if let Some(Err(Some(trouble))) = sent {
                    self.warn(sender, format!("its result was not sent: {}", trouble.text));
                }
            }
            Ok(Made::Found(action, rest)) => {
                ended(Ending::Cached, Some(action), None);
                if let Some(rest) = rest {
                    self.finish(rest, sender);
                }
            }
            Ok(Made::Stopped) => ended(Ending::Cancelled, None, None),
            Err(failure) => ended(Ending::Failed, None, Some(failure)),
        }
    }

    fn finish(&self, rest: Rest, sender: &Sender<Message>) {
        if let Err(error) = rest.finish() {
            self.warn(sender, format!("its result may be lost if the machine stops now: {error}"));
        }
    }

    fn warn(&self, sender: &Sender<Message>, text: String) {
        let _ = sender.send(Message::Told(self.task, Event::Warning { text }));
    }

    /// `how`: what is to be sent of what is made here.
    fn attempt(&self, sender: &Sender<Message>, how: &mut Send) -> Result<Made, Failure> {
        let who = format!("process {} (pipeline `{}`)", std::process::id(), self.pipeline);
        let waiting = |holder: &str| drop(sender.send(Message::Waiting(self.task, holder.to_owned())));
        let stop = || self.stop.asked();
        let entered = self.store.enter(&self.fields.key(), &who, self.force, self.lock_wait, waiting, stop);
        match entered.map_err(failed)? {
            Entry::Hit(action) => Ok(Made::Found(action, None)),
            Entry::GivenUp => Ok(Made::Stopped),
            Entry::Miss(slot) => self.fetch_or_make(slot, sender, how),
        }
    }

    /// Another machine may have made it since this run began.
    fn fetch_or_make(&self, slot: Slot, sender: &Sender<Message>, how: &mut Send) -> Result<Made, Failure> {
        let Some(remote) = self.remote.filter(|_| !self.force) else { return self.make(slot, sender) };
        match remote.fetch(slot, &self.fields.explain()).map_err(failed)? {
            Fetched::Whole(result) => {
                let (action, rest) = result.store().map_err(failed)?;
                Ok(Made::Found(Box::new(action), Some(rest)))
            }
            Fetched::Kept(slot, trouble) => {
                if let Some(Trouble { text, damaged }) = trouble {
                    *how = if damaged { Send::All } else { Send::Missing };
                    self.warn(sender, format!("{text}; it is made here"));
                }
                self.make(slot, sender)
            }
        }
    }

    fn make(&self, slot: Slot, sender: &Sender<Message>) -> Result<Made, Failure> {
        let log = self.store.log_path(&slot.key());
        let elsewhere = slot.elsewhere();
        if !self.executor.goes_on(&elsewhere).map_err(failed)? {
            point("stage: before its log");
            std::fs::write(&log, "").map_err(io_at(&log)).map_err(failed)?;
        }
        let (started, clock) = (jiff::Timestamp::now(), Instant::now());
        let mut told = Told::default();
        for attempt in 0.. {
            let why = match self.launch(&slot, &log, sender, &mut told).map_err(failed)? {
                Ended::Cancelled => return Ok(Made::Stopped),
                Ended::Finished => {
                    point("stage: finished");
                    if let Err(error) = self.recheck_inputs() {
                        remove_tree(&elsewhere).map_err(failed)?;
                        return Err(failed(error));
                    }
                    let stored = slot.commit(|object| Action {
                        object,
                        kind: self.fields.kind.clone(),
                        stage: self.instance.id.0.clone(),
                        explanation: self.fields.explain(),
                        started: format!("{started:.0}"),
                        seconds: clock.elapsed().as_secs_f64(),
                        provenance: told.provenance,
                        warnings: told.warnings,
                    });
                    if stored.is_err() {
                        // What cannot be stored is no reason to go on with the job that made it.
                        remove_tree(&elsewhere).map_err(failed)?;
                    }
                    let (action, rest) = stored.map_err(failed)?;
                    return Ok(Made::Stored(Box::new(action), rest));
                }
                Ended::Failed { message, hint } => {
                    slot.lock.check().map_err(failed)?;
                    let hint = full_disk(self.store.root()).or(hint);
                    Failure {
                        log: Some(log.clone()),
                        tail: tail(&log, &message),
                        ..Failure::new(message, hint)
                    }
                }
            };
            if attempt >= self.instance.retries {
                return Err(why);
            }
            let _ = sender.send(Message::Retrying(self.task, attempt + 1, why.message));
            self.pause(attempt);
            if self.stop.asked() {
                return Ok(Made::Stopped);
            }
            slot.reset().map_err(failed)?;
        }
        unreachable!("the loop returns")
    }

    fn launch(
        &self,
        slot: &Slot,
        log: &std::path::Path,
        sender: &Sender<Message>,
        told: &mut Told,
    ) -> Result<Ended, Error> {
        let job = JobFile {
            program: JobFile::PROGRAM.to_owned(),
            kind: self.fields.kind.clone(),
            config: self.instance.config.clone(),
            inputs: self.artifacts(),
            out: slot.out(),
            work: slot.make_work()?,
            devices: self.devices(),
        };
        let file = log.with_extension("job.json");
        point("stage: before its job file");
        let text = serde_json::to_vec_pretty(&job).expect("a job is plain data");
        std::fs::write(&file, text).map_err(io_at(&file))?;
        let launch = Launch {
            job: &file,
            instead: Vec::new(),
            lock: &slot.lock.file,
            lost: slot.lock.lost().cloned(),
            log,
            env: self.env(),
            timeout: self.instance.timeout,
        };
        let order = Order {
            launch,
            lock: slot.lock_path(),
            stage: &self.instance.id.0,
            key: slot.key().to_string().chars().take(SHORT).collect(),
            elsewhere: slot.elsewhere(),
            out: slot.out(),
            resumed: slot.resumed,
            resources: &self.instance.resources,
            ranks: self.instance.ranks().unwrap_or(1),
        };
        self.executor.run(&order, self.stop, &mut |event| {
            match &event {
                Event::Provenance { name, value } => {
                    drop(told.provenance.insert(name.clone(), value.clone()))
                }
                Event::Warning { text } => told.warnings.push(text.clone()),
                _ => {}
            }
            let _ = sender.send(Message::Told(self.task, event));
        })
    }

    /// The adapters that it is given; elsewhere they are counted from 0.
    fn devices(&self) -> Vec<usize> {
        match self.instance.pool() {
            Pool::Gpu if self.executor.is_here() => self.slots.clone(),
            Pool::Gpu => (0..self.slots.len()).collect(),
            Pool::Cpu | Pool::Network => Vec::new(),
        }
    }

    fn artifacts(&self) -> Inputs {
        let artifact = |(label, digest): &(String, Digest)| Artifact {
            label: label.clone(),
            path: self.store.objects.files(digest),
        };
        let named = |(name, list): (&String, &Vec<_>)| (name.clone(), list.iter().map(artifact).collect());
        Inputs(self.inputs.iter().map(named).collect())
    }

    /// Declared variables, those that the kind needs on this machine, its secrets, and how many threads fit
    /// beside its siblings.
    fn env(&self) -> Vec<(String, String)> {
        let declared = self.instance.env.iter();
        let mut env: Vec<(String, String)> =
            declared.filter_map(|(name, value)| Some((name.clone(), env_value(name, value)?))).collect();
        let kind = self.instance.kind;
        let passed = kind.surroundings().iter().chain(kind.secrets());
        env.extend(passed.filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
        if let (false, Some(cpus)) = (self.executor.is_here(), self.instance.resources.cpus) {
            env.push(("RAYON_NUM_THREADS".to_owned(), cpus.to_string()));
        }
        if self.executor.is_here()
            && self.instance.pool() == Pool::Gpu
            && std::env::var_os("RAYON_NUM_THREADS").is_none()
        {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = (cores * self.slots.len() / self.slots_of_pool.max(1)).max(1);
            env.push(("RAYON_NUM_THREADS".to_owned(), threads.to_string()));
        }
        env
    }

    /// An input that changed under way makes the output worthless (bazel#3360).
    fn recheck_inputs(&self) -> Result<(), Error> {
        for (name, list) in &self.inputs {
            for (_, digest) in list {
                if let Err(reason) = self.store.objects.check(digest, Check::Stat)? {
                    let message =
                        format!("input `{name}` changed while the stage ran: {reason}; nothing was stored");
                    return Err(Error::new(Exit::Failed, message).hint("run again: the input is made anew"));
                }
            }
        }
        let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        let now = KeyFields::local_paths(self.instance, &mut outside)?;
        let mut params = self.fields.paths.keys().chain(now.keys());
        match params.find(|param| self.fields.paths.get(*param) != now.get(*param)) {
            Some(param) => {
                let message = format!("what `{param}` names changed while the stage ran; nothing was stored");
                Err(Error::new(Exit::Failed, message).hint("run again when it is no longer written to"))
            }
            None => Ok(()),
        }
    }

    fn pause(&self, attempt: u32) {
        let pause = BACK_OFF.saturating_mul(1 << attempt.min(6)).min(LONGEST_BACK_OFF);
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.stop.asked() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn failed(error: Error) -> Failure {
    Failure { exit: error.exit, ..Failure::new(error.message, error.hint) }
}

/// What a failure most likely comes from where the store's disk has no room left.
fn full_disk(store: &std::path::Path) -> Option<String> {
    const LITTLE: u64 = 256 << 10;
    let disk = rustix::fs::statvfs(store).ok()?;
    (disk.f_bavail * disk.f_frsize < LITTLE).then(|| {
        format!("the disk that holds `{}` is full: free some space and run again; nothing that was finished is lost", store.display())
    })
}

/// The last lines of a log, less the error that it ends in.
fn tail(log: &std::path::Path, error: &str) -> Vec<String> {
    const LINES: usize = 20;
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let text = text.rsplit_once(&format!("error: {error}")).map_or(&*text, |(before, _)| before);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
}
