//! Downloads from a hub on loopback, and `pipe.lock`.

use std::fs;
use std::time::Duration;

use loopback::{Fault, Hub};

use super::place::{Call, Place, until};

const TOKEN: &str = "hf_do_not_tell";

const PIPELINE: &str = "\
[stages.model]
kind = \"download\"
source = \"hf:o/tiny\"

[stages.rows]
kind = \"download\"
source = \"hf:datasets/o/rows/train.jsonl\"
revision = \"main\"
";

/// A folder with a hub below it.
struct World {
    place: Place,
    hub: Hub,
}

impl World {
    fn new() -> Self {
        let place = Place::new(PIPELINE);
        for folder in ["hub/o/tiny", "hub/datasets/o/rows"] {
            fs::create_dir_all(place.path(folder)).unwrap();
        }
        place.write("hub/o/tiny/config.json", "{}");
        place.write("hub/o/tiny/model.safetensors", &"w".repeat(300_000));
        place.write("hub/datasets/o/rows/train.jsonl", "{}\n");
        let hub = Hub::serve(&place.path("hub")).unwrap();
        Self { place, hub }
    }

    fn pipe(&self, command: &str) -> Call {
        let home = self.place.path("home").display().to_string();
        let call = self.place.pipe(command).env("HF_ENDPOINT", &self.hub.endpoint()).env("HF_HOME", &home);
        call.env("HF_HUB_OFFLINE", "").env("HF_HUB_CACHE", "").env("HF_TOKEN_PATH", "").env("HF_TOKEN", TOKEN)
    }
}

#[test]
fn a_branch_is_pinned_once_and_moves_when_asked() {
    let world = World::new();
    world.pipe("plan p.toml").ends(0).says(&["will run", "its `revision` is not pinned yet: hf:o/tiny@main"]);
    assert!(world.hub.requests().is_empty() && !world.place.path("pipe.lock").exists());

    world.pipe("run p.toml").ends(0).counts(0, 2, 0).says(&["pipe.lock: hf:o/tiny@main is"]);
    let first = world.hub.commit("o/tiny");
    let lock = world.place.read("pipe.lock");
    let pins = format!(
        "version = 1\n\n[pins]\n\"hf:datasets/o/rows@main\" = \"{}\"\n\"hf:o/tiny@main\" = \"{first}\"\n",
        world.hub.commit("datasets/o/rows")
    );
    assert!(lock.starts_with("# ") && lock.ends_with(&pins), "{lock}");
    assert_eq!(world.place.output("rows").len(), 1);

    // The branch moves; nobody is asked, and nothing runs.
    world.place.write("hub/o/tiny/config.json", "{\"new\": true}");
    let before = world.hub.requests().len();
    world.pipe("run p.toml").ends(0).counts(2, 0, 0);
    assert_eq!(world.hub.requests().len(), before);
    assert_eq!(world.place.read("pipe.lock"), lock);

    let second = world.hub.commit("o/tiny");
    world
        .pipe("run p.toml --update model")
        .ends(0)
        .counts(1, 1, 0)
        .says(&[&format!("is now {second}, it was {first}")]);
    world.pipe("explain p.toml model").ends(0).says(&["cached", &format!("config.revision = \"{second}\"")]);
    world.pipe("run p.toml --update model").ends(0).counts(2, 0, 0).says(&["nothing has moved"]);
}

#[test]
fn a_commit_in_full_needs_no_pin_and_is_the_same_run() {
    let world = World::new();
    world.pipe("run p.toml").ends(0).counts(0, 2, 0);
    fs::remove_file(world.place.path("pipe.lock")).unwrap();
    let commits = [world.hub.commit("o/tiny"), world.hub.commit("datasets/o/rows")];
    let set = format!("-S stages.model.revision={} -S stages.rows.revision={}", commits[0], commits[1]);
    world.pipe(&format!("run p.toml {set}")).ends(0).counts(2, 0, 0);
    assert!(!world.place.path("pipe.lock").exists());
    let text = PIPELINE.replace("revision = \"main\"", "")
        + "[stages.local]\nkind = \"download\"\nsource = \"@/p.toml\"\n";
    world.place.pipeline(&text);
    world.pipe("run p.toml --update local").ends(2).says(&["stage `local` has nothing that moves"]);
}

