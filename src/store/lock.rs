//! One lock a key: two runs never make the same thing at the same time; the second waits and reuses.
//!
//! `flock` on a file that stays: it dies with the last process that holds it open. The stage's process
//! inherits it, so an orphan in its last moments still keeps a new run out of its work folder. The file
//! says who took it last, so that a waiting run can tell for whom it waits; nothing else goes by that.
//! Where other machines may see the store, a [`lease`](super::lease) is taken on top.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::lease::{Lease, Leases, Watch};
use crate::error::{Error, Exit, io_at};

/// How often a waiting run looks again.
const PAUSE: Duration = Duration::from_millis(20);

/// A key's lock, held.
#[derive(Debug)]
pub struct KeyLock {
    /// What the stage's process inherits.
    pub file: File,
    lease: Option<Box<Lease>>,
}

impl KeyLock {
    /// Takes the lock at `path` in the name of `who`, waiting for at most `patience` (`None`: as long as
    /// it takes). Calls `waiting` with the holder once if it has to wait; gives up with `None` when
    /// `stop` says so.
    pub(super) fn take(
        path: &Path,
        leases: Option<&Leases>,
        who: &str,
        patience: Option<Duration>,
        mut waiting: impl FnMut(&str),
        stop: impl Fn() -> bool,
    ) -> Result<Option<Self>, Error> {
        // To read as well: NFS gives a shared lock to readers alone.
        let mut file =
            OpenOptions::new().create(true).read(true).append(true).open(path).map_err(io_at(path))?;
        let (since, mut told, mut watch) = (Instant::now(), false, Watch::default());
        loop {
            let mut elsewhere = None;
            match file.try_lock() {
                Ok(()) => {
                    let lease = match leases {
                        Some(leases) => {
                            let beside = path.with_extension("lease");
                            Some(leases.take(&beside, who, &mut watch).map_err(io_at(&beside))?)
                        }
                        None => None,
                    };
                    match lease.transpose() {
                        Ok(lease) => {
                            // For people only: a disk that is full is told by what needs it.
                            let _ = file.set_len(0).and_then(|()| file.write_all(who.as_bytes()));
                            return Ok(Some(Self { file, lease: lease.map(Box::new) }));
                        }
                        Err(holder) => elsewhere = Some(holder),
                    }
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(path, &error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if stop() {
                return Ok(None);
            }
            let holder = || elsewhere.clone().unwrap_or_else(|| holder(path));
            if patience.is_some_and(|patience| since.elapsed() >= patience) {
                let waited = since.elapsed().as_secs_f64();
                let message = format!("another run held the stage for {waited:.1} s: {}", holder());
                return Err(Error::new(Exit::LockTimeout, message)
                    .hint("wait longer with `--lock-wait`, or stop the other run"));
            }
            if !told {
                waiting(&holder());
                told = true;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Set once another machine has taken the lock away; `None` where none can.
    #[must_use]
    pub fn lost(&self) -> Option<&Arc<AtomicBool>> {
        self.lease.as_ref().map(|lease| lease.lost())
    }

    /// Fails if another machine has taken the lock away.
    ///
    /// # Errors
    /// That it has.
    pub fn check(&self) -> Result<(), Error> {
        if !self.lease.as_ref().is_some_and(|lease| lease.is_lost()) {
            return Ok(());
        }
        Err(Error::new(Exit::Failed, "another machine took the stage over; nothing was stored")
            .hint("this one gave no sign of life for too long: was it suspended, or the file system away?"))
    }
}

/// Who took the lock last.
fn holder(path: &Path) -> String {
    let who = std::fs::read_to_string(path).unwrap_or_default();
    if who.is_empty() { "another run".to_owned() } else { who }
}
