use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::place::{Place, chain, stage};

fn writable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn a_changed_output_is_never_served_and_heals() {
    for change in ["flip", "cut", "remove", "add"] {
        let place = Place::new(&chain());
        place.run();
        let whole = place.output("c");
        for file in place.stored("files/text") {
            writable(&file);
            let mut bytes = fs::read(&file).unwrap();
            bytes[0] ^= 1;
            match change {
                "flip" => fs::write(&file, bytes).unwrap(),
                "cut" => fs::write(&file, "").unwrap(),
                "remove" => fs::remove_file(&file).unwrap(),
                _ => fs::write(file.with_file_name("more"), "x").unwrap(),
            }
        }
        place.pipe("verify").ends(5);
        place.run().counts(0, 3, 0);
        assert_eq!(place.output("c"), whole, "{change}");
        place.pipe("verify").ends(0);
    }
}

#[test]
fn a_cut_off_action_is_made_again() {
    let place = Place::new(&chain());
    place.run();
    for entry in fs::read_dir(place.path(".pipe/actions")).unwrap().flatten() {
        let bytes = fs::read(entry.path()).unwrap();
        fs::write(entry.path(), &bytes[..bytes.len() / 2]).unwrap();
    }
    place.run().counts(0, 3, 0);
    place.run().counts(3, 0, 0);
}

#[test]
fn an_input_that_is_damaged_or_vanishes_under_way_leads_to_no_result() {
    for damage in ["chmod u+w $IN_A/text; echo changed > $IN_A/text", "rm -rf $IN_A", "touch $IN_A/more"] {
        let script = format!("{damage}; echo x > $OUT/x");
        let place = Place::new(&[chain(), stage("vandal", &script, "inputs = { a = \"c\" }")].concat());
        place.pipe("run p.toml").ends(1).says(&["vandal", "changed while"]);
        place.run_until_c();
        assert_eq!(place.output("c")[0].1, b"one\ntwo\nthree\n");
        assert!(place.stored("files/x").is_empty(), "{damage}");
    }
}

/// The lock of the stage's key is held from outside, so that it starts when its key is long known.
#[test]
fn a_local_file_that_changes_or_vanishes_before_it_is_copied_leads_to_no_result() {
    for change in ["edit", "remove"] {
        let place = Place::new("[stages.get]\nkind = \"download\"\nsource = \"@/data\"\n");
        place.write("data", "first");
        let planned: serde_json::Value =
            serde_json::from_str(&place.pipe("plan p.toml --json").ends(0).out).unwrap();
        let lock = place.path(".pipe/locks").join(planned["stages"][0]["key"].as_str().unwrap());
        let lock = fs::File::create(lock).unwrap();
        lock.lock().unwrap();
        let run = place.pipe("run p.toml").start();
        std::thread::sleep(std::time::Duration::from_millis(200));
        match change {
            "edit" => place.write("data", "second"),
            _ => fs::remove_file(place.path("data")).unwrap(),
        }
        drop(lock);
        let (code, said) = run.wait();
        assert_eq!(code, Some(1), "{change}: {said:?}");
        assert!(place.stored("files/data").is_empty(), "{change}: stored under the wrong key");
        // Back to the first content: it must be what the key of the first content leads to.
        place.write("data", "first");
        place.run().counts(0, 1, 0);
        assert_eq!(place.output("get")[0].1, b"first");
    }
}

#[test]
fn with_a_clock_that_was_moved_back_nothing_is_lost_and_nothing_stale_is_served() {
    let text = "[stages.get]\nkind = \"download\"\nsource = \"@/data\"\n";
    let place = Place::new(&[text, &chain()].concat());
    place.write("data", "first");
    let future = |path: &Path| {
        let done = Command::new("find")
            .arg(path)
            .args(["-exec", "touch", "-h", "-d", "tomorrow", "{}", "+"])
            .status()
            .unwrap();
        assert!(done.success());
    };
    future(&place.path("data"));
    place.run().counts(0, 4, 0);
    future(&place.path(".pipe"));
    place.run().counts(4, 0, 0);
    // The same size and the same time, but other content.
    place.write("data", "other");
    future(&place.path("data"));
    place.run().counts(3, 1, 0);
    assert_eq!(place.output("get")[0].1, b"other");
    place.pipe("gc --keep 1").ends(0).says(&["removed 0 results"]);
    place.pipe("verify").ends(0);
}

impl Place {
    fn run_until_c(&self) {
        self.pipe("run p.toml --until c").ends(0).counts(2, 1, 0);
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let place = Place::new(&chain());
    place.run();
    place.write(".pipe/version", "99\n");
    for command in ["run p.toml", "plan p.toml", "gc", "verify"] {
        place.pipe(command).ends(5).says(&["format 99", "--store"]);
    }
    place.write(".pipe/version", "1\n");
    place.run().counts(3, 0, 0);
}

#[test]
fn a_store_is_marked_as_a_cache() {
    let place = Place::new(&chain());
    place.run();
    assert!(place.read(".pipe/CACHEDIR.TAG").starts_with("Signature: 8a477f597d28d172789f06886806bc55"));
}

#[test]
fn a_link_in_an_output_is_refused() {
    let place = Place::new(&stage("a", "ln -s /etc/passwd $OUT/link", ""));
    place.pipe("run p.toml").ends(1).says(&["neither a file nor a folder"]);
}

/// A small file system of its own. `None` without the right to mount one.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(folder: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }

    fn remount(&self, options: &str) {
        let done =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_nothing_finished_is_lost() {
    let place = Place::new(
        &[chain(), stage("large", "head -c 3000000 /dev/zero > $OUT/zeros", "inputs = { a = \"c\" }")]
            .concat(),
    );
    let folder = place.path(".pipe");
    let Some(disk) = Mount::new(&folder, "2m") else {
        eprintln!("not checked: no right to mount a file system");
        return;
    };
    place.pipe("run p.toml").ends(1).says(&["large", "is full"]);
    disk.remount("size=40m");
    place.run().counts(3, 1, 0);
}

#[test]
fn a_read_only_store_is_an_error_with_a_way_out() {
    let place = Place::new(&chain());
    let folder = place.path(".pipe");
    let Some(disk) = Mount::new(&folder, "20m") else {
        eprintln!("not checked: no right to mount a file system");
        return;
    };
    place.pipe("run p.toml --until b").ends(0);
    disk.remount("ro");
    place.pipe("run p.toml").ends(1).says(&["--store DIR"]);
    place.pipe("plan p.toml").ends(0).says(&["2 cached, 1 will run"]);
    disk.remount("rw");
    place.run().counts(2, 1, 0);
}