#[test]
fn what_cannot_be_pinned_is_told_before_anything_runs() {
    let world = World::new();
    world.place.pipeline(
        &(PIPELINE.replace("o/tiny", "o/gone")
            + "[stages.x]\nkind = \"command\"\nargv = [\"sh\", \"-c\", \"echo x > @/ran\"]\n"),
    );
    world.pipe("run p.toml").ends(1).says(&["model: the hub has no `hf:o/gone`"]);
    assert!(!world.place.path("ran").exists());
    world.place.write("pipe.lock", "version = 1\n[pin]\n");
    world.pipe("plan p.toml").ends(2).says(&["pipe.lock", "pin", "remove it"]);
}

#[test]
fn the_token_opens_a_gated_repository_and_is_nowhere_afterwards() {
    let world = World::new();
    world.hub.gate(TOKEN, true);
    world.pipe("run p.toml").env("HF_TOKEN", "").ends(1).says(&[
        "is gated",
        "accept the licence",
        "HF_TOKEN",
    ]);
    world.pipe("run p.toml -v").ends(0).counts(0, 2, 0).lacks(TOKEN);
    let mut folders = vec![world.place.path(".pipe")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let bytes = fs::read(entry.path()).unwrap();
                assert!(!String::from_utf8_lossy(&bytes).contains(TOKEN), "{}", entry.path().display());
            }
        }
    }
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let world = World::new();
    world.hub.fail("/cdn/", 1, Fault::Slow(Duration::from_millis(10)));
    let running = world.pipe("run p.toml --until model").start();
    let part = || {
        let works = fs::read_dir(world.place.path(".pipe/work")).into_iter().flatten().flatten();
        works.map(|work| work.path().join("model.safetensors.part")).find(|part| part.exists())
    };
    until("some of it has arrived", || part().is_some_and(|part| fs::metadata(part).unwrap().len() > 50_000));
    running.signal("KILL");
    running.wait();
    let before = world.hub.requests().len();
    world.pipe("run p.toml --until model").ends(0).counts(0, 1, 0);
    let later = world.hub.requests().split_off(before);
    let resumed = |line: &String| line.contains("model.safetensors ") && line.ends_with('-');
    assert!(later.iter().any(resumed), "{later:?}");
    let weights =
        world.place.output("model").into_iter().find(|(name, _)| name.ends_with("model.safetensors"));
    assert_eq!(weights.unwrap().1, "w".repeat(300_000).into_bytes());
}

#[test]
fn a_folder_that_is_called_like_a_template_changes_nothing_and_a_template_file_is_in_the_key() {
    let world = World::new();
    world.place.write(
        "hub/o/tiny/tokenizer.json",
        include_str!("../../stages/data/tests/golden/tokenizer/tokenizer.json"),
    );
    world
        .place
        .write("hub/o/tiny/tokenizer_config.json", "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}");
    fs::remove_file(world.place.path("hub/o/tiny/config.json")).unwrap();
    world.place.write("hub/datasets/o/rows/train.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n");
    let tokens =
        "[stages.tokens]\nkind = \"tokenize\"\ninputs = { dataset = \"rows\", tokenizer = \"model\" }\n";
    let with =
        |template: &str| world.place.pipeline(&format!("{PIPELINE}{tokens}template = \"{template}\"\n"));
    with("plain");
    world.pipe("run p.toml").ends(0).counts(0, 3, 0);
    fs::create_dir(world.place.path("plain")).unwrap();
    world.pipe("run p.toml").ends(0).counts(3, 0, 0);
    world.place.write("own.jinja", "{{ instruction }} -> ");
    with("own.jinja");
    world.pipe("run p.toml").ends(0).counts(2, 1, 0);
    world.place.write("own.jinja", "{{ instruction }} => ");
    world.pipe("plan p.toml").ends(0).says(&["`template`: the content of the file or folder changed"]);
    world.pipe("run p.toml").ends(0).counts(2, 1, 0);
    with("chatml");
    world.pipe("run p.toml").ends(0).counts(2, 1, 0);
    with("chat");
    world.pipe("run p.toml").ends(1).says(&["no chat template of its own"]);
    with("alpca");
    world.pipe("run p.toml").ends(2).says(&["`alpca` is no template"]);
}
