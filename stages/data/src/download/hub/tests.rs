//! Against a hub on loopback: real sockets, real redirections, faults on request.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use contract::{Context, Inputs};
use loopback::Fault;

use super::super::http::Token;
use super::*;
use crate::testing::Bench;

const TOKEN: &str = "hf_secret";

/// A hub with one model and one data set, and a folder to download into.
struct World {
    bench: Bench,
    served: loopback::Hub,
    token: Option<&'static str>,
    offline: bool,
    silence: Duration,
}

impl World {
    fn new() -> Self {
        let bench = Bench::new();
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        bench.write("hub/o/llama/config.json", "{\"hidden_size\": 4}");
        bench.write("hub/o/llama/.gitattributes", "*.bin filter=lfs");
        bench.write("hub/o/llama/tokenizer.json", &"t".repeat(100_000));
        bench.write("hub/o/llama/model-1.safetensors", &"1".repeat(400_000));
        bench.write("hub/o/llama/model-2.safetensors", &"2".repeat(300_000));
        bench.write("hub/o/llama/pytorch_model.bin", "pickled");
        bench.write("hub/o/llama/model.safetensors.index.json", index);
        bench.write("hub/datasets/o/rows/data/train 1.jsonl", "{}\n");
        bench.write("hub/datasets/o/rows/README.md", "# rows");
        let served = loopback::Hub::serve(&bench.path("hub")).unwrap();
        Self { bench, served, token: None, offline: false, silence: Duration::from_secs(20) }
    }

    fn hub(&self) -> Hub {
        let place = Place {
            endpoint: self.served.endpoint(),
            token: self.token.and_then(Token::new),
            cache: Some(self.bench.path("cache")),
            offline: self.offline,
        };
        Hub { place, client: Client::with(3, Duration::from_millis(1), self.silence) }
    }

    fn context(&self) -> Context<'_> {
        let (out, work) = (self.bench.path("out"), self.bench.path("work"));
        Context::new(Inputs::default(), out, work, vec![], self.bench.reporter(), &self.bench.stop)
    }

    fn fetch(&self, source: &str, revision: &str, files: &[&str]) -> Result<(), StageError> {
        let repository = Repository::parse(source).unwrap();
        let files: Vec<String> = files.iter().map(|&name| name.to_owned()).collect();
        let patterns = Patterns::new(&files, &[]).map_err(|_| StageError::new("pattern"))?;
        let request = Request { repository: &repository, revision, patterns: &patterns, sha256: None };
        self.hub().fetch(&request, &self.context())
    }

    fn model(&self) -> Result<(), StageError> {
        self.fetch("o/llama", "main", &[])
    }

    /// What has arrived must be what is served, and nothing else.
    fn check_model(&self) {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.bench.path("out")).unwrap().flatten() {
            let served = self.bench.path("hub/o/llama").join(entry.file_name());
            assert_eq!(fs::read(entry.path()).unwrap(), fs::read(served).unwrap(), "{entry:?}");
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        let wanted = [
            "config.json",
            "model-1.safetensors",
            "model-2.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ];
        assert_eq!(names, wanted);
    }

    /// Requests for files, less those of the interface.
    fn asked_for(&self, name: &str) -> Vec<String> {
        self.served.requests().into_iter().filter(|line| line.contains(name)).collect()
    }

    fn new_attempt(&self) {
        fs::remove_dir_all(self.bench.path("out")).unwrap();
        fs::create_dir(self.bench.path("out")).unwrap();
    }
}

fn hash(path: &Path) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_model_comes_whole_and_without_its_pickled_twin() {
    let world = World::new();
    world.model().unwrap();
    world.check_model();
    assert!(world.asked_for("pytorch_model.bin").is_empty());
}

#[test]
fn a_data_set_keeps_its_folders_and_one_file_comes_alone() {
    let world = World::new();
    world.fetch("datasets/o/rows", &world.served.commit("datasets/o/rows"), &[]).unwrap();
    assert_eq!(world.bench.read("data/train 1.jsonl"), "{}\n");
    world.new_attempt();
    world.fetch("datasets/o/rows/data/train 1.jsonl", "main", &[]).unwrap();
    assert_eq!(world.bench.read("train 1.jsonl"), "{}\n");
    assert!(!world.bench.out("README.md").exists());
}

#[test]
fn patterns_choose() {
    let world = World::new();
    world.fetch("o/llama", "main", &["tok*", "*.bin"]).unwrap();
    assert!(world.bench.out("tokenizer.json").exists() && world.bench.out("pytorch_model.bin").exists());
    assert!(!world.bench.out("config.json").exists());
}

