//! A stage and its rows → instances: parameters checked, inputs resolved.

use std::collections::{BTreeMap, HashMap};

use contract::{Config, ConfigError, Default as Fallback, Many, Param, Ports, Stage};
use serde_json::Map;

use super::axes::{Instances, project};
use super::check;
use super::diagnostics::{Diagnostic, Source, Span, place};
use super::document::{Datum, Entry, Node, find};
use super::form::{RUNNER_KEYS, RawStage, wrong_type};
use super::interpolate::{Matrix, Row, Scope, Vars, uses_axis};
use super::matrix::label;
use super::reference::{Pick, Reference, malformed, texts};
use super::{InputRef, Instance, StageId, near, resources, settings};

/// What all stages share while they are expanded.
pub struct Expansion<'a> {
    pub vars: &'a Vars,
    /// The name of every stage and where it stands.
    pub heads: &'a [(String, Span)],
    pub index: &'a HashMap<&'a str, usize>,
    pub instances: &'a [Option<Instances>],
    pub sources: &'a [Source],
}

impl Expansion<'_> {
    /// The instances of one stage; none if its kind or its rows are unknown.
    pub fn stage(&self, number: usize, stage: &RawStage, errors: &mut Vec<Diagnostic>) -> Vec<Instance> {
        if let Some(kind) = stage.kind {
            check_names(stage, kind, errors);
        }
        let Some(instances) = &self.instances[number] else {
            self.instance(stage, Matrix::Unknown, errors);
            return Vec::new();
        };
        if stage.matrix.is_some() {
            self.check_axes_used(stage, &instances.rows.axes, errors);
        }
        let rows = instances.rows.rows.iter();
        rows.filter_map(|row| self.instance(stage, Matrix::Row(row), errors)).collect()
    }

    fn instance(
        &self,
        stage: &RawStage,
        matrix: Matrix<'_>,
        errors: &mut Vec<Diagnostic>,
    ) -> Option<Instance> {
        let scope = Scope { sources: self.sources, vars: self.vars, matrix };
        let row = match matrix {
            Matrix::Row(row) => Some(row),
            _ => None,
        };
        let config = stage.kind.map(|kind| config(stage, kind, &scope, row, errors));
        let inputs = self.inputs(stage, &scope, row, errors);
        let apply = |node: &Option<Node>, errors: &mut Vec<Diagnostic>| {
            node.as_ref().map(|node| scope.apply(node, errors))
        };
        let timeout =
            apply(&stage.timeout, errors).and_then(|node| settings::timeout(&stage.name, &node, errors));
        let retries =
            apply(&stage.retries, errors).map_or(0, |node| settings::retries(&stage.name, &node, errors));
        let env = apply(&stage.env, errors).map(|node| settings::env(&stage.name, &node, errors));
        let resources =
            apply(&stage.resources, errors).map(|node| resources::resources(&stage.name, &node, errors));
        let row = row?;
        let instance = Instance {
            id: id(&stage.name, row),
            stage: stage.name.clone(),
            axes: row.iter().map(|(axis, node)| (axis.clone(), node.datum.json())).collect(),
            kind: stage.kind?,
            config: config?,
            inputs,
            timeout,
            retries,
            env: env.unwrap_or_default(),
            resources: resources.unwrap_or_default(),
            origin: place(self.sources, &stage.span),
        };
        idle_nodes(stage, &instance, errors);
        Some(instance)
    }

    fn inputs(
        &self,
        stage: &RawStage,
        scope: &Scope<'_>,
        row: Option<&Row>,
        errors: &mut Vec<Diagnostic>,
    ) -> BTreeMap<String, Vec<InputRef>> {
        let mut inputs = BTreeMap::new();
        let Some(node) = &stage.inputs else { return inputs };
        let Datum::Table(entries) = &node.datum else {
            wrong_type(node, &format!("`inputs` of stage `{}`", stage.name), "a table", errors);
            return inputs;
        };
        for Entry { key, node, .. } in entries {
            let node = scope.apply(node, errors);
            let before = errors.len();
            let mut refs: Vec<(InputRef, Node)> = Vec::new();
            for (item, text) in texts(key, &node, errors) {
                match Reference::parse(text) {
                    Some(reference) => {
                        let picked = self.pick(stage, &reference, item, row, errors);
                        refs.extend(picked.into_iter().map(|picked| (picked, item.clone())));
                    }
                    None => errors.push(malformed(item, text)),
                }
            }
            if errors.len() == before && row.is_some() {
                check_count(stage, key, &node, &refs, errors);
            }
            inputs.insert(key.clone(), tell_apart(refs));
        }
        inputs
    }

    /// The instances that a reference means, for the instance with `row`.
    fn pick(
        &self,
        stage: &RawStage,
        reference: &Reference,
        item: &Node,
        row: Option<&Row>,
        errors: &mut Vec<Diagnostic>,
    ) -> Vec<InputRef> {
        let Reference { name, pick } = reference;
        let Some(&number) = self.index.get(name.as_str()) else {
            let known = || self.heads.iter().map(|(name, _)| name.as_str());
            let help = near::did_you_mean(name, known());
            let help = help.unwrap_or_else(|| format!("the stages are {}", near::list(known().take(20))));
            let error = Diagnostic::new(format!("unknown stage `{name}`"), item.span.clone(), "");
            errors.push(item.with_via(error).help(help));
            return Vec::new();
        };
        let (_, producer) = &self.heads[number];
        let (Some(instances), Some(row)) = (&self.instances[number], row) else { return Vec::new() };
        let rows = &instances.rows;
        let make = |index: usize| {
            let label = label(&rows.rows[index]);
            let label = if label.is_empty() { name.clone() } else { label };
            InputRef { producer: id(name, &rows.rows[index]), label }
        };
        let fail = |message: String, label: String, help: String| {
            Diagnostic::new(message, item.span.clone(), label)
                .and(producer.clone(), format!("`{name}` has {}", has(instances)))
                .help(help)
        };
        let found: Vec<usize> = match pick {
            Pick::All => (0..rows.rows.len()).collect(),
            Pick::Paired => match project(row, &rows.axes) {
                Some(label) => instances.by_label.get(&label).copied().into_iter().collect(),
                None => {
                    let lacking = rows.axes.iter().filter(|axis| row.iter().all(|(name, _)| name != *axis));
                    let lacking = near::list(lacking.map(String::as_str));
                    let message =
                        format!("stage `{}` has no matrix axis {lacking}, which `{name}` has", stage.name);
                    let help = format!(
                        "take all with `{name}[*]`, one with `{name}[{}]`, or give stage `{}` that axis",
                        label(&rows.rows[0]),
                        stage.name
                    );
                    errors.push(fail(message, "which instance?".into(), help));
                    return Vec::new();
                }
            },
            Pick::Values(values) if values.len() != rows.axes.len() => {
                let help = match rows.axes.len() {
                    0 => format!("write `{name}`"),
                    count => format!("give {count} values, `*` for any, or `{name}[*]` for all"),
                };
                let message = format!("`{name}[{}]` does not exist", values.join(","));
                errors.push(fail(message, String::new(), help));
                return Vec::new();
            }
            Pick::Values(values) if !values.iter().any(|value| value == "*") => {
                instances.by_label.get(&values.join(",")).copied().into_iter().collect()
            }
            Pick::Values(values) => {
                (0..rows.rows.len()).filter(|&index| fits(&rows.rows[index], values)).collect()
            }
        };
        if found.is_empty() {
            let wanted = match pick {
                Pick::Values(values) => values.join(","),
                _ => project(row, &rows.axes).unwrap_or_default(),
            };
            let help = near::did_you_mean(&wanted, instances.by_label.keys().map(String::as_str));
            let help = help.unwrap_or_else(|| format!("take all with `{name}[*]`, or change one of the two"));
            let label = format!("for `{}`", id(&stage.name, row));
            errors.push(fail(format!("`{name}[{wanted}]` does not exist"), label, help));
        }
        found.into_iter().map(make).collect()
    }

    /// An axis that nothing reads gives the same instance under several names.
    fn check_axes_used(&self, stage: &RawStage, axes: &[String], errors: &mut Vec<Diagnostic>) {
        let Some(kind) = stage.kind else { return };
        for axis in axes {
            let is_param = kind.params().iter().any(|param| param.name == axis);
            let settings = [&stage.inputs, &stage.timeout, &stage.retries, &stage.env, &stage.resources];
            let named = stage.params.iter().map(|entry| &entry.node).chain(settings.into_iter().flatten());
            let used = (is_param && find(&stage.params, axis).is_none())
                || named.into_iter().any(|node| uses_axis(node, axis))
                || self.pairs_by(stage, axis);
            if !used {
                let span = axis_span(stage, axis);
                let message = format!("matrix axis `{axis}` of stage `{}` is not used", stage.name);
                let help = match near::did_you_mean(axis, kind.params().iter().map(|param| param.name)) {
                    Some(help) if !is_param => help,
                    _ => format!("use it as `${{matrix.{axis}}}`"),
                };
                errors.push(Diagnostic::new(message, span, "all its instances would be the same").help(help));
            }
        }
    }

    /// Whether an input's producer has the axis.
    fn pairs_by(&self, stage: &RawStage, axis: &str) -> bool {
        let Some(Node { datum: Datum::Table(entries), .. }) = &stage.inputs else { return false };
        entries.iter().flat_map(|entry| texts(&entry.key, &entry.node, &mut Vec::new())).any(|(_, text)| {
            let number = Reference::parse(text).and_then(|reference| self.index.get(reference.name.as_str()));
            let producer = number.and_then(|&number| self.instances[number].as_ref());
            producer.is_none_or(|instances| instances.rows.axes.iter().any(|name| name == axis))
        })
    }
}

