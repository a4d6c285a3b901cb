//! One value against one [`Type`]: the JSON value of the resolved config, or what does not fit.

use contract::{Default, Type};
use serde_json::{Map, Number, Value};

use super::diagnostics::{Diagnostic, Span};
use super::document::{Datum, Node};
use super::near;

/// A value that does not fit its type.
pub struct Mismatch {
    /// The innermost value that does not fit.
    span: Span,
    /// What it must be.
    expected: String,
    /// What it is.
    found: String,
    help: Option<String>,
}

/// The value as JSON; `None` if it was already reported as unusable.
pub fn value(ty: &Type, node: &Node) -> Result<Option<Value>, Mismatch> {
    let value = fit(ty, node)?;
    Ok((!has_bad(&node.datum)).then_some(value))
}

/// The error about the value `node` of `what` (`` `rank` in stage `train` ``).
pub fn error(what: &str, node: &Node, mismatch: Mismatch) -> Diagnostic {
    let Mismatch { span, expected, found, help } = mismatch;
    let inner = span != node.span;
    let message = if inner {
        format!("an item of {what} must be {expected}")
    } else {
        format!("{what} must be {expected}")
    };
    let error = Diagnostic::new(message, span, format!("this is {found}")).help_if(help);
    match &node.via {
        Some(_) if inner => error.and(node.span.clone(), "used here"),
        _ => node.with_via(error),
    }
}

fn fit(ty: &Type, node: &Node) -> Result<Value, Mismatch> {
    let datum = &node.datum;
    match (*ty, datum) {
        // Reported already; what stands beside it in a list is still looked at.
        (_, Datum::Bad) => Ok(Value::Null),
        (Type::Bool, Datum::Bool(value)) => Ok(Value::from(*value)),
        (Type::Int { min, max }, Datum::Int(value)) if (min..=max).contains(value) => Ok(Value::from(*value)),
        (Type::Float { min, max }, Datum::Float(value)) => {
            float(min, max, *value).ok_or_else(|| mismatch(ty, node))
        }
        // Every whole number that a person writes is exact as a float, or next to one.
        (Type::Float { min, max }, Datum::Int(value)) =>
        {
            #[expect(clippy::cast_precision_loss, reason = "a number beyond 2^53 means its nearest float")]
            float(min, max, *value as f64).ok_or_else(|| mismatch(ty, node))
        }
        (Type::Text, Datum::Text(text)) => Ok(Value::from(text.as_str())),
        // A variable keeps its type; where only text fits, it is written out.
        (Type::Text, Datum::Bool(_) | Datum::Int(_) | Datum::Float(_)) if node.via.is_some() => {
            Ok(Value::from(datum.scalar().unwrap_or_default()))
        }
        (Type::Choice(words), Datum::Text(text)) if words.contains(&text.as_str()) => {
            Ok(Value::from(text.as_str()))
        }
        (Type::List(item), Datum::List(items)) => items.iter().map(|node| fit(item, node)).collect(),
        (Type::Table(item), Datum::Table(entries)) => {
            let pairs: Result<Map<_, _>, _> =
                entries.iter().map(|entry| Ok((entry.key.clone(), fit(item, &entry.node)?))).collect();
            pairs.map(Value::Object)
        }
        (Type::AnyOf(types), _) => {
            let as_it_is = Node { via: None, ..node.clone() };
            let fits = |node: &Node| types.iter().find_map(|ty| fit(ty, node).ok());
            // Where the form fits and an item does not, the item is what to look at.
            let within = || {
                let mut misfits = types.iter().filter_map(|ty| fit(ty, node).err());
                misfits.find(|misfit| misfit.span != node.span)
            };
            fits(&as_it_is)
                .or_else(|| fits(node))
                .ok_or_else(|| within().unwrap_or_else(|| mismatch(ty, node)))
        }
        _ => Err(mismatch(ty, node)),
    }
}

