//! Stages as steps of an allocation, under the Slurm of `slurm.rs`.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::place::{Call, Place, Running, chain, processes, stage, until};
use super::slurm::Cluster;

/// Machines that a test has for itself.
pub struct Allocation {
    pub slurm: Arc<Cluster>,
    pub job: String,
}

impl Allocation {
    /// `None`, said aloud, where there cannot be one.
    pub fn of(options: &str) -> Option<Self> {
        let slurm = Cluster::up()?;
        let mut salloc = Command::new("salloc");
        salloc.args(["--no-shell", "--job-name=steps"]).args(options.split_whitespace());
        let output = salloc.env("SLURM_CONF", slurm.conf()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let granted = said.lines().find_map(|line| line.strip_prefix("salloc: Granted job allocation "));
        let job = granted.unwrap_or_else(|| panic!("{said}")).trim().to_owned();
        Some(Self { slurm, job })
    }

    fn pipe(&self, place: &Place, command: &str) -> Call {
        self.slurm.pipe(place, command).env("SLURM_JOB_ID", &self.job)
    }

    pub fn run(&self, place: &Place) -> Call {
        self.pipe(place, "run p.toml --executor srun")
    }

    /// Numbers of the steps that go on.
    pub fn steps(&self) -> Vec<String> {
        let text = self.slurm.ask("squeue", &["--steps", "--noheader", "--format=%i", "--jobs", &self.job]);
        text.split_whitespace().filter(|step| !step.ends_with("extern")).map(str::to_owned).collect()
    }

    pub fn end_steps(&self) {
        self.slurm.ask("scancel", &self.steps().iter().map(|step| &**step).collect::<Vec<_>>());
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.slurm.ask("scancel", &[&self.job]);
    }
}

/// Names a step that is in a work folder at the same time as another.
const ALONE: &str = "exec 9> $WORK/alone; flock --nonblock 9 || echo two at once >> @/clash; ";

fn gated() -> String {
    let script = "echo a >> @/ran; until [ -e @/go ]; do sleep 0.05; done; echo x > $OUT/x";
    stage("a", &format!("{ALONE}{script}"), "")
}

/// The processes called `name` that work in the place's folder.
pub fn within(place: &Place, name: &str) -> Vec<String> {
    let folder = place.path("").canonicalize().unwrap();
    let is_one = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder)
            && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    processes(name).iter().filter(|pid| is_one(pid)).map(u32::to_string).collect()
}

/// All that stages said.
fn logs(place: &Place) -> String {
    let files = std::fs::read_dir(place.path(".pipe/logs")).unwrap().flatten();
    files.map(|entry| std::fs::read_to_string(entry.path()).unwrap()).collect()
}

#[test]
fn stages_run_as_steps_and_make_what_they_make_here() {
    let Some(allocation) = Allocation::of("--nodes=2 --ntasks=2") else { return };
    let (there, here) = (Place::new(&chain()), Place::new(&chain()));
    allocation.run(&there).ends(0).counts(0, 3, 0);
    allocation.run(&there).ends(0).counts(3, 0, 0);
    there.run().counts(3, 0, 0);
    here.run().counts(0, 3, 0);
    assert_eq!(there.output("c"), here.output("c"));
    assert!(allocation.slurm.jobs(&there).is_empty(), "no jobs of their own");
    let step = format!("{}.2", allocation.job);
    there.pipe("show").ends(0).says(&["slurm step", &step]);
}

#[test]
fn steps_fill_the_allocation_and_have_its_gpus_for_themselves() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=2 --gpus=2") else { return };
    let script = |name: &str| {
        format!(
            "echo $CUDA_VISIBLE_DEVICES > @/{name}; until [ -e @/a -a -e @/b ]; do sleep 0.05; done; echo x > $OUT/x"
        )
    };
    let gpu = |name: &str| {
        stage(name, &script(name), "") + &format!("[stages.{name}.resources]\ngpus = 1\nmemory = \"100MB\"\n")
    };
    let place =
        Place::new(&(gpu("a") + &gpu("b") + &stage("c", "echo \"<$CUDA_VISIBLE_DEVICES>\" > $OUT/x", "")));
    allocation.run(&place).ends(0).counts(0, 3, 0);
    let mut seen = [place.read("a"), place.read("b")];
    seen.sort();
    assert_eq!(seen, ["0\n", "1\n"]);
    assert_eq!(place.output("c"), [("x".into(), b"<>\n".to_vec())], "what is not asked for is not given");
}

