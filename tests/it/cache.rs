use std::time::{Duration, SystemTime};

use super::place::{Place, chain, stage};

#[test]
fn a_second_run_runs_nothing() {
    let place = Place::new(&chain());
    place.run().counts(0, 3, 0);
    place.run().counts(3, 0, 0);
    assert_eq!(place.lines("ran"), 3);
}

#[test]
fn a_stage_that_makes_the_same_bytes_leaves_what_is_below_it_cached() {
    let place = Place::new(&chain());
    place.run();
    place.pipeline(&chain().replace("echo one > $OUT", "echo  one > $OUT"));
    place.run().counts(2, 1, 0);
    place.pipeline(&chain().replace("echo one > $OUT", "echo ONE > $OUT"));
    place.run().counts(0, 3, 0);
    assert_eq!(place.output("c")[0].1, b"ONE\ntwo\nthree\n");
    place.pipeline(&chain());
    place.run().counts(3, 0, 0);
}

#[test]
fn what_cannot_change_results_does_not_run_anything() {
    let place = Place::new(&chain());
    place.run();
    let mut stages: Vec<String> = chain().split_inclusive("\n[").map(str::to_owned).collect();
    let tables: Vec<String> =
        chain().split("[stages.").skip(1).map(|table| format!("[stages.{table}")).collect();
    stages.clear();
    stages.extend(tables.iter().rev().cloned());
    for (what, text) in [
        ("comments", chain().replace("[stages.", "# a remark\n[stages.")),
        ("a name for the pipeline", format!("name = \"other\"\n{}", chain())),
        ("pools", format!("[pools]\ncpu = 1\n{}", chain())),
        ("the order of tables", stages.concat()),
        (
            "a stage's name",
            chain().replace("stages.b]", "stages.renamed]").replace("\"b\" }", "\"renamed\" }"),
        ),
        ("a timeout", chain().replace("kind = ", "timeout = \"1h\"\nretries = 3\nkind = ")),
    ] {
        place.pipeline(&text);
        let said = place.run();
        assert!(
            said.err.contains("3 cached, 0 ran") || said.out.contains("3 cached, 0 ran"),
            "{what}: {said:?}"
        );
    }
}

#[test]
fn a_touched_pipeline_in_another_folder_is_cached() {
    let place = Place::new(&stage("a", "echo x > $OUT/x", ""));
    place.run();
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    std::fs::rename(place.path("p.toml"), place.path("elsewhere/p.toml")).unwrap();
    place.pipe("run elsewhere/p.toml").ends(0).counts(1, 0, 0);
}

#[test]
fn a_copied_store_is_used() {
    let place = Place::new(&chain());
    place.run();
    let copied = std::process::Command::new("cp")
        .args(["-r", ".pipe", "copy"])
        .current_dir(place.path(""))
        .status()
        .unwrap();
    assert!(copied.success());
    place.pipe("run p.toml --store copy").ends(0).counts(3, 0, 0);
    place.pipe("run p.toml").env("PIPE_STORE", "copy").ends(0).counts(3, 0, 0);
}

/// A clone has other paths, other inodes and other times; nothing of that is in a key.
#[test]
fn a_cloned_moved_and_touched_project_runs_nothing() {
    let text = [chain(), "[stages.get]\nkind = \"download\"\nsource = \"data\"\n".into()].concat();
    let text = text.replace("echo a >> @/ran; ", "").replace("echo b >> @/ran; ", "");
    let place = Place::new(&text.replace("echo c >> @/ran; ", ""));
    std::fs::create_dir(place.path("project")).unwrap();
    std::fs::create_dir(place.path("project/data")).unwrap();
    place.write("project/data/rows.json", "[1]");
    std::fs::rename(place.path("p.toml"), place.path("project/p.toml")).unwrap();
    let shell = |command: &str| {
        let done =
            std::process::Command::new("sh").args(["-c", command]).current_dir(place.path("")).status();
        assert!(done.unwrap().success(), "{command}");
    };
    let run = |folder: &str| {
        let mut call = place.pipe("run p.toml");
        call.within(folder);
        call.ends(0)
    };
    run("project").counts(0, 4, 0);
    shell("find project -exec touch -h {} +");
    run("project").counts(4, 0, 0);
    shell("cp -r project clone");
    run("clone").counts(4, 0, 0);
    shell("mv project moved");
    run("moved").counts(4, 0, 0);
    // Only the content counts.
    place.write("clone/data/rows.json", "[2]");
    run("clone").counts(3, 1, 0);
    shell("mv clone/data/rows.json clone/data/other.json && printf '[1]' > clone/data/other.json");
    run("clone").counts(3, 1, 0);
}

