//! Many results at once: everything of a pipeline from there, or to there.
//!
//! A pull, and a look at what it would fetch, plays the schedule as `plan` does, with the remote's answers: a key is known when what it takes is,
//! so a chain is asked for link by link, and whatever is known at a time goes side by side.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use super::{Fetched, Remote, Send, Trouble};
use crate::digest::Digest;
use crate::error::{Error, Exit};
use crate::executor::Stop;
use crate::key::{KeyFields, StageKey};
use crate::pipeline::{Pipeline, StageId};
use crate::plan::Planned;
use crate::runner::tasks;
use crate::schedule::{Action as Do, Ending, Schedule, State, Task};
use crate::store::{Action, Entry, Prepared, Store};

/// How many results are fetched or sent at a time: each is three answers waited for, and little work.
const AT_ONCE: usize = 128;

/// How many are under way at a time: while some are fetched, others that have arrived are stored.
const UNDER_WAY: usize = 3 * AT_ONCE;

/// What was moved.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Results that were there before.
    pub present: usize,
    /// Results that were moved.
    pub moved: usize,
    /// Their bytes, as far as they were not there.
    pub bytes: u64,
    /// Stages without a result.
    pub absent: usize,
    /// What is to be told, by stage.
    pub troubles: Troubles,
}

/// What became of one key.
struct Answer {
    task: usize,
    key: StageKey,
    action: Option<Box<Action>>,
    fetched: bool,
    trouble: Option<Trouble>,
}

/// Where answers go.
type Answers = Sender<Result<Answer, Error>>;

/// A result that has arrived and is to be stored, and who waits for the answer.
struct Arrival {
    task: usize,
    key: StageKey,
    result: Prepared,
    answers: Answers,
}

/// What is to be told, by stage.
pub type Troubles = Vec<(StageId, Trouble)>;

/// Fetches every result of `pipeline` that is there and not here. `forced` instances, which are to be made
/// anew, are left out with all that hangs on them.
///
/// # Errors
/// If the store here cannot be used.
pub fn pull(
    pipeline: &Pipeline,
    store: &Store,
    forced: &[bool],
    remote: &Remote,
    stop: &Stop,
) -> Result<Moved, Error> {
    let mut moved = Moved::default();
    let (arrivals, arrived) = channel();
    let (here, absent) = std::thread::scope(|scope| {
        let storing = scope.spawn(move || store_together(scope, &arrived));
        let ask = move |task, fields: &KeyFields, answers: &Answers| {
            fetch(task, fields, store, remote, stop, answers, &arrivals)
        };
        let played = play(pipeline, store, forced, stop, ask, |id, answer| {
            moved.troubles.extend(answer.trouble.map(|trouble| (id.clone(), trouble)));
            moved.moved += usize::from(answer.fetched);
            moved.present += usize::from(!answer.fetched && answer.action.is_some());
            if let (true, Some(action)) = (answer.fetched, answer.action) {
                moved.bytes += store.objects.manifest(&action.object).map_or(0, |manifest| manifest.size());
            }
        });
        storing.join().expect("storing does not panic").and(played)
    })?;
    moved.present += here;
    moved.absent = absent;
    Ok(moved)
}

/// What `pull` would fetch, as far as actions tell, and what is to be told. Nothing is fetched.
///
/// # Errors
/// If the store here cannot be used.
pub fn look(
    pipeline: &Pipeline,
    store: &Store,
    forced: &[bool],
    remote: &Remote,
    stop: &Stop,
) -> Result<(HashMap<StageKey, Digest>, Troubles), Error> {
    let (mut found, mut troubles) = (HashMap::new(), Vec::new());
    let ask = |task, fields: &KeyFields, answers: &Answers| {
        let key = fields.key();
        let (action, trouble) = match remote.look(&key, &fields.explain()) {
            Ok(action) => (action.map(Box::new), None),
            Err(trouble) => (None, trouble),
        };
        let _ = answers.send(Ok(Answer { task, key, action, fetched: false, trouble }));
        Ok(())
    };
    play(pipeline, store, forced, stop, ask, |id, answer| {
        troubles.extend(answer.trouble.map(|trouble| (id.clone(), trouble)));
        found.extend(answer.action.map(|action| (answer.key, action.object)));
    })?;
    Ok((found, troubles))
}

