//! Where the boxes of a graph go: layers from top to bottom, few crossings within them.
//!
//! Sugiyama's scheme in its simplest form: a node's layer is its longest way from a source, edges over
//! several layers get a bend in each, and bends and nodes are ordered by the mean of their neighbours'
//! places, downwards and upwards a few times. Edges that leave one node share their bends, so that a node
//! with many consumers further down has one trunk and not a bundle of lines. Knows nothing of stages.

use std::collections::HashMap;

use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

/// How often the order within layers is improved.
const SWEEPS: usize = 8;

/// A place: layer from the top, and a position within it, in widths of a node from the left.
pub type Spot = (usize, f64);

/// The places of a graph's nodes and edges.
#[derive(Debug, Default)]
pub struct Layout {
    /// One per node.
    pub nodes: Vec<Spot>,
    /// From, to, and the bends in between.
    pub edges: Vec<(usize, usize, Vec<Spot>)>,
    /// How many layers there are.
    pub layers: usize,
    /// The width of the widest layer, in widths of a node.
    pub width: f64,
}

/// A bend takes less room than a node.
const BEND: f64 = 0.25;

/// Places `graph`. Nodes in a circle, which a pipeline cannot have, are all put into the first layer.
#[must_use]
pub fn layout(graph: &DiGraph<(), ()>) -> Layout {
    let layer = layers(graph);
    let mut chart = Chart::new(graph, &layer);
    for sweep in 0..SWEEPS {
        chart.sweep(sweep % 2 == 0);
    }
    chart.place(graph)
}

/// The longest way from a source; a source then moves down to just above what takes from it.
fn layers(graph: &DiGraph<(), ()>) -> Vec<usize> {
    let mut layer = vec![0_usize; graph.node_count()];
    let order = toposort(graph, None).unwrap_or_default();
    for &node in &order {
        let above = graph.neighbors_directed(node, Direction::Incoming);
        layer[node.index()] = above.map(|one| layer[one.index()] + 1).max().unwrap_or(0);
    }
    for node in graph.externals(Direction::Incoming) {
        let below = graph.neighbors_directed(node, Direction::Outgoing).map(|one| layer[one.index()]).min();
        layer[node.index()] = below.map_or(0, |below| below.saturating_sub(1));
    }
    layer
}

/// Nodes and bends by layer.
struct Chart {
    rows: Vec<Vec<usize>>,
    above: Vec<Vec<usize>>,
    below: Vec<Vec<usize>>,
    x: Vec<f64>,
    bends: Vec<Vec<usize>>,
    nodes: usize,
}

impl Chart {
    fn new(graph: &DiGraph<(), ()>, layer: &[usize]) -> Self {
        let nodes = graph.node_count();
        let mut chart = Self {
            rows: vec![Vec::new(); layer.iter().max().map_or(0, |last| last + 1)],
            above: vec![Vec::new(); nodes],
            below: vec![Vec::new(); nodes],
            x: Vec::new(),
            bends: Vec::new(),
            nodes,
        };
        (0..nodes).for_each(|node| chart.rows[layer[node]].push(node));
        let mut trunks: HashMap<(usize, usize), usize> = HashMap::new();
        for edge in graph.edge_indices() {
            let (from, to) = graph.edge_endpoints(edge).map_or((0, 0), |(a, b)| (a.index(), b.index()));
            let mut bends = Vec::new();
            let mut last = from;
            for row in layer[from] + 1..layer[to] {
                last = *trunks.entry((from, row)).or_insert_with(|| chart.bend(last, row));
                bends.push(last);
            }
            chart.below[last].push(to);
            chart.above[to].push(last);
            chart.bends.push(bends);
        }
        chart.x = vec![0.0; chart.above.len()];
        chart.spread();
        chart
    }

    /// A new bend below `above`.
    fn bend(&mut self, above: usize, row: usize) -> usize {
        let bend = self.above.len();
        self.above.push(vec![above]);
        self.below.push(Vec::new());
        self.below[above].push(bend);
        self.rows[row].push(bend);
        bend
    }

