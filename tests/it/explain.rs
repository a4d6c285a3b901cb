use super::place::{Place, chain, stage};

fn verdicts(place: &Place) -> Vec<(String, String)> {
    let said = place.pipe("plan p.toml --json").ends(0);
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let stages = document["stages"].as_array().unwrap_or_else(|| panic!("{said:?}"));
    stages.iter().map(|stage| (text(&stage["stage"]), text(&stage["verdict"]))).collect()
}

fn names(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

#[test]
fn plan_names_the_parameter_that_changed() {
    let place = Place::new(
        &[
            "[vars]\nword = \"one\"\n",
            &stage("a", "echo $WORD > $OUT/x", "env = { WORD = \"${word}\" }\nallow_empty = true"),
        ]
        .concat(),
    );
    place.pipe("plan p.toml").ends(0).says(&["a", "never ran"]);
    place.run();
    place.pipe("plan p.toml").ends(0).says(&["1 cached, 0 will run"]);
    place.pipe("plan p.toml --set stages.a.allow_empty=false").ends(0).says(&["allow_empty: true → false"]);
    place.pipe("plan p.toml --set word=two").ends(0).says(&["environment variable `WORD` changed"]);
    place
        .pipe("explain p.toml a --set stages.a.allow_empty=false")
        .ends(0)
        .says(&["allow_empty: true → false"]);
}

#[test]
fn plan_says_may_run_where_an_input_is_made_anew_and_explain_says_which() {
    let place = Place::new(&chain());
    place.run();
    place.pipeline(&chain().replace("echo one > $OUT", "echo  one > $OUT"));
    assert_eq!(verdicts(&place), names(&[("a", "will_run"), ("b", "may_run"), ("c", "may_run")]));
    place.pipe("explain p.toml b").ends(0).says(&["`a`"]);
    place.run().counts(2, 1, 0);
    assert_eq!(verdicts(&place), names(&[("a", "cached"), ("b", "cached"), ("c", "cached")]));
}

#[test]
fn explain_names_an_input_whose_content_changed() {
    let place = Place::new(&chain());
    place.run();
    place.pipeline(&chain().replace("echo one > $OUT", "echo ONE > $OUT"));
    place.pipe("run p.toml --until a").ends(0);
    place.pipe("explain p.toml b").ends(0).says(&["input `text`: content changed"]);
}

#[test]
fn plan_ends_with_code_3_if_there_is_work_and_it_is_asked() {
    let place = Place::new(&chain());
    place.pipe("plan p.toml").ends(0);
    place.pipe("plan p.toml --exit-code").ends(3);
    assert_eq!(place.lines("ran"), 0);
    place.run();
    place.pipe("plan p.toml --exit-code").ends(0);
    place.pipe("run p.toml --dry-run --force").ends(0).says(&["--force"]);
    assert_eq!(place.lines("ran"), 3);
}

#[test]
fn of_two_stages_that_make_the_same_the_second_may_run_and_does_not() {
    let twins = |names: &[&str]| {
        names.iter().map(|name| stage(name, "echo x >> @/ran; echo x > $OUT/x", "")).collect::<String>()
    };
    let place = Place::new(&format!("[pools]\ncpu = 4\n{}", twins(&["a", "b", "c"])));
    assert_eq!(verdicts(&place), names(&[("a", "will_run"), ("b", "may_run"), ("c", "may_run")]));
    place.pipe("plan p.toml").ends(0).says(&["`a` makes the same"]);
    place.run().counts(2, 1, 0).lacks("waits for");
    assert_eq!(place.lines("ran"), 1);
    place.pipe("run p.toml --force").ends(0).counts(0, 3, 0);
}

#[test]
fn plan_says_what_cannot_run_where_only_some_stages_are_to() {
    let place = Place::new(&chain());
    place.pipe("run p.toml --until a").ends(0);
    let said = place.pipe("plan p.toml --only c").ends(0);
    said.says(&["1 cached, 0 will run, 0 may run, 2 cannot run"]);
    place.pipe("run p.toml --only c").ends(1);
    assert_eq!(place.lines("ran"), 1);
}

#[test]
fn status_says_what_is_stored() {
    let place = Place::new(&chain());
    place.pipe("run p.toml --until b").ends(0);
    let said = place.pipe("status p.toml").ends(0);
    let line = |stage: &str| {
        said.out.lines().find(|line| line.starts_with(stage)).unwrap_or_else(|| panic!("{said:?}"))
    };
    assert_ne!(line("b").split_whitespace().nth(1), line("c").split_whitespace().nth(1));
}

#[test]
fn runs_are_listed_and_shown() {
    let place = Place::new(&chain());
    place.run();
    place.run();
    let said = place.pipe("runs --json").ends(0);
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(document["runs"].as_array().unwrap().len(), 2, "{said:?}");
    place.pipe("show").ends(0).says(&["cached"]);
}

#[test]
fn gc_frees_what_the_last_runs_did_not_use_once_it_is_an_hour_old() {
    let place = Place::new(&chain());
    place.run();
    place.pipeline(&chain().replace("echo one", "echo ONE"));
    place.run().counts(0, 3, 0);
    place.pipe("gc --keep 1").ends(0).says(&["removed 0 results"]);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 3600);
    for entry in std::fs::read_dir(place.path(".pipe/actions")).unwrap().flatten() {
        std::fs::File::options().append(true).open(entry.path()).unwrap().set_modified(old).unwrap();
    }
    place.pipe("gc --keep 1 --dry-run").ends(0).says(&["would remove 3 results"]);
    place.pipe("gc --keep 1").ends(0).says(&["removed 3 results"]);
    place.run().counts(3, 0, 0);
    place.pipeline(&chain());
    place.pipe("plan p.toml").ends(0).says(&["0 cached, 1 will run, 2 may run"]);
    place.pipe("verify").ends(0).says(&["3 results are sound"]);
}
