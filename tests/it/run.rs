use std::time::{Duration, Instant};

use super::place::{Place, chain, content, stage, until};

#[test]
fn a_chain_runs_and_its_last_stage_can_be_exported() {
    let place = Place::new(&chain());
    place.run().counts(0, 3, 0).says(&["pipe export p.toml c"]).lacks("pipe export p.toml b");
    place.pipe("export p.toml c result").ends(0);
    assert_eq!(place.read("result/text"), "one\ntwo\nthree\n");
    assert_eq!(place.read("ran"), "a\nb\nc\n");
}

#[test]
fn an_export_does_not_replace_what_is_there_unless_forced() {
    let place = Place::new(&chain());
    place.run();
    std::fs::create_dir(place.path("result")).unwrap();
    place.write("result/mine", "precious");
    place.pipe("export p.toml c result").ends(2);
    assert_eq!(place.read("result/mine"), "precious");
    place.pipe("export p.toml c result --force").ends(0);
    assert_eq!(content(&place.path("result")).len(), 1);
    // What was exported is the user's to change; the store does not notice.
    place.write("result/text", "edited");
    place.run().counts(3, 0, 0);
    assert_eq!(place.output("c")[0].1, b"one\ntwo\nthree\n");
}

#[test]
fn an_output_that_is_not_in_the_store_cannot_be_exported() {
    let place = Place::new(&chain());
    place.pipe("export p.toml c result").ends(1).says(&["pipe run p.toml"]);
    assert!(!place.path("result").exists());
}

#[test]
fn arms_of_a_matrix_run_side_by_side_and_are_collected_in_order() {
    // Each arm waits until it sees the other, so that arms that run one after the other would not end.
    let arm = "touch @/in-${matrix.arm}; for i in $(seq 500); do [ -e @/in-x ] && [ -e @/in-y ] && break; sleep 0.02; done; \
               [ -e @/in-x ] && [ -e @/in-y ] && echo ${matrix.arm} > $OUT/arm";
    let place = Place::new(&format!(
        "[pools]\ncpu = 2\n{}{}",
        stage("arm", arm, "matrix = { arm = [\"y\", \"x\"] }"),
        stage("all", "cat $IN_ARMS_1/arm $IN_ARMS_2/arm > $OUT/arms", "inputs = { arms = \"arm[*]\" }"),
    ));
    place.run().counts(0, 3, 0);
    assert_eq!(place.output("all")[0].1, b"y\nx\n");
    assert_eq!(place.output("arm[x]")[0].1, b"x\n");
}

#[test]
fn a_matrix_is_a_product_less_some_rows_and_more_others_and_seeds_are_an_axis() {
    let rows = "method = [\"lora\", \"dora\"], rank = [8, 16], seed = [1, 2], \
                exclude = [{ method = \"dora\", rank = 16 }], include = [{ method = \"full\", rank = 0, seed = 1 }]";
    let text = |rows: &str| {
        [
            stage(
                "arm",
                "echo ${matrix.method}-${matrix.rank}-${matrix.seed} > $OUT/x",
                &format!("matrix = {{ {rows} }}"),
            ),
            stage(
                "mark",
                "cat $IN_ARM/x > $OUT/x; echo ${matrix.seed} >> $OUT/x",
                "inputs = { arm = \"arm\" }",
            ),
            stage(
                "all",
                "for d in $IN_ARMS; do head -n 1 $d/x; done > $OUT/x",
                "inputs = { arms = \"mark[*]\" }",
            ),
        ]
        .concat()
    };
    let place = Place::new(&text(rows));
    place.run().counts(0, 15, 0);
    let arms = String::from_utf8(place.output("all")[0].1.clone()).unwrap();
    assert_eq!(
        arms.split_whitespace().collect::<Vec<_>>(),
        ["lora-8-1", "lora-8-2", "lora-16-1", "lora-16-2", "dora-8-1", "dora-8-2", "full-0-1"]
    );
    assert_eq!(place.output("mark[dora,8,2]")[0].1, b"dora-8-2\n2\n");
    // A seed more: only its arms, what hangs on them, and what collects them.
    place.pipeline(&text(&rows.replace("seed = [1, 2]", "seed = [1, 2, 3]")));
    place.run().counts(14, 7, 0);
}

