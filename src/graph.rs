//! What needs what: stage instances as a graph, edges from producer to consumer.
//!
//! Pure. Linear in stages and edges; nothing recurses, so that a chain of any length fits the stack.

use std::collections::{HashMap, VecDeque};

use petgraph::Direction;
use petgraph::algo::{kosaraju_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};

use crate::error::Error;
use crate::pipeline::near::{did_you_mean, list};
use crate::pipeline::{Pipeline, StageId};

/// The instances of a pipeline; a node's weight is the index into [`Pipeline::instances`].
#[derive(Clone, Debug)]
pub struct Graph {
    graph: DiGraph<usize, ()>,
    index: HashMap<StageId, usize>,
    order: Vec<usize>,
}

impl Graph {
    /// The graph of a pipeline.
    ///
    /// # Errors
    /// If instances need each other in a circle, with the whole path. A pipeline that was parsed has
    /// been checked for that.
    pub fn new(pipeline: &Pipeline) -> Result<Self, Error> {
        let mut graph = DiGraph::with_capacity(pipeline.instances.len(), pipeline.instances.len());
        let mut index = HashMap::with_capacity(pipeline.instances.len());
        for (number, instance) in pipeline.instances.iter().enumerate() {
            graph.add_node(number);
            index.insert(instance.id.clone(), number);
        }
        for (number, instance) in pipeline.instances.iter().enumerate() {
            let mut producers: Vec<usize> = instance
                .inputs
                .values()
                .flatten()
                .filter_map(|input| index.get(&input.producer).copied())
                .collect();
            producers.sort_unstable();
            producers.dedup();
            for producer in producers {
                graph.add_edge(NodeIndex::new(producer), NodeIndex::new(number), ());
            }
        }
        let order = order(&graph).map_err(|cycles| circle(pipeline, &cycles))?;
        let order = order.into_iter().map(NodeIndex::index).collect();
        Ok(Self { graph, index, order })
    }

    /// All instances, producers before consumers; the order of the file where that leaves a choice.
    #[must_use]
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The instance behind a name.
    #[must_use]
    pub fn find(&self, id: &StageId) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// What an instance takes directly.
    pub fn producers(&self, instance: usize) -> impl Iterator<Item = usize> {
        self.graph.neighbors_directed(NodeIndex::new(instance), Direction::Incoming).map(NodeIndex::index)
    }

    /// What takes an instance's output directly.
    pub fn consumers(&self, instance: usize) -> impl Iterator<Item = usize> {
        self.graph.neighbors_directed(NodeIndex::new(instance), Direction::Outgoing).map(NodeIndex::index)
    }

    /// Instances that nothing takes from.
    #[must_use]
    pub fn leaves(&self) -> Vec<usize> {
        (0..self.graph.node_count()).filter(|&instance| self.consumers(instance).next().is_none()).collect()
    }

    /// These instances and everything that they need: `true` at the index of each.
    #[must_use]
    pub fn needed_by(&self, targets: &[usize]) -> Vec<bool> {
        let mut needed = vec![false; self.graph.node_count()];
        let mut queue: VecDeque<usize> = targets.iter().copied().collect();
        while let Some(instance) = queue.pop_front() {
            if !std::mem::replace(&mut needed[instance], true) {
                queue.extend(self.producers(instance).filter(|&producer| !needed[producer]));
            }
        }
        needed
    }
}

/// The instances that a name on the command line means: `train[lora]` is one, `train` all of that stage.
///
/// # Errors
/// If there is no such stage or instance, with the near miss.
pub fn select(pipeline: &Pipeline, name: &str) -> Result<Vec<usize>, Error> {
    let wanted = name.replace(' ', "");
    let matches = |(number, instance): (usize, &crate::pipeline::Instance)| {
        (instance.id.0 == wanted || instance.stage == wanted).then_some(number)
    };
    let found: Vec<usize> = pipeline.instances.iter().enumerate().filter_map(matches).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let mut stages: Vec<&str> = pipeline.instances.iter().map(|instance| instance.stage.as_str()).collect();
    stages.dedup();
    let ids = pipeline.instances.iter().map(|instance| instance.id.0.as_str());
    let of_stage: Vec<&str> = match wanted.split_once('[') {
        Some((stage, _)) => ids.clone().filter(|id| id.split('[').next() == Some(stage)).collect(),
        None => Vec::new(),
    };
    let hint = match &of_stage[..] {
        [] => did_you_mean(&wanted, stages.iter().copied().chain(ids))
            .unwrap_or_else(|| format!("the stages are {}", list(stages))),
        some => format!("its instances are {}", list(some.iter().copied())),
    };
    Err(Error::usage(format!("unknown stage `{name}`")).hint(hint))
}

