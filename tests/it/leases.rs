//! A store on a file system over which `flock` does not reach: one folder mounted twice by `bindfs`, as two
//! machines that share it would see it. Skipped aloud where that cannot be, unless PIPE_REQUIRE_BINDFS=1.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::place::{Call, Place, stage, until};

/// A folder as two machines see it.
struct Shared {
    /// What is behind it; stages leave their marks here.
    place: Place,
    machines: [tempfile::TempDir; 2],
}

impl Shared {
    fn new(pipeline: &str) -> Option<Self> {
        let place = Place::new(pipeline);
        let machines = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let shared = Self { place, machines };
        for machine in &shared.machines {
            let mut bindfs = Command::new("bindfs");
            bindfs
                .args(["-o", "attr_timeout=0,entry_timeout=0"])
                .arg(shared.place.path(""))
                .arg(machine.path());
            let why = match bindfs.output() {
                Ok(output) if output.status.success() => continue,
                Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
                Err(error) => error.to_string(),
            };
            assert!(std::env::var_os("PIPE_REQUIRE_BINDFS").is_none(), "no bindfs: {why}");
            eprintln!("SKIPPED: no folder could be mounted by `bindfs` here: {why}");
            return None;
        }
        Some(shared)
    }

    fn at(&self, machine: usize, command: &str) -> Call {
        let mut call = self.place.pipe(command);
        call.within(&self.machines[machine].path().display().to_string());
        call
    }

    fn leases(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.place.path(".pipe/locks")).unwrap().flatten();
        let is_lease = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "lease");
        entries.map(|entry| entry.path()).filter(is_lease).collect()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let unmount = |folder: &Path| Command::new("fusermount").arg("-uz").arg(folder).status();
        for machine in &self.machines {
            let _ = unmount(machine.path());
        }
    }
}

/// Takes until `go` is there. Names a second one that is at it at the same time, on whatever machine: the
/// marks do not lie on the shared mount.
fn gated() -> String {
    let script = "exec 9> @/alone; flock --nonblock 9 || echo two at once >> @/clash; \
                  echo x >> @/ran; until [ -e @/go ]; do sleep 0.05; done; echo x > $OUT/x";
    stage("slow", script, "")
}

#[test]
fn two_machines_make_nothing_at_the_same_time() {
    let Some(shared) = Shared::new(&gated()) else { return };
    let first = shared.at(0, "run p.toml").start();
    until("the first run is in its stage", || shared.place.lines("ran") == 1);
    let second = shared.at(1, "run p.toml").start();
    std::thread::sleep(Duration::from_secs(2));
    shared.at(1, "runs").ends(0).says(&["goes on at `"]);
    shared.at(1, "cancel --all").ends(1).says(&["goes on at `", "stop it there"]);
    shared.place.write("go", "");
    let (code, said) = first.wait();
    assert_eq!(code, Some(0), "{said:?}");
    let (code, said) = second.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.counts(1, 0, 0).says(&["waits for process", "(pipeline `p`) on `", "without a sign of life"]);
    assert_eq!((shared.place.lines("ran"), shared.place.lines("clash")), (1, 0));
    assert_eq!(shared.leases(), Vec::<PathBuf>::new());
}

#[test]
fn what_a_machine_that_is_gone_held_is_taken_after_a_while() {
    let Some(shared) = Shared::new(&gated()) else { return };
    let first = shared.at(0, "run p.toml").start();
    until("the first run is in its stage", || shared.place.lines("ran") == 1);
    first.signal("KILL");
    first.wait();
    let second = shared.at(1, "run p.toml").start();
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(shared.place.lines("ran"), 1, "it may only be slow");
    until("the second run is in its stage", || shared.place.lines("ran") == 2);
    shared.place.write("go", "");
    let (code, said) = second.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.counts(0, 1, 0);
    assert_eq!(shared.place.lines("clash"), 0);
}

#[test]
fn what_a_process_of_the_same_machine_held_is_taken_at_once() {
    let Some(shared) = Shared::new(&gated()) else { return };
    let first = shared.at(0, "run p.toml").start();
    until("the first run is in its stage", || shared.place.lines("ran") == 1);
    first.signal("KILL");
    first.wait();
    assert!(!shared.leases().is_empty());
    shared.place.write("go", "");
    shared.at(0, "run p.toml --lock-wait 5s").ends(0).counts(0, 1, 0);
    assert_eq!(shared.leases().len(), 1, "that the killed run used the store is known until `gc`");
    shared.at(0, "gc").ends(0);
    assert_eq!(shared.leases(), Vec::<PathBuf>::new());
}

#[test]
fn a_machine_that_was_suspended_ends_what_another_has_taken_over() {
    let Some(shared) = Shared::new(&gated()) else { return };
    let mut first = shared.at(0, "run p.toml").start();
    until("the first run is in its stage", || shared.place.lines("ran") == 1);
    first.signal("STOP");
    let second = shared.at(1, "run p.toml").start();
    until("the second run is in its stage", || shared.place.lines("ran") == 2);
    first.signal("CONT");
    until("the first run notices", || !first.is_there());
    let (code, said) = first.wait();
    assert_eq!(code, Some(1), "{said:?}");
    said.says(&["another machine took the stage over", "was it suspended"]);
    shared.place.write("go", "");
    let (code, said) = second.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.counts(0, 1, 0);
}

#[test]
fn collecting_waits_for_the_runs_of_other_machines() {
    let Some(shared) = Shared::new(&gated()) else { return };
    let run = shared.at(0, "run p.toml").start();
    until("the run is in its stage", || shared.place.lines("ran") == 1);
    let mut collecting = shared.at(1, "gc").start();
    std::thread::sleep(Duration::from_secs(2));
    assert!(collecting.is_there(), "it waits");
    shared.place.write("go", "");
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    let (code, said) = collecting.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.says(&["waiting for the runs that use"]);
    assert_eq!(shared.leases(), Vec::<PathBuf>::new());
}
