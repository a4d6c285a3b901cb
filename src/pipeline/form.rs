//! The outer form of a file: `name`, `[vars]`, `[pools]`, `[stages.<name>]`, and in a stage the keys
//! that belong to the runner. Values inside stages are not looked at yet.

use std::collections::BTreeMap;

use contract::{Pool, Stage};

use super::diagnostics::{Diagnostic, Source, Span};
use super::document::{Datum, Entry, Node, find};
use super::interpolate::{Matrix, Scope, Vars};
use super::near;
use crate::registry::Registry;

/// The keys of a stage that the runner reads itself; every other key is a parameter of the kind.
pub const RUNNER_KEYS: [&str; 7] = ["kind", "inputs", "matrix", "timeout", "retries", "env", "resources"];

const TOP_KEYS: [&str; 4] = ["name", "vars", "pools", "stages"];

/// A file taken apart.
pub struct Form {
    pub name: Option<String>,
    pub vars: Vars,
    pub pools: BTreeMap<String, usize>,
    pub stages: Vec<RawStage>,
}

/// One `[stages.<name>]`.
pub struct RawStage {
    pub name: String,
    /// Where its name stands.
    pub span: Span,
    /// `None` if unknown: already reported.
    pub kind: Option<&'static dyn Stage>,
    pub inputs: Option<Node>,
    pub matrix: Option<Node>,
    pub timeout: Option<Node>,
    pub retries: Option<Node>,
    pub env: Option<Node>,
    pub resources: Option<Node>,
    /// The kind's parameters.
    pub params: Vec<Entry>,
}

/// Takes the root table apart.
pub fn read(root: Vec<Entry>, registry: &Registry, sources: &[Source], errors: &mut Vec<Diagnostic>) -> Form {
    let mut form = Form { name: None, vars: Vars::new(), pools: BTreeMap::new(), stages: Vec::new() };
    let mut stages = None;
    for entry in root {
        match entry.key.as_str() {
            "name" => match &entry.node.datum {
                Datum::Text(name) if !name.is_empty() => form.name = Some(name.clone()),
                _ => wrong_type(&entry.node, "`name`", "text", errors),
            },
            "vars" => form.vars = read_vars(entry.node, sources, errors),
            "pools" => form.pools = read_pools(entry.node, errors),
            "stages" => stages = Some(entry.node),
            _ => errors.push(unknown_top_key(&entry)),
        }
    }
    let tables = stages.map_or_else(Vec::new, |node| table(node, "`stages`", errors).unwrap_or_default());
    if tables.is_empty() && errors.is_empty() {
        let error = Diagnostic::new("the file has no stages", Span::new(0, 0..0), "");
        errors.push(error.help("start from the file that `pipe init FILE` writes"));
    }
    form.stages.reserve_exact(tables.len());
    for entry in tables {
        form.stages.extend(read_stage(entry, registry, sources, &form.vars, errors));
    }
    form
}

fn unknown_top_key(entry: &Entry) -> Diagnostic {
    let key = &entry.key;
    let is_stage = matches!(&entry.node.datum, Datum::Table(inner) if find(inner, "kind").is_some());
    let error = Diagnostic::new(format!("unknown key `{key}`"), entry.key_span.clone(), "");
    if is_stage {
        return error.help(format!("a stage is written `[stages.{key}]`"));
    }
    let near = near::did_you_mean(key, TOP_KEYS);
    error.help(near.unwrap_or_else(|| format!("a pipeline file has {}", near::list(TOP_KEYS))))
}

fn read_vars(node: Node, sources: &[Source], errors: &mut Vec<Diagnostic>) -> Vars {
    let nothing = Vars::new();
    let scope = Scope { sources, vars: &nothing, matrix: Matrix::Forbidden };
    let mut vars = Vars::new();
    for entry in table(node, "`vars`", errors).unwrap_or_default() {
        let name = &entry.key;
        let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !letters || name.is_empty() {
            let message = format!("`{name}` cannot be a variable's name");
            errors
                .push(Diagnostic::new(message, entry.key_span, "").help("use letters, digits, `_` and `-`"));
            continue;
        }
        let mut inner = Vec::new();
        let value = scope.apply(&entry.node, &mut inner);
        if !inner.is_empty() {
            let message = format!("the variable `{name}` cannot use another one");
            let error = Diagnostic::new(message, entry.node.span.clone(), "");
            errors.push(error.help("write `$${` for a literal `${`"));
        }
        vars.insert(entry.key, value);
    }
    vars
}

