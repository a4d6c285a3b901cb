//! TOML text → a tree in which every key and value knows its place.
//!
//! Entries stand in the order of the text. What TOML can say and a pipeline cannot mean (dates, NaN,
//! numbers beyond 64 bits) is reported here and becomes [`Datum::Bad`], of which nobody complains again.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Diagnostic, Span};

/// How much of a large file the parser is given at a time.
const PIECE: usize = 64 << 10;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands; where it is used, if a variable brought it.
    pub span: Span,
    /// Where the variable that brought it is set, and that variable's name.
    pub via: Option<Box<(Span, String)>>,
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
            Some(via) => diagnostic.and(via.0.clone(), format!("`{}` is set here", via.1)),
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
    by_pieces(text, PIECE, errors).or_else(|| at_once(text, errors))
}

/// A large file piece by piece, each of at least `size` bytes and cut before a stage's header: the parser
/// takes fifty times a text's length in memory, and so that of a piece. `None` where pieces do not stand for
/// themselves (a mistake, a table that goes on in a later piece): then the file must be read at once. A cut
/// within a longer text or list leaves that without its end, which is such a mistake.
fn by_pieces(text: &str, size: usize, errors: &mut Vec<Diagnostic>) -> Option<Vec<Entry>> {
    if text.len() <= size || text.contains("\n[stages]") {
        return None;
    }
    let (mut all, mut stages, mut found) = (Vec::<Entry>::new(), Vec::<Entry>::new(), Vec::new());
    let (mut names, mut offset) = (HashSet::new(), 0);
    while offset < text.len() {
        let end = header_after(text, text.floor_char_boundary(offset + size));
        let (root, mistakes) = DeTable::parse_recoverable(&text[offset..end]);
        if !mistakes.is_empty() {
            return None;
        }
        for mut entry in table(root.into_inner(), &Place { source: 0, offset }, &mut found) {
            let inner = match &mut entry.node.datum {
                Datum::Table(inner) if entry.key == "stages" => std::mem::take(inner),
                _ => Vec::new(),
            };
            if !inner.iter().all(|stage| names.insert(stage.key.clone())) {
                return None;
            }
            let more = !inner.is_empty();
            stages.extend(inner);
            match find(&all, &entry.key).map(|first| &first.node.datum) {
                None => all.push(entry),
                Some(Datum::Table(_)) if more => {}
                Some(_) => return None,
            }
        }
        offset = end;
    }
    if let Some(Entry { node: Node { datum: Datum::Table(inner), .. }, .. }) =
        all.iter_mut().find(|entry| entry.key == "stages")
    {
        *inner = stages;
    }
    errors.append(&mut found);
    Some(all)
}

/// Where the next `[stages.NAME]` from `at` on starts; the text's end if there is none.
fn header_after(text: &str, at: usize) -> usize {
    const HEADER: &str = "\n[stages.";
    let mut headers = text[at..].match_indices(HEADER).map(|(newline, _)| at + newline + 1);
    let whole = |start: &usize| {
        let name = text[start + HEADER.len() - 1..].split(['.', ']', '\n']).next().unwrap_or_default();
        text[start + HEADER.len() - 1 + name.len()..].starts_with(']')
    };
    headers.find(whole).unwrap_or(text.len())
}

fn at_once(text: &str, errors: &mut Vec<Diagnostic>) -> Option<Vec<Entry>> {
    let (root, mistakes) = DeTable::parse_recoverable(text);
    let mut whole = true;
    let entries = table(root.into_inner(), &Place { source: 0, offset: 0 }, errors);
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
    Some(node(value, &Place { source, offset }, errors))
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

/// Takes the parser's table apart, so that it is gone when this one stands.
fn table(table: DeTable<'_>, place: &Place, errors: &mut Vec<Diagnostic>) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table {
        let key_span = place.span(key.span());
        let node = node(value, place, errors);
        entries.push(Entry { key: key.into_inner().into_owned(), key_span, node });
    }
    entries.sort_by_key(|entry| entry.key_span.start);
    entries
}

fn node(value: Spanned<DeValue<'_>>, place: &Place, errors: &mut Vec<Diagnostic>) -> Node {
    let span = place.span(value.span());
    let mut refuse = |message: &str, label: &str| {
        errors.push(Diagnostic::new(message, span.clone(), label));
        Datum::Bad
    };
    let datum = match value.into_inner() {
        DeValue::Boolean(value) => Datum::Bool(value),
        DeValue::String(text) => Datum::Text(text.into_owned()),
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
        DeValue::Array(items) => {
            Datum::List(items.into_iter().map(|item| node(item, place, errors)).collect())
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every way to write something that must not be cut, and some mistakes.
    fn pieces() -> impl Strategy<Value = String> {
        let name = "[a-f]{1,2}";
        prop_oneof![
            8 => name.prop_map(|name| format!("[stages.{name}]\nkind = \"x\"\nn = 3 # [stages.c]\n")),
            2 => name.prop_map(|name| format!("[stages.{name}.resources]\ncpus = 1\n")),
            2 => name.prop_map(|name| format!("[stages.{name}]\nt = \"\"\"\n[stages.inner]\nk = 1\n\"\"\"\n")),
            2 => name.prop_map(|name| format!("[stages.{name}]\nl = [\n1,\n2\n]\né = 'ü'\n")),
            1 => Just("[pools]\ngpu = 1\n".to_owned()),
            1 => Just("[stages]\n".to_owned()),
            1 => Just("name = \"n\"\n".to_owned()),
            1 => Just("stages = 3\n".to_owned()),
            1 => Just("[stages.bad]\nx = [\n".to_owned()),
            1 => Just("[stages.date]\nx = 1979-05-27\n".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn a_file_in_pieces_is_the_file(pieces in prop::collection::vec(pieces(), 1..12), size in 1_usize..80) {
            let text = pieces.concat();
            let (mut by_pieces_found, mut found) = (Vec::new(), Vec::new());
            if let Some(entries) = by_pieces(&text, size, &mut by_pieces_found) {
                let whole = at_once(&text, &mut found);
                prop_assert_eq!(format!("{:?}", Some(entries)), format!("{whole:?}"));
                prop_assert_eq!(by_pieces_found, found);
            } else {
                prop_assert!(by_pieces_found.is_empty());
            }
        }
    }

    #[test]
    fn a_large_file_is_read_in_pieces() {
        let text: String = (0..200)
            .map(|n| format!("[stages.s{n}]\nkind = \"x\"\n[stages.s{n}.resources]\ncpus = 1\n"))
            .collect();
        let entries = by_pieces(&text, 500, &mut Vec::new()).expect("no table goes on in a later piece");
        let Datum::Table(stages) = &entries[0].node.datum else { panic!("{entries:?}") };
        assert_eq!(stages.len(), 200);
    }
}
