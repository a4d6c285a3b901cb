use super::place::{Place, stage};

/// Fails unless every tag is closed where it was opened.
fn assert_balanced(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in html.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("no end of a tag: {part}"));
        let name = tag.split([' ', '/']).next().unwrap();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "at `{part}`");
        } else if !tag.ends_with('/') && !["meta", "img", "!doctype"].contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

/// It can be opened anywhere and loads nothing.
fn assert_alone(html: &str) {
    assert_balanced(html);
    assert!(html.contains("Content-Security-Policy") && html.contains("default-src 'none'"));
    for (before, after) in [("src=\"", "data:image/"), ("href=\"", "#")] {
        for rest in html.split(before).skip(1) {
            assert!(rest.starts_with(after), "{before}{}", &rest[..rest.len().min(60)]);
        }
    }
    for word in ["<script", "<link", "<iframe", "url(", "@import"] {
        assert!(!html.contains(word), "{word}");
    }
}

fn report(place: &Place) -> String {
    place.pipe("report p.toml -o out.html").ends(0);
    let html = place.read("out.html");
    assert_alone(&html);
    html
}

/// A run with all that a report shows.
fn everything() -> String {
    let train = "for s in 1 2 3; do echo '{\"step\":'$s',\"loss\":'$((4-s))'.5,\"lr\":0.001,\"other\":7}' >> $OUT/metrics.jsonl; done; \
                 echo '{\"step\":4,\"loss\":0.25,\"eval_loss\":0.75}' >> $OUT/metrics.jsonl";
    let draw = "echo '<svg xmlns=\"http://www.w3.org/2000/svg\"/>' > $OUT/a.svg; echo png > $OUT/a.png; echo png > $OUT/b.png; \
                seq 3000 > $OUT/samples.txt";
    [
        stage("data", "echo x > $OUT/x", ""),
        stage(
            "train",
            &format!("{train}; echo $IN_DATA ${{matrix.arm}}"),
            "inputs = { data = \"data\" }\nmatrix = { arm = [\"lora\", \"dora\"] }",
        ),
        stage("draw", draw, "inputs = { runs = \"train[*]\" }"),
    ]
    .concat()
}

#[test]
fn a_report_is_one_file_with_graph_timeline_curves_figures_and_samples() {
    let place = Place::new(&everything());
    place.run();
    let html = report(&place);
    assert_eq!(html.matches("class=\"node done\"").count(), 4);
    assert_eq!(html.matches("class=\"edge\"").count(), 4);
    for text in [
        "Timeline",
        "</i>train[lora]</span>",
        "dashed: held-out",
        "More: other",
        "data:image/svg+xml;base64,",
    ] {
        assert!(html.contains(text), "{text}");
    }
    // The PNG of the same name as the SVG is left out, the other one is not.
    assert_eq!(html.matches("data:image/png").count(), 1);
    assert!(html.contains("the first 6000 of 13893 bytes") && !html.contains("\n2999\n"));
    assert!(html.contains("&quot;sh&quot;"), "resolved parameters");
    place.run();
    let again = report(&place);
    assert_eq!(again.matches("class=\"node cached\"").count(), 4);
    assert!(!again.contains("Timeline"), "nothing ran");
}

#[test]
fn nothing_from_outside_is_html() {
    let evil = "<script>alert(1)</script>\\\"'&";
    let script = "printf '<script>alert(2)</script>' > $OUT/samples.txt; \
                  echo '{\"step\":1,\"<script>\":1}' > $OUT/metrics.jsonl; \
                  echo '{\"title\":\"<script>\",\"columns\":[\"<script>\"],\"rows\":[[\"<img src=x onerror=alert(1)>\"]]}' > $OUT/summary.json; \
                  echo '<svg onload=\"alert(1)\"/>' > \"$OUT/<script>.svg\"";
    let text = format!(
        "name = \"{evil}\"\n{}{}",
        stage(
            "a",
            script,
            &format!("matrix = {{ arm = [\"{evil}\"] }}\nenv = {{ ARM = \"${{matrix.arm}}\" }}")
        ),
        stage("b", "echo '<script>alert(3)</script>' >&2; exit 1", "")
    );
    let place = Place::new(&text);
    place.pipe("run p.toml").ends(1);
    let html = report(&place);
    assert!(html.contains("&lt;script&gt;alert(1)"), "the name");
    assert!(html.contains("&lt;script&gt;alert(2)"), "the sample");
    assert!(html.contains("&lt;script&gt;alert(3)"), "the log");
    assert!(!html.contains("<img src=x"));
}

