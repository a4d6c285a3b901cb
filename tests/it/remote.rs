//! A store that machines share, as a folder: two places with stores of their own.

use std::fs;
use std::path::PathBuf;

use super::place::{Place, chain, set_mode, stage, until};

/// A place beside `first` with the same pipeline, whose stages count in its own folder's `ran`.
fn places(pipeline: &str) -> (Place, Place) {
    (Place::new(&pipeline.replace("@/ran", "$WORK/ran")), Place::new(&pipeline.replace("@/ran", "$WORK/ran")))
}

/// `command` with the remote of `home`.
fn with(command: &str, home: &Place) -> String {
    format!("{command} --remote file://{}", home.path("remote").display())
}

/// The files of one kind at the remote of `home`.
fn there(home: &Place, kind: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.path("remote/v1").join(kind)).unwrap().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn flip(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_one_machine_made_another_fetches() {
    let executable = stage(
        "tool",
        "printf '#!/bin/sh\\necho from the tool\\n' > $OUT/t; chmod +x $OUT/t; mkdir $OUT/d; : > $OUT/d/empty",
        "",
    );
    let user = stage("user", "$IN_T/t > $OUT/x", "inputs = { t = \"tool\" }");
    let (home, other) = places(&[chain(), executable, user].concat());
    home.pipe(&with("run p.toml", &home)).ends(0).counts(0, 5, 0);
    other.pipe(&with("run p.toml", &home)).ends(0).counts(5, 0, 0).says(&["fetched 5 results"]);
    assert_eq!(other.output("c"), home.output("c"));
    assert_eq!(other.output("tool"), home.output("tool"));
    other.pipe("verify").ends(0);
    // What was fetched can be worked with: also a program stays one.
    other.pipe("run p.toml --force --only user").ends(0).counts(1, 1, 0);
    other.run().counts(5, 0, 0);
}

#[test]
fn a_damaged_file_a_missing_object_and_a_cut_or_exchanged_action_are_made_here_and_put_right_there() {
    for damage in ["blob", "short", "no blob", "no object", "object", "cut", "exchanged"] {
        let (home, other) = places(&chain());
        home.pipe(&with("run p.toml", &home)).ends(0);
        let actions = there(&home, "actions");
        match damage {
            "blob" => there(&home, "blobs").iter().for_each(flip),
            "short" => there(&home, "blobs").iter().for_each(|path| fs::write(path, "").unwrap()),
            "no blob" => there(&home, "blobs").iter().for_each(|path| fs::remove_file(path).unwrap()),
            "no object" => there(&home, "objects").iter().for_each(|path| fs::remove_file(path).unwrap()),
            "object" => there(&home, "objects").iter().for_each(flip),
            "cut" => actions.iter().for_each(|path| fs::write(path, &fs::read(path).unwrap()[..40]).unwrap()),
            _ => {
                fs::rename(&actions[0], home.path("kept")).unwrap();
                fs::copy(&actions[1], &actions[0]).unwrap();
                fs::copy(&actions[2], &actions[1]).unwrap();
                fs::copy(home.path("kept"), &actions[2]).unwrap();
            }
        }
        // What is good here stays, whatever lies there.
        home.pipe(&with("run p.toml", &home)).ends(0).counts(3, 0, 0);
        let said = other.pipe(&with("run p.toml", &home)).ends(0);
        said.counts(0, 3, 0).says(&["warning", "it is made here"]);
        assert_eq!(other.output("c"), home.output("c"), "{damage}");
        for place in [&home, &other] {
            place.pipe("verify").ends(0);
        }
        let third = Place::new(&chain().replace("@/ran", "$WORK/ran"));
        third.pipe(&with("run p.toml", &home)).ends(0).counts(3, 0, 0).lacks("warning");
        assert_eq!(third.output("c"), home.output("c"), "{damage}");
    }
}

#[test]
fn a_remote_that_cannot_be_used_is_told_and_done_without() {
    let home = Place::new(&chain());
    // A file where a folder must be.
    fs::create_dir(home.path("remote")).unwrap();
    home.write("remote/v1", "");
    let said = home.pipe(&with("run p.toml", &home)).ends(0);
    said.counts(0, 3, 0).says(&["warning", "left alone for the rest of this run"]);
    home.pipe(&with("push p.toml", &home)).ends(1).says(&["warning"]);
    for (url, wanted) in [
        ("ftp://x", "s3://BUCKET/PREFIX"),
        ("file://x", "s3://BUCKET"),
        ("file:///no/such/folder", "No such file"),
    ] {
        let code = if url.starts_with("file:///") { 1 } else { 2 };
        home.pipe(&format!("run p.toml --remote {url}")).ends(code).says(&[wanted]);
    }
}

#[test]
fn results_are_pushed_and_pulled_without_running_anything() {
    let arms = stage(
        "arm",
        "echo ${matrix.n} > $OUT/n; echo same > $OUT/same",
        &format!("matrix = {{ n = {:?} }}", (0..40).collect::<Vec<_>>()),
    );
    let all = stage("all", "cat $IN_ARMS_1/n > $OUT/x", "inputs = { arms = \"arm[*]\" }");
    let (home, other) = places(&[arms, all].concat());
    home.pipe("run p.toml --until arm").ends(0).counts(0, 40, 0);
    home.pipe(&with("push p.toml", &home)).ends(0).says(&["sent 40 results"]);
    // Files with the same content are one file there.
    assert_eq!(there(&home, "blobs").len(), 41);
    home.pipe(&with("push p.toml", &home)).ends(0).says(&["nothing sent: 40 are there, 1 have no result"]);
    let said = other.pipe(&with("pull p.toml --json", &home)).ends(0);
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&document["moved"], &document["absent"]), (&40.into(), &1.into()), "{document}");
    other.pipe("plan p.toml").ends(0).says(&["40 cached, 1 will run"]);
    // The environment names it as well.
    let url = format!("file://{}", home.path("remote").display());
    other.pipe("run p.toml").env("PIPE_REMOTE", &url).ends(0).counts(40, 1, 0);
    home.pipe("run p.toml").env("PIPE_REMOTE", &url).ends(0).counts(41, 0, 0);
}

