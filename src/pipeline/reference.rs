//! What stands behind an input: `train`, `train[lora]`, `train[*]`, `train[lora,*]`.

use super::diagnostics::Diagnostic;
use super::document::{Datum, Node};
use super::form::wrong_type;

/// One reference to a producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The producing stage's name.
    pub name: String,
    /// Which of its instances.
    pub pick: Pick,
}

/// Which instances of a producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// As many as the consumer has: one for one.
    Paired,
    /// All, in the order of the matrix: `[*]`.
    All,
    /// Those with these values, one per axis; `*` is any.
    Values(Vec<String>),
}

impl Reference {
    /// Reads one reference.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let Some((name, rest)) = text.split_once('[') else {
            return is_name(text).then(|| Self { name: text.to_owned(), pick: Pick::Paired });
        };
        let values: Vec<String> =
            rest.strip_suffix(']')?.split(',').map(|value| value.trim().to_owned()).collect();
        if !is_name(name) || values.iter().any(|value| value.is_empty() || value.contains(['[', ']'])) {
            return None;
        }
        let pick = if values == ["*"] { Pick::All } else { Pick::Values(values) };
        Some(Self { name: name.to_owned(), pick })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || "[]*,".contains(c))
}

/// The texts behind one input: itself, or the items of its list.
pub fn texts<'a>(input: &str, node: &'a Node, errors: &mut Vec<Diagnostic>) -> Vec<(&'a Node, &'a str)> {
    let what = format!("input `{input}`");
    let items: Vec<&Node> = match &node.datum {
        Datum::List(items) => items.iter().collect(),
        _ => vec![node],
    };
    if items.is_empty() {
        errors.push(Diagnostic::new(format!("{what} is empty"), node.span.clone(), "no stage"));
    }
    let mut texts = Vec::with_capacity(items.len());
    for item in items {
        match &item.datum {
            Datum::Text(text) => texts.push((item, text.as_str())),
            _ => wrong_type(item, &what, "the name of a stage, or a list of them", errors),
        }
    }
    texts
}

/// The error about a text that is no reference.
pub fn malformed(node: &Node, text: &str) -> Diagnostic {
    let error = Diagnostic::new(format!("`{text}` does not name a stage"), node.span.clone(), "");
    node.with_via(error)
        .help("write `train`, `train[lora]` for one instance of its matrix, or `train[*]` for all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms() {
        let pick = |text| Reference::parse(text).map(|reference| reference.pick);
        assert_eq!(pick("train"), Some(Pick::Paired));
        assert_eq!(pick("train[*]"), Some(Pick::All));
        assert_eq!(pick("train[lora]"), Some(Pick::Values(vec!["lora".into()])));
        assert_eq!(pick("train[lora, *]"), Some(Pick::Values(vec!["lora".into(), "*".into()])));
    }

    #[test]
    fn anything_else_is_none() {
        for text in ["", "[*]", "train[", "train[]", "train[a]b", "a b", "train[[a]]", "*"] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }
}
