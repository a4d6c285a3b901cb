//! Runs a pipeline: does what the schedule says, and tells it what came of it.
//!
//! One thread decides; a thread per running stage waits for its lock and its process. Nothing is printed
//! here: what happens goes to a [`Progress`].

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::{Event, Pool};

use crate::digest::Digest;
use crate::error::Error;
use crate::executor::{Executor, Stop};
use crate::key::{KeyFields, StageKey};
use crate::pipeline::{Instance, Pipeline, StageId};
use crate::progress::{Failure, Progress, Update};
use crate::remote::Remote;
use crate::schedule::{Action as Do, Ending, Schedule, State, Task};
use crate::store::{Action, StatCache, Store};

use stage::Attempt;

mod stage;

/// How often signals are looked for while nothing happens.
const TICK: Duration = Duration::from_millis(50);

/// What to run, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Instances that take part but must not run: their results have to be in the store.
    pub frozen: Vec<bool>,
    /// Instances that run even if their results are stored.
    pub forced: Vec<bool>,
    /// After a failure, go on with what does not need it.
    pub keep_going: bool,
    /// At most this many stages side by side.
    pub jobs: Option<usize>,
    /// How long to wait for another run that makes the same thing.
    pub lock_wait: Option<Duration>,
    /// Pool name → slots.
    pub pools: BTreeMap<String, usize>,
    /// Where results may be had from and are sent to.
    pub remote: Option<Arc<Remote>>,
    /// What was seen there: for a plan, which asks nobody.
    pub away: HashMap<StageKey, Digest>,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// One per instance, in the pipeline's order.
    pub stages: Vec<StageOutcome>,
    /// How long it took.
    pub elapsed: Duration,
}

/// How one stage went.
#[derive(Clone, Debug)]
pub struct StageOutcome {
    /// The instance.
    pub id: StageId,
    /// Where it ended.
    pub state: State,
    /// Its key, if it came that far.
    pub key: Option<StageKey>,
    /// Its result, if it has one.
    pub made: Option<Made>,
    /// Why it has none.
    pub failure: Option<Failure>,
    /// What its key is made of, if it came that far and has no result: else its action says so.
    pub fields: Option<Box<KeyFields>>,
    /// The slots of its pool that it was given; none if it did not run.
    pub slots: Vec<usize>,
    /// When it started and ended, counted from the run's start. A wait for another run is part of it.
    pub span: Option<(Duration, Duration)>,
}

/// A stage's result, as far as a run needs it: the store knows the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Made {
    /// The output.
    pub object: Digest,
    /// How long it took when it was made.
    pub seconds: f64,
}

impl From<&Action> for Made {
    fn from(action: &Action) -> Self {
        Self { object: action.object, seconds: action.seconds }
    }
}

/// What a stage's thread tells the deciding one.
enum Message {
    Told(usize, Event),
    Waiting(usize, String),
    Retrying(usize, u32, String),
    Ended(usize, Ending, Option<Box<Action>>, Option<Failure>),
}

/// Runs `pipeline` to its end, or until `stop` is asked.
///
/// # Errors
/// If the store cannot be used. A stage's failure is part of the outcome.
pub fn run(
    pipeline: &Pipeline,
    store: &Store,
    options: &Options,
    executor: &dyn Executor,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<Outcome, Error> {
    let started = Instant::now();
    store.sweep();
    let outside = Mutex::new(store.stat_cache());
    let mut run = Run::new(pipeline, store, options, executor, progress, stop, &outside);
    let (sender, receiver) = channel();
    let result = std::thread::scope(|scope| {
        let result = run.until_finished(&sender, &receiver, |attempt, sender| {
            scope.spawn(move || attempt.run(&sender));
        });
        if result.is_err() {
            // Leaving the scope waits for what runs; an unusable store is no reason to finish it.
            stop.ask();
        }
        result
    });
    result?;
    // What was told after the last stage had ended.
    while let Ok(message) = receiver.try_recv() {
        run.take(message)?;
    }
    Ok(Outcome { stages: run.outcomes, elapsed: started.elapsed() })
}

struct Run<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    options: &'a Options,
    executor: &'a dyn Executor,
    progress: &'a dyn Progress,
    stop: &'a Stop,
    schedule: Schedule,
    outcomes: Vec<StageOutcome>,
    objects: HashMap<StageId, Digest>,
    started: Instant,
    /// Digests of files outside the store.
    outside: &'a Mutex<StatCache>,
    /// Keys that this run is making, by the task that makes them.
    making: HashMap<StageKey, usize>,
    /// Tasks that wait for another task, which makes the same.
    twins: HashMap<usize, Vec<usize>>,
}

