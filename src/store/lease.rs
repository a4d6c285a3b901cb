//! Who holds what, for machines that share a store on a network file system, where an `flock` may end at
//! the machine: NFS without its lock service or with `local_lock`, Lustre without `flock`, most of FUSE.
//!
//! A lease is a file beside what it is for. Creating it is atomic on every file system; its holder touches
//! it every [`BEAT`]. Who finds one of another machine watches whether it changes, for [`SILENCE`] by his
//! own clock, and takes it away if it does not: clocks are never compared. It is taken on top of the
//! `flock`, which stays the only judge among the processes of one machine and dies with them.
//!
//! A machine that is suspended for longer than [`SILENCE`] loses its leases; it notices at its next beat,
//! ends the stage and stores nothing of it. Until then two may be at work: no lease can rule that out.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// How often a holder shows that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// After how long without a sign of life a lease is taken away.
pub const SILENCE: Duration = Duration::from_secs(30);

/// How often a lease of another machine is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// File systems of one machine alone, by the numbers of `statfs(2)`: ext, XFS, Btrfs, tmpfs, overlay, ZFS,
/// F2FS, ramfs, bcachefs. What is not among them may be shared.
#[cfg(target_os = "linux")]
const OWN: [u64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0x794c_7630,
    0x2fc1_2fc1,
    0xf2f5_2010,
    0x8584_58f6,
    0xca45_1a4e,
];

/// All that this process holds in a store.
#[derive(Clone, Debug)]
pub struct Leases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Within it an `flock` reaches: this start of this machine, and the mount.
    domain: String,
    host: String,
    held: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    by_path: HashMap<PathBuf, Held>,
    /// Whether a thread touches them.
    beating: bool,
}

#[derive(Clone, Debug)]
struct Held {
    text: Vec<u8>,
    lost: Arc<AtomicBool>,
}

/// A lease, held. It goes when this is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    path: PathBuf,
    held: Held,
}

/// What a lease says.
#[derive(Debug, Serialize, Deserialize)]
struct Sign {
    host: String,
    domain: String,
    /// The process, for people.
    who: String,
    /// No two leases have the same.
    number: String,
}

/// What was seen of a lease of another machine.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Option<(Vec<u8>, SystemTime)>,
    since: Option<Instant>,
    looked: Option<Instant>,
    holder: String,
}

