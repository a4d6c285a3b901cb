//! Under a real Slurm of two nodes on this machine, started by `tests/slurm/start.sh` (Debian's
//! `slurm-wlm` and `munge`, as root). Skipped aloud where that cannot be, unless PIPE_REQUIRE_SLURM=1.

use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::place::{Call, Place, chain, processes, stage, until};

/// A running Slurm. It ends with the last test that uses it.
pub struct Cluster {
    folder: tempfile::TempDir,
}

static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm");

impl Cluster {
    /// The one that is up, or a new one. `None`, said aloud, where there cannot be one.
    pub fn up() -> Option<Arc<Self>> {
        let mut shared = CLUSTER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return Some(cluster);
        }
        let cluster = Arc::new(Self { folder: tempfile::tempdir().unwrap() });
        let port = 21_000 + std::process::id() % 20_000;
        let start = Command::new(format!("{SCRIPTS}/start.sh"))
            .arg(cluster.folder.path())
            .arg(port.to_string())
            .output()
            .unwrap();
        if !start.status.success() {
            let why = String::from_utf8_lossy(&start.stderr).into_owned();
            assert!(std::env::var_os("PIPE_REQUIRE_SLURM").is_none(), "no Slurm: {why}");
            eprintln!("SKIPPED: no Slurm could be started here: {why}");
            return None;
        }
        *shared = Arc::downgrade(&cluster);
        Some(cluster)
    }

    pub fn conf(&self) -> String {
        self.folder.path().join("slurm.conf").display().to_string()
    }

    pub fn pipe(&self, place: &Place, command: &str) -> Call {
        place.pipe(command).env("SLURM_CONF", &self.conf())
    }

    pub fn run(&self, place: &Place) -> Call {
        self.pipe(place, "run p.toml --executor slurm")
    }

    pub fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = Command::new(program).args(args).env("SLURM_CONF", self.conf()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Number and state of every job that was submitted from `place`, over or not.
    pub fn jobs(&self, place: &Place) -> Vec<(String, String)> {
        let text = self.ask("squeue", &["--noheader", "--states=all", "--format=%Z|%i|%T"]);
        let from = format!("{}|", place.path("").display().to_string().trim_end_matches('/'));
        let mine = text.lines().filter_map(|line| line.strip_prefix(&from)?.split_once('|'));
        mine.map(|(id, state)| (id.to_owned(), state.to_owned())).collect()
    }

    fn states(&self, place: &Place) -> Vec<String> {
        self.jobs(place).into_iter().map(|(_, state)| state).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new(format!("{SCRIPTS}/stop.sh")).arg(self.folder.path()).status();
    }
}

#[test]
fn stages_run_as_jobs_and_make_what_they_make_here() {
    let Some(slurm) = Cluster::up() else { return };
    let asks =
        "[stages.a.resources]\ncpus = 2\nmemory = \"100MB\"\ntime = \"10m\"\nslurm = { partition = \"p\" }\n";
    let (there, here) = (Place::new(&(chain() + asks)), Place::new(&chain()));
    slurm.run(&there).ends(0).counts(0, 3, 0);
    assert_eq!(slurm.states(&there), ["COMPLETED"; 3]);
    slurm.run(&there).ends(0).counts(3, 0, 0);
    there.run().counts(3, 0, 0);
    assert_eq!(slurm.jobs(&there).len(), 3, "what is cached is no job");
    assert_eq!(there.lines("ran"), 3);
    here.run().counts(0, 3, 0);
    assert_eq!(there.output("c"), here.output("c"));
}