impl<'a> Run<'a> {
    fn new(
        pipeline: &'a Pipeline,
        store: &'a Store,
        options: &'a Options,
        executor: &'a dyn Executor,
        progress: &'a dyn Progress,
        stop: &'a Stop,
        outside: &'a Mutex<StatCache>,
    ) -> Self {
        let schedule = Schedule::new(tasks(pipeline), &options.pools, options.keep_going);
        let outcome = |instance: &Instance| StageOutcome {
            id: instance.id.clone(),
            state: State::Waiting,
            key: None,
            made: None,
            failure: None,
            fields: None,
            slots: Vec::new(),
            span: None,
        };
        Self {
            pipeline,
            store,
            options,
            executor,
            progress,
            stop,
            schedule: schedule.limited(options.jobs.unwrap_or(usize::MAX)),
            outcomes: pipeline.instances.iter().map(outcome).collect(),
            objects: HashMap::new(),
            started: Instant::now(),
            outside,
            making: HashMap::new(),
            twins: HashMap::new(),
        }
    }

    fn until_finished(
        &mut self,
        sender: &Sender<Message>,
        receiver: &Receiver<Message>,
        spawn: impl Fn(Attempt<'a>, Sender<Message>),
    ) -> Result<(), Error> {
        loop {
            if self.stop.asked() {
                self.schedule.stop();
            }
            while let Some(action) = self.schedule.next_action() {
                match action {
                    Do::Check(task) => self.check(task)?,
                    Do::Start(task, slots) => {
                        self.progress
                            .update(&self.pipeline.instances[task].id, &Update::Started { slots: &slots });
                        let now = self.started.elapsed();
                        self.outcomes[task].span = Some((now, now));
                        self.outcomes[task].slots.clone_from(&slots);
                        spawn(self.attempt(task, slots), sender.clone());
                    }
                }
            }
            if self.schedule.is_finished() {
                break;
            }
            match receiver.recv_timeout(TICK) {
                Ok(message) => self.take(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this function holds a sender"),
            }
        }
        for (outcome, state) in self.outcomes.iter_mut().zip(self.schedule.states()) {
            outcome.state = *state;
        }
        Ok(())
    }

    /// Asks the store for a task whose inputs are all there.
    fn check(&mut self, task: usize) -> Result<(), Error> {
        let instance = &self.pipeline.instances[task];
        if let Some(moving) = instance.kind.moving(&instance.config) {
            let message = format!("its `{}` is not pinned: {}", moving.param, moving.name);
            self.end(task, Ending::Failed, None, Some(Failure::new(message, None)));
            return Ok(());
        }
        let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        let fields = KeyFields::of(instance, |id| self.objects.get(id).copied(), &mut outside);
        drop(outside);
        let fields = match fields {
            Ok(fields) => fields.expect("a ready task's inputs are known"),
            Err(error) => {
                self.end(task, Ending::Failed, None, Some(Failure::new(error.message, error.hint)));
                return Ok(());
            }
        };
        let key = fields.key();
        self.outcomes[task].key = Some(key);
        let forced = self.options.forced.get(task).copied().unwrap_or(false);
        let hit = if forced { None } else { self.store.lookup(&key)? };
        let frozen = self.options.frozen.get(task).copied().unwrap_or(false);
        match hit {
            Some(action) => {
                self.store.note_latest(&self.pipeline.name, &instance.id.0, &action)?;
                self.objects.insert(instance.id.clone(), action.object);
                self.outcomes[task].made = Some(Made::from(&action));
                self.schedule.checked(task, true);
                self.progress.update(
                    &instance.id,
                    &Update::Ended { state: State::Cached, seconds: 0.0, failure: None },
                );
            }
            None if frozen => {
                let message =
                    "its result is not in the store, and it is not among the stages to run".to_owned();
                let hint = Some("use `--until` in place of `--only`".to_owned());
                self.outcomes[task].fields = Some(Box::new(fields));
                self.end(task, Ending::Failed, None, Some(Failure::new(message, hint)));
            }
            None => {
                self.outcomes[task].fields = Some(Box::new(fields));
                if let Some(first) = self.making.get(&key).filter(|_| !forced) {
                    // It stays ready, and is checked again when the other has ended.
                    self.twins.entry(*first).or_default().push(task);
                } else {
                    self.making.entry(key).or_insert(task);
                    self.schedule.checked(task, false);
                }
            }
        }
        Ok(())
    }

    fn attempt(&self, task: usize, slots: Vec<usize>) -> Attempt<'a> {
        let instance = &self.pipeline.instances[task];
        let inputs = instance.inputs.iter().map(|(name, producers)| {
            let artifacts =
                producers.iter().map(|input| (input.label.clone(), self.objects[&input.producer]));
            (name.clone(), artifacts.collect())
        });
        Attempt {
            task,
            pipeline: &self.pipeline.name,
            instance,
            store: self.store,
            outside: self.outside,
            executor: self.executor,
            stop: self.stop,
            fields: *self.outcomes[task].fields.clone().expect("a queued task was checked"),
            inputs: inputs.collect(),
            slots,
            slots_of_pool: self.options.pools.get(instance.pool().name()).copied().unwrap_or(1),
            force: self.options.forced.get(task).copied().unwrap_or(false),
            lock_wait: self.options.lock_wait,
            remote: self.options.remote.as_deref(),
        }
    }

    fn take(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Told(task, event) => {
                self.progress.update(&self.pipeline.instances[task].id, &Update::Told(&event));
            }
            Message::Waiting(task, holder) => {
                let update = Update::Waiting { holder: &holder };
                self.progress.update(&self.pipeline.instances[task].id, &update);
            }
            Message::Retrying(task, attempt, why) => {
                self.progress
                    .update(&self.pipeline.instances[task].id, &Update::Retrying { attempt, why: &why });
            }
            Message::Ended(task, ending, action, failure) => {
                if let Some(action) = &action {
                    self.store.note_latest(
                        &self.pipeline.name,
                        &self.pipeline.instances[task].id.0,
                        action,
                    )?;
                }
                self.end(task, ending, action, failure);
            }
        }
        Ok(())
    }