fn read_pools(node: Node, errors: &mut Vec<Diagnostic>) -> BTreeMap<String, usize> {
    let known = [Pool::Gpu, Pool::Cpu, Pool::Network].map(Pool::name);
    let mut pools = BTreeMap::new();
    for entry in table(node, "`pools`", errors).unwrap_or_default() {
        if !known.contains(&entry.key.as_str()) {
            let help = near::did_you_mean(&entry.key, known);
            let help = help.unwrap_or_else(|| format!("the pools are {}", near::list(known)));
            errors.push(
                Diagnostic::new(format!("unknown pool `{}`", entry.key), entry.key_span, "").help(help),
            );
            continue;
        }
        match entry.node.datum {
            Datum::Int(size @ 1..=65_536) => {
                pools.insert(entry.key, usize::try_from(size).unwrap_or(1));
            }
            _ => wrong_type(
                &entry.node,
                &format!("the pool `{}`", entry.key),
                "a whole number of at least 1",
                errors,
            ),
        }
    }
    pools
}

fn read_stage(
    entry: Entry,
    registry: &Registry,
    sources: &[Source],
    vars: &Vars,
    errors: &mut Vec<Diagnostic>,
) -> Option<RawStage> {
    let Entry { key: name, key_span: span, node } = entry;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        let error = Diagnostic::new(format!("`{name}` cannot be a stage's name"), span.clone(), "");
        errors.push(error.help("use letters, digits, `_` and `-`"));
    }
    let entries = table(node, &format!("stage `{name}`"), errors)?;
    let mut stage = RawStage {
        name,
        span,
        kind: None,
        inputs: None,
        matrix: None,
        timeout: None,
        retries: None,
        env: None,
        resources: None,
        params: Vec::new(),
    };
    let mut kind = None;
    for entry in entries {
        match entry.key.as_str() {
            "kind" => kind = Some(entry.node),
            "inputs" => stage.inputs = Some(entry.node),
            "matrix" => stage.matrix = Some(entry.node),
            "timeout" => stage.timeout = Some(entry.node),
            "retries" => stage.retries = Some(entry.node),
            "env" => stage.env = Some(entry.node),
            "resources" => stage.resources = Some(entry.node),
            _ => stage.params.push(entry),
        }
    }
    stage.params.shrink_to_fit();
    match kind {
        Some(kind) => {
            let scope = Scope { sources, vars, matrix: Matrix::Forbidden };
            stage.kind = read_kind(&scope.apply(&kind, errors), registry, errors);
        }
        None => {
            let message = format!("stage `{}` has no `kind`", stage.name);
            let kinds = near::list(registry.stages.iter().map(|stage| stage.kind()));
            errors.push(
                Diagnostic::new(message, stage.span.clone(), "`kind` is missing")
                    .help(format!("the kinds are {kinds}")),
            );
        }
    }
    Some(stage)
}

fn read_kind(node: &Node, registry: &Registry, errors: &mut Vec<Diagnostic>) -> Option<&'static dyn Stage> {
    let Datum::Text(name) = &node.datum else {
        wrong_type(node, "`kind`", "text", errors);
        return None;
    };
    let found = registry.get(name);
    if found.is_none() {
        let known = || registry.stages.iter().map(|stage| stage.kind());
        let error = Diagnostic::new(format!("unknown kind `{name}`"), node.span.clone(), "");
        let error = match near::did_you_mean(name, known()) {
            Some(help) => error.help(help),
            None => error
                .help(format!("the kinds are {}", near::list(known())))
                .help_if(registry.missing.map(str::to_owned)),
        };
        errors.push(node.with_via(error));
    }
    found
}

/// The entries of a table; reports anything else.
pub fn table(node: Node, what: &str, errors: &mut Vec<Diagnostic>) -> Option<Vec<Entry>> {
    match node.datum {
        Datum::Table(entries) => Some(entries),
        _ => {
            wrong_type(&node, what, "a table", errors);
            None
        }
    }
}

/// Reports that `what` is not `expected`, unless it was reported before.
pub fn wrong_type(node: &Node, what: &str, expected: &str, errors: &mut Vec<Diagnostic>) {
    if matches!(node.datum, Datum::Bad) {
        return;
    }
    let label = format!("this is {}", node.datum.show());
    let error = Diagnostic::new(format!("{what} must be {expected}"), node.span.clone(), label);
    errors.push(node.with_via(error));
}
