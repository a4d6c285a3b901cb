//! Properties over random files.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Instant;

use proptest::prelude::*;

use super::{good, parse};
use crate::graph::Graph;

proptest! {
    #[test]
    fn a_matrix_has_the_product_of_its_axes(sizes in prop::collection::vec(1usize..5, 1..4)) {
        let axes = sizes.iter().enumerate().map(|(axis, &size)| format!("a{axis} = {:?}", (0..size).collect::<Vec<_>>()));
        let args = (0..sizes.len()).map(|axis| format!("\"${{matrix.a{axis}}}\""));
        let text = format!(
            "[stages.s]\nkind = \"any\"\nmatrix = {{ {} }}\nargs = [{}]\n[stages.t]\nkind = \"any\"\ninputs = {{ x = \"s\" }}\n[stages.u]\nkind = \"any\"\ninputs = {{ x = \"s[*]\" }}\n",
            axes.collect::<Vec<_>>().join(", "),
            args.collect::<Vec<_>>().join(", "),
        );
        let pipeline = good(&text, &[]);
        let count: usize = sizes.iter().product();
        prop_assert_eq!(pipeline.instances.len(), 2 * count + 1);
        let ids: HashSet<_> = pipeline.instances.iter().map(|one| one.id.clone()).collect();
        prop_assert_eq!(ids.len(), pipeline.instances.len());
        // One for one: the consumer's values are its producer's; the label holds the same values.
        for one in &pipeline.instances[count..2 * count] {
            let input = &one.inputs["x"][0];
            prop_assert_eq!(&one.id.0[1..], &input.producer.0[1..]);
            prop_assert_eq!(format!("s[{}]", input.label), input.producer.0.clone());
        }
        // `[*]`: all, in the order of the matrix, the first axis slowest.
        let all: Vec<_> = pipeline.instances[2 * count].inputs["x"].iter().map(|input| &input.producer).collect();
        let expected: Vec<_> = pipeline.instances[..count].iter().map(|one| &one.id).collect();
        prop_assert_eq!(all, expected);
        // The parameter of an instance is what its name says.
        for one in &pipeline.instances[..count] {
            let args = one.config.get("args").unwrap().as_array().unwrap();
            let args: Vec<_> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
            prop_assert_eq!(format!("s[{}]", args.join(",")), one.id.0.clone());
        }
    }

    #[test]
    fn no_file_makes_it_panic(text in r#"(\[stages\.[ab]\]\n|kind = "(make|any|tune)"\n|inputs = \{ (x|model) = "[ab](\[[*1]\])?" \}\n|matrix = \{ (seed|k) = \[1, 2\] \}\n|seed = ("\$\{[a-z.]{0,8}\}?"|[0-9]|é)\n|[a-z=\[\]{}"$]{0,6}\n){0,9}"#) {
        if let Err(errors) = parse(&text, &["a=1", "stages.a.seed=${x"]) {
            prop_assert!(!errors.is_empty());
            prop_assert!(!errors.render(true).is_empty());
        }
    }

    #[test]
    fn random_graphs_come_out_in_order(edges in prop::collection::vec((0usize..12, 0usize..12), 0..30)) {
        let mut text = String::new();
        for consumer in 0..12 {
            let inputs: HashSet<usize> =
                edges.iter().filter(|&&(a, b)| a.max(b) == consumer && a != b).map(|&(a, b)| a.min(b)).collect();
            let inputs: Vec<String> = inputs.into_iter().map(|producer| format!("i{producer} = \"s{producer}\"")).collect();
            let _ = write!(text, "[stages.s{consumer}]\nkind = \"any\"\ninputs = {{ {} }}\n", inputs.join(", "));
        }
        let pipeline = good(&text, &[]);
        let graph = Graph::new(&pipeline).unwrap();
        let mut done = HashSet::new();
        for &instance in graph.order() {
            prop_assert!(graph.producers(instance).all(|producer| done.contains(&producer)));
            done.insert(instance);
        }
        prop_assert_eq!(done.len(), 12);
        // Everything that a stage needs, and nothing else.
        let needed = graph.needed_by(&[11]);
        for (instance, &is_needed) in needed.iter().enumerate() {
            let expected = instance == 11 || graph.consumers(instance).any(|consumer| needed[consumer]);
            prop_assert_eq!(is_needed, expected);
        }
    }
}

/// A chain, so that anything that recurses or scans all stages per stage shows.
fn chain(count: usize) -> f64 {
    let mut text = String::from("[stages.s0]\nkind = \"any\"\n");
    for number in 1..count {
        let _ = write!(text, "[stages.s{number}]\nkind = \"any\"\ninputs = {{ x = \"s{}\" }}\n", number - 1);
    }
    let start = Instant::now();
    let pipeline = good(&text, &[]);
    let graph = Graph::new(&pipeline).unwrap();
    assert!(graph.needed_by(&[count - 1]).iter().all(|&needed| needed));
    start.elapsed().as_secs_f64()
}

#[test]
fn ten_thousand_stages_take_linear_time() {
    let (small, large) = (chain(1_000), chain(10_000));
    println!("1,000 stages: {small:.3} s; 10,000 stages: {large:.3} s");
    assert!(large < 5.0, "10,000 stages took {large} s");
    assert!(large < 50.0 * small.max(1e-3), "1,000 stages took {small} s, 10,000 took {large} s");
}

#[test]
fn ten_thousand_errors_are_found_in_linear_time() {
    let mut text = String::new();
    for number in 0..10_000 {
        let _ = write!(text, "[stages.s{number}]\nkind = \"make\"\nsede = 1\n");
    }
    let start = Instant::now();
    let errors = parse(&text, &[]).unwrap_err();
    let drawn = errors.to_string();
    assert_eq!(errors.len(), 10_000);
    assert!(drawn.ends_with("error: and 9900 more errors"));
    assert!(start.elapsed().as_secs_f64() < 10.0, "{:?}", start.elapsed());
}
