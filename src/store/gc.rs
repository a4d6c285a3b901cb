//! Freeing space, and looking at every byte.
//!
//! Roots are the keys of the kept runs. What no root names goes, action and object together: first the
//! action, then the object, so that a crash in between leaves an object that nothing speaks of and never
//! an action that speaks of nothing. Nothing younger than an hour goes. A run holds the store's usage
//! lock shared, and collecting takes it alone: it waits for runs, and runs that start meanwhile wait for it.
//! Where machines share the store, both leave a lease as well, first, and then wait for those of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::files::remove_tree;
use super::lease::{Lease, Leases, Watch, number};
use super::{Action, Check, Store};
use crate::digest::Digest;
use crate::error::{Error, Exit, io_at};
use crate::executor::TICKET;
use crate::key::StageKey;

/// What is younger stays, whatever names it.
pub const GRACE: Duration = Duration::from_secs(3600);

/// What collecting is to keep.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// The results of this many last runs.
    pub runs: usize,
    /// At most this many bytes of objects; the least recently made go first, roots as well.
    pub bytes: Option<u64>,
    /// What is younger stays.
    pub grace: Duration,
}

/// What collecting removed, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Collected {
    /// Results (action and object).
    pub results: usize,
    /// Folders of stages that did not finish.
    pub work_folders: usize,
    /// Bytes freed.
    pub bytes: u64,
    /// Bytes of objects that stay.
    pub kept_bytes: u64,
}

/// What a full look at the store found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Results looked at.
    pub results: usize,
    /// Bytes hashed.
    pub bytes: u64,
    /// What is wrong, as sentences.
    pub damaged: Vec<String>,
}

/// The usage lock, held.
#[derive(Debug)]
pub struct InUse {
    _file: File,
    _lease: Option<Lease>,
}

/// Takes a lease, however long it takes.
fn take(leases: &Leases, path: &Path, waiting: &mut dyn FnMut()) -> Result<Lease, Error> {
    let who = format!("process {}", std::process::id());
    let mut watch = Watch::default();
    loop {
        match leases.take(path, &who, &mut watch).map_err(io_at(path))? {
            Ok(lease) => return Ok(lease),
            Err(_) => pause(waiting),
        }
    }
}

/// Waits until a lease of another machine is gone.
fn outwait(leases: &Leases, path: &Path, waiting: &mut dyn FnMut()) -> Result<(), Error> {
    let mut watch = Watch::default();
    while leases.is_alive(path, &mut watch).map_err(io_at(path))?.is_some() {
        pause(&mut *waiting);
    }
    Ok(())
}

fn pause(waiting: &mut dyn FnMut()) {
    waiting();
    std::thread::sleep(Duration::from_secs(1));
}

/// An action and the object that it speaks of.
struct Stored {
    key: StageKey,
    object: Digest,
    made: SystemTime,
    bytes: u64,
}

impl Store {
    /// Holds the store in use, so that nothing is collected meanwhile. On a store that cannot be written
    /// nothing can be collected either; there it is not held.
    ///
    /// # Errors
    /// If the lock cannot be taken.
    pub fn hold(&self) -> Result<Option<InUse>, Error> {
        let path = self.usage_path();
        let Ok(file) = OpenOptions::new().create(true).append(true).open(&path) else { return Ok(None) };
        file.lock_shared().map_err(io_at(&path))?;
        let lease = match &self.leases {
            Some(leases) => {
                let mine = path.with_extension(format!("{}.lease", number()));
                let lease = take(leases, &mine, &mut || {})?;
                outwait(leases, &path.with_extension("lease"), &mut || {})?;
                Some(lease)
            }
            None => None,
        };
        Ok(Some(InUse { _file: file, _lease: lease }))
    }

