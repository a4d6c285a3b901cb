use std::time::{Duration, Instant};

use super::place::{Place, processes, stage, until};

fn slow(mark: &str) -> String {
    [
        stage("first", "echo x > $OUT/x", ""),
        stage("slow", &format!("echo x >> @/ran; {mark}; echo x > $OUT/x"), "inputs = { a = \"first\" }"),
        stage("last", "echo x > $OUT/x", "inputs = { a = \"slow\" }"),
    ]
    .concat()
}

#[test]
fn asked_once_the_run_stops_and_can_be_resumed() {
    for (number, signal) in ["INT", "TERM"].iter().enumerate() {
        let sleep = format!("sleep 740{number}");
        let place = Place::new(&slow(&sleep));
        let run = place.pipe("run p.toml").start();
        until("the run is in its stage", || place.lines("ran") == 1);
        run.signal(signal);
        let start = Instant::now();
        let (code, said) = run.wait();
        assert_eq!(code, Some(75), "{said:?}");
        assert!(start.elapsed() < Duration::from_secs(5));
        said.says(&["pipe run p.toml"]);
        until("its stage is gone", || processes(&sleep).is_empty());
        place.pipeline(&slow("true"));
        place.run().counts(1, 2, 0);
    }
}

#[test]
fn asked_twice_the_run_ends_at_once() {
    // A process that does not listen to requests, started by one that waits for it.
    let place = Place::new(&slow("trap '' TERM INT; sleep 7411 & wait; wait; sleep 7411"));
    let run = place.pipe("run p.toml").start();
    until("the run is in its stage", || place.lines("ran") == 1);
    run.signal("INT");
    std::thread::sleep(Duration::from_millis(30));
    run.signal("INT");
    let start = Instant::now();
    let (code, said) = run.wait();
    assert!(matches!(code, Some(75 | 130)), "{code:?} {said:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    until("its stage is gone", || processes("sleep 7411").is_empty());
}
