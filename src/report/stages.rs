//! One folded section a stage: how it went, its parameters, what it took, where it ran, what it said.

use super::html::{duration, escape, table};
use super::word;
use crate::digest::Digest;
use crate::recorded::{Recorded, Stage};

/// The last lines of a failed stage's log.
const LINES: usize = 20;

/// A section a stage.
#[must_use]
pub fn html(recorded: &Recorded) -> String {
    recorded.stages.iter().enumerate().map(|(number, stage)| one(number, stage)).collect()
}

fn one(number: usize, stage: &Stage) -> String {
    let record = &stage.record;
    let open = if record.failure.is_some() { " open" } else { "" };
    let mut html = format!(
        "<details id=\"stage-{number}\" class=\"stage\"{open}><summary><b class=\"{0}\">{3}</b> {1} <small>{2}</small></summary>\n",
        escape(&record.state),
        escape(&record.stage),
        escape(&record.kind),
        escape(word(&record.state))
    );
    if let Some(failure) = &record.failure {
        html += &format!("<p class=\"failure\">{}</p>\n", escape(failure));
        html += &tail(stage);
    }
    html += &section("", facts(stage));
    html += &section("Parameters", fields(stage, "config."));
    html += &section("Inputs", inputs(stage));
    html += &section(
        "Environment and local files, by content",
        [fields(stage, "env."), fields(stage, "paths.")].concat(),
    );
    if let Some(action) = &stage.action {
        let pairs = action.provenance.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
        html += &section("Where it ran", pairs.collect());
        html.extend(
            action
                .warnings
                .iter()
                .map(|text| format!("<p class=\"failure\">warning: {}</p>\n", escape(text))),
        );
    }
    html + "</details>\n"
}

fn section(title: &str, rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let title = if title.is_empty() { String::new() } else { format!("<h4>{title}</h4>\n") };
    title + &table(&[], &rows)
}

fn facts(stage: &Stage) -> Vec<Vec<String>> {
    let record = &stage.record;
    let digest = |digest: Option<Digest>| digest.map(|digest| digest.short());
    let started = stage.action.as_ref().map(|action| action.started.clone());
    let gone = record.object.filter(|_| stage.output.is_none()).map(|_| "no longer in the store".to_owned());
    let facts = [
        ("made", started),
        ("took", stage.seconds().map(duration)),
        ("key", digest(record.key)),
        ("output", gone.or_else(|| digest(record.object))),
    ];
    facts.into_iter().filter_map(|(name, value)| Some(vec![name.to_owned(), value?])).collect()
}

/// The key's fields of one group, less its name.
fn fields(stage: &Stage, group: &str) -> Vec<Vec<String>> {
    let field = |(name, value): (&String, &String)| {
        Some(vec![name.strip_prefix(group)?.to_owned(), shortened(value)])
    };
    stage.fields().iter().filter_map(field).collect()
}

/// A digest as its first digits.
fn shortened(value: &str) -> String {
    value.parse::<Digest>().map_or_else(|_| value.to_owned(), |digest| digest.short())
}

/// Input, the instances behind it, and their content at the time.
fn inputs(stage: &Stage) -> Vec<Vec<String>> {
    let content = |name: &str, index: usize| {
        let name = if name.contains(['.', '[']) { format!("{name:?}") } else { name.to_owned() };
        stage
            .fields()
            .get(&format!("inputs.{name}[{index}].content"))
            .map_or(String::new(), |value| shortened(value))
    };
    let mut rows = Vec::new();
    for (name, producers) in &stage.record.inputs {
        for (index, producer) in producers.iter().enumerate() {
            rows.push(vec![name.clone(), producer.clone(), content(name, index)]);
        }
    }
    rows
}

fn tail(stage: &Stage) -> String {
    let Some(text) = stage.log.as_ref().and_then(|path| std::fs::read(path).ok()) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
    format!("<pre>{}</pre>\n", escape(&last))
}
