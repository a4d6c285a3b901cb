//! The graph of a run as SVG: a box a stage, coloured by how it went.

use std::collections::HashMap;

use petgraph::graph::{DiGraph, NodeIndex};

use super::html::{coordinate, duration, escape};
use super::layout::{Layout, Spot, layout};
use super::word;
use crate::recorded::{Recorded, Stage};

/// The height of a box.
const HEIGHT: f64 = 40.0;

/// From one layer's boxes to the next one's.
const GAP: f64 = 34.0;

/// Between boxes side by side.
const SPACE: f64 = 14.0;

/// Longer names are cut off; the whole name is the box's title.
const LETTERS: usize = 26;

/// A graph with more stages or edges than this is a wall of lines and not drawn.
const MOST: (usize, usize) = (400, 2000);

/// The graph of `recorded`.
#[must_use]
pub fn svg(recorded: &Recorded) -> String {
    let graph = graph(recorded);
    if graph.node_count() > MOST.0 || graph.edge_count() > MOST.1 {
        let (nodes, edges) = (graph.node_count(), graph.edge_count());
        return format!(
            "<p>{nodes} stages and {edges} edges are too many to draw; <code>pipe dag</code> lists them.</p>\n"
        );
    }
    let layout = layout(&graph);
    let letters = recorded.stages.iter().map(|stage| stage.record.stage.chars().count().min(LETTERS)).max();
    // Letters of 12 px are about 7 px wide; a box holds at least `synthesize · 12.3 s`.
    let pitch = (letters.unwrap_or(0) as f64 * 7.0 + 16.0).max(124.0) + SPACE;
    let (width, height) = (layout.width * pitch, layout.layers as f64 * (HEIGHT + GAP) - GAP + 4.0);
    let (w, h) = (coordinate(width), coordinate(height.max(4.0)));
    let mut svg = format!(
        "<svg class=\"dag\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"what needs what\">\n"
    );
    for (from, to, bends) in &layout.edges {
        svg += &edge(&layout, pitch, *from, *to, bends);
    }
    for (number, (stage, spot)) in recorded.stages.iter().zip(&layout.nodes).enumerate() {
        svg += &node(number, stage, at(*spot, pitch), pitch - SPACE);
    }
    svg + "</svg>\n"
}

/// Who takes from whom, by the stages' places in the run.
fn graph(recorded: &Recorded) -> DiGraph<(), ()> {
    let mut graph = DiGraph::new();
    let mut index: HashMap<&str, NodeIndex> = HashMap::new();
    for stage in &recorded.stages {
        index.insert(&stage.record.stage, graph.add_node(()));
    }
    for stage in &recorded.stages {
        let consumer = index[stage.record.stage.as_str()];
        for producer in stage.record.inputs.values().flatten().filter_map(|name| index.get(name.as_str())) {
            graph.update_edge(*producer, consumer, ());
        }
    }
    graph
}

/// The middle of a spot's upper side.
fn at((layer, x): Spot, pitch: f64) -> (f64, f64) {
    (x * pitch, layer as f64 * (HEIGHT + GAP) + 2.0)
}

fn edge(layout: &Layout, pitch: f64, from: usize, to: usize, bends: &[Spot]) -> String {
    let (x, y) = at(layout.nodes[from], pitch);
    let mut path = format!("M{} {}", coordinate(x), coordinate(y + HEIGHT));
    let mut last = (x, y + HEIGHT);
    let mut go = |to: (f64, f64)| {
        let middle = coordinate(f64::midpoint(last.1, to.1));
        let (ax, x, y) = (coordinate(last.0), coordinate(to.0), coordinate(to.1));
        path += &format!(" C{ax} {middle} {x} {middle} {x} {y}");
        last = to;
    };
    for (x, y) in bends.iter().map(|&bend| at(bend, pitch)) {
        go((x, y));
        go((x, y + HEIGHT));
    }
    go(at(layout.nodes[to], pitch));
    format!("<path class=\"edge\" d=\"{path}\"/>\n")
}

fn node(number: usize, stage: &Stage, (x, y): (f64, f64), width: f64) -> String {
    let record = &stage.record;
    let (left, middle) = (coordinate(x - width / 2.0), coordinate(x));
    let took = stage.seconds().map_or(String::new(), |seconds| format!(" · {}", duration(seconds)));
    let under = format!("{}{took}", record.kind);
    format!(
        "<a href=\"#stage-{number}\"><g class=\"node {state}\"><title>{whole}: {word}</title>\
         <rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{HEIGHT}\" rx=\"6\"/>\
         <text x=\"{middle}\" y=\"{first}\">{name}</text><text class=\"under\" x=\"{middle}\" y=\"{second}\">{under}</text></g></a>\n",
        state = escape(&record.state),
        word = escape(word(&record.state)),
        whole = escape(&record.stage),
        top = coordinate(y),
        width = coordinate(width),
        first = coordinate(y + 17.0),
        second = coordinate(y + 32.0),
        name = escape(&cut(&record.stage)),
        under = escape(&under),
    )
}

/// The beginning of a long name.
fn cut(name: &str) -> String {
    if name.chars().count() <= LETTERS {
        return name.to_owned();
    }
    name.chars().take(LETTERS - 1).chain(['…']).collect()
}