    /// Waits for the other machines that use the store, and lets none begin as long as what it gives lives.
    fn alone(&self, waiting: &mut dyn FnMut()) -> Result<Option<Lease>, Error> {
        let Some(leases) = &self.leases else { return Ok(None) };
        let (folder, path) = (self.root.join("locks"), self.usage_path());
        let lease = take(leases, &path.with_extension("lease"), waiting)?;
        for entry in fs::read_dir(&folder).map_err(io_at(&folder))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("in-use.") && name.ends_with(".lease") && name != "in-use.lease" {
                outwait(leases, &entry.path(), waiting)?;
            }
        }
        self.forget_elsewhere();
        Ok(Some(lease))
    }

    fn usage_path(&self) -> PathBuf {
        self.root.join("locks").join("in-use")
    }

    /// What a job on a cluster reads is named by no record yet if the run that ordered it was killed.
    fn refuse_while_ordered(&self) -> Result<(), Error> {
        let folder = self.root.join("work");
        let entries = fs::read_dir(&folder).map_err(io_at(&folder))?.flatten();
        let ordered = entries.map(|entry| entry.file_name()).find(|name| self.is_ordered(name.as_ref()));
        let Some(name) = ordered else { return Ok(()) };
        let path = folder.join(name).join(super::ELSEWHERE).join(TICKET);
        let message = format!("a job on a cluster may still read from this store: `{}`", path.display());
        Err(Error::new(Exit::Failed, message)
            .hint("`pipe run FILE --executor slurm` goes on with it; to give it up, `scancel` it and remove that file"))
    }

    /// Removes what no kept run names. Calls `waiting` if it has to wait for a run.
    ///
    /// # Errors
    /// If something cannot be read or removed.
    pub fn collect(&self, keep: Keep, dry: bool, waiting: impl FnOnce()) -> Result<Collected, Error> {
        let mut untold = Some(waiting);
        let mut waiting = || {
            if let Some(tell) = untold.take() {
                tell();
            }
        };
        let path = self.usage_path();
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(io_at(&path))?;
        if lock.try_lock().is_err() {
            waiting();
            lock.lock().map_err(io_at(&path))?;
        }
        let _alone = self.alone(&mut waiting)?;
        self.refuse_while_ordered()?;
        let runs = self.runs()?;
        let old_runs = &runs[..runs.len().saturating_sub(keep.runs)];
        let kept = runs[old_runs.len()..].iter().flat_map(|run| &run.stages).filter_map(|stage| stage.key);
        let roots: BTreeSet<StageKey> = kept.map(StageKey).collect();
        let results = self.results()?;
        let doomed = doom(&results, &roots, keep);
        let mut collected = self.remove(&results, &doomed, dry)?;
        collected.work_folders = self.remove_work(&roots, keep.grace, dry)?;
        if !dry {
            for run in old_runs {
                self.forget_run(&run.id)?;
            }
            self.remove_half_made(keep.grace)?;
        }
        Ok(collected)
    }

    /// Every action that can be read, the oldest first.
    fn results(&self) -> Result<Vec<Stored>, Error> {
        let mut results = Vec::new();
        for key in self.keys()? {
            let path = self.action_path(&key);
            let Some(action) = fs::read_to_string(&path).ok().and_then(|text| Action::from_text(&text))
            else {
                continue;
            };
            let made = modified(&path)?;
            let bytes = self.objects.manifest(&action.object).map_or(0, |manifest| manifest.size());
            results.push(Stored { key, object: action.object, made, bytes });
        }
        results.sort_by_key(|result| (result.made, result.key));
        Ok(results)
    }

    fn remove(&self, results: &[Stored], doomed: &BTreeSet<StageKey>, dry: bool) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        let (mut staying, mut going) = (BTreeMap::new(), BTreeMap::new());
        for result in results {
            let side = if doomed.contains(&result.key) { &mut going } else { &mut staying };
            side.insert(result.object, result.bytes);
        }
        // An object goes with the last action that speaks of it.
        going.retain(|object, _| !staying.contains_key(object));
        for result in results.iter().filter(|result| doomed.contains(&result.key)) {
            collected.results += 1;
            if !dry {
                self.forget(&result.key)?;
                let log = self.log_path(&result.key);
                for file in [log.with_extension("job.json"), log].iter().filter(|file| file.exists()) {
                    fs::remove_file(file).map_err(io_at(file))?;
                }
            }
        }
        // What nothing speaks of is left by a crash between an object and its action.
        for object in self.objects.list()? {
            if staying.contains_key(&object) || going.contains_key(&object) {
                continue;
            }
            if !self.is_young(&object) {
                going.insert(object, self.objects.manifest(&object).map_or(0, |manifest| manifest.size()));
            }
        }
        for object in going.keys().filter(|_| !dry) {
            self.objects.discard(object)?;
        }
        collected.bytes = going.values().sum();
        collected.kept_bytes = staying.values().sum();
        Ok(collected)
    }

    fn is_young(&self, object: &Digest) -> bool {
        modified(&self.objects.files(object)).is_ok_and(|time| !older(time, GRACE))
    }

    /// Removes work folders that no kept run needs and that nobody has touched for a while.
    fn remove_work(&self, roots: &BTreeSet<StageKey>, grace: Duration, dry: bool) -> Result<usize, Error> {
        let folder = self.root.join("work");
        let mut removed = 0;
        for entry in fs::read_dir(&folder).map_err(io_at(&folder))?.flatten() {
            let key = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(StageKey);
            if self.is_ordered(entry.file_name().as_ref())
                || key.is_some_and(|key| roots.contains(&key))
                || !older(modified(&entry.path())?, grace)
            {
                continue;
            }
            removed += 1;
            if !dry {
                remove_tree(&entry.path())?;
            }
        }
        Ok(removed)
    }

    /// Removes what killed runs had begun to write: outputs, and files that were not renamed yet.
    fn remove_half_made(&self, grace: Duration) -> Result<(), Error> {
        for folder in ["attempts", "actions", "latest", "runs", "."] {
            let path = self.root.join(folder);
            for entry in fs::read_dir(&path).map_err(io_at(&path))?.flatten() {
                let name = entry.file_name();
                let half_made = folder == "attempts" || name.as_encoded_bytes().starts_with(b".tmp");
                if !half_made || !older(modified(&entry.path())?, grace) {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_tree(&entry.path())?;
                } else {
                    fs::remove_file(entry.path()).map_err(io_at(&entry.path()))?;
                }
            }
        }
        Ok(())
    }

    /// Hashes every byte of every result.
    ///
    /// # Errors
    /// If the store cannot be read. Damage is part of the answer.
    pub fn verify(&self, mut told: impl FnMut(usize, usize)) -> Result<Verified, Error> {
        let keys = self.keys()?;
        let mut verified = Verified::default();
        for (done, key) in keys.iter().enumerate() {
            told(done, keys.len());
            verified.results += 1;
            let path = self.action_path(key);
            let text = fs::read(&path).map_err(io_at(&path))?;
            let Some(action) = Action::from_text(&String::from_utf8_lossy(&text)) else {
                verified.damaged.push(format!("the action `{}` is cut off or edited", path.display()));
                continue;
            };
            match self.objects.check(&action.object, Check::Full)? {
                Ok(()) => {
                    let manifest = self.objects.manifest(&action.object);
                    verified.bytes += manifest.map_or(0, |manifest| manifest.size());
                }
                Err(why) => verified.damaged.push(format!(
                    "the output of `{}` in `{}`: {why}",
                    action.stage,
                    self.objects.files(&action.object).display()
                )),
            }
        }
        Ok(verified)
    }
}

