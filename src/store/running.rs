//! Which runs are going on: one file a run, locked by its process for as long as it lives.
//!
//! The lock says whether the process is still there, so that a number which the system has given to
//! another process meanwhile is never taken for it. The file of a run that was killed stays unlocked and
//! is removed by whoever looks next; that of a run on another machine, where the lock may not reach, by
//! `gc`, which waits until it is over.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::{Error, io_at};

/// A run that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The name that its record will have.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file as it was given.
    pub file: String,
    /// When it started, ISO-8601 UTC.
    pub started: String,
    /// The machine, where several may share the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Within it locks reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// A run's own file, locked. It goes when this is dropped.
#[derive(Debug)]
pub struct Announced {
    path: PathBuf,
    _lock: File,
}

impl Store {
    /// Tells other processes that this one runs. `None` on a store that cannot be written: nothing can
    /// run there either.
    ///
    /// # Errors
    /// If the file cannot be locked.
    pub fn announce(&self, run: &Running) -> Result<Option<Announced>, Error> {
        let folder = self.running_path();
        let path = folder.join(format!("{}.json", run.id));
        let made = fs::create_dir_all(&folder).and_then(|()| tempfile::NamedTempFile::new_in(&folder));
        let Ok(mut beside) = made else { return Ok(None) };
        // Locked before it has its name, so that nobody sees it unlocked.
        beside.as_file().lock().map_err(io_at(&path))?;
        let mut run = run.clone();
        run.host = self.leases.as_ref().map(|leases| leases.host().to_owned());
        run.domain = self.leases.as_ref().map(|leases| leases.domain().to_owned());
        let text = serde_json::to_vec(&run).expect("a run is plain data");
        beside.write_all(&text).map_err(io_at(&path))?;
        let lock = beside.persist(&path).map_err(|error| Error::io(&path, &error.error))?;
        Ok(Some(Announced { path, _lock: lock }))
    }

    /// The runs that go on now, the oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        let Ok(entries) = fs::read_dir(self.running_path()) else { return Vec::new() };
        let mut found: Vec<Running> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| {
                let file = File::open(&path).ok()?;
                let is_locked = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
                let run: Option<Running> = serde_json::from_slice(&fs::read(&path).ok()?).ok();
                if !is_locked && !run.as_ref().is_some_and(|run| self.is_elsewhere(run)) {
                    // Its process is gone; whoever comes first clears up.
                    let _ = fs::remove_file(&path);
                    return None;
                }
                run
            })
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// Whether a run is another machine's.
    #[must_use]
    pub fn is_elsewhere(&self, run: &Running) -> bool {
        let here = self.leases.as_ref().map(|leases| leases.domain());
        here.is_some() && run.domain.is_some() && run.domain.as_deref() != here
    }

    /// Forgets the runs of other machines. Only when there are none.
    pub(super) fn forget_elsewhere(&self) {
        for run in self.running().iter().filter(|run| self.is_elsewhere(run)) {
            let _ = fs::remove_file(self.running_path().join(format!("{}.json", run.id)));
        }
    }

    /// Whether the process of a run is still there.
    #[must_use]
    pub fn goes_on(&self, run: &Running) -> bool {
        self.running().contains(run)
    }

    fn running_path(&self) -> PathBuf {
        self.root.join("running")
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        // Unlocked and left behind it would be cleared up as well.
        let _ = fs::remove_file(&self.path);
    }
}