fn axis_span(stage: &RawStage, axis: &str) -> Span {
    let entry = match &stage.matrix {
        Some(Node { datum: Datum::Table(entries), .. }) => find(entries, axis),
        _ => None,
    };
    entry.map_or_else(|| stage.span.clone(), |entry| entry.key_span.clone())
}

fn id(stage: &str, row: &Row) -> StageId {
    let label = label(row);
    StageId(if label.is_empty() { stage.to_owned() } else { format!("{stage}[{label}]") })
}

fn has(instances: &Instances) -> String {
    let labels: Vec<String> = instances.rows.rows.iter().take(6).map(label).collect();
    let more = instances.rows.rows.len().saturating_sub(labels.len());
    match &labels[..] {
        [label] if label.is_empty() => "no matrix".into(),
        _ if more > 0 => format!("{} and {more} more", near::list(labels.iter().map(String::as_str))),
        _ => near::list(labels.iter().map(String::as_str)),
    }
}

fn fits(row: &Row, values: &[String]) -> bool {
    row.iter()
        .zip(values)
        .all(|((_, node), value)| value == "*" || node.datum.scalar().as_ref() == Some(value))
}

/// Labels tell siblings apart: where two are the same, they become whole instance names.
fn tell_apart(refs: Vec<(InputRef, Node)>) -> Vec<InputRef> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for (input, _) in &refs {
        *counts.entry(input.label.clone()).or_default() += 1;
    }
    let rename = |(mut input, _): (InputRef, Node)| {
        if counts.get(&input.label).is_some_and(|&count| count > 1) {
            input.label.clone_from(&input.producer.0);
        }
        input
    };
    let mut inputs: Vec<InputRef> = refs.into_iter().map(rename).collect();
    // It was collected in place, where more than inputs were.
    inputs.shrink_to_fit();
    inputs
}

