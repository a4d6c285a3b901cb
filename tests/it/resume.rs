use super::place::{Place, processes, stage, until};

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
