//! The runner's own keys of a stage: `timeout`, `retries`, `env`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::EnvVar;
use super::diagnostics::{Diagnostic, Span};
use super::document::{Datum, Entry, Node};
use super::duration::duration;
use super::form::wrong_type;

/// `timeout = "12h"`.
pub fn timeout(stage: &str, node: &Node, errors: &mut Vec<Diagnostic>) -> Option<Duration> {
    length("timeout", &format!("stage `{stage}`"), node, errors)
}

/// A length of time, `key` of `owner`.
pub fn length(key: &str, owner: &str, node: &Node, errors: &mut Vec<Diagnostic>) -> Option<Duration> {
    let what = format!("`{key}` of {owner}");
    let Datum::Text(text) = &node.datum else {
        wrong_type(node, &what, "text such as `\"90s\"`, `\"10m\"`, `\"12h\"`", errors);
        return None;
    };
    match duration(text) {
        Ok(time) if time.is_zero() => {
            let error = Diagnostic::new(format!("{what} must be longer than nothing"), node.span.clone(), "");
            errors.push(node.with_via(error).help("leave it out for no limit"));
            None
        }
        Ok(time) => Some(time),
        Err(_) => {
            let error = Diagnostic::new(
                format!("{what} must be a length of time"),
                node.span.clone(),
                format!("this is the text `{text}`"),
            );
            errors.push(node.with_via(error).help("write `90s`, `10m`, `12h` or `3d`"));
            None
        }
    }
}

/// `retries = 3`.
pub fn retries(stage: &str, node: &Node, errors: &mut Vec<Diagnostic>) -> u32 {
    match node.datum {
        Datum::Int(count @ 0..=1000) => u32::try_from(count).unwrap_or(0),
        _ => {
            wrong_type(
                node,
                &format!("`retries` of stage `{stage}`"),
                "a whole number between 0 and 1000",
                errors,
            );
            0
        }
    }
}

/// `env = ["NAME"]` passes variables through, `env = { NAME = "value" }` sets them.
pub fn env(stage: &str, node: &Node, errors: &mut Vec<Diagnostic>) -> BTreeMap<String, EnvVar> {
    let what = format!("`env` of stage `{stage}`");
    let mut env = BTreeMap::new();
    match &node.datum {
        Datum::List(items) => {
            for item in items {
                match &item.datum {
                    Datum::Text(name) => {
                        if check_name(name, &item.span, errors) {
                            env.insert(name.clone(), EnvVar::Pass);
                        }
                    }
                    _ => wrong_type(item, &format!("an item of {what}"), "the name of a variable", errors),
                }
            }
        }
        Datum::Table(entries) => {
            for entry in entries {
                let Entry { key, key_span, node } = entry;
                let value = match &node.datum {
                    Datum::Text(value) => (!value.contains('\0')).then(|| value.clone()),
                    // A variable keeps its type; where only text fits, it is written out.
                    other => other.scalar().filter(|_| node.via.is_some()),
                };
                match value {
                    Some(value) => {
                        if check_name(key, key_span, errors) {
                            env.insert(key.clone(), EnvVar::Set(value));
                        }
                    }
                    None => wrong_type(node, &format!("`{key}` in {what}"), "text", errors),
                }
            }
        }
        _ => wrong_type(node, &what, "a list of names or a table of texts", errors),
    }
    env
}

fn check_name(name: &str, span: &Span, errors: &mut Vec<Diagnostic>) -> bool {
    let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let good = letters && name.starts_with(|c: char| !c.is_ascii_digit());
    if !good {
        let message = format!("`{}` cannot be the name of an environment variable", name.escape_debug());
        errors.push(Diagnostic::new(message, span.clone(), "").help("use letters, digits and `_`"));
    }
    good
}
