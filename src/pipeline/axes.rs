//! Which instances each stage has: its own matrix, or its producers' axes, one for one.
//!
//! A stage without a matrix that takes `train` (not `train[*]`) has the instances that `train` has.
//! Several such producers pair up by axis: one of them must have every axis of the others.

use std::collections::{BTreeSet, HashMap};

use petgraph::graph::{DiGraph, NodeIndex};

use super::diagnostics::{Diagnostic, Source};
use super::document::{Datum, Entry, Node};
use super::form::{Form, RawStage};
use super::interpolate::{Matrix, Row, Scope};
use super::matrix::{self, Rows, label};
use super::near;
use super::reference::{Pick, Reference, texts};
use crate::graph;

/// A stage's instances, found by label.
pub struct Instances {
    /// Axes and rows.
    pub rows: Rows,
    /// Label → row.
    pub by_label: HashMap<String, usize>,
}

impl Instances {
    fn new(rows: Rows) -> Self {
        let by_label = rows.rows.iter().enumerate().map(|(index, row)| (label(row), index)).collect();
        Self { rows, by_label }
    }
}

/// One reference as far as it is known before the instances are.
struct Edge {
    producer: usize,
    paired: bool,
    input: String,
    node: Node,
}

/// The instances of every stage; `None` where errors stand in the way, which are reported.
pub fn resolve(
    form: &Form,
    index: &HashMap<&str, usize>,
    sources: &[Source],
    errors: &mut Vec<Diagnostic>,
) -> Vec<Option<Instances>> {
    let scope = Scope { sources, vars: &form.vars, matrix: Matrix::Forbidden };
    let own: Vec<Option<Option<Rows>>> = form
        .stages
        .iter()
        .map(|stage| stage.matrix.as_ref().map(|node| matrix::expand(&stage.name, node, &scope, errors)))
        .collect();
    let edges: Vec<Vec<Edge>> = form
        .stages
        .iter()
        .zip(&own)
        .map(|(stage, own)| edges(stage, own.as_ref(), index, &scope, errors))
        .collect();
    let order = order(form, &edges, errors);
    let mut all: Vec<Option<Instances>> = form.stages.iter().map(|_| None).collect();
    for (stage, own) in own.iter().enumerate() {
        if let Some(Some(rows)) = own {
            all[stage] = Some(Instances::new(rows.clone()));
        }
    }
    for stage in order {
        if own[stage].is_none() {
            all[stage] = inherit(form, &edges[stage], &all, errors).map(Instances::new);
        }
    }
    all
}