#[test]
fn what_is_made_elsewhere_while_a_run_goes_on_is_fetched_when_its_turn_comes() {
    let gate = stage("gate", "echo x > @/at-it; until [ -e @/go ]; do sleep 0.02; done; echo x > $OUT/x", "");
    let pipeline = [gate, stage("shared", "echo made > $OUT/x", "")].concat();
    let (home, other) = (Place::new(&pipeline), Place::new(&pipeline));
    let run = other.pipe(&with("run p.toml -j 1", &home)).start();
    until("the other run is at its first stage", || other.lines("at-it") == 1);
    home.pipe(&with("run p.toml --only shared", &home)).ends(0).counts(0, 1, 0);
    other.write("go", "");
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    said.counts(1, 1, 0);
}

#[test]
fn what_is_forced_is_made_here_and_damage_here_heals_from_there() {
    let (home, other) = places(&chain());
    home.pipe(&with("run p.toml", &home)).ends(0);
    other.pipe(&with("run p.toml --force", &home)).ends(0).counts(0, 3, 0);
    for file in other.stored("files/text") {
        set_mode(&file, 0o644);
        fs::write(&file, "damaged").unwrap();
    }
    other.pipe(&with("run p.toml", &home)).ends(0).counts(3, 0, 0).says(&["fetched 3 results"]);
    assert_eq!(other.output("c"), home.output("c"));
    other.pipe("verify").ends(0);
}

#[test]
fn plan_says_what_would_be_fetched_and_fetches_nothing() {
    let (home, other) = places(&chain());
    other.pipe("plan p.toml").ends(0).says(&["0 cached, 1 will run, 2 may run"]);
    home.pipe(&with("run p.toml", &home)).ends(0);
    let planned = other.pipe(&with("plan p.toml --exit-code", &home)).ends(0);
    planned.says(&["will fetch  file://", "0 cached, 0 will run, 0 may run, 3 will fetch"]);
    other.pipe(&with("run p.toml --dry-run", &home)).ends(0).says(&["3 will fetch"]);
    assert!(other.stored("text").is_empty());
    other.pipe(&with("plan p.toml --force", &home)).ends(0).says(&["3 will run, 0 may run"]).lacks("fetch");
    other.pipe(&with("plan p.toml --only c", &home)).ends(0).says(&["3 will fetch"]).lacks("cannot run");
    // What hangs on something new is new.
    other.pipeline(&chain().replace("@/ran", "$WORK/ran").replace("echo two", "echo zwei"));
    let planned = other.pipe(&with("plan p.toml --exit-code", &home)).ends(3);
    planned.says(&["0 cached, 1 will run, 1 may run, 1 will fetch"]);
    other.pipe(&with("run p.toml", &home)).ends(0).counts(1, 2, 0);
    for action in there(&home, "actions") {
        fs::write(action, "{").unwrap();
    }
    home.pipe(&with("plan p.toml --store new", &home)).ends(0).says(&["warning: a: file://", "1 will run"]);
}