#[test]
fn jobs_caps_what_runs_side_by_side() {
    let script = "mkdir @/lock && sleep 0.1 && rmdir @/lock && echo ${matrix.arm} > $OUT/x";
    let place =
        Place::new(&format!("[pools]\ncpu = 4\n{}", stage("arm", script, "matrix = { arm = [1, 2, 3] }")));
    place.pipe("run p.toml -j 1").ends(0).counts(0, 3, 0);
}

#[test]
fn a_stage_sees_only_declared_variables() {
    let script = "echo \"undeclared=$UNDECLARED declared=$DECLARED fixed=$FIXED\" > $OUT/env";
    let place = Place::new(&stage("a", script, "env = { FIXED = \"yes\" }"));
    place.pipe("run p.toml").env("UNDECLARED", "leaked").env("DECLARED", "leaked").ends(0);
    assert_eq!(place.output("a")[0].1, b"undeclared= declared= fixed=yes\n");
    place.pipeline(&stage("a", script, "env = [\"DECLARED\"]"));
    place.pipe("run p.toml").env("UNDECLARED", "leaked").env("DECLARED", "passed").ends(0).counts(0, 1, 0);
    place.pipe("run p.toml").env("UNDECLARED", "other").env("DECLARED", "passed").ends(0).counts(1, 0, 0);
}

#[test]
fn a_failing_stage_shows_the_end_of_its_log_and_where_it_lies() {
    let script = "for i in $(seq 30); do echo line-$i; done; exit 7";
    let place = Place::new(&[chain(), stage("bad", script, "inputs = { x = \"a\" }")].concat());
    let said = place.pipe("run p.toml").ends(1);
    said.says(&["bad", "exit code 7", "line-30", "line-15", ".pipe/logs/"]).lacks("line-5\n");
    place.pipe("logs p.toml bad").ends(0).says(&["line-1\n", "line-30"]);
}

#[test]
fn what_had_run_before_a_failure_is_not_run_again() {
    let bad = |code: u8| {
        let end = format!("echo c >> @/ran; [ {code} = 0 ] && cat $IN_X/text > $OUT/text");
        [chain().split("[stages.c]").next().unwrap(), &stage("c", &end, "inputs = { x = \"b\" }")].concat()
    };
    let place = Place::new(&bad(1));
    place.pipe("run p.toml").ends(1).counts(0, 2, 1);
    place.pipeline(&bad(0));
    place.run().counts(2, 1, 0);
    assert_eq!(place.read("ran"), "a\nb\nc\nc\n");
}

#[test]
fn keep_going_runs_what_does_not_need_the_failed_stage() {
    let text = [
        stage("a", "exit 1", ""),
        stage("b", "echo x > $OUT/x", "inputs = { a = \"a\" }"),
        stage("c", "sleep 0.3; echo x > $OUT/x", ""),
        stage("d", "echo x > $OUT/x", "inputs = { c = \"c\" }"),
    ];
    let place = Place::new(&text.concat());
    place.pipe("run p.toml --keep-going").ends(1).counts(0, 2, 1);
    place.pipe("export p.toml d d").ends(0);
}

#[test]
fn a_stage_that_takes_longer_than_its_timeout_is_stopped() {
    let place = Place::new(&stage("slow", "sleep 60; echo x > $OUT/x", "timeout = \"300ms\""));
    let start = Instant::now();
    place.pipe("run p.toml").ends(1).says(&["slow", "timeout"]);
    assert!(start.elapsed() < Duration::from_secs(8), "took {:?}", start.elapsed());
}

