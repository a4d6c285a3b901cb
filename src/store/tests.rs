use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store"), Check::Stat).unwrap();
    (folder, store)
}

fn key(name: &str) -> StageKey {
    StageKey(Digest::of(name.as_bytes()))
}

fn action(object: Digest) -> Action {
    Action {
        object,
        kind: "fake".into(),
        stage: "fake".into(),
        explanation: BTreeMap::from([("kind".into(), "fake".into())]),
        started: "2026-01-01T00:00:00Z".into(),
        seconds: 0.5,
        provenance: BTreeMap::new(),
        warnings: Vec::new(),
    }
}

fn enter(store: &Store, key: &StageKey) -> Entry {
    // A process that another test starts holds inherited locks for the moment between fork and exec.
    store.enter(key, "a test", false, Some(Duration::from_secs(5)), |_| {}, || false).unwrap()
}

fn make(store: &Store, key: &StageKey, text: &str) -> Action {
    let Entry::Miss(slot) = enter(store, key) else { panic!("expected a miss") };
    fs::create_dir(slot.out().join("sub")).unwrap();
    fs::write(slot.out().join("sub/file"), text).unwrap();
    let (action, rest) = slot.commit(action).unwrap();
    rest.finish().unwrap();
    action
}

#[test]
fn what_is_committed_is_found_again_and_read_only() {
    let (_folder, store) = store();
    let made = make(&store, &key("a"), "text");
    assert!(matches!(enter(&store, &key("a")), Entry::Hit(hit) if *hit == made));
    let file = store.objects.files(&made.object).join("sub/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn equal_content_is_one_object_whatever_the_key() {
    let (_folder, store) = store();
    assert_eq!(make(&store, &key("a"), "same").object, make(&store, &key("b"), "same").object);
    assert_ne!(make(&store, &key("c"), "other").object, make(&store, &key("d"), "another").object);
}

#[test]
fn a_dropped_slot_leaves_a_miss_and_keeps_the_work_folder() {
    let (_folder, store) = store();
    let Entry::Miss(slot) = enter(&store, &key("a")) else { panic!("expected a miss") };
    fs::write(slot.out().join("half"), "h").unwrap();
    fs::write(slot.make_work().unwrap().join("state"), "s").unwrap();
    drop(slot);
    let Entry::Miss(slot) = enter(&store, &key("a")) else { panic!("expected a miss") };
    assert_eq!(fs::read_dir(slot.out()).unwrap().count(), 0, "the next attempt starts empty");
    assert_eq!(fs::read_to_string(slot.make_work().unwrap().join("state")).unwrap(), "s");
}

#[test]
fn damage_is_a_miss_and_heals() {
    let damages: &[fn(&Path)] = &[
        |file| fs::write(file, "texx").unwrap(),
        |file| fs::write(file, "").unwrap(),
        |file| fs::remove_file(file).unwrap(),
        |file| fs::write(file.with_file_name("extra"), "x").unwrap(),
        |file| {
            fs::write(file.parent().unwrap().parent().unwrap().with_file_name("manifest.json"), "{").unwrap()
        },
    ];
    for damage in damages {
        let (_folder, store) = store();
        let made = make(&store, &key("a"), "text");
        let file = store.objects.files(&made.object).join("sub/file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        damage(&file);
        assert!(matches!(enter(&store, &key("a")), Entry::Miss(_)));
        assert_eq!(make(&store, &key("a"), "text").object, made.object);
        assert!(matches!(enter(&store, &key("a")), Entry::Hit(_)));
    }
}

#[test]
fn a_cut_off_or_edited_action_is_a_miss() {
    let (_folder, store) = store();
    make(&store, &key("a"), "text");
    let path = store.action_path(&key("a"));
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(enter(&store, &key("a")), Entry::Miss(_)), "cut at {length}");
    }
    let mut edited = whole.clone();
    edited[20] ^= 1;
    fs::write(&path, &edited).unwrap();
    assert!(matches!(enter(&store, &key("a")), Entry::Miss(_)));
    fs::write(&path, &whole).unwrap();
    assert!(matches!(enter(&store, &key("a")), Entry::Hit(_)));
}

#[test]
fn rotten_bits_under_an_unchanged_stat_are_found_by_a_full_check() {
    let (_folder, store) = store();
    let made = make(&store, &key("a"), "text");
    let mut manifest = store.objects.manifest(&made.object).unwrap();
    assert!(store.objects.check(&made.object, Check::Full).unwrap().is_ok());
    // The stat cannot be kept while the file changes; so the test changes the file and takes over the
    // new stat, which is what rot looks like to the store.
    let file = store.objects.files(&made.object).join("sub/file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "tixt").unwrap();
    let text = serde_json::to_string(&manifest).unwrap();
    let before = manifest.files[0].clone();
    manifest.files[0] = object_entry(&file, &before);
    assert_ne!(serde_json::to_string(&manifest).unwrap(), text);
    let path = store.objects.files(&made.object).with_file_name("manifest.json");
    fs::write(path, serde_json::to_string(&manifest).unwrap()).unwrap();
    assert!(store.objects.check(&made.object, Check::Stat).unwrap().is_ok());
    assert!(store.objects.check(&made.object, Check::Full).unwrap().is_err());
}

fn object_entry(file: &Path, before: &object::Entry) -> object::Entry {
    object::Entry::with_stat_of(file, before)
}

#[test]
fn a_copied_store_is_still_a_hit() {
    let (folder, store) = store();
    make(&store, &key("a"), "text");
    let copy = folder.path().join("copy");
    assert!(
        std::process::Command::new("cp").arg("-r").arg(store.root()).arg(&copy).status().unwrap().success()
    );
    let copied = Store::open(&copy, Check::Stat).unwrap();
    assert!(matches!(enter(&copied, &key("a")), Entry::Hit(_)));
}

#[test]
fn a_newer_store_is_refused() {
    let (_folder, store) = store();
    fs::write(store.root().join("version"), "99\n").unwrap();
    let error = Store::open(store.root(), Check::Stat).unwrap_err();
    assert_eq!(error.exit, Exit::DamagedStore);
    assert!(error.message.contains("format 99"), "{error}");
}

#[test]
fn the_second_of_two_waits_and_reuses() {
    let (_folder, store) = store();
    let Entry::Miss(slot) = enter(&store, &key("a")) else { panic!("expected a miss") };
    let error =
        store.enter(&key("a"), "a second", false, Some(Duration::ZERO), |_| {}, || false).unwrap_err();
    assert_eq!(error.exit, Exit::LockTimeout);
    assert!(error.message.contains("a test"), "{error}");
    let second = std::thread::spawn({
        let store = store.clone();
        move || store.enter(&key("a"), "a third", false, None, |_| {}, || false).unwrap()
    });
    std::thread::sleep(Duration::from_millis(50));
    fs::write(slot.out().join("file"), "made once").unwrap();
    slot.commit(action).unwrap().1.finish().unwrap();
    assert!(matches!(second.join().unwrap(), Entry::Hit(_)));
}

#[test]
fn a_link_in_the_output_is_refused() {
    let (_folder, store) = store();
    let Entry::Miss(slot) = enter(&store, &key("a")) else { panic!("expected a miss") };
    std::os::unix::fs::symlink("/etc/passwd", slot.out().join("link")).unwrap();
    assert!(slot.commit(action).unwrap_err().message.contains("neither a file nor a folder"));
    assert!(matches!(enter(&store, &key("a")), Entry::Miss(_)));
}
