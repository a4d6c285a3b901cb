use super::place::{Place, Said, stage};

/// Two arms that write what a training stage writes, and a stage that measures nothing.
pub fn measuring() -> String {
    let script = "for s in 1 2 3; do echo '{\"step\":'$s',\"loss\":'$((4-s))'.5,\"lr\":0.001}' >> $OUT/metrics.jsonl; done; \
                  echo '{\"step\":4,\"loss\":0.25,\"eval_loss\":0.75}' >> $OUT/metrics.jsonl; \
                  echo '{\"title\":\"${matrix.arm} at the end\",\"columns\":[\"rows\",\"loss\"],\"rows\":[[\"all\",\"0.75\"]]}' > $OUT/summary.json";
    [
        stage("data", "echo x > $OUT/x", ""),
        stage("train", script, "inputs = { data = \"data\" }\nmatrix = { arm = [\"lora\", \"dora\"] }"),
    ]
    .concat()
}

fn json(said: &Said) -> serde_json::Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

#[test]
fn the_last_value_of_every_figure_is_told_with_its_step() {
    let place = Place::new(&measuring());
    place.run();
    let said = place.pipe("metrics p.toml train[dora] --json").ends(0);
    let document = json(&said);
    assert_eq!((&document["version"], &document["pipeline"]), (&1.into(), &"p".into()));
    let stages = document["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 1, "{said:?}");
    assert_eq!(stages[0]["stage"], "train[dora]");
    assert_eq!(stages[0]["metrics"]["loss"], serde_json::json!({"step": 4.0, "value": 0.25}));
    assert_eq!(stages[0]["metrics"]["lr"], serde_json::json!({"step": 3.0, "value": 0.001}));
    assert_eq!(stages[0]["summary"]["rows"], serde_json::json!([["all", "0.75"]]));
}

#[test]
fn without_names_every_stage_that_measured_something_is_shown() {
    let place = Place::new(&measuring());
    place.run();
    place.run();
    let said = place.pipe("metrics").ends(0);
    said.says(&["train[lora]: lora at the end", "train[dora]: dora at the end", "eval_loss"]).lacks("data");
    assert_eq!(json(&place.pipe("metrics --json").ends(0))["stages"].as_array().unwrap().len(), 3);
    place.pipe("metrics p.toml data").ends(0).says(&["measured nothing"]);
}

#[test]
fn a_run_can_be_named_and_what_is_not_there_is_refused() {
    let place = Place::new(&measuring());
    place.pipe("metrics").ends(2).says(&["there are no runs yet"]);
    place.run();
    let name = json(&place.pipe("runs --json").ends(0))["runs"][0]["id"].as_str().unwrap().to_owned();
    place.pipe(&format!("metrics --run {name} train[lora]")).ends(0).says(&["lora at"]).lacks("dora at");
    place.pipe("metrics p.toml trian").ends(2).says(&["no stage `trian`", "`train"]);
    place.pipe("metrics other.toml").ends(2).says(&["no run of `other.toml`"]);
    place.pipe("metrics p").ends(0);
}
