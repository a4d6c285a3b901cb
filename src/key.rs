//! What makes two runs the same.
//!
//! [`KeyFields`]' fields ARE the definition. One walk visits them in a fixed order; two writers take it:
//! a hasher (the key) and an explanation (what `pipe explain` compares). Not in the key: paths, times,
//! comments, the order of tables, the stage's name, pool sizes, log level, progress, and parameters that
//! a kind declares cosmetic.
//!
//! Layout of the hash, version 1: each leaf is its path and its value. A path is its component count,
//! then each component as a tag (name or index) with its length-prefixed bytes or number. A value is a
//! tag with, for text, length-prefixed bytes; for numbers, eight little-endian bytes; an empty list or
//! table is a leaf of its own. Nothing is joined with separators, so "a" and "a\0", ["ab"] and
//! ["a", "b"], 1 and 1.0 never meet.

use std::collections::BTreeMap;
use std::fmt;

use contract::{Effect, Stage};
use serde_json::Value;

use crate::digest::Digest;

pub use resolve::env_value;

mod resolve;

/// Raise it when the layout or the set of fields changes.
/// Log: 1, the first.
const VERSION: u64 = 1;

/// The name of one run: equal keys, equal results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageKey(pub Digest);

impl fmt::Display for StageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Field path → value as text: `config.rank` → `8`.
pub type Explanation = BTreeMap<String, String>;

/// Everything that identifies a run.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyFields {
    /// The kind's name.
    pub kind: String,
    /// The kind's version.
    pub version: u32,
    /// The resolved parameters that may change results.
    pub config: BTreeMap<String, Value>,
    /// Input name → (label, content) in the order given; the label is empty where only one artifact can
    /// stand behind the name.
    pub inputs: BTreeMap<String, Vec<(String, Digest)>>,
    /// Declared environment variables; `None` where one is not set.
    pub env: BTreeMap<String, Option<String>>,
    /// Parameter → content of the local file or folder that it names.
    pub paths: BTreeMap<String, Digest>,
}

impl KeyFields {
    /// The config of `kind` less its cosmetic parameters.
    #[must_use]
    pub fn effective(kind: &dyn Stage, config: &contract::Config) -> BTreeMap<String, Value> {
        let cosmetic = |name: &str| {
            kind.params().iter().any(|param| param.name == name && param.effect == Effect::Cosmetic)
        };
        config.0.iter().filter(|(name, _)| !cosmetic(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> StageKey {
        let mut writer = HashWriter(blake3::Hasher::new());
        self.walk(&mut writer);
        StageKey(Digest::finish(&writer.0))
    }

    /// The same fields for a person.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        let mut writer = ExplainWriter(Explanation::new());
        self.walk(&mut writer);
        writer.0
    }

    fn walk(&self, sink: &mut impl Sink) {
        use Step::{Index, Name};
        sink.leaf(&[Name("key")], &Leaf::Unsigned(VERSION));
        sink.leaf(&[Name("kind")], &Leaf::Text(&self.kind));
        sink.leaf(&[Name("version")], &Leaf::Unsigned(u64::from(self.version)));
        for (name, value) in &self.config {
            walk_value(&mut vec![Name("config"), Name(name)], value, sink);
        }
        for (name, artifacts) in &self.inputs {
            for (index, (label, digest)) in artifacts.iter().enumerate() {
                let path = [Name("inputs"), Name(name), Index(index as u64), Name("label")];
                // Empty where the stage cannot tell siblings apart: renaming a producer changes nothing.
                if !label.is_empty() {
                    sink.leaf(&path, &Leaf::Text(label));
                }
                sink.leaf(&[path[0], path[1], path[2], Name("content")], &Leaf::Content(digest));
            }
        }
        for (name, value) in &self.env {
            let digest = value.as_ref().map(|value| Digest::of(value.as_bytes()));
            let leaf = digest.as_ref().map_or(Leaf::Null, Leaf::Content);
            sink.leaf(&[Name("env"), Name(name)], &leaf);
        }
        for (name, digest) in &self.paths {
            sink.leaf(&[Name("paths"), Name(name)], &Leaf::Content(digest));
        }
    }
}

/// What differs between two explanations: `rank: 8 → 16`, `input model: content changed`.
#[must_use]
pub fn differences(before: &Explanation, now: &Explanation) -> Vec<String> {
    let fields: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    fields
        .into_iter()
        .filter(|field| before.get(*field) != now.get(*field))
        .map(|field| describe(field, before.get(field), now.get(field)))
        .collect()
}

fn describe(field: &str, before: Option<&String>, now: Option<&String>) -> String {
    let mut parts = field.splitn(3, '.');
    let (group, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let name = name.strip_suffix("[0]").unwrap_or(name);
    match (group, before, now) {
        ("inputs", Some(_), Some(_)) => format!("input `{name}`: content changed"),
        ("inputs", None, _) => format!("input `{name}`: added"),
        ("inputs", ..) => format!("input `{name}`: removed"),
        ("env", ..) => format!("environment variable `{name}` changed"),
        ("paths", ..) => format!("`{name}`: the content of the file or folder changed"),
        ("version", Some(a), Some(b)) => format!("the stage kind's version: {a} → {b}"),
        ("key", ..) => "this program computes keys differently".to_owned(),
        ("kind", Some(a), Some(b)) => format!("kind: {a} → {b}"),
        (_, before, now) => {
            let show = |value: Option<&String>| value.map_or("(absent)", String::as_str).to_owned();
            let name = field.strip_prefix("config.").unwrap_or(field);
            format!("{name}: {} → {}", show(before), show(now))
        }
    }
}

/// One component of a field's path.
#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Name(&'a str),
    Index(u64),
}

/// One value.
enum Leaf<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Unsigned(u64),
    Float(f64),
    Text(&'a str),
    Content(&'a Digest),
    EmptyList,
    EmptyTable,
}

trait Sink {
    fn leaf(&mut self, path: &[Step<'_>], value: &Leaf<'_>);
}

fn walk_value<'a>(path: &mut Vec<Step<'a>>, value: &'a Value, sink: &mut impl Sink) {
    match value {
        Value::Null => sink.leaf(path, &Leaf::Null),
        Value::Bool(value) => sink.leaf(path, &Leaf::Bool(*value)),
        Value::String(text) => sink.leaf(path, &Leaf::Text(text)),
        Value::Number(number) => {
            let leaf = match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Leaf::Int(value),
                (None, Some(value)) => Leaf::Unsigned(value),
                (None, None) => Leaf::Float(number.as_f64().unwrap_or(f64::NAN)),
            };
            sink.leaf(path, &leaf);
        }
        Value::Array(items) if items.is_empty() => sink.leaf(path, &Leaf::EmptyList),
        Value::Object(fields) if fields.is_empty() => sink.leaf(path, &Leaf::EmptyTable),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(Step::Index(index as u64));
                walk_value(path, item, sink);
                path.pop();
            }
        }
        Value::Object(fields) => {
            let ordered: BTreeMap<&String, &Value> = fields.iter().collect();
            for (name, item) in ordered {
                path.push(Step::Name(name));
                walk_value(path, item, sink);
                path.pop();
            }
        }
    }
}