    fn end(&mut self, task: usize, ending: Ending, action: Option<Box<Action>>, failure: Option<Failure>) {
        let id = &self.pipeline.instances[task].id;
        let seconds = action.as_ref().map_or(0.0, |action| action.seconds);
        if let Some(action) = action {
            self.objects.insert(id.clone(), action.object);
            self.outcomes[task].made = Some(Made::from(&*action));
            self.outcomes[task].fields = None;
        }
        self.schedule.ended(task, ending);
        if let Some(key) = self.outcomes[task].key
            && self.making.get(&key) == Some(&task)
        {
            self.making.remove(&key);
        }
        for twin in self.twins.remove(&task).unwrap_or_default() {
            self.schedule.check_again(twin);
        }
        let state = self.schedule.states()[task];
        self.progress.update(id, &Update::Ended { state, seconds, failure: failure.as_ref() });
        self.outcomes[task].failure = failure;
        if let Some((_, end)) = &mut self.outcomes[task].span {
            *end = self.started.elapsed();
        }
    }
}

/// The pipeline as the schedule sees it.
#[must_use]
pub fn tasks(pipeline: &Pipeline) -> Vec<Task> {
    let index: HashMap<&StageId, usize> =
        pipeline.instances.iter().enumerate().map(|(index, instance)| (&instance.id, index)).collect();
    let task = |instance: &Instance| {
        let producers = instance.inputs.values().flatten();
        let mut needs: Vec<usize> =
            producers.filter_map(|input| index.get(&input.producer).copied()).collect();
        needs.sort_unstable();
        needs.dedup();
        Task { needs, pool: instance.pool().name().to_owned(), width: width(instance) }
    };
    pipeline.instances.iter().map(task).collect()
}

/// How many slots of its pool an instance asks for.
#[must_use]
pub fn width(instance: &Instance) -> usize {
    let devices = instance.config.get("devices").and_then(serde_json::Value::as_u64);
    let (cpus, gpus) = (instance.resources.cpus, instance.resources.gpus);
    let slots = match (instance.pool(), devices) {
        (Pool::Gpu, Some(devices)) => usize::try_from(devices).ok(),
        (Pool::Gpu, None) => gpus.and_then(|gpus| usize::try_from(gpus).ok()),
        (Pool::Cpu, _) => cpus.and_then(|cpus| usize::try_from(cpus).ok()),
        _ => None,
    };
    slots.unwrap_or(1).max(1) * instance.ranks().unwrap_or(1)
}
