//! `pipe generate`: with the tensor backend a small model answers; without it the command says so.

use super::place::Place;

const PIPELINE: &str = r#"
[stages.rows]
kind = "synthesize"
seed = 1
tasks = ["copy"]
rows = 200
heldout = 10

[stages.init]
kind = "init"
inputs = { corpus = ["rows"] }
template = "plain"
seed = 7
hidden_size = 32
intermediate_size = 64
layers = 1
heads = 2
kv_heads = 2
"#;

#[cfg(feature = "neural")]
const TRAINING: &str = r#"
[stages.tokens]
kind = "tokenize"
inputs = { dataset = "rows", tokenizer = "init" }
template = "plain"
cutoff = 64

[stages.train]
kind = "train"
inputs = { model = "init", data = "tokens" }
method = "dora"
rank = 4
lr = 0.05
max_steps = 12
movement_every = 1
generate_every = 4
eval_every = 4
device = "cpu"
"#;

#[cfg(feature = "neural")]
#[test]
fn a_model_answers_with_and_without_the_adapter_that_was_trained_on_it() {
    let place = Place::new(&format!("{PIPELINE}{TRAINING}"));
    place.run().counts(0, 4, 0);
    place.pipe("export p.toml init model").ends(0);
    place.pipe("export p.toml train run").ends(0);
    let samples = place.read("run/samples.jsonl");
    assert_eq!(samples.lines().count(), 3 * 4, "{samples}");
    assert!(samples.contains(r#""prompt":"Instruction: "#), "{samples}");
    let ask = "generate model red --template plain --max-new-tokens 8 --device cpu";
    let base = place.pipe(ask).ends(0);
    let tuned = place.pipe(&format!("{ask} --adapter run")).ends(0);
    assert!(base.out.trim().len() > 1 && tuned.out != base.out, "{base:?} {tuned:?}");
    assert_eq!(place.pipe(&format!("{ask} --adapter run/step-000012")).ends(0).out, tuned.out);
    place.pipe("generate run/step-000012 red").ends(1).says(&["has no tokenizer.json", "hint"]);
    place.pipe("generate model red --template chatml").ends(2).says(&["alpaca"]);
    place.pipe("generate model red --device quantum").ends(1).says(&["quantum"]);
}

#[cfg(not(feature = "neural"))]
#[test]
fn without_a_tensor_backend_the_command_says_so() {
    let place = Place::new(PIPELINE);
    place.pipe("generate model red").ends(2).says(&["without a tensor backend", "hint"]);
}
