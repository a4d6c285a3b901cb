use super::place::{Place, stage, until};

/// Waits for the file `go` in the place's folder.
const GATE: &str = "until [ -e @/go ]; do sleep 0.02; done";

#[test]
fn a_running_stage_is_followed_across_a_retry_until_it_ends() {
    let script = format!(
        "echo x >> @/ran; if [ $(wc -l < @/ran) = 1 ]; then echo first try >&2; {GATE}; exit 1; fi; \
         echo second try >&2; printf 'no end of line' >&2; echo x > $OUT/x"
    );
    let place = Place::new(&stage("slow", &script, "retries = 1"));
    let run = place.pipe("run p.toml").start();
    until("the run is in its stage", || place.lines("ran") == 1);
    let follower = place.pipe("logs p.toml slow --follow").start();
    std::thread::sleep(std::time::Duration::from_millis(200));
    place.write("go", "");
    let (code, said) = follower.wait();
    assert_eq!(code, Some(0), "{said:?}");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.iter().filter(|line| **line == "first try").count(), 1, "{said:?}");
    assert!(lines.contains(&"second try") && lines.last() == Some(&"no end of line"), "{said:?}");
    assert_eq!(run.wait().0, Some(0));
    // What ended is printed, and that is all.
    place.pipe("logs p.toml slow -f").ends(0).says(&["first try", "second try"]);
}

#[test]
fn a_stage_that_is_still_to_come_is_waited_for_while_a_run_goes_on() {
    let text = [
        stage("first", &format!("echo x >> @/ran; {GATE}; date +%N > $OUT/x"), ""),
        stage("second", "echo hello >&2; echo x > $OUT/x", "inputs = { a = \"first\" }"),
    ];
    let place = Place::new(&text.concat());
    place.pipe("logs p.toml second -f").ends(1).says(&["has not run yet", "pipe run p.toml"]);
    let run = place.pipe("run p.toml").start();
    until("the run is in its stage", || place.lines("ran") == 1);
    let follower = place.pipe("logs p.toml second -f").start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    place.write("go", "");
    let (code, said) = follower.wait();
    assert_eq!((code, said.out.as_str()), (Some(0), "hello\n"), "{said:?}");
    said.says(&["waiting for `second` to start"]);
    assert_eq!(run.wait().0, Some(0));
}

#[test]
fn a_followed_stage_that_fails_or_whose_run_is_killed_is_told() {
    let place = Place::new(&stage("a", &format!("echo x >> @/ran; echo hello >&2; {GATE}; exit 1"), ""));
    for signal in ["", "KILL"] {
        let before = place.lines("ran");
        let run = place.pipe("run p.toml").start();
        until("the run is in its stage", || place.lines("ran") == before + 1);
        let follower = place.pipe("logs p.toml a -f").start();
        std::thread::sleep(std::time::Duration::from_millis(200));
        if signal.is_empty() {
            place.write("go", "")
        } else {
            run.signal(signal)
        }
        let (code, said) = follower.wait();
        assert_eq!(code, Some(1), "{said:?}");
        said.says(&["hello", "`a` did not finish"]);
        run.wait();
        let _ = std::fs::remove_file(place.path("go"));
    }
}

#[test]
fn of_several_instances_one_must_be_named() {
    let place = Place::new(&stage("a", "echo ${matrix.n} > $OUT/x", "matrix = { n = [1, 2] }"));
    place.pipe("logs p.toml a -f").ends(2).says(&["`a[1]`", "`a[2]`"]);
}
