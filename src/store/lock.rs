//! One lock a key: two runs never make the same thing at the same time; the second waits and reuses.
//!
//! `flock` on a file that stays: it dies with the last process that holds it open. The stage's process
//! inherits it, so an orphan in its last moments still keeps a new run out of its work folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Exit, io_at};

/// How often a waiting run looks again.
const PAUSE: Duration = Duration::from_millis(20);

/// A key's lock, held.
#[derive(Debug)]
pub struct KeyLock(pub File);

impl KeyLock {
    /// Takes the lock at `path`, waiting for at most `patience` (`None`: as long as it takes). Calls
    /// `waiting` once if it has to wait; gives up with `None` when `stop` says so.
    pub(super) fn take(
        path: &Path,
        patience: Option<Duration>,
        mut waiting: impl FnMut(),
        stop: impl Fn() -> bool,
    ) -> Result<Option<Self>, Error> {
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io_at(path))?;
        let since = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self(file))),
                Err(TryLockError::Error(error)) => return Err(Error::io(path, &error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if stop() {
                return Ok(None);
            }
            if patience.is_some_and(|patience| since.elapsed() >= patience) {
                let waited = since.elapsed().as_secs_f64();
                return Err(Error::new(
                    Exit::LockTimeout,
                    format!("another run held the stage for {waited:.1} s"),
                )
                .hint("wait longer with `--lock-wait`, or stop the other run"));
            }
            if !told {
                waiting();
                told = true;
            }
            std::thread::sleep(PAUSE);
        }
    }
}
