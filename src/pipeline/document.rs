//! TOML text → a tree in which every key and value knows its place.
//!
//! Entries stand in the order of the text. What TOML can say and a pipeline cannot mean (dates, NaN,
//! numbers beyond 64 bits) is reported here and becomes [`Datum::Bad`], of which nobody complains again.

use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Diagnostic, Span};

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands; where it is used, if a variable brought it.
    pub span: Span,
    /// Where the variable that brought it is set, and that variable's name.
    pub via: Option<(Span, String)>,
    /// What it is.
    pub datum: Datum,
}

/// A TOML value.
#[derive(Clone, Debug)]
pub enum Datum {
    /// `true`, `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A table.
    Table(Vec<Entry>),
    /// Something already reported.
    Bad,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// Its value.
    pub node: Node,
}

impl Node {
    /// A value at a place.
    pub fn new(span: Span, datum: Datum) -> Self {
        Self { span, via: None, datum }
    }

    /// The same place with nothing usable in it.
    pub fn bad(&self) -> Self {
        Self::new(self.span.clone(), Datum::Bad)
    }

    /// Adds the place of the variable that brought this value.
    pub fn with_via(&self, diagnostic: Diagnostic) -> Diagnostic {
        match &self.via {
            Some((span, name)) => diagnostic.and(span.clone(), format!("`{name}` is set here")),
            None => diagnostic,
        }
    }
}

impl Datum {
    /// What it is, for a person: `text`, `a list`.
    pub const fn describe(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Bad => "unusable",
        }
    }

    /// The value itself where it is short: `the number 3`, `` the text `x` ``, `a list`.
    pub fn show(&self) -> String {
        match self {
            Self::Bool(value) => format!("`{value}`"),
            Self::Int(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) if text.is_empty() => "empty text".into(),
            Self::Text(text) if text.chars().count() <= 30 && !text.contains('\n') => {
                format!("the text `{text}`")
            }
            other => other.describe().into(),
        }
    }

    /// A scalar as it stands in a text or a matrix label; `None` for lists and tables.
    pub fn scalar(&self) -> Option<String> {
        match self {
            Self::Bool(value) => Some(value.to_string()),
            Self::Int(value) => Some(value.to_string()),
            Self::Float(value) => Some(Value::from(*value).to_string()),
            Self::Text(value) => Some(value.clone()),
            Self::List(_) | Self::Table(_) | Self::Bad => None,
        }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        match self {
            Self::Bool(value) => Value::from(*value),
            Self::Int(value) => Value::from(*value),
            Self::Float(value) => Value::from(*value),
            Self::Text(value) => Value::from(value.as_str()),
            Self::List(items) => items.iter().map(|item| item.datum.json()).collect(),
            Self::Table(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.node.datum.json())).collect()
            }
            Self::Bad => Value::Null,
        }
    }
}

/// Finds a key.
pub fn find<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.key == key)
}

/// Reads a whole file. `None` if its grammar is broken beyond duplicate keys.
pub fn parse(text: &str, errors: &mut Vec<Diagnostic>) -> Option<Vec<Entry>> {
    let (root, mistakes) = DeTable::parse_recoverable(text);
    let mut whole = true;
    let entries = table(root.get_ref(), &Place { source: 0, offset: 0 }, errors);
    // A table given twice repeats its keys: that is one mistake.
    let mut told = 0..0;
    for mistake in mistakes {
        let range = mistake.span().unwrap_or(0..0);
        let span = Span::new(0, range.clone());
        let message = mistake.message();
        if message.contains("duplicate key") {
            if told.contains(&range.start) {
                continue;
            }
            if in_header(text, range.start) {
                told =
                    range.start..text[range.start..].find("\n[").map_or(text.len(), |end| range.start + end);
            }
            errors.push(duplicate(text, &range, &entries));
        } else {
            whole = false;
            let first = message.lines().next().unwrap_or("wrong grammar");
            let rest = message.lines().skip(1).collect::<Vec<_>>().join("; ");
            errors.push(Diagnostic::new(first, span, rest));
        }
    }
    whole.then_some(entries)
}

/// Reads one value out of `text[offset..]`, which is the end of a source. `None` if it is no TOML value.
pub fn parse_value(text: &str, source: usize, offset: usize, errors: &mut Vec<Diagnostic>) -> Option<Node> {
    let value = DeValue::parse(&text[offset..]).ok()?;
    if value.get_ref().is_datetime() {
        return None;
    }
    Some(node(&value, &Place { source, offset }, errors))
}

