//! Kills with -9 in every way and at any moment; after them a plain run needs no flag and ends in the same
//! objects as a run that was left alone.
//!
//! `PIPE_KILLS=1000 PIPE_SEED=7` makes it a long test.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use super::faults::{objects, stored};
use super::place::{Place, Running, processes, setting, stage, until, within};

/// How many kills come before a plain run.
const BEFORE_A_PLAIN_RUN: u64 = 8;

/// Six stages, each a few milliseconds to a few hundred; two of them resume from their work folder.
fn pipeline(mark: &str) -> String {
    let steps = "for i in 1 2 3 4 5 6; do [ -e $WORK/$i ] || { echo $i > $WORK/part; mv $WORK/part $WORK/$i; sleep 0.03; }; done; \
                 cat $WORK/[1-6] > $OUT/steps";
    [
        stage("base", "sleep 0.02; head -c 300000 /dev/zero > $OUT/big; echo base > $OUT/name", ""),
        stage("left", steps, "inputs = { a = \"base\" }"),
        stage(
            "right",
            &format!("cat $IN_A/name > $OUT/x; {mark} & sleep 0.1; mkdir $OUT/sub; echo y > $OUT/sub/y"),
            "inputs = { a = \"base\" }",
        ),
        stage("many", "for i in $(seq 40); do echo $i > $OUT/$i; done", "inputs = { a = \"right\" }"),
        stage(
            "join",
            "cat $IN_L/steps $IN_R/x $IN_M/* > $OUT/all; sleep 0.02",
            "inputs = { l = \"left\", r = \"right\", m = \"many\" }",
        ),
        stage("end", "sed s/^/./ $IN_J/all > $OUT/end", "inputs = { j = \"join\" }"),
    ]
    .concat()
}

/// A few numbers that look random: splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What is killed, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kill {
    /// The runner, at any moment.
    Runner,
    /// The runner and everything that its stages started, at once.
    Everything,
    /// One stage's process; the runner goes on.
    Stage,
    /// The runner, at one of its durable steps.
    Step,
    /// The same while it runs every stage again.
    StepOfForced,
}

const KILLS: [Kill; 5] = [Kill::Runner, Kill::Everything, Kill::Stage, Kill::Step, Kill::StepOfForced];

/// The processes of a place's stages, each the leader of a group.
fn stages(place: &Place) -> Vec<u32> {
    let folder = place.path("").canonicalize().unwrap();
    let there = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder);
    processes("exec-stage").into_iter().filter(there).collect()
}

/// Sends SIGKILL to all of these at once. Who is gone already is not missed.
fn kill(targets: &[String]) {
    let _ = Command::new("kill").args(["-s", "KILL", "--"]).args(targets).output().unwrap();
}

impl Kill {
    /// Starts a run and kills. Whether anything was.
    fn strike(self, place: &Place, seed: &mut u64) -> bool {
        let after = Duration::from_micros(random(seed) % 500_000);
        let step = (1 + random(seed) % 150).to_string();
        let run = || place.pipe("run p.toml").start();
        let wait = |run: Running| run.wait().0;
        match self {
            Self::Runner => {
                let run = run();
                std::thread::sleep(after);
                run.signal("KILL");
                wait(run).is_none()
            }
            Self::Everything => {
                let run = run();
                std::thread::sleep(after);
                let mut targets = vec![run.pid().to_string()];
                targets.extend(stages(place).iter().map(|pid| format!("-{pid}")));
                kill(&targets);
                wait(run).is_none()
            }
            Self::Stage => {
                let run = run();
                std::thread::sleep(after);
                let hit = stages(place).first().map(|pid| kill(&[pid.to_string()]));
                let code = wait(run);
                // It may have been told as finished already; then its end is its own.
                assert!(matches!(code, Some(0 | 1)), "{code:?}");
                hit.is_some()
            }
            Self::Step => wait(place.pipe("run p.toml").env("PIPE_FAULT", &step).start()).is_none(),
            Self::StepOfForced => {
                wait(place.pipe("run p.toml --force").env("PIPE_FAULT", &step).start()).is_none()
            }
        }
    }
}

#[test]
fn killed_in_any_way_at_random_moments_a_run_goes_on_and_ends_in_the_same_objects() {
    let undisturbed = Place::new(&pipeline("true"));
    let (expected, all) = (objects(&undisturbed), stored(&undisturbed));
    let (kills, mut seed) = (setting("PIPE_KILLS", 24), setting("PIPE_SEED", 1));
    let mut killed = BTreeMap::<Kill, u64>::new();
    while killed.values().sum::<u64>() < kills {
        let place = Place::new(&pipeline("sleep 7511"));
        let mut ways = Vec::new();
        for _ in 0..BEFORE_A_PLAIN_RUN {
            let way = KILLS[random(&mut seed) as usize % KILLS.len()];
            ways.push(way);
            *killed.entry(way).or_default() += u64::from(way.strike(&place, &mut seed));
        }
        let when = format!("after {ways:?}, PIPE_SEED={seed}");
        until("no stage outlives its run", || !within(&place));
        assert_eq!(objects(&place), expected, "{when}");
        assert_eq!(stored(&place), all, "{when}: no half-made output became an object");
        place.run().counts(6, 0, 0);
        place.pipe("verify").ends(0);
    }
    until("nothing that a stage started outlives its run", || processes("sleep 7511").is_empty());
    eprintln!("killed: {killed:?}");
}
