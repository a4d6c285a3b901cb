//! `pipe dag FILE`: what needs what, as lines for a person, as Mermaid, as Graphviz.

use std::fmt::Write;

use clap::{Args, ValueEnum};

use super::args::{File, Selection};
use super::print;
use crate::error::{Error, Exit};
use crate::graph::{Graph, select};
use crate::pipeline::{Instance, Pipeline};
use crate::registry::Registry;

/// `pipe dag`
#[derive(Args, Clone, Debug)]
pub struct Dag {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// How to draw
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: DagFormat,
}

/// How `pipe dag` draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DagFormat {
    /// Lines for a person
    #[default]
    Text,
    /// For Markdown
    Mermaid,
    /// For Graphviz
    Dot,
}

pub fn run(args: &Dag, registry: &Registry) -> Result<Exit, Error> {
    let pipeline = Pipeline::load(&args.file.pipeline, &args.file.set, registry)?;
    let graph = Graph::new(&pipeline)?;
    let chosen = |names: &[String]| -> Result<Vec<usize>, Error> {
        let found: Result<Vec<Vec<usize>>, Error> =
            names.iter().map(|name| select(&pipeline, name)).collect();
        Ok(found?.concat())
    };
    let shown = if !args.selection.until.is_empty() {
        graph.needed_by(&chosen(&args.selection.until)?)
    } else if !args.selection.only.is_empty() {
        let only = chosen(&args.selection.only)?;
        (0..pipeline.instances.len()).map(|number| only.contains(&number)).collect()
    } else {
        vec![true; pipeline.instances.len()]
    };
    let order: Vec<usize> = graph.order().iter().copied().filter(|&number| shown[number]).collect();
    print(&match args.format {
        DagFormat::Text => text(&pipeline, &order),
        DagFormat::Mermaid => mermaid(&pipeline, &graph, &order),
        DagFormat::Dot => dot(&pipeline, &graph, &order),
    })
}

/// Producers above consumers, each with its kind and what it takes.
fn text(pipeline: &Pipeline, order: &[usize]) -> String {
    let instances: Vec<&Instance> = order.iter().map(|&number| &pipeline.instances[number]).collect();
    let names = instances.iter().map(|one| one.id.0.chars().count()).max().unwrap_or(0);
    let kinds = instances.iter().map(|one| one.kind.kind().len()).max().unwrap_or(0);
    let mut text = String::new();
    for instance in instances {
        let line = format!("{:names$}  {:kinds$}  {}", instance.id.0, instance.kind.kind(), inputs(instance));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// `model ← base, runs ← a, b`
fn inputs(instance: &Instance) -> String {
    let inputs = instance.inputs.iter().map(|(name, refs)| {
        let producers: Vec<&str> = refs.iter().map(|input| input.producer.0.as_str()).collect();
        format!("{name} ← {}", producers.join(" + "))
    });
    inputs.collect::<Vec<_>>().join(", ")
}

fn mermaid(pipeline: &Pipeline, graph: &Graph, order: &[usize]) -> String {
    let mut text = String::from("flowchart TD\n");
    for &number in order {
        let instance = &pipeline.instances[number];
        let _ = writeln!(text, "  s{number}[\"{}<br/><i>{}</i>\"]", instance.id.0, instance.kind.kind());
    }
    for (producer, consumer) in edges(graph, order) {
        let _ = writeln!(text, "  s{producer} --> s{consumer}");
    }
    text
}

fn dot(pipeline: &Pipeline, graph: &Graph, order: &[usize]) -> String {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = format!("digraph \"{}\" {{\n  node [shape=box]\n", quote(&pipeline.name));
    for &number in order {
        let instance = &pipeline.instances[number];
        let (id, kind) = (quote(&instance.id.0), quote(instance.kind.kind()));
        let _ = writeln!(text, "  s{number} [label=\"{id}\\n{kind}\"]");
    }
    for (producer, consumer) in edges(graph, order) {
        let _ = writeln!(text, "  s{producer} -> s{consumer}");
    }
    text.push_str("}\n");
    text
}

fn edges(graph: &Graph, order: &[usize]) -> Vec<(usize, usize)> {
    let shown: std::collections::HashSet<usize> = order.iter().copied().collect();
    let mut edges = Vec::new();
    for &consumer in order {
        let mut producers: Vec<usize> = graph.producers(consumer).filter(|one| shown.contains(one)).collect();
        producers.sort_unstable();
        edges.extend(producers.into_iter().map(|producer| (producer, consumer)));
    }
    edges
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::registry::all;

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
        "#;
        Pipeline::parse("p.toml", text, &[], &all()).unwrap()
    }

    #[test]
    fn lines_for_a_person() {
        let pipeline = pipeline();
        assert_snapshot!(text(&pipeline, Graph::new(&pipeline).unwrap().order()), @r#"
        a     command
        b[1]  command  in ← a
        b[2]  command  in ← a
        c     command  all ← b[1] + b[2]
        "#);
    }

    #[test]
    fn mermaid_for_markdown() {
        let pipeline = pipeline();
        let graph = Graph::new(&pipeline).unwrap();
        assert_snapshot!(mermaid(&pipeline, &graph, graph.order()), @r#"
        flowchart TD
          s0["a<br/><i>command</i>"]
          s1["b[1]<br/><i>command</i>"]
          s2["b[2]<br/><i>command</i>"]
          s3["c<br/><i>command</i>"]
          s0 --> s1
          s0 --> s2
          s1 --> s3
          s2 --> s3
        "#);
    }

    #[test]
    fn dot_for_graphviz() {
        let pipeline = pipeline();
        let graph = Graph::new(&pipeline).unwrap();
        assert_snapshot!(dot(&pipeline, &graph, graph.order()), @r#"
        digraph "p" {
          node [shape=box]
          s0 [label="a\ncommand"]
          s1 [label="b[1]\ncommand"]
          s2 [label="b[2]\ncommand"]
          s3 [label="c\ncommand"]
          s0 -> s1
          s0 -> s2
          s1 -> s3
          s2 -> s3
        }
        "#);
    }
}