    /// Orders every layer by the mean place of its neighbours in the layer before.
    fn sweep(&mut self, down: bool) {
        let count = self.rows.len();
        let order: Vec<usize> =
            if down { (1..count).collect() } else { (0..count.saturating_sub(1)).rev().collect() };
        for row in order {
            let neighbours = if down { &self.above } else { &self.below };
            let mean = |&item: &usize| {
                let near = &neighbours[item];
                let sum: f64 = near.iter().map(|&one| self.x[one]).sum();
                (if near.is_empty() { self.x[item] } else { sum / near.len() as f64 }, item)
            };
            let mut means: Vec<(f64, usize)> = self.rows[row].iter().map(mean).collect();
            means.sort_by(|a, b| a.0.total_cmp(&b.0));
            self.rows[row] = means.into_iter().map(|(_, item)| item).collect();
            self.spread();
        }
    }

    fn width_of(&self, item: usize) -> f64 {
        if item < self.nodes { 1.0 } else { BEND }
    }

    /// Sets every layer side by side around the middle.
    fn spread(&mut self) {
        for row in 0..self.rows.len() {
            let all: f64 = self.rows[row].iter().map(|&item| self.width_of(item)).sum();
            let mut left = -all / 2.0;
            for place in 0..self.rows[row].len() {
                let item = self.rows[row][place];
                self.x[item] = left + self.width_of(item) / 2.0;
                left += self.width_of(item);
            }
        }
    }

    fn place(&self, graph: &DiGraph<(), ()>) -> Layout {
        let mut layer = vec![0; self.above.len()];
        for (number, row) in self.rows.iter().enumerate() {
            row.iter().for_each(|&item| layer[item] = number);
        }
        let width = |row: &Vec<usize>| row.iter().map(|&item| self.width_of(item)).sum::<f64>();
        let width = self.rows.iter().map(width).fold(0.0, f64::max);
        let spot = |item: usize| (layer[item], self.x[item] + width / 2.0);
        let ends = |edge| graph.edge_endpoints(edge).unwrap_or((NodeIndex::new(0), NodeIndex::new(0)));
        let edge = |(edge, bends): (_, &Vec<usize>)| {
            let (from, to) = ends(edge);
            (from.index(), to.index(), bends.iter().map(|&bend| spot(bend)).collect())
        };
        Layout {
            nodes: (0..self.nodes).map(spot).collect(),
            edges: graph.edge_indices().zip(&self.bends).map(edge).collect(),
            layers: self.rows.len(),
            width,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(nodes: usize, edges: &[(usize, usize)]) -> Layout {
        let mut graph = DiGraph::new();
        for _ in 0..nodes {
            graph.add_node(());
        }
        for &(a, b) in edges {
            graph.add_edge(NodeIndex::new(a), NodeIndex::new(b), ());
        }
        layout(&graph)
    }

    #[test]
    fn what_is_taken_stands_above_what_takes_it_and_nothing_overlaps() {
        let edges = [(0, 2), (1, 2), (2, 3), (2, 4), (3, 5), (4, 5), (0, 5)];
        let layout = of(6, &edges);
        for (from, to, bends) in &layout.edges {
            assert!(layout.nodes[*from].0 < layout.nodes[*to].0);
            assert_eq!(bends.len(), layout.nodes[*to].0 - layout.nodes[*from].0 - 1);
        }
        for (a, first) in layout.nodes.iter().enumerate() {
            for second in &layout.nodes[a + 1..] {
                assert!(first.0 != second.0 || (first.1 - second.1).abs() >= 1.0, "{layout:?}");
            }
            assert!(first.1 >= 0.5 && first.1 <= layout.width - 0.5);
        }
        assert_eq!(layout.layers, 4);
    }

    #[test]
    fn two_rows_that_need_not_cross_do_not() {
        let layout = of(4, &[(0, 3), (1, 2)]);
        let left = |a: usize, b: usize| layout.nodes[a].1 < layout.nodes[b].1;
        assert_eq!(left(0, 1), left(3, 2));
    }

    #[test]
    fn long_edges_of_one_node_share_their_bends() {
        let layout = of(5, &[(0, 1), (1, 2), (2, 3), (2, 4), (0, 3), (0, 4)]);
        let long: Vec<_> = layout.edges.iter().filter(|edge| edge.0 == 0 && edge.1 > 2).collect();
        assert_eq!(long.len(), 2);
        assert_eq!((long[0].2.len(), &long[0].2), (2, &long[1].2));
    }

    #[test]
    fn no_nodes_no_layers() {
        assert_eq!(of(0, &[]).layers, 0);
    }
}
