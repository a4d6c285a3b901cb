//! `matrix = { method = ["lora", "dora"], rank = [8, 16] }` → its rows.
//!
//! The rows are the cartesian product of the axes, the first axis slowest, less those that `exclude`
//! matches, plus those of `include`. A row's label joins its values with `,`.

use std::collections::HashMap;

use super::diagnostics::Diagnostic;
use super::document::{Datum, Entry, Node, find};
use super::form::{table, wrong_type};
use super::interpolate::{Row, Scope};
use super::near;

/// More rows than this are a mistake.
const MOST: usize = 100_000;

/// The axes of a stage and its rows, each with one value per axis in the order of the axes.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Axis names.
    pub axes: Vec<String>,
    /// One instance each.
    pub rows: Vec<Row>,
}

impl Rows {
    /// What a stage without any matrix has: one row without values.
    pub fn single() -> Self {
        Self { axes: Vec::new(), rows: vec![Row::new()] }
    }
}

/// `lora,8`; empty for a stage without a matrix.
pub fn label(row: &Row) -> String {
    let values: Vec<String> = row.iter().map(|(_, node)| node.datum.scalar().unwrap_or_default()).collect();
    values.join(",")
}

/// Expands a stage's `matrix`. `None` if it has errors, which are reported.
pub fn expand(stage: &str, matrix: &Node, scope: &Scope<'_>, errors: &mut Vec<Diagnostic>) -> Option<Rows> {
    let before = errors.len();
    let what = format!("`matrix` of stage `{stage}`");
    let node = scope.apply(matrix, errors);
    let span = node.span.clone();
    let entries = table(node, &what, errors)?;
    let (special, axes): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.key == "include" || entry.key == "exclude");
    let axes: Vec<(String, Vec<Node>)> =
        axes.into_iter().filter_map(|axis| read_axis(axis, errors)).collect();
    let include = tables(find(&special, "include"), errors);
    let exclude = tables(find(&special, "exclude"), errors);
    if errors.len() > before {
        return None;
    }
    let names: Vec<String> = match include.first() {
        Some((_, first)) if axes.is_empty() => first.iter().map(|entry| entry.key.clone()).collect(),
        _ => axes.iter().map(|(name, _)| name.clone()).collect(),
    };
    if names.is_empty() {
        let error = Diagnostic::new(format!("{what} has no axes"), span.clone(), "");
        errors.push(error.help("write `matrix = { seed = [1, 2, 3] }`, or leave it out"));
        return None;
    }
    let mut rows = if axes.is_empty() { Vec::new() } else { product(&axes, &what, &span, errors)? };
    remove(&mut rows, &names, &exclude, errors);
    add(&mut rows, &names, include, errors);
    if rows.is_empty() && errors.len() == before {
        errors.push(Diagnostic::new(format!("{what} leaves no instance"), span, "everything is excluded"));
    }
    (errors.len() == before).then_some(Rows { axes: names, rows })
}

fn read_axis(axis: Entry, errors: &mut Vec<Diagnostic>) -> Option<(String, Vec<Node>)> {
    let Entry { key, node, .. } = axis;
    let what = format!("matrix axis `{key}`");
    let Datum::List(values) = &node.datum else {
        wrong_type(&node, &what, "a list", errors);
        return None;
    };
    if values.is_empty() {
        errors.push(node.with_via(Diagnostic::new(
            format!("{what} is empty"),
            node.span.clone(),
            "no values",
        )));
        return None;
    }
    let mut seen: HashMap<String, &Node> = HashMap::new();
    let mut good = true;
    for value in values {
        let Some(text) = axis_value(value, &what, errors) else {
            good = false;
            continue;
        };
        if let Some(first) = seen.get(&text) {
            let error =
                Diagnostic::new(format!("{what} has `{text}` twice"), value.span.clone(), "again here");
            errors.push(error.and(first.span.clone(), "first here"));
            good = false;
        } else {
            seen.insert(text, value);
        }
    }
    good.then_some((key, values.clone()))
}

/// The value as it stands in an instance's name.
fn axis_value(value: &Node, what: &str, errors: &mut Vec<Diagnostic>) -> Option<String> {
    let Some(text) = value.datum.scalar() else {
        wrong_type(value, &format!("a value of {what}"), "text, a number, `true` or `false`", errors);
        return None;
    };
    if text.is_empty() || text.chars().any(|c| "[],*".contains(c) || c.is_control()) {
        let message = format!("a value of {what} cannot be `{}`", text.escape_debug());
        let error = Diagnostic::new(message, value.span.clone(), "it names instances");
        errors.push(error.help("use text without `[`, `]`, `,` and `*`"));
        return None;
    }
    Some(text)
}

