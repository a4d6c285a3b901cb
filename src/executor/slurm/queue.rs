//! What Slurm's queue says of this user's jobs: one `squeue` for all of them, asked seldom.
//!
//! Every second at first, up to every half minute while nothing changes. What ends with a record is
//! noticed by the record; the queue is for jobs that wait, and for those that end without a word.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::ask;
use crate::error::Error;

/// The shortest time between two looks.
const OFTEN: Duration = Duration::from_secs(1);

/// The longest.
const SELDOM: Duration = Duration::from_secs(30);

/// States in which a job does not come back by itself.
const OVER: [&str; 9] = [
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
];

/// A job as the queue shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The job's name.
    pub name: String,
    /// `PENDING`, `RUNNING`, …
    pub state: String,
    /// Why it waits.
    pub reason: String,
}

impl Seen {
    /// Whether it runs, or will.
    pub fn is_alive(&self) -> bool {
        !OVER.contains(&&*self.state)
    }

    /// Whether it waits for its turn.
    pub fn waits(&self) -> bool {
        self.state == "PENDING"
    }
}

/// The last look, shared by all that follow a job.
#[derive(Default)]
pub struct Queue(Mutex<Look>);

#[derive(Default)]
struct Look {
    /// When the look that `jobs` comes from began.
    at: Option<Instant>,
    /// When it was last tried.
    tried: Option<Instant>,
    period: Duration,
    jobs: HashMap<String, Seen>,
    /// Why the last look saw nothing.
    trouble: Option<String>,
}

impl Queue {
    /// What a look that began after `since` says of job `id`: `None` if there was none yet, `Some(None)`
    /// if the queue does not know the job.
    pub fn see(&self, id: &str, since: Instant) -> Option<Option<Seen>> {
        self.look(|look| {
            let new = look.at.is_some_and(|at| at > since);
            new.then(|| look.jobs.get(id).cloned())
        })
    }

    /// The number of the job called `name`, by a look that begins now.
    pub fn find(&self, name: &str) -> Result<Option<String>, Error> {
        let jobs = squeue()?;
        Ok(jobs.into_iter().find(|(_, seen)| seen.name == name).map(|(id, _)| id))
    }

    /// Why the last look saw nothing, if it did not.
    pub fn trouble(&self) -> Option<String> {
        self.look(|look| look.trouble.clone())
    }

    /// Something is about to change: looks often again.
    pub fn hurry(&self) {
        let mut look = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        look.period = OFTEN;
    }

    fn look<T>(&self, answer: impl FnOnce(&Look) -> T) -> T {
        let mut look = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if look.tried.is_none_or(|tried| tried.elapsed() >= look.period) {
            look.renew();
        }
        answer(&look)
    }
}

impl Look {
    fn renew(&mut self) {
        let begun = Instant::now();
        let seen = squeue();
        self.tried = Some(Instant::now());
        // A controller that does not answer says nothing of the jobs: what was known stays.
        let changed = match seen {
            Ok(jobs) => {
                let changed = jobs != self.jobs;
                (self.at, self.jobs, self.trouble) = (Some(begun), jobs, None);
                changed
            }
            Err(error) => {
                self.trouble = Some(error.message);
                false
            }
        };
        self.period = if changed { OFTEN } else { (self.period * 3 / 2).clamp(OFTEN, SELDOM) };
    }
}

fn squeue() -> Result<HashMap<String, Seen>, Error> {
    let mut command = Command::new("squeue");
    command.args(["--me", "--noheader", "--states=all", "--format=%i|%T|%j|%r"]);
    let text = ask(&mut command)?;
    Ok(text.lines().filter_map(read).collect())
}

fn read(line: &str) -> Option<(String, Seen)> {
    let mut parts = line.trim().splitn(4, '|').map(str::to_owned);
    let (id, state, name, reason) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((id, Seen { name, state, reason }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_a_state_told() {
        let (id, seen) = read("17|PENDING|pipe.1a2b.c|Resources").unwrap();
        assert_eq!((&*id, &*seen.name, &*seen.reason), ("17", "pipe.1a2b.c", "Resources"));
        assert!(seen.is_alive() && seen.waits());
        for state in ["COMPLETING", "REQUEUED", "SUSPENDED", "PREEMPTED"] {
            assert!(Seen { state: state.into(), ..seen.clone() }.is_alive(), "{state} may come back");
        }
        assert!(!Seen { state: "NODE_FAIL".into(), ..seen }.is_alive());
        assert_eq!(read("slurm_load_jobs error"), None);
    }
}
