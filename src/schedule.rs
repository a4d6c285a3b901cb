//! What to do next. A state machine without I/O: events in, actions out.
//!
//! ```text
//! Waiting → Ready → Queued → Running → Done | Failed | Cancelled
//!              └──▶ Cached                      (Skipped: something it needs failed or was not wanted)
//! ```
//!
//! A stage is Ready when all it needs is Done or Cached; the runner then looks it up ([`Action::Check`]):
//! a hit makes it Cached and opens what hangs below (early cutoff is nothing more than this), a miss
//! queues it for its pool. It knows nothing of keys, stores or processes.

use std::collections::{BTreeMap, VecDeque};

/// Where a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Something it needs is not there yet.
    Waiting,
    /// All it needs is there; the store must be asked.
    Ready,
    /// It must run and waits for its pool.
    Queued,
    /// It runs.
    Running,
    /// It ran and its output is stored.
    Done,
    /// Its output was in the store.
    Cached,
    /// It ran and failed.
    Failed,
    /// It was stopped, or never started because the run stopped.
    Cancelled,
    /// Something it needs failed.
    Skipped,
}

impl State {
    /// Whether nothing more happens to it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Ready | Self::Queued | Self::Running)
    }

    /// Whether its output is there.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Done | Self::Cached)
    }
}

/// What a stage needs to know of itself to be scheduled.
#[derive(Clone, Debug)]
pub struct Task {
    /// The tasks whose output it takes.
    pub needs: Vec<usize>,
    /// The pool it occupies.
    pub pool: String,
    /// How many slots of it.
    pub width: usize,
}

/// What the runner is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the store for the task's key; answer with [`Schedule::checked`].
    Check(usize),
    /// Start it on these slots of its pool; answer with [`Schedule::ended`].
    Start(usize, Vec<usize>),
}

/// How a running task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its output is stored.
    Done,
    /// Another run had made its output in the meantime.
    Cached,
    /// It failed.
    Failed,
    /// It was stopped.
    Cancelled,
}

/// The state of a run.
#[derive(Debug)]
pub struct Schedule {
    tasks: Vec<Task>,
    states: Vec<State>,
    missing: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    ready: VecDeque<usize>,
    queued: BTreeMap<String, VecDeque<usize>>,
    free: BTreeMap<String, Vec<usize>>,
    held: BTreeMap<usize, Vec<usize>>,
    keep_going: bool,
    stopping: bool,
    jobs: usize,
    unfinished: usize,
}

impl Schedule {
    /// A run of `tasks` on `pools` (name → slots). A pool that is not named has one slot. A task wider
    /// than its pool takes the whole pool.
    #[must_use]
    pub fn new(tasks: Vec<Task>, pools: &BTreeMap<String, usize>, keep_going: bool) -> Self {
        let mut dependents = vec![Vec::new(); tasks.len()];
        for (task, Task { needs, .. }) in tasks.iter().enumerate() {
            for &need in needs {
                dependents[need].push(task);
            }
        }
        let mut free = BTreeMap::new();
        for task in &tasks {
            let slots = pools.get(&task.pool).copied().unwrap_or(1).max(1);
            free.entry(task.pool.clone()).or_insert_with(|| (0..slots).rev().collect::<Vec<usize>>());
        }
        let missing: Vec<usize> = tasks.iter().map(|task| task.needs.len()).collect();
        let mut schedule = Self {
            states: vec![State::Waiting; tasks.len()],
            missing,
            dependents,
            ready: VecDeque::new(),
            queued: BTreeMap::new(),
            free,
            held: BTreeMap::new(),
            keep_going,
            stopping: false,
            jobs: usize::MAX,
            unfinished: tasks.len(),
            tasks,
        };
        for task in &mut schedule.tasks {
            task.width = task.width.clamp(1, schedule.free[&task.pool].len());
        }
        for task in 0..schedule.tasks.len() {
            if schedule.missing[task] == 0 {
                schedule.set(task, State::Ready);
            }
        }
        schedule
    }

