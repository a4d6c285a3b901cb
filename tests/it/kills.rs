//! Kills with -9 in every way and at any moment; after them a plain run needs no flag and ends in the same
//! objects as a run that was left alone.
//!
//! `PIPE_KILLS=1000 PIPE_SEED=7` makes it a long test.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use super::faults::{objects, stored};
use super::place::{Place, processes, setting, stage, until, within};

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
}

const KILLS: [Kill; 4] = [Kill::Runner, Kill::Everything, Kill::Stage, Kill::Step];

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
    /// Starts a run, half of them one of everything again, and kills. Whether anything was.
    fn strike(self, place: &Place, seed: &mut u64) -> bool {
        let after = Duration::from_micros(random(seed) % 500_000);
        let step = if self == Self::Step { 1 + random(seed) % 150 } else { 0 };
        let force = if random(seed).is_multiple_of(2) { "" } else { " --force" };
        let run = place.pipe(&format!("run p.toml{force}")).env("PIPE_FAULT", &step.to_string()).start();
        if self != Self::Step {
            std::thread::sleep(after);
        }
        let mut one_stage = false;
        match self {
            Self::Runner => run.signal("KILL"),
            Self::Everything => {
                let groups = stages(place).into_iter().map(|pid| format!("-{pid}"));
                kill(&groups.chain([run.pid().to_string()]).collect::<Vec<_>>());
            }
            Self::Stage => {
                let target = stages(place).first().map(u32::to_string);
                one_stage = target.is_some();
                kill(target.as_slice());
            }
            Self::Step => {}
        }
        match (self, run.wait().0) {
            (_, None) => true,
            // A stage may have told its end already; then nobody misses it.
            (Self::Stage, Some(0 | 1)) => one_stage,
            (_, code) => {
                assert_eq!(code, Some(0));
                false
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