/// Which source, and from where its spans count.
struct Place {
    source: usize,
    offset: usize,
}

impl Place {
    fn span(&self, range: Range<usize>) -> Span {
        Span::new(self.source, range.start + self.offset..range.end + self.offset)
    }
}

fn table(table: &DeTable<'_>, place: &Place, errors: &mut Vec<Diagnostic>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_span: place.span(key.span()),
            node: node(value, place, errors),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_span.start);
    entries
}

fn node(value: &Spanned<DeValue<'_>>, place: &Place, errors: &mut Vec<Diagnostic>) -> Node {
    let span = place.span(value.span());
    let mut refuse = |message: &str, label: &str| {
        errors.push(Diagnostic::new(message, span.clone(), label));
        Datum::Bad
    };
    let datum = match value.get_ref() {
        DeValue::Boolean(value) => Datum::Bool(*value),
        DeValue::String(text) => Datum::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Datum::Int(number),
            Err(_) => refuse("a whole number must fit 64 bits", "too large"),
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            // -0.0 and 0.0 mean the same and must not look like two parameters.
            Ok(0.0) => Datum::Float(0.0),
            Ok(number) if number.is_finite() => Datum::Float(number),
            _ => refuse("numbers must be finite", "not a finite number"),
        },
        DeValue::Datetime(_) => refuse("dates and times are not used in pipelines", "put it in quotes"),
        DeValue::Array(items) => Datum::List(items.iter().map(|item| node(item, place, errors)).collect()),
        DeValue::Table(entries) => Datum::Table(table(entries, place, errors)),
    };
    Node::new(span, datum)
}

/// A key that stands twice, with both places.
fn duplicate(text: &str, second: &Range<usize>, entries: &[Entry]) -> Diagnostic {
    let key = text.get(second.clone()).unwrap_or_default().trim_matches(['"', '\'']);
    let error =
        Diagnostic::new(format!("`{key}` is given twice"), Span::new(0, second.clone()), "again here");
    let first = if in_header(text, second.start) {
        same_header(text, second)
    } else {
        inline(entries, key, second.start).or_else(|| below_header(text, entries, key, second.start))
    };
    let first = first.filter(|first| first.start < second.start);
    match first {
        Some(first) => error.and(first, "first given here").help("remove or rename one of the two"),
        None => error.help("remove or rename one of the two"),
    }
}

/// The first `key` in the innermost `{ … }` around `at`.
fn inline(entries: &[Entry], key: &str, at: usize) -> Option<Span> {
    entries.iter().find_map(|entry| match &entry.node.datum {
        Datum::Table(inner) => inline(inner, key, at).or_else(|| {
            let around = entry.node.span.start < at && at < entry.node.span.end;
            around.then(|| find(inner, key)).flatten().map(|entry| entry.key_span.clone())
        }),
        _ => None,
    })
}

/// The first `key` in the table whose `[header]` precedes `at`.
fn below_header(text: &str, entries: &[Entry], key: &str, at: usize) -> Option<Span> {
    let line_end = text[at..].find('\n').map_or(text.len(), |end| at + end);
    let header = text[..line_end].lines().rev().find(|line| line.starts_with('['))?;
    let names = header.split(']').next()?.trim_start_matches('[').split('.');
    let path: Vec<&str> = names.map(|name| name.trim().trim_matches(['"', '\''])).collect();
    let mut table = entries;
    for name in path {
        match &find(table, name)?.node.datum {
            Datum::Table(inner) => table = inner,
            _ => return None,
        }
    }
    find(table, key).map(|entry| entry.key_span.clone())
}

/// Whether the line that holds `at` is a `[header]`.
fn in_header(text: &str, at: usize) -> bool {
    let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    text[line..].starts_with('[')
}

/// The same name in the first `[header]` that reads like the one at `second`.
fn same_header(text: &str, second: &Range<usize>) -> Option<Span> {
    let line = text[..second.start].rfind('\n').map_or(0, |newline| newline + 1);
    let header = text[line..].lines().next()?.trim_end();
    let mut start = 0;
    for other in text[..line].split_inclusive('\n') {
        if other.trim_end() == header {
            return Some(Span::new(0, start + second.start - line..start + second.end - line));
        }
        start += other.len();
    }
    None
}