/// Producers before consumers, or every circle: each member needs the next, the last one the first.
pub(crate) fn order<N>(graph: &DiGraph<N, ()>) -> Result<Vec<NodeIndex>, Vec<Vec<NodeIndex>>> {
    // `toposort` would take the last of what is ready first; Kahn's algorithm keeps the file's order.
    let mut missing: Vec<usize> = graph
        .node_indices()
        .map(|node| graph.neighbors_directed(node, Direction::Incoming).count())
        .collect();
    let mut queue: VecDeque<NodeIndex> =
        graph.node_indices().filter(|node| missing[node.index()] == 0).collect();
    let mut order = Vec::with_capacity(graph.node_count());
    while let Some(node) = queue.pop_front() {
        order.push(node);
        // Neighbours come last edge first.
        let mut consumers: Vec<NodeIndex> = graph.neighbors(node).collect();
        consumers.reverse();
        for consumer in consumers {
            missing[consumer.index()] -= 1;
            if missing[consumer.index()] == 0 {
                queue.push_back(consumer);
            }
        }
    }
    if order.len() == graph.node_count() {
        debug_assert!(toposort(graph, None).is_ok(), "Kahn's algorithm and petgraph agree");
        return Ok(order);
    }
    let tangled = kosaraju_scc(graph).into_iter().filter_map(|members| cycle(graph, &members));
    let mut cycles: Vec<Vec<NodeIndex>> = tangled.collect();
    cycles.sort();
    Err(cycles)
}

/// A shortest circle through the first member of a strongly connected component, if it has one.
fn cycle<N>(graph: &DiGraph<N, ()>, members: &[NodeIndex]) -> Option<Vec<NodeIndex>> {
    let start = *members.iter().min()?;
    let inside: std::collections::HashSet<NodeIndex> = members.iter().copied().collect();
    let mut next: HashMap<NodeIndex, NodeIndex> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        // Towards the producers, so that the path reads "a needs b".
        for producer in graph.neighbors_directed(node, Direction::Incoming) {
            if producer == start {
                let mut path = vec![node];
                while let Some(&before) = next.get(path.last()?) {
                    path.push(before);
                }
                path.reverse();
                return Some(path);
            }
            if inside.contains(&producer) && !next.contains_key(&producer) {
                next.insert(producer, node);
                queue.push_back(producer);
            }
        }
    }
    None
}

fn circle(pipeline: &Pipeline, cycles: &[Vec<NodeIndex>]) -> Error {
    let first = cycles.first().map_or(&[][..], Vec::as_slice);
    let name = |node: &NodeIndex| format!("`{}`", pipeline.instances[node.index()].id);
    let path: Vec<String> = first.iter().chain(first.first()).map(name).collect();
    Error::usage(format!("stages need each other in a circle: {}", path.join(" → ")))
        .hint("a stage can only take what is finished before it: remove one of these inputs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::InputRef;
    use crate::registry::all;

    /// `b[1]` and `b[2]` take `a`, `c` takes both, `d` takes nothing.
    fn pipeline() -> Pipeline {
        let text = r#"
            [stages.a]
            kind = "command"
            argv = ["x"]
            [stages.b]
            kind = "command"
            inputs = { in = "a" }
            matrix = { seed = [1, 2] }
            argv = ["x", "${matrix.seed}"]
            [stages.c]
            kind = "command"
            inputs = { all = "b[*]" }
            argv = ["x"]
            [stages.d]
            kind = "command"
            argv = ["x"]
        "#;
        Pipeline::parse("p.toml", text, &[], &all()).unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn edges_lead_from_producers_to_consumers() {
        let graph = Graph::new(&pipeline()).unwrap();
        let mut producers: Vec<usize> = graph.producers(3).collect();
        producers.sort_unstable();
        assert_eq!(producers, [1, 2]);
        assert_eq!(graph.consumers(1).collect::<Vec<_>>(), [3]);
        assert_eq!(graph.leaves(), [3, 4]);
        assert_eq!(graph.find(&StageId("b[2]".into())), Some(2));
    }

    #[test]
    fn what_is_needed_is_needed_and_nothing_else() {
        let graph = Graph::new(&pipeline()).unwrap();
        assert_eq!(graph.needed_by(&[2]), [true, false, true, false, false]);
        assert_eq!(graph.needed_by(&[3]), [true, true, true, true, false]);
    }

    #[test]
    fn a_name_means_one_instance_or_all_of_a_stage() {
        let pipeline = pipeline();
        assert_eq!(select(&pipeline, "b").unwrap(), [1, 2]);
        assert_eq!(select(&pipeline, "b[2]").unwrap(), [2]);
        let hint = |name| select(&pipeline, name).unwrap_err().hint.unwrap();
        assert_eq!(hint("b[3]"), "its instances are `b[1]`, `b[2]`");
        assert_eq!(hint("quite-else"), "the stages are `a`, `b`, `c`, `d`");
    }

    #[test]
    fn a_circle_is_told_with_its_whole_path() {
        let mut pipeline = pipeline();
        let back = InputRef { producer: StageId("c".into()), label: "c".into() };
        pipeline.instances[0].inputs.insert("back".into(), vec![back]);
        let error = Graph::new(&pipeline).unwrap_err();
        assert_eq!(error.message, "stages need each other in a circle: `a` → `c` → `b[2]` → `a`");
        assert_eq!(error.exit, crate::error::Exit::Usage);
    }
}