/// Unknown parameters, unknown and missing inputs: the same for every instance.
fn check_names(stage: &RawStage, kind: &dyn Stage, errors: &mut Vec<Diagnostic>) {
    let params = kind.params();
    let ports: &[contract::Input] = match kind.inputs() {
        Ports::Listed(ports) => ports,
        Ports::Any => &[],
    };
    for entry in &stage.params {
        let key = entry.key.as_str();
        if params.iter().any(|param| param.name == key) {
            continue;
        }
        let message = format!("unknown key `{key}` in stage `{}`", stage.name);
        let error = Diagnostic::new(message, entry.key_span.clone(), "");
        let known = || params.iter().map(|param| param.name).chain(RUNNER_KEYS);
        errors.push(if ports.iter().any(|port| port.name == key) {
            error.help(format!("`{key}` is an input: write `inputs = {{ {key} = \"STAGE\" }}`"))
        } else if let Some(help) = near::did_you_mean(key, known()) {
            error.help(help)
        } else {
            error.help(format!(
                "kind `{}` takes {}",
                kind.kind(),
                near::list(params.iter().map(|param| param.name))
            ))
        });
    }
    if matches!(kind.inputs(), Ports::Any) {
        return;
    }
    let given: &[Entry] = match &stage.inputs {
        Some(Node { datum: Datum::Table(entries), .. }) => entries,
        Some(_) => return,
        None => &[],
    };
    for entry in given.iter().filter(|entry| ports.iter().all(|port| port.name != entry.key)) {
        let message = format!("unknown input `{}` in stage `{}`", entry.key, stage.name);
        let names = || ports.iter().map(|port| port.name);
        let help = near::did_you_mean(&entry.key, names()).unwrap_or_else(|| match ports.len() {
            0 => format!("kind `{}` takes no inputs", kind.kind()),
            _ => format!("kind `{}` takes {}", kind.kind(), near::list(names())),
        });
        errors.push(Diagnostic::new(message, entry.key_span.clone(), "").help(help));
    }
    for port in ports.iter().filter(|port| port.many != Many::Optional && find(given, port.name).is_none()) {
        let message = format!("stage `{}` lacks the input `{}`", stage.name, port.name);
        let error = Diagnostic::new(message, stage.span.clone(), format!("kind `{}` needs it", kind.kind()));
        errors.push(error.help(format!("`{}`: {}", port.name, port.doc)));
    }
}

