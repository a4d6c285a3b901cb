use std::time::Duration;

use super::place::{Place, processes, setting, stage, until, within};

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

/// `PIPE_KILLS=1000 PIPE_SEED=7` makes it a long test.
#[test]
fn killed_at_random_moments_a_run_goes_on_and_ends_in_the_same_bytes() {
    let undisturbed = Place::new(&pipeline("true"));
    undisturbed.run().counts(0, 6, 0);
    let (kills, mut seed) = (setting("PIPE_KILLS", 25), setting("PIPE_SEED", 1));
    let mut killed = 0;
    while killed < kills {
        let place = Place::new(&pipeline("sleep 7511"));
        for _ in 0..8 {
            let run = place.pipe("run p.toml").start();
            std::thread::sleep(Duration::from_micros(random(&mut seed) % 500_000));
            run.signal("KILL");
            killed += u64::from(run.wait().0.is_none());
        }
        until("no stage outlives its run", || !within(&place));
        place.run().says(&[", 0 failed"]);
        assert_eq!(place.output("end"), undisturbed.output("end"));
        assert_eq!(place.output("many"), undisturbed.output("many"));
        place.run().counts(6, 0, 0);
        place.pipe("verify").ends(0);
    }
    until("nothing that a stage started outlives its run", || processes("sleep 7511").is_empty());
}

#[test]
fn a_stage_killed_by_itself_goes_on_from_its_work_folder() {
    let script = "echo x >> $WORK/tries; [ $(wc -l < $WORK/tries) -ge 2 ] || kill -s KILL $PPID; cp $WORK/tries $OUT/tries";
    let place = Place::new(&stage("a", script, ""));
    place.pipe("run p.toml").ends(1).says(&["SIGKILL"]);
    place.run().counts(0, 1, 0);
    assert_eq!(place.output("a")[0].1, b"x\nx\n");
    // A new key starts from nothing.
    place.pipeline(&stage("a", &format!("true; {script}"), ""));
    place.pipe("run p.toml").ends(1);
}

#[test]
fn when_the_runner_is_killed_its_stages_end() {
    let place = Place::new(&stage("a", "echo x >> @/ran; (sleep 7521; true) & sleep 7522; true", ""));
    let run = place.pipe("run p.toml").start();
    until("the run is in its stage", || place.lines("ran") == 1 && !processes("sleep 7521").is_empty());
    run.signal("KILL");
    run.wait();
    until("its stage is gone", || processes("sleep 7521").is_empty() && processes("sleep 7522").is_empty());
}
