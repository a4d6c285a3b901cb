//! `--set rank=8` (a variable), `--set stages.train.rank=8` (a stage's own key), `--set pools.gpu=2`.
//!
//! The value is TOML; what is no TOML is taken as text, so that paths and words need no quotes.

use super::diagnostics::{Diagnostic, Source, Span};
use super::document::{Datum, Entry, Node, find, parse_value};
use super::near;

/// Puts the `--set`s into the root table, in their order. `sources[1..]` are their texts.
pub fn apply(root: &mut Vec<Entry>, sources: &[Source], errors: &mut Vec<Diagnostic>) {
    for (index, source) in sources.iter().enumerate().skip(1) {
        one(root, index, &source.text, errors);
    }
}

fn one(root: &mut Vec<Entry>, source: usize, text: &str, errors: &mut Vec<Diagnostic>) {
    let Some(equals) = text.find('=') else {
        let error = Diagnostic::new("`--set` takes `NAME=VALUE`", Span::new(source, 0..text.len()), "no `=`");
        errors.push(error.help("for example `--set rank=8` or `--set stages.train.rank=8`"));
        return;
    };
    let key = Span::new(source, 0..equals);
    let value = parse_value(text, source, equals + 1, errors).unwrap_or_else(|| {
        Node::new(Span::new(source, equals + 1..text.len()), Datum::Text(text[equals + 1..].to_owned()))
    });
    let name = text[..equals].trim();
    let path: Vec<&str> = name.split('.').collect();
    match &path[..] {
        ["stages", stage, keys @ ..] if !keys.is_empty() => {
            set_in_stage(root, stage, keys, key, value, errors);
        }
        ["pools", pool] => set_path(root, &["pools", pool], &key, value),
        ["vars", variable] | [variable] => set_variable(root, variable, key, value, errors),
        _ => {
            let error = Diagnostic::new(format!("`--set` cannot reach `{name}`"), key, "");
            errors.push(
                error.help("it sets a variable (`rank=8`) or a key of a stage (`stages.train.rank=8`)"),
            );
        }
    }
}

fn set_variable(root: &mut [Entry], name: &str, key: Span, value: Node, errors: &mut Vec<Diagnostic>) {
    let vars = root.iter_mut().find(|entry| entry.key == "vars");
    let entries = match vars {
        Some(Entry { node: Node { datum: Datum::Table(entries), .. }, .. }) => entries,
        _ => &mut Vec::new(),
    };
    if let Some(entry) = entries.iter_mut().find(|entry| entry.key == name) {
        entry.node = value;
        return;
    }
    let near = near::did_you_mean(name, entries.iter().map(|entry| entry.key.as_str()));
    let help = near.unwrap_or_else(|| match entries.len() {
        0 => "the file declares no variables; a stage's own key is set with `stages.STAGE.KEY=VALUE`".into(),
        _ => format!(
            "the variables are {}; a stage's own key is set with `stages.STAGE.KEY=VALUE`",
            near::list(entries.iter().map(|entry| entry.key.as_str()))
        ),
    });
    errors.push(Diagnostic::new(format!("unknown variable `{name}`"), key, "not in `[vars]`").help(help));
}

fn set_in_stage(
    root: &mut Vec<Entry>,
    stage: &str,
    keys: &[&str],
    key: Span,
    value: Node,
    errors: &mut Vec<Diagnostic>,
) {
    let stages = find(root, "stages").map(|entry| &entry.node.datum);
    let known: Vec<&str> = match stages {
        Some(Datum::Table(entries)) => entries.iter().map(|entry| entry.key.as_str()).collect(),
        _ => Vec::new(),
    };
    if known.contains(&stage) {
        let path: Vec<&str> = ["stages", stage].into_iter().chain(keys.iter().copied()).collect();
        set_path(root, &path, &key, value);
    } else {
        let help = near::did_you_mean(stage, known.iter().copied());
        let help = help.unwrap_or_else(|| format!("the stages are {}", near::list(known)));
        errors.push(Diagnostic::new(format!("unknown stage `{stage}`"), key, "").help(help));
    }
}

/// Sets a value below a path; tables on the way are made.
fn set_path(table: &mut Vec<Entry>, path: &[&str], key: &Span, value: Node) {
    let Some((name, rest)) = path.split_first() else { return };
    let index = table.iter().position(|entry| entry.key == *name).unwrap_or_else(|| {
        let node = Node::new(value.span.clone(), Datum::Table(Vec::new()));
        table.push(Entry { key: (*name).to_owned(), key_span: key.clone(), node });
        table.len() - 1
    });
    let entry = &mut table[index];
    if rest.is_empty() {
        entry.key_span = key.clone();
        entry.node = value;
        return;
    }
    if !matches!(entry.node.datum, Datum::Table(_)) {
        entry.node = Node::new(value.span.clone(), Datum::Table(Vec::new()));
    }
    if let Datum::Table(inner) = &mut entry.node.datum {
        set_path(inner, rest, key, value);
    }
}
