use super::faults::age;
use super::place::{Place, chain, stage, until};

/// One stage that counts its runs and takes until the file `go` is there.
fn gated() -> String {
    stage("slow", "echo x >> @/ran; until [ -e @/go ]; do sleep 0.02; done; echo x > $OUT/x", "")
}

#[test]
fn of_two_runs_at_once_the_second_waits_and_reuses() {
    let place = Place::new(&gated());
    let first = place.pipe("run p.toml").start();
    until("the first run is in its stage", || place.lines("ran") == 1);
    let holder = format!("waits for process {} (pipeline `p`)", first.pid());
    let second = place.pipe("run p.toml").start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    place.write("go", "");
    let (code, said) = first.wait();
    assert_eq!(code, Some(0), "{said:?}");
    let (code, waited) = second.wait();
    assert_eq!(code, Some(0), "{waited:?}");
    waited.counts(1, 0, 0).says(&[&holder]);
    assert_eq!(place.lines("ran"), 1);
}

#[test]
fn the_wait_can_be_limited() {
    let place = Place::new(&gated());
    let first = place.pipe("run p.toml").start();
    until("the first run is in its stage", || place.lines("ran") == 1);
    place.pipe("run p.toml --lock-wait 200ms").ends(4).says(&["another run"]);
    place.write("go", "");
    assert_eq!(first.wait().0, Some(0));
}

#[test]
fn when_the_first_of_two_is_killed_the_second_goes_on() {
    let place = Place::new(&gated());
    let first = place.pipe("run p.toml").start();
    until("the first run is in its stage", || place.lines("ran") == 1);
    let second = place.pipe("run p.toml").start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    first.signal("KILL");
    first.wait();
    until("the second run is in its stage", || place.lines("ran") == 2);
    place.write("go", "");
    let (code, said) = second.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.counts(0, 1, 0);
}

#[test]
fn different_pipelines_share_a_store_at_the_same_time() {
    let place = Place::new(&chain());
    let other = place.read("p.toml").replace("echo three", "sleep 0.1; echo drei");
    place.write("other.toml", &other);
    let runs: Vec<_> = (0..6).map(|i| place.pipe(["run p.toml", "run other.toml"][i % 2]).start()).collect();
    for run in runs {
        let (code, said) = run.wait();
        assert_eq!(code, Some(0), "{said:?}");
    }
    let ran = place.read("ran");
    assert_eq!(ran.matches('a').count(), 1, "{ran}");
    assert_eq!(ran.matches('b').count(), 1, "{ran}");
    assert_eq!(ran.matches('c').count(), 2, "{ran}");
}

#[test]
fn collecting_waits_for_a_run_that_goes_on_and_takes_nothing_that_it_uses() {
    let place = Place::new(&chain());
    place.run();
    // A later run of something else: nothing kept names what the chain made, and all of it is old.
    place.pipeline(&stage("other", "echo x > $OUT/x", ""));
    place.run();
    age(&place);
    place.pipe("gc --keep 1 --dry-run").ends(0).says(&["would remove 3 results"]);
    let slow = "echo x >> @/at-it; until [ -e @/go ]; do sleep 0.02; done; cat $IN_C/text > $OUT/text";
    place.pipeline(&[chain(), stage("slow", slow, "inputs = { c = \"c\" }")].concat());
    let run = place.pipe("run p.toml").start();
    until("the run is in its last stage", || place.lines("at-it") == 1);
    let collecting = place.pipe("gc --keep 1").start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(place.stored("files/text").len(), 3);
    place.write("go", "");
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.counts(3, 1, 0);
    let (code, said) = collecting.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.says(&["waiting for the runs that use", "removed 1 results"]);
    place.run().counts(4, 0, 0);
}