    /// The same run with at most `jobs` tasks running side by side, whatever their pools.
    #[must_use]
    pub fn limited(mut self, jobs: usize) -> Self {
        self.jobs = jobs.max(1);
        self
    }

    /// Where each task stands.
    #[must_use]
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.unfinished == 0
    }

    /// The next thing to do, if there is one now.
    pub fn next_action(&mut self) -> Option<Action> {
        if self.stopping {
            return None;
        }
        if let Some(task) = self.ready.pop_front() {
            return Some(Action::Check(task));
        }
        if self.held.len() >= self.jobs {
            return None;
        }
        for (pool, queue) in &mut self.queued {
            let Some(&task) = queue.front() else { continue };
            let free = self.free.get_mut(pool).expect("every task's pool was made");
            let width = self.tasks[task].width;
            // The head of the queue waits for its slots; nothing narrower overtakes it, or it would starve.
            if free.len() >= width {
                queue.pop_front();
                let mut slots = free.split_off(free.len() - width);
                slots.sort_unstable();
                self.held.insert(task, slots.clone());
                self.set(task, State::Running);
                return Some(Action::Start(task, slots));
            }
        }
        None
    }

    /// The store's answer to [`Action::Check`].
    pub fn checked(&mut self, task: usize, hit: bool) {
        assert_eq!(self.states[task], State::Ready, "only a ready task is checked");
        self.set(task, if hit { State::Cached } else { State::Queued });
    }

    /// Asks for [`Action::Check`] of a task once more: the first time another task was making the same.
    pub fn check_again(&mut self, task: usize) {
        if self.states[task] == State::Ready {
            self.ready.push_back(task);
        }
    }

    /// How a task that was started, or could not be checked, ended.
    pub fn ended(&mut self, task: usize, ending: Ending) {
        assert!(matches!(self.states[task], State::Running | State::Ready), "only a started task ends");
        if let Some(slots) = self.held.remove(&task) {
            let free = self.free.get_mut(&self.tasks[task].pool).expect("it came from this pool");
            free.extend(slots);
            free.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.set(
            task,
            match ending {
                Ending::Done => State::Done,
                Ending::Cached => State::Cached,
                Ending::Failed => State::Failed,
                Ending::Cancelled => State::Cancelled,
            },
        );
        if ending == Ending::Failed && !self.keep_going {
            self.stop();
        }
    }

    /// Starts nothing more. What runs goes on until it is reported as ended.
    pub fn stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        for task in 0..self.tasks.len() {
            if !self.states[task].is_final() && self.states[task] != State::Running {
                self.set_one(task, State::Cancelled);
            }
        }
    }

    /// Every transition is made here, and what follows from it for the tasks below.
    fn set(&mut self, task: usize, state: State) {
        self.set_one(task, state);
        match state {
            State::Done | State::Cached => {
                for dependent in self.dependents[task].clone() {
                    self.missing[dependent] -= 1;
                    if self.missing[dependent] == 0 && self.states[dependent] == State::Waiting {
                        self.set_one(dependent, State::Ready);
                    }
                }
            }
            State::Failed | State::Cancelled | State::Skipped => self.skip_below(task),
            State::Waiting | State::Ready | State::Queued | State::Running => {}
        }
    }

    /// A list and no recursion: a chain may be longer than the stack is deep.
    fn skip_below(&mut self, task: usize) {
        let mut below = vec![task];
        while let Some(task) = below.pop() {
            for dependent in self.dependents[task].clone() {
                if self.states[dependent] == State::Waiting {
                    self.set_one(dependent, State::Skipped);
                    below.push(dependent);
                }
            }
        }
    }

    fn set_one(&mut self, task: usize, state: State) {
        self.unfinished -= usize::from(state.is_final() && !self.states[task].is_final());
        self.states[task] = state;
        match state {
            State::Ready => self.ready.push_back(task),
            State::Queued => self.queued.entry(self.tasks[task].pool.clone()).or_default().push_back(task),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
