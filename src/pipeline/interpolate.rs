//! `${rank}` and `${matrix.method}` in texts.
//!
//! A text that is one reference as a whole takes the value with its type; within a longer text a scalar
//! is written out. `$${` stands for a literal `${`.

use std::collections::BTreeMap;
use std::ops::Range;

use super::diagnostics::{Diagnostic, Source, Span};
use super::document::{Datum, Entry, Node};
use super::near;

/// The variables by name.
pub type Vars = BTreeMap<String, Node>;

/// The matrix values of one instance, in the order of the axes.
pub type Row = Vec<(String, Node)>;

/// What names can stand for.
pub struct Scope<'a> {
    /// The texts that spans point into.
    pub sources: &'a [Source],
    /// `[vars]`, after `--set`.
    pub vars: &'a Vars,
    /// The matrix values.
    pub matrix: Matrix<'a>,
}

/// The matrix values that a text may use.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    /// These.
    Row(&'a Row),
    /// There are some, but they could not be worked out: already reported.
    Unknown,
    /// None can be used here, since the axes are not known yet.
    Forbidden,
}

impl Scope<'_> {
    /// The same value with every reference replaced. What cannot be replaced becomes [`Datum::Bad`].
    pub fn apply(&self, node: &Node, errors: &mut Vec<Diagnostic>) -> Node {
        let datum = match &node.datum {
            Datum::Text(text) => return self.text(text, node, errors),
            Datum::List(items) => Datum::List(items.iter().map(|item| self.apply(item, errors)).collect()),
            Datum::Table(entries) => Datum::Table(
                entries
                    .iter()
                    .map(|entry| Entry { node: self.apply(&entry.node, errors), ..entry.clone() })
                    .collect(),
            ),
            other => other.clone(),
        };
        Node { datum, ..node.clone() }
    }

    fn text(&self, text: &str, node: &Node, errors: &mut Vec<Diagnostic>) -> Node {
        if !text.contains("${") {
            return node.clone();
        }
        let parts = match parts(text) {
            Ok(parts) => parts,
            Err(Mistake { range, message }) => {
                let error = Diagnostic::new(message, self.within(node, text, range), "")
                    .help("write `${name}` for a variable, `$${` for a literal `${`");
                errors.push(error);
                return node.bad();
            }
        };
        if let [Part::Reference { name, range }] = &parts[..] {
            return match self.look_up(name, self.within(node, text, range.clone()), errors) {
                Some(value) => self.whole(node, name, value),
                None => node.bad(),
            };
        }
        let mut joined = String::new();
        let mut whole = true;
        for part in &parts {
            match part {
                Part::Literal(literal) => joined.push_str(literal),
                Part::Reference { name, range } => {
                    let span = self.within(node, text, range.clone());
                    match self.look_up(name, span.clone(), errors) {
                        Some(value) => match value.datum.scalar() {
                            Some(value) => joined.push_str(&value),
                            None => {
                                whole = false;
                                self.no_scalar(name, value, span, errors);
                            }
                        },
                        None => whole = false,
                    }
                }
            }
        }
        if whole { Node { datum: Datum::Text(joined), ..node.clone() } } else { node.bad() }
    }

    fn whole(&self, node: &Node, name: &str, value: &Node) -> Node {
        Node {
            span: node.span.clone(),
            via: Some(Box::new((value.span.clone(), name.to_owned()))),
            datum: value.datum.clone(),
        }
    }

    fn no_scalar(&self, name: &str, value: &Node, span: Span, errors: &mut Vec<Diagnostic>) {
        if matches!(value.datum, Datum::Bad) {
            return;
        }
        let what = value.datum.describe();
        errors.push(
            Diagnostic::new(format!("`{name}` is {what} and cannot stand within a text"), span, "")
                .and(value.span.clone(), format!("`{name}` is set here"))
                .help(format!("`\"${{{name}}}\"` alone takes the value as it is")),
        );
    }

    /// `None` if there is no such thing; a [`Datum::Bad`] if it is known to be unusable.
    fn look_up(&self, name: &str, span: Span, errors: &mut Vec<Diagnostic>) -> Option<&Node> {
        if let Some(axis) = name.strip_prefix("matrix.") {
            return self.axis(axis, span, errors);
        }
        let found = self.vars.get(name);
        if found.is_none() {
            let known = self.vars.keys().map(String::as_str);
            let help = near::did_you_mean(name, known)
                .unwrap_or_else(|| format!("declare it: `{name} = …` under `[vars]`"));
            errors.push(
                Diagnostic::new(format!("unknown variable `{name}`"), span, "not in `[vars]`").help(help),
            );
        }
        found
    }

    fn axis(&self, axis: &str, span: Span, errors: &mut Vec<Diagnostic>) -> Option<&Node> {
        let row = match self.matrix {
            Matrix::Row(row) => row,
            Matrix::Unknown => return None,
            Matrix::Forbidden => {
                let message = "`${matrix.…}` cannot be used here";
                errors.push(Diagnostic::new(message, span, "needed before the matrix is known"));
                return None;
            }
        };
        let found = row.iter().find(|(name, _)| name == axis).map(|(_, value)| value);
        if found.is_none() {
            let known = || row.iter().map(|(name, _)| name.as_str());
            let help = match near::did_you_mean(axis, known()) {
                Some(help) => help,
                None if row.is_empty() => "the stage has no matrix, and none of its inputs brings one".into(),
                None => format!("the axes are {}", near::list(known())),
            };
            errors.push(Diagnostic::new(format!("unknown matrix axis `{axis}`"), span, "").help(help));
        }
        found
    }

    /// The place of a part of a text; the whole text where escapes shift it.
    fn within(&self, node: &Node, text: &str, range: Range<usize>) -> Span {
        let Span { source, start, end } = node.span;
        let written = self.sources.get(source).and_then(|source| source.text.get(start..end)).unwrap_or("");
        match written.find(text) {
            Some(shift) if written.len() - text.len() == 2 * shift => {
                Span { source, start: start + shift + range.start, end: start + shift + range.end }
            }
            _ => node.span.clone(),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Part {
    Literal(String),
    Reference { name: String, range: Range<usize> },
}

#[derive(Debug, PartialEq)]
struct Mistake {
    range: Range<usize>,
    message: String,
}

/// Cuts a text into literals and references.
fn parts(text: &str) -> Result<Vec<Part>, Mistake> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("$${") {
            literal.push_str("${");
            at += 3;
        } else if rest.starts_with("${") {
            let Some(length) = rest.find('}') else {
                return Err(Mistake { range: at..text.len(), message: "`${` without its `}`".into() });
            };
            let name = &rest[2..length];
            let range = at..at + length + 1;
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
                return Err(Mistake { range, message: format!("`${{{name}}}` does not name a variable") });
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Reference { name: name.to_owned(), range });
            at += length + 1;
        } else {
            let next = rest.chars().next().map_or(1, char::len_utf8);
            literal.push_str(&rest[..next]);
            at += next;
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

/// Whether `node` uses `${matrix.axis}` anywhere.
pub fn uses_axis(node: &Node, axis: &str) -> bool {
    match &node.datum {
        Datum::Text(text) => text.contains(&format!("${{matrix.{axis}}}")),
        Datum::List(items) => items.iter().any(|item| uses_axis(item, axis)),
        Datum::Table(entries) => entries.iter().any(|entry| uses_axis(&entry.node, axis)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn literal(text: &str) -> Option<String> {
        match parts(text) {
            Ok(parts) => match &parts[..] {
                [] => Some(String::new()),
                [Part::Literal(text)] => Some(text.clone()),
                _ => None,
            },
            Err(_) => None,
        }
    }

    proptest! {
        #[test]
        fn every_text_can_be_written_literally(text in "[a-z${}é]{0,12}") {
            prop_assert_eq!(literal(&text.replace("${", "$${")), Some(text));
        }

        #[test]
        fn references_and_texts_between_them_survive(
            pieces in prop::collection::vec(("[a-z {}é]{0,5}", "[a-z_][a-z0-9_]{0,6}"), 1..6),
        ) {
            let text: String = pieces.iter().map(|(between, name)| format!("{between}${{{name}}}")).collect();
            let mut expected = Vec::new();
            for (between, name) in &pieces {
                if !between.is_empty() {
                    expected.push(between.clone());
                }
                expected.push(format!("${{{name}}}"));
            }
            let found: Vec<String> = parts(&text).unwrap().into_iter().map(|part| match part {
                Part::Literal(text) => text,
                Part::Reference { range, .. } => text[range].to_owned(),
            }).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = parts(&text);
        }
    }
}