#[test]
fn cut_connections_go_on_where_they_were() {
    let world = World::new();
    world.served.fail("/cdn/", 2, Fault::CutAfter(150_000));
    world.served.fail("tokenizer.json", 1, Fault::CutAfter(70_000));
    world.model().unwrap();
    world.check_model();
    let resumed = world.asked_for("tokenizer.json");
    assert!(resumed[1].ends_with(" 70000-"), "{resumed:?}");
    // Both shards are cut once, or one of them twice: they come at the same time.
    let goes_on = |line: &&String| line.ends_with(" 150000-") || line.ends_with(" 300000-");
    assert_eq!(world.asked_for("/cdn/").iter().filter(goes_on).count(), 2);
}

#[test]
fn a_killed_run_fetches_only_what_it_lacks() {
    let world = World::new();
    world.served.fail("tokenizer.json", 3, Fault::Status(503, None));
    let error = world.model().unwrap_err();
    assert!(error.message.contains("503") && error.hint.unwrap().contains("what has arrived is kept"));
    // As if the runner had been killed while one shard was half there.
    world.bench.stop.store(false, std::sync::atomic::Ordering::Relaxed);
    let part = world.bench.path("work/model-1.safetensors.part");
    fs::write(&part, "1".repeat(123_456)).unwrap();
    let before = world.served.requests().len();
    world.new_attempt();
    world.model().unwrap();
    world.check_model();
    let later: Vec<String> = world.served.requests().split_off(before);
    assert!(later.iter().any(|line| line.contains("model-1.safetensors 123456-")), "{later:?}");
    assert!(!later.iter().any(|line| line.contains("index.json")), "{later:?}");
}

#[test]
fn what_arrived_damaged_is_fetched_again_and_twice_is_an_error() {
    let world = World::new();
    world.served.fail("/cdn/", 1, Fault::WrongBit);
    world.served.fail("config.json", 1, Fault::WrongBit);
    world.model().unwrap();
    world.check_model();
    world.new_attempt();
    fs::remove_dir_all(world.bench.path("work")).unwrap();
    fs::create_dir(world.bench.path("work")).unwrap();
    world.served.fail("config.json", 2, Fault::WrongBit);
    let error = world.model().unwrap_err();
    assert!(error.message.contains("config.json") && error.message.contains("git's sha1 is"), "{error}");
    assert!(!world.bench.out("config.json").exists());
}

#[test]
fn a_busy_hub_is_asked_again_after_the_time_it_names() {
    let world = World::new();
    world.served.fail("/revision/", 1, Fault::Status(429, Some(1)));
    world.served.fail("config.json", 2, Fault::Status(500, None));
    let start = Instant::now();
    world.model().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    world.check_model();
    assert!(world.bench.notes().iter().any(|note| note.contains("429") && note.contains("again in 1 s")));
}

#[test]
fn a_silent_link_is_cut_and_a_slow_one_is_not() {
    let world = World { silence: Duration::from_millis(300), ..World::new() };
    world.served.fail("config.json", 1, Fault::Silent(Duration::from_secs(2)));
    world.served.fail("tokenizer.json", 1, Fault::Slow(Duration::from_millis(5)));
    world.model().unwrap();
    world.check_model();
    assert_eq!((world.asked_for("config.json").len(), world.asked_for("tokenizer.json").len()), (2, 1));
}

#[test]
fn a_gated_repository_says_how_to_get_in() {
    let mut world = World::new();
    world.served.gate(TOKEN, true);
    let error = world.model().unwrap_err();
    assert!(error.message.contains("`hf:o/llama` is gated"), "{error}");
    let hint = error.hint.unwrap();
    assert!(hint.contains("accept the licence on http://") && hint.contains("set HF_TOKEN"), "{hint}");
    world.token = Some("hf_other");
    let error = world.model().unwrap_err();
    assert!(
        error.message.contains("does not accept the token") && !format!("{error:?}").contains("hf_other")
    );
    world.served.gate(TOKEN, false);
    world.token = Some(TOKEN);
    let error = world.model().unwrap_err();
    assert!(error.hint.as_ref().unwrap().contains("has no access"), "{error:?}");
    world.served.gate(TOKEN, true);
    world.model().unwrap();
    world.check_model();
}

#[test]
fn neither_token_nor_signature_is_told_or_kept() {
    let mut world = World::new();
    world.token = Some(TOKEN);
    world.served.gate(TOKEN, true);
    world.served.fail("/cdn/", 99, Fault::CutAfter(0));
    let error = world.model().unwrap_err();
    let told = format!("{error:?} {:?}", world.bench.notes());
    assert!(told.contains("resolve/") && !told.contains(TOKEN) && !told.contains("signature"), "{told}");
    for entry in fs::read_dir(world.bench.path("work")).unwrap().flatten() {
        let kept = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
        assert!(!kept.contains(TOKEN) && !kept.contains("signature"), "{entry:?}");
    }
}