#[test]
fn whatever_changes_a_stage_runs_it_again() {
    let before = "x = 1\n[stages.a]\nkind = \"command\"\nargv = [\"sh\", \"-c\", \"echo $0 $1 > $OUT/x\", \"p\", \"q\"]\nenv = { A = \"1\" }\n";
    let before = before.replace("x = 1\n", "");
    let place = Place::new(&before);
    place.run().counts(0, 1, 0);
    for (old, new) in [
        ("\"p\", \"q\"", "\"q\", \"p\""),
        ("\"p\", \"q\"", "\"pq\""),
        ("\"p\", \"q\"", "\"p\", \"q\", \"\""),
        ("A = \"1\"", "A = \"2\""),
        ("A = \"1\"", "B = \"1\""),
        ("A = \"1\"", "A = \"1\", B = \"\""),
        ("env =", "allow_empty = true\nenv ="),
    ] {
        assert!(before.contains(old), "{old}");
        place.pipeline(&before.replace(old, new));
        place.run().counts(0, 1, 0);
        place.pipeline(&before);
        place.run().counts(1, 0, 0);
    }
}

#[test]
fn set_changes_a_variable_for_one_run() {
    let place = Place::new(&["[vars]\nword = \"one\"\n", &stage("a", "echo ${word} > $OUT/x", "")].concat());
    place.run();
    place.pipe("run p.toml --set word=two").ends(0).counts(0, 1, 0);
    place.run().counts(1, 0, 0);
}

#[test]
fn an_edited_local_file_is_a_new_run_and_a_touched_one_is_not() {
    let place = Place::new("[stages.get]\nkind = \"download\"\nsource = \"@/data.json\"\n");
    place.write("data.json", "[1]");
    place.run().counts(0, 1, 0);
    let file = std::fs::File::options().append(true).open(place.path("data.json")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    place.run().counts(1, 0, 0);
    place.write("data.json", "[2]");
    place.run().counts(0, 1, 0);
    assert_eq!(place.output("get")[0].1, b"[2]");
    place.write("data.json", "[1]");
    place.run().counts(1, 0, 0);
    assert_eq!(place.output("get")[0].1, b"[1]");
}

#[test]
fn a_local_file_that_lies_elsewhere_is_the_same_and_one_of_another_name_is_not() {
    let get = |path: &str| format!("[stages.get]\nkind = \"download\"\nsource = \"{path}\"\n");
    let place = Place::new(&get("@/data.json"));
    place.write("data.json", "[1]");
    place.run().counts(0, 1, 0);
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    std::fs::rename(place.path("data.json"), place.path("elsewhere/data.json")).unwrap();
    for path in ["@/elsewhere/data.json", "elsewhere/data.json", "file://@/elsewhere/data.json"] {
        place.pipeline(&get(path));
        place.run().counts(1, 0, 0);
    }
    std::fs::rename(place.path("elsewhere/data.json"), place.path("elsewhere/other.json")).unwrap();
    place.pipeline(&get("elsewhere/other.json"));
    place.run().counts(0, 1, 0);
}

#[test]
fn the_same_work_in_two_pipelines_is_done_once() {
    let place = Place::new(&chain());
    place.run();
    place.write(
        "other.toml",
        &place.read("p.toml").replace("stages.a]", "stages.first]").replace("\"a\" }", "\"first\" }"),
    );
    place.pipe("run other.toml").ends(0).counts(3, 0, 0);
}