/// `include` and `exclude`: lists of tables.
fn tables(entry: Option<&Entry>, errors: &mut Vec<Diagnostic>) -> Vec<(Node, Vec<Entry>)> {
    let Some(Entry { key, node, .. }) = entry else { return Vec::new() };
    let what = format!("`{key}` of a matrix");
    let Datum::List(items) = &node.datum else {
        wrong_type(node, &what, "a list of tables", errors);
        return Vec::new();
    };
    let read = |item: &Node, errors: &mut Vec<Diagnostic>| {
        let entries = table(item.clone(), &format!("an item of {what}"), errors)?;
        let values = entries
            .iter()
            .map(|entry| axis_value(&entry.node, &format!("matrix axis `{}`", entry.key), errors));
        let good = values.collect::<Vec<_>>().iter().all(Option::is_some);
        good.then(|| (item.clone(), entries))
    };
    items.iter().filter_map(|item| read(item, errors)).collect()
}

fn product(
    axes: &[(String, Vec<Node>)],
    what: &str,
    span: &super::diagnostics::Span,
    errors: &mut Vec<Diagnostic>,
) -> Option<Vec<Row>> {
    let count = axes.iter().try_fold(1usize, |count, (_, values)| count.checked_mul(values.len()));
    if count.is_none_or(|count| count > MOST) {
        let message = format!("{what} expands to more than {MOST} instances");
        errors.push(Diagnostic::new(message, span.clone(), ""));
        return None;
    }
    let mut rows = vec![Row::new()];
    for (name, values) in axes {
        let extend = |row: &Row| {
            let row = row.clone();
            values.iter().map(move |value| {
                let mut longer = row.clone();
                longer.push((name.clone(), value.clone()));
                longer
            })
        };
        rows = rows.iter().flat_map(extend).collect();
    }
    Some(rows)
}

fn remove(
    rows: &mut Vec<Row>,
    axes: &[String],
    exclude: &[(Node, Vec<Entry>)],
    errors: &mut Vec<Diagnostic>,
) {
    for (item, wanted) in exclude {
        if !known_axes(axes, wanted, errors) {
            continue;
        }
        let count = rows.len();
        rows.retain(|row| !wanted.iter().all(|entry| matches_entry(row, entry)));
        if rows.len() == count {
            let error = Diagnostic::new("`exclude` matches no instance", item.span.clone(), "");
            errors.push(error.help("it lists axis values: `exclude = [{ method = \"lora\", rank = 16 }]`"));
        }
    }
}

fn add(rows: &mut Vec<Row>, axes: &[String], include: Vec<(Node, Vec<Entry>)>, errors: &mut Vec<Diagnostic>) {
    let mut seen: HashMap<String, Option<Node>> = rows.iter().map(|row| (label(row), None)).collect();
    for (item, entries) in include {
        if !known_axes(axes, &entries, errors) {
            continue;
        }
        let row: Option<Row> =
            axes.iter().map(|axis| Some((axis.clone(), find(&entries, axis)?.node.clone()))).collect();
        let Some(row) = row else {
            let missing = axes.iter().filter(|axis| find(&entries, axis).is_none()).map(String::as_str);
            let message = format!("an item of `include` lacks {}", near::list(missing));
            errors.push(Diagnostic::new(message, item.span.clone(), "every axis needs a value"));
            continue;
        };
        let name = label(&row);
        match seen.get(&name) {
            Some(first) => {
                let error =
                    Diagnostic::new(format!("instance `{name}` exists already"), item.span.clone(), "");
                errors.push(match first {
                    Some(first) => error.and(first.span.clone(), "first here"),
                    None => error.help("the axes make it; leave it out here"),
                });
            }
            None => {
                seen.insert(name, Some(item));
                rows.push(row);
            }
        }
    }
}

fn known_axes(axes: &[String], entries: &[Entry], errors: &mut Vec<Diagnostic>) -> bool {
    let before = errors.len();
    for entry in entries.iter().filter(|entry| !axes.contains(&entry.key)) {
        let help = near::did_you_mean(&entry.key, axes.iter().map(String::as_str));
        let help =
            help.unwrap_or_else(|| format!("the axes are {}", near::list(axes.iter().map(String::as_str))));
        let message = format!("unknown matrix axis `{}`", entry.key);
        errors.push(Diagnostic::new(message, entry.key_span.clone(), "").help(help));
    }
    errors.len() == before
}

fn matches_entry(row: &Row, entry: &Entry) -> bool {
    row.iter().any(|(axis, value)| *axis == entry.key && value.datum.scalar() == entry.node.datum.scalar())
}