/// The keys that go.
fn doom(results: &[Stored], roots: &BTreeSet<StageKey>, keep: Keep) -> BTreeSet<StageKey> {
    let old = results.iter().filter(|result| older(result.made, keep.grace));
    let mut doomed: BTreeSet<StageKey> =
        old.clone().filter(|result| !roots.contains(&result.key)).map(|result| result.key).collect();
    let Some(limit) = keep.bytes else { return doomed };
    for next in old {
        let staying = results.iter().filter(|result| !doomed.contains(&result.key));
        let sizes: BTreeMap<Digest, u64> = staying.map(|result| (result.object, result.bytes)).collect();
        if sizes.values().sum::<u64>() <= limit {
            break;
        }
        doomed.insert(next.key);
    }
    doomed
}

fn modified(path: &Path) -> Result<SystemTime, Error> {
    fs::metadata(path).and_then(|meta| meta.modified()).map_err(io_at(path))
}

/// Whether a time lies more than `grace` back. A clock that was set back makes nothing old.
fn older(time: SystemTime, grace: Duration) -> bool {
    time.elapsed().is_ok_and(|age| age >= grace)
}

/// `20GB`, `512 MiB`, `1000`: a size in bytes.
///
/// # Errors
/// If it is none.
pub fn parse_size(text: &str) -> Result<u64, Error> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    let bytes = number.parse::<f64>().unwrap_or(f64::NAN) * factor;
    if bytes.is_finite() {
        // Sizes of stores lie far below 2^53.
        return Ok(bytes as u64);
    }
    Err(Error::new(Exit::Usage, format!("`{text}` is no size"))
        .hint("write it like `20GB`, `500MB` or `4GiB`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: u8, bytes: u64, hours: u64) -> Stored {
        let made = SystemTime::now() - Duration::from_secs(hours * 3600);
        Stored { key: StageKey(Digest::of(&[name])), object: Digest::of(&[name, 0]), made, bytes }
    }

    fn keys(names: &[u8]) -> BTreeSet<StageKey> {
        names.iter().map(|name| StageKey(Digest::of(&[*name]))).collect()
    }

    #[test]
    fn what_no_kept_run_names_goes_but_for_the_last_hour() {
        let results = [result(1, 10, 9), result(2, 10, 8), result(3, 10, 7), result(4, 10, 0)];
        let keep = Keep { runs: 1, bytes: None, grace: GRACE };
        assert_eq!(doom(&results, &keys(&[2]), keep), keys(&[1, 3]));
    }

    #[test]
    fn a_size_limit_frees_the_oldest_first_and_stops_when_it_is_met() {
        let results = [result(1, 10, 9), result(2, 10, 8), result(3, 10, 7), result(4, 10, 6)];
        let keep = |bytes| Keep { runs: 1, bytes: Some(bytes), grace: GRACE };
        assert_eq!(doom(&results, &keys(&[1, 2, 3, 4]), keep(25)), keys(&[1, 2]));
        assert_eq!(doom(&results, &keys(&[1, 2, 3, 4]), keep(40)), keys(&[]));
        assert_eq!(doom(&results, &keys(&[1, 2, 4]), keep(10)), keys(&[1, 2, 3]));
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("1000", 1000), ("2kB", 2000), ("1.5 GB", 1_500_000_000), ("4GiB", 4 << 30)] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        assert!(parse_size("much").is_err() && parse_size("3 apples").is_err());
    }
}
