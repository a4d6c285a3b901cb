//! Which runs are going on: one file a run, locked by its process for as long as it lives.
//!
//! The lock says whether the process is still there, so that a number which the system has given to
//! another process meanwhile is never taken for it. The file of a run that was killed stays unlocked and
//! is removed by whoever looks next.

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
        let text = serde_json::to_vec(run).expect("a run is plain data");
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
                if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
                    // Its process is gone; whoever comes first clears up.
                    let _ = fs::remove_file(&path);
                    return None;
                }
                serde_json::from_slice(&fs::read(&path).ok()?).ok()
            })
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
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
