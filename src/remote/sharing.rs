//! Many results at once: everything of a pipeline from there, or to there.
//!
//! A pull plays the schedule as `plan` does, with the remote's answers: a key is known when what it takes is,
//! so a chain is asked for link by link, and whatever is known at a time goes side by side.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
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
use crate::store::{Action, Entry, Store};

/// How many results are under way at a time.
const AT_ONCE: usize = 32;

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
    pub troubles: Vec<(StageId, Trouble)>,
}

/// What became of one key.
struct Answer {
    task: usize,
    action: Option<Box<Action>>,
    fetched: bool,
    trouble: Option<Trouble>,
}

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
    let alike = tasks(pipeline).into_iter().map(|task| Task { pool: String::new(), width: 1, ..task });
    let pools = BTreeMap::from([(String::new(), AT_ONCE)]);
    let mut schedule = Schedule::new(alike.collect(), &pools, true);
    let mut known: HashMap<StageId, Digest> = HashMap::new();
    let mut asked: HashMap<usize, KeyFields> = HashMap::new();
    let (mut moved, mut outside) = (Moved::default(), store.stat_cache());
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
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
                                moved.present += 1;
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
                        let (fields, sender) = (asked.remove(&task).expect("it was checked"), sender.clone());
                        scope.spawn(move || {
                            let answer = fetch(task, &fields, store, remote, stop, &sender);
                            if let Err(error) = answer {
                                let _ = sender.send(Err(error));
                            }
                        });
                    }
                }
            }
            if schedule.is_finished() {
                break Ok::<(), Error>(());
            }
            let Ok(answer) = receiver.recv_timeout(Duration::from_millis(50)) else { continue };
            let Answer { task, action, fetched, trouble } = answer?;
            let id = &pipeline.instances[task].id;
            moved.troubles.extend(trouble.map(|trouble| (id.clone(), trouble)));
            match action {
                Some(action) => {
                    known.insert(id.clone(), action.object);
                    moved.moved += usize::from(fetched);
                    moved.present += usize::from(!fetched);
                    if fetched {
                        moved.bytes +=
                            store.objects.manifest(&action.object).map_or(0, |manifest| manifest.size());
                    }
                    schedule.ended(task, Ending::Cached);
                }
                None => schedule.ended(task, Ending::Failed),
            }
        }
    })?;
    moved.absent = schedule.states().iter().filter(|state| **state != State::Cached).count();
    Ok(moved)
}

fn fetch(
    task: usize,
    fields: &KeyFields,
    store: &Store,
    remote: &Remote,
    stop: &Stop,
    sender: &std::sync::mpsc::Sender<Result<Answer, Error>>,
) -> Result<(), Error> {
    let who = format!("process {} (fetches from a remote)", std::process::id());
    let tell = |action, fetched, trouble| {
        // Nobody is left to tell where another thread has failed.
        let _ = sender.send(Ok(Answer { task, action, fetched, trouble }));
    };
    let patience = Some(Duration::ZERO);
    match store.enter(&fields.key(), &who, false, patience, |_| {}, || stop.asked()) {
        Ok(Entry::Hit(action)) => tell(Some(action), false, None),
        // Another run is making it.
        Ok(Entry::GivenUp) => tell(None, false, None),
        Err(error) if error.exit == Exit::LockTimeout => tell(None, false, None),
        Err(error) => return Err(error),
        Ok(Entry::Miss(slot)) => match remote.fetch(slot, &fields.explain())? {
            Fetched::Stored(action, rest) => {
                tell(Some(action), true, None);
                rest.finish()?;
            }
            Fetched::Kept(_, trouble) => tell(None, false, trouble),
        },
    }
    Ok(())
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