/// Asks for what is not here as soon as its key is known. How many results are here, and how many nowhere.
fn play(
    pipeline: &Pipeline,
    store: &Store,
    forced: &[bool],
    stop: &Stop,
    ask: impl Fn(usize, &KeyFields, &Answers) -> Result<(), Error> + Sync,
    mut take: impl FnMut(&StageId, Answer),
) -> Result<(usize, usize), Error> {
    let ask = &ask;
    let mut here = 0;
    let alike = tasks(pipeline).into_iter().map(|task| Task { pool: String::new(), width: 1, ..task });
    let pools = BTreeMap::from([(String::new(), UNDER_WAY)]);
    let mut schedule = Schedule::new(alike.collect(), &pools, true);
    let mut known: HashMap<StageId, Digest> = HashMap::new();
    let mut asked: HashMap<usize, KeyFields> = HashMap::new();
    let mut outside = store.stat_cache();
    let (sender, receiver) = channel();
    let (orders, ordered) = channel::<(usize, KeyFields)>();
    let ordered = Mutex::new(ordered);
    let work = || {
        loop {
            let order = ordered.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((task, fields)) = order else { return };
            if let Err(error) = ask(task, &fields, &sender) {
                drop(sender.send(Err(error)));
            }
        }
    };
    std::thread::scope(|scope| {
        // Dropped at the end, which ends the workers.
        let orders = orders;
        let (mut workers, mut under_way) = (0, 0);
        loop {
            if stop.asked() {
                schedule.stop();
            }
            while let Some(action) = schedule.next_action() {
                match action {
                    Do::Check(task) => {
                        let instance = &pipeline.instances[task];
                        let left_out = forced.get(task) == Some(&true)
                            || instance.kind.moving(&instance.config).is_some();
                        let fields = if left_out {
                            None
                        } else {
                            // What cannot be read is told by the run, with its place.
                            KeyFields::of(instance, |id| known.get(id).copied(), &mut outside).ok().flatten()
                        };
                        let Some(fields) = fields else {
                            schedule.ended(task, Ending::Failed);
                            continue;
                        };
                        match store.lookup(&fields.key())? {
                            Some(action) => {
                                here += 1;
                                known.insert(instance.id.clone(), action.object);
                                schedule.checked(task, true);
                            }
                            None => {
                                asked.insert(task, fields);
                                schedule.checked(task, false);
                            }
                        }
                    }
                    Do::Start(task, _) => {
                        under_way += 1;
                        if under_way > workers && workers < AT_ONCE {
                            scope.spawn(work);
                            workers += 1;
                        }
                        let fields = asked.remove(&task).expect("it was checked");
                        orders.send((task, fields)).expect("the other end is here");
                    }
                }
            }
            if schedule.is_finished() {
                break Ok::<(), Error>(());
            }
            let Ok(answer) = receiver.recv_timeout(Duration::from_millis(50)) else { continue };
            let answer = answer?;
            under_way -= 1;
            let id = &pipeline.instances[answer.task].id;
            let ending = if answer.action.is_some() { Ending::Cached } else { Ending::Failed };
            known.extend(answer.action.as_ref().map(|action| (id.clone(), action.object)));
            schedule.ended(answer.task, ending);
            take(id, answer);
        }
    })?;
    Ok((here, schedule.states().iter().filter(|state| **state != State::Cached).count()))
}

fn fetch(
    task: usize,
    fields: &KeyFields,
    store: &Store,
    remote: &Remote,
    stop: &Stop,
    answers: &Answers,
    arrivals: &Sender<Arrival>,
) -> Result<(), Error> {
    let who = format!("process {} (fetches from a remote)", std::process::id());
    let key = fields.key();
    // Nobody is left to tell where another thread has failed.
    let tell = |action, trouble| {
        drop(answers.send(Ok(Answer { task, key, action, fetched: false, trouble })));
    };
    let patience = Some(Duration::ZERO);
    match store.enter(&key, &who, false, patience, |_| {}, || stop.asked()) {
        Ok(Entry::Hit(action)) => tell(Some(action), None),
        // Another run is making it.
        Ok(Entry::GivenUp) => tell(None, None),
        Err(error) if error.exit == Exit::LockTimeout => tell(None, None),
        Err(error) => return Err(error),
        Ok(Entry::Miss(slot)) => match remote.fetch(slot, &fields.explain())? {
            Fetched::Whole(result) => {
                drop(arrivals.send(Arrival { task, key, result: *result, answers: answers.clone() }));
            }
            Fetched::Kept(_, trouble) => tell(None, trouble),
        },
    }
    Ok(())
}

/// Stores what arrives, each time all that has arrived meanwhile, and answers for it. What is left to do then
/// is done beside the next ones' storing.
fn store_together<'scope>(
    scope: &'scope Scope<'scope, '_>,
    arrived: &Receiver<Arrival>,
) -> Result<(), Error> {
    let mut rests = Vec::new();
    while let Ok(first) = arrived.recv() {
        let mut waiting = Vec::new();
        let results = std::iter::once(first).chain(arrived.try_iter()).map(|arrival| {
            let Arrival { task, key, result, answers } = arrival;
            waiting.push((task, key, answers));
            result
        });
        match Prepared::store_all(results.collect()) {
            Ok((actions, rest)) => {
                for ((task, key, answers), action) in waiting.into_iter().zip(actions) {
                    let action = Some(Box::new(action));
                    drop(answers.send(Ok(Answer { task, key, action, fetched: true, trouble: None })));
                }
                rests.push(scope.spawn(|| rest.finish()));
            }
            Err(error) => drop(waiting[0].2.send(Err(error))),
        }
    }
    rests.into_iter().try_for_each(|rest| rest.join().expect("flushing does not panic"))
}

/// Sends the stored results of `planned` that are not there.
#[must_use]
pub fn push(planned: &[Planned], store: &Store, remote: &Remote, how: Send, stop: &Stop) -> Moved {
    let stored: Vec<(&StageId, StageKey, &Action)> =
        planned.iter().filter_map(|one| Some((&one.id, one.key?, one.action.as_ref()?))).collect();
    let moved = Mutex::new(Moved { absent: planned.len() - stored.len(), ..Moved::default() });
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        while let Some((id, key, action)) =
            stored.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        {
            if stop.asked() {
                return;
            }
            let outcome = remote.send_if_new(store, key, action, how);
            let mut moved = moved.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(Some(bytes)) => {
                    moved.moved += 1;
                    moved.bytes += bytes;
                }
                Ok(None) => moved.present += 1,
                Err(trouble) => {
                    moved.absent += 1;
                    moved.troubles.extend(trouble.map(|trouble| ((*id).clone(), trouble)));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(stored.len()) {
            scope.spawn(work);
        }
    });
    moved.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    /// Sends a result unless it is there. How many bytes went.
    fn send_if_new(
        &self,
        store: &Store,
        key: &StageKey,
        action: &Action,
        how: Send,
    ) -> Result<Option<u64>, Option<Trouble>> {
        if how == Send::Missing
            && !self.writes.is_down()
            && self.writes.note(self.has(key, action), self.url())?
        {
            return Ok(None);
        }
        self.send(store, key, action, how).map(Some)
    }
}