#[test]
fn a_failing_stage_is_tried_again_as_often_as_it_says() {
    let script = "echo x >> @/ran; ls $OUT | wc -l >> @/found; touch $OUT/half; [ $(wc -l < @/ran) -ge 3 ]";
    let place = Place::new(&stage("flaky", script, "retries = 2"));
    let start = Instant::now();
    place.run().counts(0, 1, 0).says(&["retry 1", "retry 2"]);
    assert_eq!(place.lines("ran"), 3);
    assert_eq!(
        place.read("found").split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "0"],
        "each attempt starts empty"
    );
    assert!(
        start.elapsed() >= Duration::from_secs(3),
        "a second before the first retry, two before the next"
    );
    let place = Place::new(&stage("flaky", script, "retries = 1"));
    place.pipe("run p.toml").ends(1);
    assert_eq!(place.lines("ran"), 2);
}

#[test]
fn death_by_signal_is_named() {
    let place = Place::new(&stage("a", "kill -s SEGV $$", ""));
    place.pipe("run p.toml").ends(1).says(&["SIGSEGV"]);
    // The stage's own process, not the program that it started.
    let place = Place::new(&stage("a", "kill -s KILL $PPID; sleep 5", ""));
    place.pipe("run p.toml").ends(1).says(&["SIGKILL", "memory"]);
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_stage_leaves_behind_is_ended_with_it() {
    let place = Place::new(&stage("a", "sleep 7311 & echo x > $OUT/x", ""));
    place.run().counts(0, 1, 0);
    until("the background process is gone", || super::place::processes("sleep 7311").is_empty());
}

#[test]
fn until_only_and_force_choose_stages() {
    let place = Place::new(&chain());
    place.pipe("run p.toml --until b").ends(0).counts(0, 2, 0);
    place.pipe("run p.toml --only c").ends(0);
    assert_eq!(place.read("ran"), "a\nb\nc\n");
    place.pipe("run p.toml --only b --force").ends(0);
    assert_eq!(place.read("ran"), "a\nb\nc\nb\n");
    let empty = Place::new(&chain());
    empty.pipe("run p.toml --only c").ends(1);
    assert_eq!(empty.lines("ran"), 0);
}

#[test]
fn an_unknown_stage_is_refused_with_a_suggestion() {
    let place = Place::new(&stage("tokens", "echo x > $OUT/x", ""));
    place.pipe("run p.toml --until token").ends(2).says(&["`token`", "`tokens`"]);
    place.pipe("export p.toml token out").ends(2).says(&["`tokens`"]);
}

#[test]
fn a_stage_that_writes_nothing_fails() {
    let place = Place::new(&stage("a", "true", ""));
    place.pipe("run p.toml").ends(1).says(&["wrote nothing"]);
}

#[test]
fn tables_are_shown_also_when_cached() {
    let table = r#"{"title":"Result","columns":["arm","loss"],"rows":[["lora","1.25"],["dora","1.125"]]}"#;
    let place = Place::new(&stage("a", &format!("echo '{table}' > $OUT/summary.json"), ""));
    for said in [place.run(), place.run()] {
        assert!(said.out.contains("Result") && said.out.contains("dora"), "{said:?}");
        let columns: Vec<usize> = said.out.lines().filter_map(|line| line.find("1.")).collect();
        assert_eq!(columns.len(), 2, "{said:?}");
    }
}

#[test]
fn json_is_one_object_a_line() {
    let place = Place::new(&chain());
    let said = place.pipe("run p.toml --json").ends(0);
    let lines: Vec<serde_json::Value> = said
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    let started = lines.iter().filter(|line| line["event"] == "started").count();
    assert_eq!(started, 3);
    assert!(lines.iter().all(|line| line["version"] == 1), "{said:?}");
}

#[test]
fn a_hundred_cached_stages_take_no_time() {
    let mut text = stage("s0", "echo x > $OUT/x", "");
    for i in 1..100 {
        text += &stage(
            &format!("s{i}"),
            &format!("echo {i} > $OUT/x"),
            &format!("inputs = {{ a = \"s{}\" }}", i / 2),
        );
    }
    let place = Place::new(&text);
    place.run().counts(0, 100, 0);
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            place.run().counts(100, 0, 0);
            start.elapsed()
        })
        .min()
        .unwrap();
    println!("100 cached stages: {best:?}");
    // The figure to reach is 30 ms; a machine that compiles at the same time must not fail the test.
    assert!(best < Duration::from_millis(300), "took {best:?}");
}