#[test]
fn answers_while_training_stand_by_prompt_and_masked_parts_are_marked() {
    let line = |step: u32, row: u32, answer: &str| {
        format!(
            r#"{{"step":{step},"row":{row},"prompt":"<p>add {row}","expected":"<b>{row}</b>","answer":"{answer}"}}"#
        )
    };
    let lines = [line(1, 0, "x"), line(1, 1, "y"), line(2, 0, "<i>"), line(2, 1, "z")];
    let echo: String = lines.iter().map(|line| format!("echo '{line}' >> $OUT/samples.jsonl; ")).collect();
    let script = format!("{echo} echo '⟦masked⟧<u>⟦/masked⟧learnt' > $OUT/samples.txt");
    let place = Place::new(&stage("train", &script, ""));
    place.run();
    let html = report(&place);
    for text in [
        "answers while training",
        "<pre>&lt;p&gt;add 0</pre>",
        "<pre>&lt;p&gt;add 1</pre>",
        "<td>&lt;i&gt;</td>",
        "&lt;b&gt;1&lt;/b&gt;",
        "<span class=\"masked\">⟦masked⟧&lt;u&gt;⟦/masked⟧</span>learnt",
    ] {
        assert!(html.contains(text), "{text}");
    }
    let (before, after) = html.split_once("<pre>&lt;p&gt;add 1</pre>").unwrap();
    assert!(before.contains("<td>x</td>") && after.contains("<td>z</td>") && !after.contains("<td>x</td>"));
}

#[test]
fn the_rows_as_the_model_gets_them_are_in_the_log_and_in_the_report() {
    let text = r#"
        [stages.rows]
        kind = "synthesize"
        tasks = ["copy"]
        rows = 50
        heldout = 5

        [stages.init]
        kind = "init"
        inputs = { corpus = "rows" }
        template = "plain"
        layers = 1

        [stages.tokens]
        kind = "tokenize"
        inputs = { dataset = "rows", tokenizer = "init" }
        template = "plain"
        mask_prompt = true
    "#;
    let place = Place::new(text);
    let said = place.run();
    assert!(!said.err.contains("⟦masked⟧"), "on no screen: {}", said.err);
    let prompt = "⟦masked⟧<s> Instruction: ";
    let log = place.pipe("logs p.toml tokens").ends(0).out;
    let start = log.split_once(prompt).unwrap_or_else(|| panic!("{log}")).1;
    let answer = start.split_once("⟦/masked⟧").unwrap().1.split_once("</s>").unwrap().0;
    assert!(!answer.is_empty() && !answer.contains("Response"), "{log}");
    let html = report(&place);
    let shown = format!("⟦/masked⟧</span>{answer}&lt;/s&gt;");
    assert!(html.contains(&shown), "{shown} in {html}");
}

#[test]
fn a_failed_run_says_why_and_shows_what_was_asked_for() {
    let place = Place::new(
        &[stage("a", "echo last words; exit 7", ""), stage("b", "true", "inputs = { a = \"a\" }")].concat(),
    );
    place.pipe("run p.toml").ends(1);
    let html = report(&place);
    for text in ["class=\"node failed\"", "class=\"node skipped\"", "last words", "exit code", "exit 7"] {
        assert!(html.contains(text), "{text}");
    }
}

#[test]
fn numbers_over_a_seed_axis_are_mean_and_deviation() {
    let script = "echo '{\"title\":\"t\",\"columns\":[\"arm\",\"loss\"],\"rows\":[[\"${matrix.arm}\",\"0.${matrix.seed}0\"]]}' > $OUT/summary.json";
    let place =
        Place::new(&stage("train", script, "matrix = { arm = [\"lora\", \"dora\"], seed = [1, 2, 3] }"));
    place.run();
    let html = report(&place);
    assert_eq!(html.matches("n = 3").count(), 2);
    assert_eq!(html.matches("0.20 ± 0.10").count(), 2);
    assert!(html.contains("train[dora]</small>"), "{html}");
}

