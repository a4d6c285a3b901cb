use super::place::{Place, Said, stage};

/// `data` → `train`, which measures what the variable `rank` and its input say.
fn pipeline() -> String {
    let script = "echo '{\"step\":1,\"loss\":'$RANK'}' > $OUT/metrics.jsonl; \
                  echo '{\"title\":\"t\",\"columns\":[\"rows\",\"loss\",\"same\"],\"rows\":[[\"all\",\"'$RANK.50'\",\"1\"]]}' > $OUT/summary.json";
    [
        "[vars]\nrank = \"8\"\nword = \"one\"\n".to_owned(),
        stage("data", "echo ${word} > $OUT/x", ""),
        stage("train", script, "inputs = { data = \"data\" }\nenv = { RANK = \"${rank}\" }"),
        stage("other", "echo x > $OUT/x", ""),
    ]
    .concat()
}

fn runs(place: &Place) -> Vec<String> {
    let said = place.pipe("runs --json").ends(0);
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    document["runs"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
}

fn diff(place: &Place, more: &str) -> Said {
    let runs = runs(place);
    place.pipe(&format!("diff {} {} {more}", runs[runs.len() - 2], runs[runs.len() - 1])).ends(0)
}

#[test]
fn parameters_inputs_and_figures_that_differ_are_told_and_nothing_else() {
    let place = Place::new(&pipeline());
    place.run();
    place.pipe("run p.toml --set rank='16' --set word=two").ends(0);
    let said = diff(&place, "");
    said.says(&["echo one > $OUT/x", "echo two > $OUT/x", "environment variable `RANK` changed"]);
    said.says(&["input `data`: content changed", "all / loss", "8.50", "16.50", "--set word=two"]);
    said.lacks("same").lacks("other");
    let document: serde_json::Value = serde_json::from_str(&diff(&place, "--json").out).unwrap();
    assert_eq!(document["version"], 1);
    let train =
        document["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "train").unwrap();
    assert_eq!(train["metrics"]["loss"]["after"], serde_json::json!({"step": 1.0, "value": 16.0}));
    assert_eq!(train["summary"]["all / loss"], serde_json::json!({"before": "8.50", "after": "16.50"}));
    assert!(train["fields"]["inputs.data[0].content"]["before"].is_string(), "{train}");
    assert!(train["state"].is_null());
}

#[test]
fn a_run_that_found_everything_stored_comes_to_the_same() {
    let place = Place::new(&pipeline());
    place.run();
    place.run();
    diff(&place, "").says(&["both runs come to the same"]).lacks("train");
    place.pipe(&format!("diff {}", runs(&place)[0])).ends(0).says(&["both runs come to the same"]);
}

#[test]
fn a_stage_of_one_run_only_and_one_that_failed_are_named() {
    let place = Place::new(&pipeline());
    place.run();
    place.pipeline(
        &pipeline()
            .replace("echo x > $OUT/x", "exit 1")
            .replace("[stages.data]", "[stages.more]")
            .replace("\"data\"", "\"more\""),
    );
    place.pipe("run p.toml").ends(1);
    let said = diff(&place, "");
    said.says(&["state: done → failed", "state: done → (not in this run)", "state: (not in this run) → "]);
}

#[test]
fn a_stage_that_gave_another_output_for_the_same_key_is_told() {
    let place = Place::new(&stage("a", "date +%N > $OUT/x", ""));
    place.run();
    place.pipe("run p.toml --force").ends(0);
    diff(&place, "").says(&["the same run gave another output"]);
}

#[test]
fn an_unknown_run_is_refused() {
    let place = Place::new(&pipeline());
    place.run();
    place.pipe("diff nonsense").ends(2).says(&["no run `nonsense`", "pipe runs"]);
}
