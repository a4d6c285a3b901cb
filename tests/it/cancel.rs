use super::place::{Place, processes, stage, until};

fn slow(name: &str, mark: &str) -> String {
    stage(name, &format!("echo {name} >> @/ran; {mark}; echo x > $OUT/x"), "")
}

#[test]
fn a_run_is_stopped_as_by_a_signal_and_waited_for() {
    let place = Place::new(&slow("a", "sleep 7611"));
    let run = place.pipe("run p.toml").start();
    until("the run is in its stage", || place.lines("ran") == 1);
    let said = place.pipe("cancel").ends(0);
    said.says(&["asked run", "p.toml", "stopped run", "pipe run p.toml"]);
    assert!(processes("sleep 7611").is_empty(), "its stage is gone when `cancel` says so");
    assert_eq!(run.wait().0, Some(75));
    place.pipe("cancel").ends(0).says(&["nothing is running"]);
    place.pipeline(&slow("a", "true"));
    place.run().counts(0, 1, 0);
}

#[test]
fn nothing_running_is_no_error() {
    let place = Place::new("");
    place.pipe("cancel").ends(0).says(&["nothing is running"]);
    place.pipe("cancel --all").ends(0).says(&["nothing is running"]);
    let said = place.pipe("cancel --json").ends(0);
    assert_eq!(said.out.split_whitespace().collect::<String>(), "{\"stopped\":[],\"version\":1}");
}

#[test]
fn of_two_runs_the_one_that_is_named_stops_or_all() {
    let place = Place::new(&slow("a", "sleep 7621"));
    place.write(
        "other.toml",
        &place
            .read("p.toml")
            .replace("stages.a", "stages.b")
            .replace("echo a", "echo b")
            .replace("7621", "7622"),
    );
    let first = place.pipe("run p.toml").start();
    let second = place.pipe("run other.toml").start();
    until("both are in their stages", || place.lines("ran") == 2);
    place.pipe("cancel").ends(2).says(&["2 runs go on", "p.toml", "other.toml", "--all"]);
    place.pipe("cancel nonsense").ends(2).says(&["no run `nonsense`"]);
    place.pipe("runs").ends(0).says(&["goes on"]);
    let runs: serde_json::Value = serde_json::from_str(&place.pipe("runs --json").ends(0).out).unwrap();
    let other = runs["running"].as_array().unwrap().iter().find(|run| run["file"] == "other.toml").unwrap();
    let name = other["id"].as_str().unwrap().to_owned();
    place.pipe(&format!("cancel {name}")).ends(0).says(&[&name]);
    assert_eq!(second.wait().0, Some(75));
    assert!(!processes("sleep 7621").is_empty(), "the other one goes on");
    place.pipe("cancel --all").ends(0).says(&["stopped run"]);
    assert_eq!(first.wait().0, Some(75));
    place.pipe("runs").ends(0).lacks("goes on");
}

#[test]
fn a_run_that_was_killed_is_not_taken_for_another_process() {
    let place = Place::new(&slow("a", "sleep 7631"));
    let run = place.pipe("run p.toml").start();
    until("the run is in its stage", || place.lines("ran") == 1);
    run.signal("KILL");
    run.wait();
    let left: Vec<_> = std::fs::read_dir(place.path(".pipe/running")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "its file stays behind");
    // As if its number had been given to another process.
    let mut other = std::process::Command::new("sleep").arg("7641").spawn().unwrap();
    let text = std::fs::read_to_string(left[0].path()).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    std::fs::write(left[0].path(), text.replace(&document["pid"].to_string(), &other.id().to_string()))
        .unwrap();
    place.pipe("cancel --all").ends(0).says(&["nothing is running"]);
    assert!(other.try_wait().unwrap().is_none(), "the other process is left alone");
    let _ = other.kill();
    let _ = other.wait();
    assert_eq!(std::fs::read_dir(place.path(".pipe/running")).unwrap().count(), 0, "its file is cleared up");
}

#[test]
fn a_run_that_does_not_stop_in_time_is_told() {
    let place = Place::new(&slow("a", "sleep 7651"));
    let run = place.pipe("run p.toml").start();
    until("the run is in its stage", || place.lines("ran") == 1);
    run.signal("STOP");
    place.pipe("cancel --wait 300ms").ends(4).says(&["has not stopped yet"]);
    run.signal("CONT");
    assert_eq!(run.wait().0, Some(75));
}