impl Leases {
    /// For the store at `root`, if other machines may see it.
    pub fn of(root: &Path) -> io::Result<Option<Self>> {
        if !is_shared(root)? {
            return Ok(None);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let device = rustix::fs::stat(root)?.st_dev;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let domain = format!("{} {device}", boot.trim());
        Ok(Some(Self(Arc::new(Inner { domain, host, held: Mutex::default() }))))
    }

    /// Tries to take the lease at `path`; the `flock` of what it is for is held. Otherwise says who has it.
    pub fn take(&self, path: &Path, who: &str, watch: &mut Watch) -> io::Result<Result<Lease, String>> {
        if watch.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(Err(watch.holder.clone()));
        }
        loop {
            let sign = Sign {
                host: self.0.host.clone(),
                domain: self.0.domain.clone(),
                who: who.to_owned(),
                number: number(),
            };
            let text = serde_json::to_vec(&sign).expect("a sign is plain data");
            match File::create_new(path).and_then(|mut file| file.write_all(&text)) {
                Ok(()) => return Ok(Ok(self.hold(path, text))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            match self.is_alive(path, watch)? {
                Some(holder) => {
                    watch.holder.clone_from(&holder);
                    return Ok(Err(holder));
                }
                None => watch.looked = None,
            }
        }
    }

    /// Who has the lease at `path`, if that is another machine that may be alive. Else it is gone.
    pub fn is_alive(&self, path: &Path, watch: &mut Watch) -> io::Result<Option<String>> {
        let now = Instant::now();
        watch.looked = Some(now);
        let Some(seen) = look(path)? else { return Ok(None) };
        let sign = serde_json::from_slice::<Sign>(&seen.0).ok();
        if sign.as_ref().is_some_and(|sign| sign.domain == self.0.domain) {
            // Of this machine, and its `flock` is not held: its process is gone.
            take_away(path, &seen.0)?;
            return Ok(None);
        }
        if watch.seen.as_ref() != Some(&seen) {
            (watch.seen, watch.since) = (Some(seen.clone()), Some(now));
        }
        if watch.since.is_some_and(|since| since.elapsed() >= SILENCE) {
            take_away(path, &seen.0)?;
            return Ok(None);
        }
        let (who, host) = sign.map_or_else(
            || ("another run".into(), "another machine".into()),
            |sign| (sign.who, format!("`{}`", sign.host)),
        );
        Ok(Some(format!("{who} on {host} (given up after {} s without a sign of life)", SILENCE.as_secs())))
    }

    fn hold(&self, path: &Path, text: Vec<u8>) -> Lease {
        let held = Held { text, lost: Arc::default() };
        let mut all = self.all();
        all.by_path.insert(path.to_owned(), held.clone());
        if !std::mem::replace(&mut all.beating, true) {
            let inner = Arc::downgrade(&self.0);
            std::thread::spawn(move || beat(&inner));
        }
        drop(all);
        Lease { leases: self.clone(), path: path.to_owned(), held }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `path` is a lease of another machine, alive or not.
    pub fn is_foreign(&self, path: &Path) -> bool {
        let sign = fs::read(path).ok().and_then(|text| serde_json::from_slice::<Sign>(&text).ok());
        sign.is_some_and(|sign| sign.domain != self.0.domain)
    }

    /// What tells this machine from others.
    pub fn domain(&self) -> &str {
        &self.0.domain
    }

    /// The machine's name.
    pub fn host(&self) -> &str {
        &self.0.host
    }
}

impl Lease {
    /// Set once another machine has taken it away.
    pub fn lost(&self) -> &Arc<AtomicBool> {
        &self.held.lost
    }

    /// Looks whether it is still held.
    pub fn is_lost(&self) -> bool {
        if !is_mine(&self.path, &self.held) {
            self.held.lost.store(true, Ordering::SeqCst);
        }
        self.held.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.all().by_path.remove(&self.path);
        if is_mine(&self.path, &self.held) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Touches what is held, for as long as something is.
fn beat(inner: &Weak<Inner>) {
    loop {
        std::thread::sleep(BEAT);
        let Some(inner) = inner.upgrade() else { return };
        let mut all = inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        if all.by_path.is_empty() {
            all.beating = false;
            return;
        }
        all.by_path.retain(|path, held| {
            let mine = is_mine(path, held);
            held.lost.fetch_or(!mine, Ordering::SeqCst);
            // A server that does not answer now may at the next beat.
            let _ =
                File::options().write(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
            mine
        });
    }
}

/// Whether the lease is there as it was written. What cannot be read now is not held for lost.
fn is_mine(path: &Path, held: &Held) -> bool {
    match fs::read(path) {
        Ok(text) => text == held.text,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Opened anew each time: that is when a network file system asks its server.
fn look(path: &Path) -> io::Result<Option<(Vec<u8>, SystemTime)>> {
    let read = || {
        let mut file = File::open(path)?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut file, &mut text)?;
        io::Result::Ok((text, file.metadata()?.modified()?))
    };
    match read() {
        Ok(seen) => Ok(Some(seen)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes away the lease that says `text`. Of several who try, one renames it; who finds that it renamed
/// another than it meant, because it came late, puts that one back.
fn take_away(path: &Path, text: &[u8]) -> io::Result<()> {
    let aside = path.with_extension(number());
    match fs::rename(path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    if fs::read(&aside)? != text {
        let _ = fs::hard_link(&aside, path);
    }
    fs::remove_file(&aside)
}

/// One that no other process on no other machine has.
pub fn number() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}-{}-{}-{nanos:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(target_os = "linux")]
fn is_shared(root: &Path) -> io::Result<bool> {
    // The type of this number differs between machines; negative where it is signed and has 32 bits.
    let number = rustix::fs::statfs(root)?.f_type as u64 & 0xffff_ffff;
    Ok(!OWN.contains(&number))
}

#[cfg(not(target_os = "linux"))]
fn is_shared(_root: &Path) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str) -> Leases {
        Leases(Arc::new(Inner { domain: name.into(), host: name.into(), held: Mutex::default() }))
    }

    #[test]
    fn one_machine_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lease");
        let (a, b) = (machine("a"), machine("b"));
        let held = a.take(&path, "process 1", &mut Watch::default()).unwrap().unwrap();
        let mut watch = Watch::default();
        let holder = b.take(&path, "process 2", &mut watch).unwrap().unwrap_err();
        assert!(holder.starts_with("process 1 on `a`"), "{holder}");
        assert!(b.is_foreign(&path) && !a.is_foreign(&path) && !held.is_lost());
        drop(held);
        watch.looked = None;
        let held = b.take(&path, "process 2", &mut watch).unwrap().unwrap();
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_process_of_this_machine_left_is_taken_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lease");
        std::mem::forget(machine("a").take(&path, "killed", &mut Watch::default()).unwrap().unwrap());
        assert!(machine("a").take(&path, "next", &mut Watch::default()).unwrap().is_ok());
    }

    #[test]
    fn silence_loses_a_lease_and_a_beat_keeps_it_whatever_the_clocks_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lease");
        let (a, b) = (machine("a"), machine("b"));
        let held = a.take(&path, "one", &mut Watch::default()).unwrap().unwrap();
        let mut watch = Watch::default();
        let mut wait_out = |beats: bool| {
            assert!(b.take(&path, "two", &mut watch).unwrap().is_err());
            watch.since = Instant::now().checked_sub(SILENCE);
            watch.looked = None;
            if beats {
                // A clock that is years behind.
                let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
                File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
            }
            b.take(&path, "two", &mut watch).unwrap()
        };
        assert!(wait_out(true).is_err(), "it beats");
        watch.looked = None;
        let mut wait_out = || {
            watch.since = Instant::now().checked_sub(SILENCE);
            b.take(&path, "two", &mut watch).unwrap()
        };
        let taken = wait_out().unwrap();
        assert!(held.is_lost());
        drop(held);
        assert!(!taken.is_lost(), "what was lost is not removed by its former holder");
    }

    #[test]
    fn who_comes_late_puts_back_what_was_not_meant() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lease");
        fs::write(&path, "new").unwrap();
        take_away(&path, b"old").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        take_away(&path, b"new").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