/// The references of a stage. Unknown names are left for later, when they are reported.
fn edges(
    stage: &RawStage,
    own: Option<&Option<Rows>>,
    index: &HashMap<&str, usize>,
    scope: &Scope<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Edge> {
    let Some(Node { datum: Datum::Table(inputs), .. }) = &stage.inputs else { return Vec::new() };
    let mut edges = Vec::new();
    let mut collect = |input: &str, node: &Node| {
        for (item, text) in texts(input, node, &mut Vec::new()) {
            let Some(Reference { name, pick }) = Reference::parse(text) else { continue };
            if let Some(&producer) = index.get(name.as_str()) {
                let paired = pick == Pick::Paired;
                edges.push(Edge { producer, paired, input: input.to_owned(), node: item.clone() });
            }
        }
    };
    for Entry { key, node, .. } in inputs {
        match own {
            // What is wrong in them is reported with the instances.
            Some(Some(rows)) => {
                for row in &rows.rows {
                    let scope = Scope { matrix: Matrix::Row(row), ..*scope };
                    collect(key, &scope.apply(node, &mut Vec::new()));
                }
            }
            Some(None) => {}
            None => {
                let mut found = Vec::new();
                collect(key, &scope.apply(&without_inherited(node), &mut found));
                errors
                    .extend(found.into_iter().filter(|error| error.message.contains("cannot be used here")));
            }
        }
    }
    edges
}

/// `train[${matrix.method}]` → `train[?]`: which instance it is comes out later, which stage is known.
fn without_inherited(node: &Node) -> Node {
    let datum = match &node.datum {
        Datum::Text(text) => match text.split_once('[') {
            Some((name, rest)) if rest.contains("${matrix.") => Datum::Text(format!("{name}[?]")),
            _ => return node.clone(),
        },
        Datum::List(items) => Datum::List(items.iter().map(without_inherited).collect()),
        _ => return node.clone(),
    };
    Node { datum, ..node.clone() }
}

/// Producers before consumers; reports circles and leaves out what is in them.
fn order(form: &Form, edges: &[Vec<Edge>], errors: &mut Vec<Diagnostic>) -> Vec<usize> {
    let mut graph = DiGraph::<(), ()>::with_capacity(edges.len(), edges.len());
    for _ in edges {
        graph.add_node(());
    }
    for (consumer, edges) in edges.iter().enumerate() {
        let producers: BTreeSet<usize> = edges.iter().map(|edge| edge.producer).collect();
        for producer in producers {
            graph.add_edge(NodeIndex::new(producer), NodeIndex::new(consumer), ());
        }
    }
    match graph::order(&graph) {
        Ok(order) => order.into_iter().map(NodeIndex::index).collect(),
        Err(cycles) => {
            for cycle in &cycles {
                let cycle: Vec<usize> = cycle.iter().map(|node| node.index()).collect();
                errors.extend(report_cycle(form, edges, &cycle));
            }
            Vec::new()
        }
    }
}

/// `cycle`: each one needs the next, the last one the first.
fn report_cycle(form: &Form, edges: &[Vec<Edge>], cycle: &[usize]) -> Option<Diagnostic> {
    let name = |stage: usize| form.stages[stage].name.as_str();
    let path: Vec<String> =
        cycle.iter().chain(cycle.first()).map(|&stage| format!("`{}`", name(stage))).collect();
    let nexts = cycle.iter().skip(1).chain(cycle.first());
    let mut places = cycle.iter().zip(nexts).filter_map(|(&stage, &next)| {
        let edge = edges[stage].iter().find(|edge| edge.producer == next)?;
        let label =
            if stage == next { String::new() } else { format!("`{}` needs `{}`", name(stage), name(next)) };
        Some((edge.node.span.clone(), label))
    });
    let (span, label) = places.next()?;
    let message = match cycle {
        [_] => format!("stage {} needs itself", path[0]),
        _ => format!("stages need each other in a circle: {}", path.join(" → ")),
    };
    let mut error = Diagnostic::new(message, span, label);
    for (span, label) in places {
        error = error.and(span, label);
    }
    Some(error.help("a stage can only take what is finished before it: remove one of these inputs"))
}

/// The instances of a stage without a matrix.
fn inherit(
    form: &Form,
    edges: &[Edge],
    all: &[Option<Instances>],
    errors: &mut Vec<Diagnostic>,
) -> Option<Rows> {
    let mut paired: Vec<(&Edge, &Instances)> = Vec::new();
    for edge in edges.iter().filter(|edge| edge.paired) {
        let instances = all[edge.producer].as_ref()?;
        if !instances.rows.axes.is_empty() {
            paired.push((edge, instances));
        }
    }
    let Some(most) = paired.iter().map(|(_, instances)| instances.rows.axes.len()).max() else {
        return Some(Rows::single());
    };
    let (first, main) = *paired.iter().find(|(_, instances)| instances.rows.axes.len() == most)?;
    let before = errors.len();
    for &(edge, other) in paired.iter().filter(|(edge, _)| edge.producer != first.producer) {
        let (name, first_name) = (&form.stages[edge.producer].name, &form.stages[first.producer].name);
        if let Some((message, label, first_label)) = unpaired((first_name, main), (name, other)) {
            let help =
                format!("pick one with `{name}[…]`, take all with `{name}[*]`, or give the stage a matrix");
            errors.push(
                Diagnostic::new(message, edge.node.span.clone(), label)
                    .and(first.node.span.clone(), format!("input `{}`: {first_label}", first.input))
                    .help(help),
            );
        }
    }
    (errors.len() == before).then(|| main.rows.clone())
}

/// Why `other` does not pair up with `main`: the message and what to say about each.
fn unpaired(main: (&str, &Instances), other: (&str, &Instances)) -> Option<(String, String, String)> {
    let ((main_name, main), (name, other)) = (main, other);
    let message = format!("`{main_name}` and `{name}` do not pair up");
    let axes = |instances: &Instances| near::list(instances.rows.axes.iter().map(String::as_str));
    if other.rows.axes.iter().any(|axis| !main.rows.axes.contains(axis)) {
        let about = |name: &str, instances| format!("`{name}` has the axes {}", axes(instances));
        return Some((message, about(name, other), about(main_name, main)));
    }
    let lacks = |has: (&str, &Instances), lacks: &str, label: String| {
        let has = format!("`{}` has `{label}`", has.0);
        (has, format!("`{lacks}` has no `{label}`"))
    };
    let missing = main.rows.rows.iter().find_map(|row| {
        let label = project(row, &other.rows.axes)?;
        (!other.by_label.contains_key(&label)).then_some(label)
    });
    if let Some(label) = missing {
        let (has, lacks) = lacks((main_name, main), name, label);
        return Some((message, lacks, has));
    }
    let used: BTreeSet<String> =
        main.rows.rows.iter().filter_map(|row| project(row, &other.rows.axes)).collect();
    let extra = other.rows.rows.iter().map(label).find(|label| !used.contains(label));
    extra.map(|label| {
        let (has, lacks) = lacks((name, other), main_name, label);
        (message, has, lacks)
    })
}

/// The label of the instance with `axes` that `row` belongs to; `None` if `row` lacks one of them.
pub fn project(row: &Row, axes: &[String]) -> Option<String> {
    let value = |axis: &String| row.iter().find(|(name, _)| name == axis)?.1.datum.scalar();
    let values: Option<Vec<String>> = axes.iter().map(value).collect();
    Some(values?.join(","))
}
