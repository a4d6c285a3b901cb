//! A recorded run as one HTML file: no network, no script, readable where it is opened.
//!
//! It goes by the run's record and by the file names of [`crate::measured`]; it knows no stage kind. A
//! content security policy in the document forbids scripts and loading, so that even a mistake here could
//! not run what a stage wrote.

use std::collections::{BTreeMap, BTreeSet};

use html::{duration, escape};

use crate::recorded::Recorded;

mod answers;
mod chart;
mod curves;
mod dag;
mod found;
mod html;
mod layout;
mod results;
mod seeds;
mod stages;
mod timeline;
mod trace;

pub use trace::trace;

/// Light and dark, phone and desk.
const STYLE: &str = include_str!("report/style.css");

/// The whole document.
#[must_use]
pub fn document(recorded: &Recorded) -> String {
    let run = &recorded.run;
    let sections = [
        ("Results", results::html(recorded)),
        ("Stages", format!("<div class=\"wide\">{}</div>{}", dag::svg(recorded), key(recorded))),
        ("Timeline", timeline::svg(recorded).unwrap_or_default()),
        ("Curves", curves::html(recorded)),
        ("Figures", found::pictures(recorded)),
        ("Samples", found::samples(recorded) + &answers::html(recorded)),
        ("Details of every stage", stages::html(recorded)),
    ];
    let shown = sections.iter().filter(|(_, html)| !html.is_empty());
    let body: String =
        shown.map(|(title, html)| format!("<section><h2>{title}</h2>\n{html}</section>\n")).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{title}</title><style>{STYLE}</style></head>\n<body>\n{header}{body}</body></html>\n",
        title = escape(&format!("{} {}", run.pipeline, run.id)),
        header = header(recorded),
    )
}

/// What was run, when, how it went and where.
fn header(recorded: &Recorded) -> String {
    let run = &recorded.run;
    let mut facts: Vec<(&str, String)> = vec![
        ("run", run.id.clone()),
        ("file", run.file.clone()),
        ("started", run.started.replace('T', " ").replace('Z', " UTC")),
        ("took", duration(run.seconds)),
        ("stages", counts(recorded)),
    ];
    if run.exit != 0 {
        facts.push(("exit code", run.exit.to_string()));
    }
    facts.extend(run.set.iter().map(|set| ("set", set.clone())));
    if !run.program.is_empty() {
        facts.push(("program", run.program.clone()));
    }
    let mut served: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for action in recorded.stages.iter().filter_map(|stage| stage.action.as_ref()) {
        for (name, value) in &action.provenance {
            served.entry(name).or_default().insert(value);
        }
    }
    let join = |values: BTreeSet<&str>| values.into_iter().collect::<Vec<_>>().join(" | ");
    facts.extend(served.into_iter().map(|(name, values)| (name, join(values))));
    let fact =
        |(name, value): (&str, String)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(&value));
    let facts: String = facts.into_iter().map(fact).collect();
    format!("<header><h1>{}</h1>\n<dl>{facts}</dl></header>\n", escape(&run.pipeline))
}

/// `19: 7 cached, 12 ran`
fn counts(recorded: &Recorded) -> String {
    let mut counts: Vec<String> = Vec::new();
    for (state, word) in WORDS {
        let count = recorded.stages.iter().filter(|stage| stage.record.state == state).count();
        if count > 0 {
            counts.push(format!("{count} {word}"));
        }
    }
    format!("{}: {}", recorded.stages.len(), counts.join(", "))
}

/// A stage's state in a record, and what it is called.
const WORDS: [(&str, &str); 5] = [
    ("cached", "cached"),
    ("done", "ran"),
    ("failed", "failed"),
    ("skipped", "skipped"),
    ("cancelled", "stopped"),
];

/// What a person calls a state.
fn word(state: &str) -> &str {
    WORDS.iter().find(|(name, _)| *name == state).map_or(state, |(_, word)| word)
}

/// What the colours mean, as far as they occur.
fn key(recorded: &Recorded) -> String {
    let occurs = |state: &str| recorded.stages.iter().any(|stage| stage.record.state == state);
    let words = WORDS.iter().filter(|(state, _)| occurs(state));
    let words: String =
        words.map(|(state, word)| format!("<span><b class=\"{state}\">{word}</b></span> ")).collect();
    format!("<p class=\"legend\">{words}</p>\n")
}