fn float(min: f64, max: f64, value: f64) -> Option<Value> {
    // -0.0 and 0.0 are one parameter.
    let value = if value == 0.0 { 0.0 } else { value };
    (min..=max).contains(&value).then(|| Number::from_f64(value)).flatten().map(Value::Number)
}

fn mismatch(ty: &Type, node: &Node) -> Mismatch {
    let help = match &node.datum {
        Datum::Text(text) => near::did_you_mean(text, choices(ty)).or_else(|| unquoted(ty, text)),
        _ => None,
    };
    Mismatch { span: node.span.clone(), expected: describe(ty), found: node.datum.show(), help }
}

fn choices(ty: &Type) -> Vec<&'static str> {
    match ty {
        Type::Choice(words) => words.to_vec(),
        Type::AnyOf(types) => types.iter().flat_map(choices).collect(),
        _ => Vec::new(),
    }
}

/// A number or truth value in quotes.
fn unquoted(ty: &Type, text: &str) -> Option<String> {
    let fits = match ty {
        Type::Int { .. } => text.parse::<i64>().is_ok(),
        Type::Float { .. } => text.parse::<f64>().is_ok_and(f64::is_finite),
        Type::Bool => text.parse::<bool>().is_ok(),
        _ => false,
    };
    fits.then(|| format!("leave out the quotes: `{text}`"))
}

/// What a type takes, for a person: `a whole number of at least 1`.
#[must_use]
pub fn describe(ty: &Type) -> String {
    match *ty {
        Type::Bool => "`true` or `false`".into(),
        Type::Int { min, max } => match (min > i64::MIN, max < i64::MAX) {
            (true, true) => format!("a whole number between {min} and {max}"),
            (true, false) => format!("a whole number of at least {min}"),
            (false, true) => format!("a whole number of at most {max}"),
            (false, false) => "a whole number".into(),
        },
        Type::Float { min, max } => match (min > f64::MIN, max < f64::MAX) {
            (true, true) => format!("a number between {min} and {max}"),
            (true, false) => format!("a number of at least {min}"),
            (false, true) => format!("a number of at most {max}"),
            (false, false) => "a number".into(),
        },
        Type::Text => "text".into(),
        Type::Choice(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            either(&words)
        }
        Type::List(item) => format!("a list, each item {}", describe(item)),
        Type::Table(item) => format!("a table, each value {}", describe(item)),
        Type::AnyOf(types) => either(&types.iter().map(describe).collect::<Vec<_>>()),
    }
}

fn either(words: &[String]) -> String {
    match words {
        [] => "nothing".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The value of a parameter that is left out; `None` if it then is absent.
#[must_use]
pub fn default(default: &Default) -> Option<Value> {
    match *default {
        Default::Required | Default::Absent => None,
        Default::Bool(value) => Some(Value::from(value)),
        Default::Int(value) => Some(Value::from(value)),
        Default::Float(value) => Some(Value::from(value)),
        Default::Text(value) => Some(Value::from(value)),
        Default::Texts(values) => Some(values.iter().copied().collect()),
        Default::Ints(values) => Some(values.iter().copied().collect()),
    }
}

/// Whether a parameter's default is a value that could be written for it.
#[cfg(test)]
pub fn default_fits(param: &contract::Param) -> bool {
    let text = default(&param.default).map(|value| format!("x={value}"));
    let node = text.map(|text| super::document::parse_value(&text, 0, 2, &mut Vec::new()));
    node.is_none_or(|node| node.is_some_and(|node| fit(&param.ty, &node).is_ok()))
}

fn has_bad(datum: &Datum) -> bool {
    match datum {
        Datum::Bad => true,
        Datum::List(items) => items.iter().any(|item| has_bad(&item.datum)),
        Datum::Table(entries) => entries.iter().any(|entry| has_bad(&entry.node.datum)),
        _ => false,
    }
}
