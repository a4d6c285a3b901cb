//! `pipe logs --follow`: prints a stage's log as it grows, until the stage ends.
//!
//! Whether it still runs is told by its key's lock, which is held from the first attempt through every retry
//! to the last; so a retry is followed and a killed run is noticed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use super::super::print;
use super::super::session::Session;
use super::Logs;
use crate::error::{Error, Exit, io_at};
use crate::key::StageKey;
use crate::plan::plan;

/// How often a log is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// How often it looks whether a stage that is still to come has started.
const LONG_PAUSE: Duration = Duration::from_millis(200);

/// Follows the one stage that was named. A stage that is still to come is waited for while a run goes on.
pub fn follow(args: &Logs, session: &Session, found: &[usize]) -> Result<Exit, Error> {
    let &[index] = found else {
        let names: Vec<String> =
            found.iter().map(|&one| format!("`{}`", session.pipeline.instances[one].id)).collect();
        return Err(Error::usage(format!("`{}` has {} instances", args.stage, found.len()))
            .hint(format!("follow one of {}", names.join(", "))));
    };
    let store = &session.store;
    let id = &session.pipeline.instances[index].id;
    let mut told = false;
    let key = loop {
        // Before the plan: what is going on after a look that found no run is another run's.
        let running = !store.running().is_empty();
        let planned = plan(&session.pipeline, store, &session.options)?;
        match planned[index].key {
            Some(key) if planned[index].action.is_some() || store.is_running(&key) => break key,
            Some(key) if !running && store.log_path(&key).exists() => break key,
            _ if running => {
                if !told {
                    anstream::eprintln!("waiting for `{id}` to start");
                    told = true;
                }
                std::thread::sleep(LONG_PAUSE);
            }
            _ => {
                return Err(Error::new(
                    Exit::Failed,
                    format!("`{id}` has not run yet, and nothing is running"),
                )
                .hint(format!("run it: `pipe run {}`", args.file.pipeline.display())));
            }
        }
    };
    let log = store.log_path(&key);
    let mut tail = Tail::default();
    while store.is_running(&key) {
        tail.print(&log, false)?;
        std::thread::sleep(PAUSE);
    }
    tail.print(&log, true)?;
    finished(session, id, &key)
}

fn finished(session: &Session, id: &crate::pipeline::StageId, key: &StageKey) -> Result<Exit, Error> {
    match session.store.lookup(key)? {
        Some(_) => Ok(Exit::Ok),
        None => Err(Error::new(Exit::Failed, format!("`{id}` did not finish"))
            .hint("`pipe run` goes on from where it was")),
    }
}

/// How much of a log was printed.
#[derive(Default)]
struct Tail {
    printed: u64,
}

impl Tail {
    /// Prints what has come since the last time; from the start where the log was begun anew. Whole lines,
    /// so that no letter is cut in two, unless it `ends`.
    fn print(&mut self, log: &Path, ends: bool) -> Result<(), Error> {
        let Ok(mut file) = File::open(log) else { return Ok(()) };
        let length = file.metadata().map_err(io_at(log))?.len();
        if length < self.printed {
            self.printed = 0;
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.printed)).map_err(io_at(log))?;
        file.take(length - self.printed).read_to_end(&mut bytes).map_err(io_at(log))?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        if !ends {
            bytes.truncate(whole);
        } else if whole < bytes.len() {
            bytes.push(b'\n');
        }
        self.printed += bytes.len() as u64;
        print(&String::from_utf8_lossy(&bytes)).map(drop)
    }
}