#[test]
fn what_the_allocation_never_has_is_refused_and_what_is_busy_is_waited_for() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=1") else { return };
    let place = Place::new("");
    let job = format!("job {}: n", allocation.job);
    for (asks, why) in [
        ("cpus = 2", "the 2 cpus that it asks for"),
        ("memory = \"5GB\"", "4769 MiB"),
        ("gpus = 1", "1 gpus"),
        ("nodes = 2", "asks for 2 nodes"),
    ] {
        place.pipeline(&(stage("a", "echo x > $OUT/x", "") + &format!("[stages.a.resources]\n{asks}\n")));
        allocation.run(&place).ends(1).says(&[why, &job, "1 cpus, 200 MiB, 0 gpus"]);
    }
    place.pipeline(&stage("a", "echo x > $OUT/x", ""));
    let mut srun = Command::new("srun");
    srun.args(["--exact", "--ntasks=1", "--mem=0", "sleep", "7741"]);
    let other = srun.env("SLURM_CONF", allocation.slurm.conf()).env("SLURM_JOB_ID", &allocation.job).spawn();
    let mut other = other.unwrap();
    until("another step is there", || allocation.steps().len() == 1);
    let run = allocation.run(&place).start();
    std::thread::sleep(Duration::from_secs(8));
    other.kill().unwrap();
    other.wait().unwrap();
    allocation.end_steps();
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.says(&["waits for room in job"]).counts(0, 1, 0);
    place.pipe("run p.toml --executor srun").ends(2).says(&["SLURM_JOB_ID is not set", "salloc"]);
}

#[test]
fn a_run_that_is_killed_takes_its_steps_along() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=1") else { return };
    let place = Place::new(&gated());
    let run = allocation.run(&place).start();
    until("its step runs", || place.lines("ran") == 1);
    run.signal("KILL");
    run.wait();
    until("the step is gone", || allocation.steps().is_empty());
    place.write("go", "");
    place.run().counts(0, 1, 0);
    assert_eq!((place.lines("ran"), place.lines("clash")), (2, 0));
}

#[test]
fn a_step_whose_srun_was_killed_too_keeps_others_out_of_its_folder() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=1") else { return };
    let place = Place::new(&gated());
    let run = allocation.run(&place).start();
    until("its step runs", || place.lines("ran") == 1);
    let mut pids = within(&place, "srun");
    assert!(!pids.is_empty());
    pids.push(run.pid().to_string());
    assert!(Command::new("kill").arg("-KILL").args(&pids).status().unwrap().success());
    run.wait();
    let next = place.pipe("run p.toml").start();
    std::thread::sleep(Duration::from_secs(2));
    allocation.end_steps();
    until("the next one runs", || place.lines("ran") == 2);
    place.write("go", "");
    let (code, said) = next.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.says(&[&format!("in job {} of Slurm", allocation.job)]).counts(0, 1, 0);
    assert_eq!(place.lines("clash"), 0);
}

/// Waits for the end of a run that was asked to stop: what can go on later says so.
fn stopped(run: Running, allocation: &Allocation) {
    let (code, said) = run.wait();
    assert_eq!(code, Some(75), "{said:?}");
    said.says(&["go on with: pipe run p.toml", "--executor srun"]);
    until("no step is left", || allocation.steps().is_empty());
}

#[test]
fn a_run_stops_when_it_is_cancelled_and_when_its_time_is_nearly_up() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=1") else { return };
    let place = Place::new(&gated());
    let run = allocation.run(&place).start();
    until("its step runs", || place.lines("ran") == 1);
    allocation.pipe(&place, "cancel --wait 20s").ends(0).says(&["stopped run"]);
    stopped(run, &allocation);
    let run = allocation.run(&place).start();
    until("its step runs", || place.lines("ran") == 2);
    run.signal("USR1");
    stopped(run, &allocation);
    assert_eq!(place.lines("clash"), 0);
    assert!(!logs(&place).contains("Killed"), "it was asked, not killed: {}", logs(&place));
}

#[test]
fn asked_twice_a_run_ends_its_steps_at_once() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=1") else { return };
    let place = Place::new(&gated());
    let run = allocation.run(&place).start();
    until("its step runs", || place.lines("ran") == 1);
    let deaf = within(&place, "pipe");
    let deaf: Vec<_> = deaf.iter().filter(|pid| **pid != run.pid().to_string()).collect();
    assert_eq!(deaf.len(), 1);
    assert!(Command::new("kill").arg("-STOP").args(deaf).status().unwrap().success());
    run.signal("TERM");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(allocation.steps().len(), 1, "it may take its time to save");
    let since = Instant::now();
    run.signal("TERM");
    let (code, said) = run.wait();
    assert_eq!(code, Some(143), "{said:?}");
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    until("no step is left", || allocation.steps().is_empty());
}

#[test]
fn a_step_that_ends_badly_is_a_failure_with_its_log() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=1") else { return };
    let place = Place::new(&stage("a", "echo what went wrong; exit 3", ""));
    allocation.run(&place).ends(1).says(&["`sh` failed with exit code 3", "what went wrong"]).counts(0, 0, 1);
    place.pipeline(&gated());
    let run = allocation.run(&place).start();
    until("its step runs", || place.lines("ran") == 1);
    allocation.end_steps();
    let (code, said) = run.wait();
    assert_eq!(code, Some(1), "{said:?}");
    said.says(&["killed by signal 9", "CANCELLED"]);
}

#[test]
fn what_a_stage_leaves_behind_ends_with_its_step() {
    let Some(allocation) = Allocation::of("--nodes=1 --ntasks=1") else { return };
    let place = Place::new(&stage("a", "sleep 7751 & echo x > $OUT/x", ""));
    let since = Instant::now();
    let said = allocation.run(&place).ends(0);
    said.counts(0, 1, 0);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(processes("sleep 7751").is_empty());
    assert!(!logs(&place).contains("Killed"), "{}", logs(&place));
}