#[test]
fn what_is_not_there_is_named() {
    let world = World::new();
    let error = world.fetch("o/llama", "v9", &[]).unwrap_err();
    assert_eq!(error.message, "`hf:o/llama` has no revision `v9`");
    let error = world.fetch("o/nowhere", "main", &[]).unwrap_err();
    assert!(error.message.contains("no `hf:o/nowhere`, or it is private"), "{error}");
    let error = world.fetch("o/llama/gone.json", "main", &[]).unwrap_err();
    assert!(error.message.contains("no file `gone.json`"), "{error}");
}

#[test]
fn a_disk_that_cannot_hold_it_is_told_before_it_starts() {
    let world = World::new();
    world.served.claim("model-2.safetensors", 1 << 60);
    let error = world.model().unwrap_err();
    assert!(
        error.message.contains("needs 1152921504.6 GB more") && error.message.contains("left"),
        "{error}"
    );
    assert!(world.asked_for("resolve").is_empty());
}

#[test]
fn an_index_whose_shard_is_missing_is_told_before_the_others_are_fetched() {
    let world = World::new();
    fs::remove_file(world.bench.path("hub/o/llama/model-2.safetensors")).unwrap();
    let error = world.model().unwrap_err();
    assert!(error.message.contains("names the shard `model-2.safetensors`"), "{error}");
    assert!(world.asked_for("model-1.safetensors").is_empty());
}

#[test]
fn a_mirror_that_lists_names_only_is_checked_by_its_tags() {
    let world = World::new();
    world.served.list_names_only();
    world.model().unwrap();
    world.check_model();
    world.new_attempt();
    fs::remove_dir_all(world.bench.path("work")).unwrap();
    fs::create_dir(world.bench.path("work")).unwrap();
    world.served.fail("/cdn/", 2, Fault::WrongBit);
    world.served.fail("/cdn/", 2, Fault::WrongBit);
    assert!(world.model().unwrap_err().message.contains("sha256 is"));
}

/// Puts the model into the cache as `huggingface_hub` lays it out.
fn fill_cache(world: &World) {
    let commit = world.served.commit("o/llama");
    let folder = world.bench.path("cache/models--o--llama");
    let snapshot = folder.join("snapshots").join(&commit);
    for sub in ["blobs", "refs"] {
        fs::create_dir_all(folder.join(sub)).unwrap();
    }
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(folder.join("refs/main"), &commit).unwrap();
    for entry in fs::read_dir(world.bench.path("hub/o/llama")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        let tag = if name.ends_with(".safetensors") {
            hash(&entry.path())
        } else {
            use sha1::Digest;
            let digest = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()))
                .chain_update(&bytes)
                .finalize();
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        fs::write(folder.join("blobs").join(&tag), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{tag}"), snapshot.join(name)).unwrap();
    }
}

#[test]
fn what_the_cache_holds_is_not_fetched_and_what_is_damaged_there_is() {
    let world = World::new();
    fill_cache(&world);
    world.model().unwrap();
    world.check_model();
    assert!(world.asked_for("resolve").is_empty());
    let blob =
        world.bench.path("cache/models--o--llama/blobs").join(hash(&world.bench.out("model-1.safetensors")));
    fs::write(&blob, "1".repeat(399_999) + "x").unwrap();
    world.new_attempt();
    fs::remove_dir_all(world.bench.path("work")).unwrap();
    fs::create_dir(world.bench.path("work")).unwrap();
    world.model().unwrap();
    world.check_model();
    assert_eq!(world.asked_for("resolve").len(), 1);
    assert!(world.bench.notes().iter().any(|note| note.contains("in the hub's cache is damaged")));
}

#[test]
fn without_a_network_the_cache_is_the_hub() {
    let mut world = World::new();
    fill_cache(&world);
    world.offline = true;
    world.model().unwrap();
    world.check_model();
    let error = world.fetch("o/llama", "v2", &[]).unwrap_err();
    assert!(error.message.contains("HF_HUB_OFFLINE") && error.message.contains("`v2`"), "{error}");
    let error = world.fetch("o/other", &"0".repeat(40), &[]).unwrap_err();
    assert!(error.message.contains("not in the hub's cache"), "{error}");
    assert!(world.served.requests().is_empty());
}

#[test]
fn a_moving_revision_becomes_a_commit() {
    let world = World::new();
    let (repository, ctx) = (Repository::parse("o/llama").unwrap(), world.context());
    let commit = |revision: &str| world.hub().commit(&repository, revision, &Meter::new(&ctx, 0));
    assert_eq!(commit("main").unwrap(), world.served.commit("o/llama"));
    assert_eq!(commit(&"0".repeat(40)).unwrap(), "0".repeat(40));
    assert!(commit("v9").unwrap_err().message.contains("no revision"));
}