#[test]
fn the_same_keys_and_objects_whoever_runs_and_whatever_is_asked_for() {
    let Some(slurm) = Cluster::up() else { return };
    let text = stage("a", "seq 9 > $OUT/x", "");
    let place = Place::new(&(text.clone() + "[stages.a.resources]\ncpus = 1\n"));
    slurm.run(&place).ends(0).counts(0, 1, 0);
    place.pipeline(&text);
    place.pipe("run p.toml --store other").ends(0).counts(0, 1, 0);
    let names = |folder: &str| {
        let mut names: Vec<_> =
            std::fs::read_dir(place.path(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(".pipe/actions"), names("other/actions"));
    assert_eq!(names(".pipe/objects"), names("other/objects"));
}

#[test]
fn a_run_that_was_killed_goes_on_with_its_jobs_and_submits_none_again() {
    let Some(slurm) = Cluster::up() else { return };
    // One has ended, one runs, one waits.
    let pipeline = [
        stage("done", "echo done >> @/ran; echo 1 > $OUT/x", ""),
        stage("long", "echo long >> @/ran; until [ -e @/go ]; do sleep 0.1; done; echo 2 > $OUT/x", ""),
        stage("held", "echo held >> @/ran; echo 3 > $OUT/x", "")
            + "[stages.held.resources]\nslurm = { extra = [\"--hold\"] }\n",
    ];
    let place = Place::new(&pipeline.concat());
    // Most times the first job's end is noticed only by the second run.
    let run = slurm.run(&place).start();
    until("all three are submitted", || slurm.jobs(&place).len() == 3);
    until("one runs, one has ended", || place.lines("ran") == 2);
    run.signal("KILL");
    run.wait();
    until("one has ended", || slurm.states(&place).contains(&"COMPLETED".to_owned()));
    // Run here, it would be made twice at once.
    place.pipe("run p.toml --only held").ends(1).says(&["a job on a cluster", "--executor slurm"]);
    place.pipe("gc").ends(1).says(&["a job on a cluster", "scancel"]);
    let run = slurm.run(&place).start();
    until("the second run is there", || std::fs::read_dir(place.path(".pipe/running")).unwrap().count() == 1);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(slurm.jobs(&place).len(), 3, "none is submitted again");
    let held = |slurm: &Cluster| slurm.jobs(&place).into_iter().find(|(_, state)| state == "PENDING");
    let (id, _) = held(&slurm).unwrap();
    slurm.ask("scontrol", &["release", &id]);
    place.write("go", "");
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.says(&["goes on with job"]);
    assert_eq!(slurm.jobs(&place).len(), 3);
    assert_eq!(place.lines("ran"), 3);
    assert_eq!(slurm.states(&place), ["COMPLETED"; 3]);
    slurm.run(&place).ends(0).counts(3, 0, 0);
}

#[test]
fn a_run_that_was_killed_before_it_knew_the_jobs_number_finds_the_job() {
    let Some(slurm) = Cluster::up() else { return };
    let place = Place::new(&stage(
        "a",
        "echo a >> @/ran; until [ -e @/go ]; do sleep 0.1; done; echo x > $OUT/x",
        "",
    ));
    std::fs::create_dir(place.path("bin")).unwrap();
    let sbatch = "#!/bin/sh\n[ \"$1\" = --version ] || { /usr/bin/sbatch \"$@\"; kill -9 $PPID; }\n";
    place.write("bin/sbatch", sbatch);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path("bin/sbatch"), mode).unwrap();
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
    assert_eq!(slurm.run(&place).env("PATH", &path).start().wait().0, None, "killed");
    assert_eq!(slurm.jobs(&place).len(), 1);
    let run = slurm.run(&place).start();
    until("the job runs", || place.lines("ran") == 1);
    std::thread::sleep(Duration::from_secs(5));
    place.write("go", "");
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.says(&["goes on with job"]).counts(0, 1, 0);
    assert_eq!((slurm.jobs(&place).len(), place.lines("ran")), (1, 1));
}

#[test]
fn cancel_stops_what_runs_and_what_waits() {
    let Some(slurm) = Cluster::up() else { return };
    let held = stage("held", "true", "") + "[stages.held.resources]\nslurm = { extra = [\"--hold\"] }\n";
    let place = Place::new(&(stage("a", "echo a >> @/ran; sleep 7711; echo x > $OUT/x", "") + &held));
    let run = slurm.run(&place).start();
    until("one runs, one waits", || place.lines("ran") == 1 && slurm.jobs(&place).len() == 2);
    slurm.pipe(&place, "cancel --wait 40s").ends(0).says(&["stopped run"]);
    let (code, said) = run.wait();
    assert_eq!(code, Some(75), "{said:?}");
    said.says(&["go on with: pipe run p.toml", "--executor slurm"]);
    assert!(processes("sleep 7711").is_empty());
    for state in slurm.states(&place) {
        assert!(["CANCELLED", "FAILED"].contains(&&*state), "{state}");
    }
    place.pipeline(&stage("a", "echo x > $OUT/x", ""));
    place.run().counts(0, 1, 0);
}

#[test]
fn a_stage_that_fails_shows_its_log_and_is_retried_as_a_new_job() {
    let Some(slurm) = Cluster::up() else { return };
    let script = "echo once more >> @/ran; echo what went wrong; exit 3";
    let place = Place::new(&stage("a", script, "retries = 1"));
    let said = slurm.run(&place).ends(1);
    said.says(&["`sh` failed with exit code 3", "what went wrong"]).counts(0, 0, 1);
    assert_eq!((place.lines("ran"), slurm.states(&place)), (2, vec!["FAILED".to_owned(); 2]));
    slurm.run(&place).ends(1);
    assert_eq!(slurm.jobs(&place).len(), 4, "a failure is not kept");
}

#[test]
fn a_job_that_is_gone_without_a_record_is_a_failure_and_is_retried() {
    let Some(slurm) = Cluster::up() else { return };
    let script = "echo a >> @/ran; [ -e $WORK/second ] || { touch $WORK/second; sleep 7721 || exit 1; }; echo x > $OUT/x";
    let place = Place::new(&stage("a", script, "retries = 1"));
    let run = slurm.run(&place).start();
    until("the first job runs", || place.lines("ran") == 1);
    let (id, _) = slurm.jobs(&place).remove(0);
    slurm.ask("scancel", &[&id]);
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.says(&[&format!("job {id} of Slurm ended as CANCELLED")]).counts(0, 1, 0);
    assert_eq!(place.lines("ran"), 2);
}

#[test]
fn a_stage_whose_time_is_nearly_up_saves_and_queues_again_as_the_same_job() {
    let Some(slurm) = Cluster::up() else { return };
    let script = "echo a >> @/ran; ls $OUT > $WORK/found; \
                  [ -e $WORK/saved ] || { touch $WORK/saved; echo half > $OUT/half; sleep 7731; }; \
                  cp $WORK/found $OUT/found";
    let place = Place::new(&stage("a", script, ""));
    let run = slurm.run(&place).start();
    until("it runs", || place.lines("ran") == 1);
    let (id, _) = slurm.jobs(&place).remove(0);
    // As Slurm does it two minutes before the limit.
    slurm.ask("scancel", &["--batch", "--signal=USR1", &id]);
    until("it queues again", || slurm.states(&place) == ["PENDING"]);
    // Slurm lets such a job wait for two minutes, so that its first turn is over for sure.
    std::thread::sleep(Duration::from_secs(4));
    slurm.ask("scontrol", &["update", &format!("jobid={id}"), "starttime=now"]);
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.counts(0, 1, 0);
    assert_eq!(place.output("a"), [("found".into(), Vec::new())], "half an output is not gone on with");
    assert_eq!((place.lines("ran"), slurm.jobs(&place).len()), (2, 1), "the same job, twice begun");
    assert!(slurm.ask("scontrol", &["show", "job", &id]).contains("Restarts=1"));
}

#[test]
fn what_slurm_refuses_and_why_a_job_waits_is_said() {
    let Some(slurm) = Cluster::up() else { return };
    let asks = |partition: &str| {
        stage("a", "echo x > $OUT/x", "")
            + &format!("[stages.a.resources]\nslurm = {{ partition = \"{partition}\" }}\n")
    };
    let place = Place::new(&asks("nowhere"));
    slurm.run(&place).ends(1).says(&["invalid partition", "sinfo"]);
    place.pipeline(&asks("closed"));
    let run = slurm.run(&place).start();
    until("it is submitted", || slurm.jobs(&place).len() == 1);
    std::thread::sleep(Duration::from_secs(3));
    run.signal("TERM");
    let (code, said) = run.wait();
    assert_eq!(code, Some(75), "{said:?}");
    said.says(&["waits: PartitionDown"]);
    place
        .pipe("run p.toml --executor slurm")
        .env("PATH", "/nowhere")
        .ends(2)
        .says(&["cannot start `sbatch`"]);
}