fn check_count(
    stage: &RawStage,
    input: &str,
    node: &Node,
    refs: &[(InputRef, Node)],
    errors: &mut Vec<Diagnostic>,
) {
    for (number, (one, item)) in refs.iter().enumerate() {
        if let Some((_, first)) =
            refs[..number].iter().rev().take(64).find(|(other, _)| other.producer == one.producer)
        {
            let message = format!("input `{input}` takes `{}` twice", one.producer);
            let error = Diagnostic::new(message, item.span.clone(), "again here");
            errors.push(error.and(first.span.clone(), "first here"));
        }
    }
    let Some(Ports::Listed(ports)) = stage.kind.map(|kind| kind.inputs()) else { return };
    let Some(port) = ports.iter().find(|port| port.name == input) else { return };
    if port.many != Many::Several && refs.len() > 1 {
        let message = format!("input `{input}` of stage `{}` takes one artifact", stage.name);
        let label = format!(
            "these are {}: {}",
            refs.len(),
            near::list(refs.iter().take(6).map(|(one, _)| one.producer.0.as_str()))
        );
        let error = Diagnostic::new(message, node.span.clone(), label);
        errors.push(error.help("name one stage; `STAGE[…]` picks one instance of a matrix"));
    }
}

/// The resolved parameters of one instance. Errors are reported; what has one is missing.
fn config(
    stage: &RawStage,
    kind: &dyn Stage,
    scope: &Scope<'_>,
    row: Option<&Row>,
    errors: &mut Vec<Diagnostic>,
) -> Config {
    let before = errors.len();
    let mut complete = row.is_some();
    let mut config = Map::new();
    for param in kind.params() {
        let Some(node) = given(stage, param, scope, row, errors) else {
            match (param.default, row) {
                // An axis that could not be worked out may be what sets it.
                (Fallback::Required, None) if stage.matrix.is_some() => {}
                (Fallback::Required, _) => errors.push(missing(stage, kind, param)),
                (fallback, _) => {
                    config.extend(check::default(&fallback).map(|value| (param.name.into(), value)))
                }
            }
            continue;
        };
        match check::value(&param.ty, &node) {
            Ok(Some(value)) => {
                config.insert(param.name.into(), value);
            }
            Ok(None) => complete = false,
            Err(mismatch) => {
                let what = format!("`{}` in stage `{}`", param.name, stage.name);
                errors.push(check::error(&what, &node, mismatch));
            }
        }
    }
    let config = Config(config);
    if complete
        && errors.len() == before
        && let Err(refused) = kind.plan(&config)
    {
        errors.extend(refused.into_iter().map(|error| located(stage, error)));
    }
    config
}

/// The value of a parameter: the stage's own, else that of a matrix axis of this name.
fn given(
    stage: &RawStage,
    param: &Param,
    scope: &Scope<'_>,
    row: Option<&Row>,
    errors: &mut Vec<Diagnostic>,
) -> Option<Node> {
    if let Some(entry) = find(&stage.params, param.name) {
        return Some(scope.apply(&entry.node, errors));
    }
    stage.matrix.as_ref()?;
    row?.iter().find(|(axis, _)| axis == param.name).map(|(_, node)| node.clone())
}

fn missing(stage: &RawStage, kind: &dyn Stage, param: &Param) -> Diagnostic {
    let message = format!("stage `{}` lacks `{}`", stage.name, param.name);
    let label = format!("kind `{}` needs it", kind.kind());
    let help = format!("`{}`: {} ({})", param.name, param.doc, check::describe(&param.ty));
    Diagnostic::new(message, stage.span.clone(), label).help(help)
}

/// An error of the kind, at the parameter that it is about.
/// A kind that knows ranks fills no more machines than it has of them.
fn idle_nodes(stage: &RawStage, instance: &Instance, errors: &mut Vec<Diagnostic>) {
    let (Some(nodes), Some(node)) = (instance.resources.nodes, &stage.resources) else { return };
    if let Some(ranks) = instance.ranks().filter(|&ranks| nodes as usize > ranks) {
        let message = format!(
            "`nodes` in `resources` of stage `{}` is {nodes}, and its `ranks` is {ranks}",
            stage.name
        );
        errors.push(
            Diagnostic::new(message, node.span.clone(), "a machine would have nothing to do")
                .help(format!("`ranks = {nodes}`, or a multiple of it: one process or more on each")),
        );
    }
}

fn located(stage: &RawStage, error: ConfigError) -> Diagnostic {
    let key = error.key.split(['.', '[']).next().unwrap_or_default();
    let entry = find(&stage.params, key);
    let span = entry.map_or_else(|| stage.span.clone(), |entry| entry.node.span.clone());
    let message = match error.key.as_str() {
        "" => format!("stage `{}`: {}", stage.name, error.message),
        key if error.message.contains(&format!("`{key}`")) => {
            format!("stage `{}`: {}", stage.name, error.message)
        }
        key => format!("`{key}` in stage `{}` {}", stage.name, error.message),
    };
    Diagnostic::new(message, span, "")
}