struct HashWriter(blake3::Hasher);

impl HashWriter {
    fn number(&mut self, tag: u8, bytes: [u8; 8]) {
        self.0.update(&[tag]).update(&bytes);
    }

    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.number(tag, (bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

impl Sink for HashWriter {
    fn leaf(&mut self, path: &[Step<'_>], value: &Leaf<'_>) {
        self.number(b'p', (path.len() as u64).to_le_bytes());
        for step in path {
            match step {
                Step::Name(name) => self.bytes(b'n', name.as_bytes()),
                Step::Index(index) => self.number(b'x', index.to_le_bytes()),
            }
        }
        match value {
            Leaf::Null => self.bytes(b'0', &[]),
            Leaf::Bool(value) => self.bytes(b'b', &[u8::from(*value)]),
            Leaf::Int(value) => self.number(b'i', value.to_le_bytes()),
            Leaf::Unsigned(value) => self.number(b'u', value.to_le_bytes()),
            Leaf::Float(value) => self.number(b'f', value.to_bits().to_le_bytes()),
            Leaf::Text(text) => self.bytes(b't', text.as_bytes()),
            Leaf::Content(digest) => self.bytes(b'c', digest.bytes()),
            Leaf::EmptyList => self.bytes(b'l', &[]),
            Leaf::EmptyTable => self.bytes(b'm', &[]),
        }
    }
}

struct ExplainWriter(Explanation);

impl Sink for ExplainWriter {
    fn leaf(&mut self, path: &[Step<'_>], value: &Leaf<'_>) {
        let mut field = String::new();
        for step in path {
            match step {
                Step::Name(name) if field.is_empty() => field.push_str(name),
                // Quoted where a name could be taken for a path.
                Step::Name(name) if name.contains(['.', '[']) => field = format!("{field}.{name:?}"),
                Step::Name(name) => field = format!("{field}.{name}"),
                Step::Index(index) => field = format!("{field}[{index}]"),
            }
        }
        let text = match value {
            Leaf::Null => "(not set)".to_owned(),
            Leaf::Bool(value) => value.to_string(),
            Leaf::Int(value) => value.to_string(),
            Leaf::Unsigned(value) => value.to_string(),
            Leaf::Float(value) => format!("{value:?}"),
            Leaf::Text(text) => format!("{text:?}"),
            Leaf::Content(digest) => digest.to_string(),
            Leaf::EmptyList => "[]".to_owned(),
            Leaf::EmptyTable => "{}".to_owned(),
        };
        self.0.insert(field, text);
    }
}

#[cfg(test)]
mod tests;
