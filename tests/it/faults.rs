//! Kills at every durable step of the runner, one after the other: the next plain run needs no flag,
//! leaves no process, and ends in the same objects as a run that was left alone.
//!
//! `PIPE_STRIDE=1` visits every step of every scene; else the longer scenes visit every few.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::place::{Place, setting, stage, until, within};

/// Two programs and a copied file; `b` stores two files, one of them in a folder.
fn pipeline(word: &str) -> String {
    [
        "[stages.file]\nkind = \"download\"\nsource = \"@/file\"\n",
        &stage("a", &format!("echo {word} > $OUT/x; echo y > $WORK/y"), ""),
        &stage(
            "b",
            "mkdir $OUT/sub; cat $IN_A/x $IN_F/file > $OUT/sub/all; echo b > $OUT/b",
            "inputs = { a = \"a\", f = \"file\" }",
        ),
    ]
    .concat()
}

fn new_place(word: &str) -> Place {
    let place = Place::new(&pipeline(word));
    place.write("file", "of a person\n");
    // Old enough for its digest to be kept.
    let file = fs::File::options().append(true).open(place.path("file")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    place
}

/// Stage → its object, by a run that succeeds.
pub fn objects(place: &Place) -> BTreeMap<String, String> {
    let said = place.pipe("run p.toml --json").ends(0);
    let record: Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
    let stages = record["run"]["stages"].as_array().unwrap().iter();
    stages.map(|stage| (stage["stage"].to_string(), stage["object"].to_string())).collect()
}

/// The objects that lie in the store.
pub fn stored(place: &Place) -> BTreeSet<String> {
    let shelves = fs::read_dir(place.path(".pipe/objects")).unwrap().flatten();
    let objects = shelves.flat_map(|shelf| fs::read_dir(shelf.path()).unwrap().flatten());
    objects.map(|object| object.file_name().into_string().unwrap()).collect()
}

/// Calls `command` in a new place of `scene` again and again, each time killed one step later, until it
/// comes through. After each kill `plain` must put things right. Gives the names of the steps.
fn walk(
    stride: u64,
    command: &str,
    scene: impl Fn() -> Place,
    plain: impl Fn(&Place, &str),
) -> BTreeSet<String> {
    let mut steps = BTreeSet::new();
    let mut next = 1;
    loop {
        let place = scene();
        let (code, said) = place.pipe(command).env("PIPE_FAULT", &next.to_string()).start().wait();
        if code.is_some() {
            assert_eq!(code, Some(0), "{said:?}");
            assert!(next > 10, "only {next} steps");
            return steps;
        }
        let step = said.err.lines().find_map(|line| line.strip_prefix("fault: ")).unwrap_or_default();
        steps.insert(step.to_owned());
        until("no stage outlives its run", || !within(&place));
        plain(&place, &format!("killed at step {next}, `{step}`"));
        next += stride;
    }
}

/// The plain run after a kill: the same objects, nothing damaged, and a run after it runs nothing.
fn goes_on(place: &Place, expected: &BTreeMap<String, String>, when: &str) {
    assert_eq!(&objects(place), expected, "{when}");
    place.pipe("verify").ends(0);
    place.run().counts(3, 0, 0);
}

#[test]
fn killed_at_every_step_of_a_first_run() {
    let undisturbed = new_place("one");
    let (expected, all) = (objects(&undisturbed), stored(&undisturbed));
    let steps = walk(
        1,
        "run p.toml",
        || new_place("one"),
        |place, when| {
            goes_on(place, &expected, when);
            assert_eq!(stored(place), all, "{when}");
        },
    );
    for step in [
        "open: a folder",
        "enter: a folder",
        "process: started",
        "stage: finished",
        "object: a file sealed",
        "object: before its rename",
        "object: renamed",
        "write: half written",
        "write: flushed",
        "write: renamed",
        "commit: written",
        "commit: flushed",
        "commit: the object is in",
        "commit: the action is in",
        "commit: renames flushed",
        "removal: after",
        "advice: renamed",
    ] {
        assert!(steps.contains(step), "`{step}` is not among {steps:?}");
    }
}

#[test]
fn killed_at_the_steps_of_a_run_that_heals_a_copied_store() {
    let template = new_place("one");
    let expected = objects(&template);
    let scene = || {
        let place = new_place("one");
        copy(&template, &place);
        for name in ["files/x", "files/sub/all"] {
            let file = place.stored(name).remove(0);
            super::place::set_mode(&file, 0o644);
            fs::write(&file, "damaged").unwrap();
        }
        place
    };
    let stride = setting("PIPE_STRIDE", 5);
    let steps = walk(stride, "run p.toml", scene, |place, when| goes_on(place, &expected, when));
    if stride == 1 {
        assert!(steps.contains("discard: renamed"), "{steps:?}");
    }
}

#[test]
fn killed_at_the_steps_of_a_run_after_an_edit_and_of_a_forced_one() {
    let (template, edited) = (new_place("one"), new_place("two"));
    objects(&template);
    let expected = objects(&edited);
    let scene = || {
        let place = new_place("two");
        copy(&template, &place);
        place
    };
    for command in ["run p.toml", "run p.toml --force"] {
        walk(setting("PIPE_STRIDE", 7), command, scene, |place, when| goes_on(place, &expected, when));
    }
}

#[test]
fn killed_at_the_steps_of_collecting() {
    let template = new_place("one");
    objects(&template);
    template.pipeline(&pipeline("two"));
    let expected = objects(&template);
    let scene = || {
        let place = new_place("two");
        copy(&template, &place);
        age(&place);
        place
    };
    walk(setting("PIPE_STRIDE", 1), "gc --keep 1", scene, |place, when| {
        place.run().counts(3, 0, 0);
        age(place);
        place.pipe("gc --keep 1").ends(0);
        assert_eq!(&objects(place), &expected, "{when}");
        place.pipe("verify").ends(0).says(&["3 results are sound"]);
        assert_eq!(stored(place).len(), 3, "{when}");
        for folder in ["actions", "latest", "runs"] {
            let names = fs::read_dir(place.path(".pipe").join(folder)).unwrap().flatten();
            let mut names = names.map(|entry| entry.file_name().into_string().unwrap());
            assert!(!names.any(|name| name.starts_with(".tmp")), "{when}: half-made files stay in {folder}");
        }
    });
}

/// Several results arrive at a time and are stored together.
#[test]
fn killed_at_the_steps_of_fetching() {
    let arms = stage("arm", "echo ${matrix.n} > $OUT/n", "matrix = { n = [1, 2, 3, 4, 5, 6] }");
    let home = Place::new(&arms);
    let expected = objects(&home);
    let pull = format!("pull p.toml --remote file://{}", home.path("remote").display());
    home.pipe(&pull.replace("pull", "push")).ends(0);
    let stride = setting("PIPE_STRIDE", 3);
    let steps = walk(
        stride,
        &pull,
        || Place::new(&arms),
        |place, when| {
            place.pipe(&pull).ends(0);
            place.run().counts(6, 0, 0);
            assert_eq!(objects(place), expected, "{when}");
            place.pipe("verify").ends(0).says(&["6 results are sound"]);
        },
    );
    if stride == 1 {
        assert!(steps.contains("commit: the object is in"), "{steps:?}");
    }
}

fn copy(from: &Place, to: &Place) {
    let done = Command::new("cp").arg("-r").arg(from.path(".pipe")).arg(to.path(".pipe")).status().unwrap();
    assert!(done.success());
}

/// Makes everything in the store's folders two hours old.
pub fn age(place: &Place) {
    let status = Command::new("find")
        .arg(place.path(".pipe"))
        .args(["-exec", "touch", "-h", "-d", "2 hours ago", "{}", "+"])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_stage_that_is_killed_at_any_step_of_its_own_is_made_whole_by_the_next_run() {
    let step = |number: usize| {
        format!(
            "[ $KILL != {number} ] || [ -e @/killed ] || {{ touch @/killed; kill -s KILL $PPID; sleep 9; }}; "
        )
    };
    let script = [
        step(0),
        "echo half > $OUT/x; ".into(),
        step(1),
        "echo 1 > $WORK/1; ".into(),
        step(2),
        "echo whole > $OUT/x; mkdir $OUT/sub; ".into(),
        step(3),
        "echo y > $OUT/sub/y; ".into(),
        step(4),
    ];
    for kill in 0..5 {
        let place = Place::new(&stage("a", &script.concat(), &format!("env = {{ KILL = \"{kill}\" }}")));
        place.pipe("run p.toml").ends(1).says(&["SIGKILL"]);
        assert!(fs::read_dir(place.path(".pipe/actions")).unwrap().next().is_none(), "step {kill}");
        place.run().counts(0, 1, 0);
        let files: Vec<Vec<u8>> = place.output("a").into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(files, [&b"y\n"[..], b"whole\n"], "step {kill}");
        place.pipe("verify").ends(0);
    }
}