#[test]
fn rows_of_a_stage_that_collects_seeds_are_mean_and_deviation() {
    let script = "echo '{\"title\":\"t\",\"columns\":[\"arm\",\"loss\"],\"rows\":[[\"base\",\"7.0\"],\
                  [\"lora,1\",\"1.0\"],[\"lora,2\",\"3.0\"],[\"dora,1\",\"0.5\"],[\"dora,2\",\"0.7\"]]}' > $OUT/summary.json";
    let text = [
        stage(
            "train",
            "echo ${matrix.arm} ${matrix.seed} > $OUT/x",
            "matrix = { arm = [\"lora\", \"dora\"], seed = [1, 2] }",
        ),
        stage("all", script, "inputs = { runs = \"train[*]\" }"),
    ];
    let place = Place::new(&text.concat());
    place.run();
    let html = report(&place);
    for text in ["lora (n = 2)", "2.0 ± 1.4", "dora (n = 2)", "0.6 ± 0.1", "<td>base</td>"] {
        assert!(html.contains(text), "{text}");
    }
    assert_eq!(html.matches("lora,1</td>").count(), 1, "each seed is folded away");
}

#[test]
fn a_run_can_be_named_and_written_to_standard_output() {
    let place = Place::new(&everything());
    place.pipe("report").ends(2).says(&["there are no runs yet"]);
    place.run();
    place.pipe("report").ends(0);
    assert_alone(&place.read("report.html"));
    let said = place.pipe("report --run 20 -o -").ends(0);
    assert_eq!(said.out, place.read("report.html"));
    place.pipe("report p.toml -o .").ends(2).says(&["is a folder"]);
    place.pipe("report p.toml -o nowhere/x.html").ends(1).says(&["nowhere"]);
}

#[test]
fn a_report_tells_what_the_store_no_longer_holds() {
    let place = Place::new(&everything());
    place.run();
    std::fs::remove_dir_all(place.path(".pipe/objects")).unwrap();
    assert!(report(&place).contains("no longer in the store"));
}

#[test]
fn what_a_later_run_made_of_the_same_key_is_not_told_of_an_earlier_one() {
    let place = Place::new(&stage("a", "date +%N > $OUT/samples.txt; sleep 1.1", ""));
    place.run();
    let made = |html: &str| html.split("<td>made</td><td>").nth(1).map(|rest| rest[..20].to_owned());
    let first = report(&place);
    assert!(made(&first).is_some(), "{first}");
    place.pipe("run p.toml --force").ends(0);
    let runs = place.pipe("runs --json").ends(0);
    let runs: serde_json::Value = serde_json::from_str(&runs.out).unwrap();
    let name = runs["runs"][0]["id"].as_str().unwrap().to_owned();
    let said = place.pipe(&format!("report --run {name} -o -")).ends(0);
    assert_eq!(made(&said.out), None, "it is not known any more");
    assert!(said.out.contains("date +%N"), "its parameters are");
    let sample = |html: &str| html.split("<pre>").nth(1).map(|rest| rest[..6].to_owned());
    assert_eq!(sample(&said.out), sample(&first));
}

#[test]
fn a_large_graph_is_not_drawn_and_the_rest_is() {
    let script = "echo ${matrix.n} > $OUT/x";
    let numbers: Vec<String> = (0..401).map(|n| n.to_string()).collect();
    let place = Place::new(&stage("a", script, &format!("matrix = {{ n = [{}] }}", numbers.join(", "))));
    place.run();
    let html = report(&place);
    assert!(html.contains("too many to draw") && html.contains("id=\"stage-400\""));
}

#[test]
fn a_trace_has_an_event_a_stage_on_the_lane_of_its_slot() {
    let place = Place::new(&everything());
    place.pipe("run p.toml -j 1").ends(0);
    place.pipe("report p.toml --trace trace.json").ends(0);
    assert!(!place.path("report.html").exists());
    let trace: serde_json::Value = serde_json::from_str(&place.read("trace.json")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(spans.len(), 4, "{trace}");
    let lanes: Vec<_> = events.iter().filter(|event| event["name"] == "thread_name").collect();
    assert!(lanes.iter().any(|lane| lane["args"]["name"] == "cpu 0"), "{trace}");
    let mut ended = 0.0;
    for span in spans {
        let (ts, dur) = (span["ts"].as_f64().unwrap(), span["dur"].as_f64().unwrap());
        assert!(dur > 0.0 && ts >= ended, "one after the other: {trace}");
        assert!(lanes.iter().any(|lane| lane["tid"] == span["tid"]));
        ended = ts + dur;
    }
}
