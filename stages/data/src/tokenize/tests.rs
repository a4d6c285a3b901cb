use std::fs;
use std::path::{Path, PathBuf};

use formats::alpaca::Row;
use formats::config::LlamaConfig;
use formats::tokens::TokenSet;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::*;
use crate::init::Init;
use crate::synthesize::Synthesize;
use crate::testing::Bench;

/// A data set and a model made by the project itself.
struct World {
    corpus: Bench,
    model: Bench,
}

impl World {
    fn new() -> Self {
        let corpus = Bench::new();
        let params = json!({ "tasks": ["copy", "reverse"], "rows": 300, "heldout": 20 });
        corpus.run(&Synthesize, params).unwrap();
        let model = Bench::new().input("corpus", "corpus", &corpus.path("out"));
        model.run(&Init, json!({ "template": "plain", "layers": 1 })).unwrap();
        Self { corpus, model }
    }

    fn run(&self, dataset: &Path, params: Value) -> Result<Bench, StageError> {
        let bench = Bench::new().input("dataset", "dataset", dataset).input(
            "tokenizer",
            "init",
            &self.model.path("out"),
        );
        bench.run(&Tokenize, params)?;
        Ok(bench)
    }

    fn rows(&self, rows: &Value) -> PathBuf {
        self.corpus.write("rows.json", &rows.to_string())
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_file(self.model.out("tokenizer.json")).unwrap()
    }
}

fn set(bench: &Bench, name: &str) -> TokenSet {
    TokenSet::read(&bench.out(name)).unwrap()
}

fn row(instruction: &str, output: &str) -> Value {
    json!({ "instruction": instruction, "input": "", "output": output })
}

#[test]
fn a_row_is_bos_prompt_answer_and_eos() {
    let world = World::new();
    let bench =
        world.run(&world.corpus.path("out"), json!({ "template": "plain", "mask_prompt": true })).unwrap();
    let (train, heldout) = (set(&bench, "train.safetensors"), set(&bench, "heldout.safetensors"));
    assert_eq!((train.rows.len(), heldout.rows.len()), (300, 20));
    let rows: Vec<Row> = serde_json::from_str(&bench.read("heldout.json")).unwrap();
    let (tokenizer, template) = (world.tokenizer(), formats::alpaca::Template::by_name("plain").unwrap());
    for (row, tokens) in rows.iter().zip(&heldout.rows) {
        assert_eq!((tokens.ids[0], *tokens.ids.last().unwrap()), (1, 2));
        assert_eq!(tokenizer.decode(&tokens.ids, true).unwrap(), template.prompt(row) + &row.output);
        // Every answer word is one token, so the split between prompt and answer is exact.
        let answer = &tokens.ids[tokens.prompt_len..];
        assert_eq!(answer.len(), row.output.split(' ').count() + 1, "{row:?}");
    }
}

#[test]
fn a_long_row_is_cut_without_eos_or_dropped_or_refused() {
    let world = World::new();
    let rows = world.rows(&json!([
        row("Repeat the words.", "apple bird"),
        row("Repeat the words.", &"apple ".repeat(50))
    ]));
    let cut = world.run(&rows, json!({ "template": "plain", "cutoff": 24 })).unwrap();
    let ids = &set(&cut, "train.safetensors").rows[1].ids;
    assert_eq!((ids.len(), ids.contains(&2)), (24, false));
    assert!(
        cut.notes().iter().any(|note| note.contains("1 of 2 rows are longer than 24 tokens and were cut"))
    );
    let dropped =
        world.run(&rows, json!({ "template": "plain", "cutoff": 24, "long_rows": "drop" })).unwrap();
    assert_eq!(set(&dropped, "train.safetensors").rows.len(), 1);
    let error =
        world.run(&rows, json!({ "template": "plain", "cutoff": 24, "long_rows": "error" })).err().unwrap();
    assert!(error.message.starts_with("row 2: ") && error.message.contains("`cutoff` = 24"), "{error}");
}

#[test]
fn rows_are_counted_over_sections() {
    let world = World::new();
    let mut all: Vec<Value> = (0..5000).map(|i| row(&format!("Repeat {i}."), "apple")).collect();
    all[4500] = row("Repeat the words.", &"apple ".repeat(90));
    let rows = world.rows(&json!(all));
    let params = json!({ "template": "plain", "cutoff": 90, "long_rows": "error" });
    let error = world.run(&rows, params).err().unwrap();
    assert!(error.message.starts_with("row 4501: "), "{error}");
    let bench = world.run(&rows, json!({ "template": "plain", "cutoff": 90, "long_rows": "drop" })).unwrap();
    let found = set(&bench, "train.safetensors").rows;
    assert_eq!(found.len(), 4999);
    let tokenizer = world.tokenizer();
    for (number, row) in [(0, 0), (2047, 2047), (2048, 2048), (4500, 4501), (4998, 4999)] {
        let text = tokenizer.decode(&found[number].ids, true).unwrap();
        assert!(text.contains(&format!("Repeat {row}.")), "{text}");
    }
    assert!(bench.notes().iter().any(|note| note.starts_with("1 of 5000 rows are longer")));
}

#[test]
fn eos_is_there_exactly_if_it_fits() {
    let world = World::new();
    let rows = world.rows(&json!([row("Repeat the words.", "apple bird")]));
    let whole = world.run(&rows, json!({ "template": "plain" })).unwrap();
    let ids = set(&whole, "train.safetensors").rows[0].ids.clone();
    let fits = world.run(&rows, json!({ "template": "plain", "cutoff": ids.len() })).unwrap();
    assert_eq!(set(&fits, "train.safetensors").rows[0].ids, ids);
    let short = world.run(&rows, json!({ "template": "plain", "cutoff": ids.len() - 1 })).unwrap();
    assert_eq!(set(&short, "train.safetensors").rows[0].ids, ids[..ids.len() - 1]);
}

#[test]
fn held_out_rows_are_drawn_by_seed_and_the_rest_is_trained_on() {
    let world = World::new();
    let all: Vec<Value> = (0..50).map(|i| row(&format!("Repeat {i}."), "apple")).collect();
    let rows = world.rows(&json!(all));
    let run = |seed: u64| {
        let bench = world.run(&rows, json!({ "template": "plain", "heldout": 7, "seed": seed })).unwrap();
        assert_eq!(set(&bench, "train.safetensors").rows.len(), 43);
        bench.read("heldout.json")
    };
    assert_eq!(run(42), run(42));
    assert_ne!(run(42), run(43));
    let error = world.run(&rows, json!({ "heldout": 50 })).err().unwrap();
    assert_eq!(error.message, "cannot hold out 50 of 50 rows");
}

#[test]
fn the_samples_show_what_is_masked() {
    let world = World::new();
    let rows = world.rows(&json!([row("Repeat the words.", "apple bird")]));
    let masked =
        world.run(&rows, json!({ "template": "plain", "mask_prompt": true })).unwrap().read("samples.txt");
    let prompt = masked.split_once("⟦masked⟧<s>").expect("a masked part").1.split_once("⟦/masked⟧").unwrap();
    assert!(prompt.0.contains("Repeat the words.") && prompt.1.starts_with("apple bird</s>"), "{masked}");
    let open = world.run(&rows, json!({ "template": "plain" })).unwrap().read("samples.txt");
    assert!(open.lines().nth(3).unwrap().contains("of them count"), "{open}");
    assert!(!open.split_once("===").unwrap().1.contains("⟦masked⟧"));
}

#[test]
fn rows_whose_answer_is_cut_away_are_left_out_when_only_answers_count() {
    let world = World::new();
    let rows = world.rows(&json!([row("Repeat the words.", "apple"), row(&"Repeat ".repeat(60), "apple")]));
    let bench = world.run(&rows, json!({ "template": "plain", "cutoff": 32, "mask_prompt": true })).unwrap();
    assert_eq!(set(&bench, "train.safetensors").rows.len(), 1);
    assert!(bench.notes().iter().any(|note| note.contains("answer lies beyond the cut-off")));
}

#[test]
fn a_tokenizer_that_does_not_fit_the_vocabulary_is_refused() {
    let world = World::new();
    let config = world.model.read("config.json");
    let size = LlamaConfig::read(&world.model.path("out")).unwrap().vocab_size;
    let small = config.replace(&format!("\"vocab_size\": {size}"), "\"vocab_size\": 100");
    assert_ne!(config, small);
    fs::write(world.model.out("config.json"), small).unwrap();
    let rows = world.rows(&json!([row("Repeat the words.", "apple")]));
    let error = world.run(&rows, json!({})).err().unwrap();
    assert!(
        error.message.contains("does not fit the model") && error.message.contains("`vocab_size` is 100"),
        "{error}"
    );
}

#[test]
fn an_empty_data_set_a_row_without_instruction_and_a_broken_tokenizer_are_named() {
    let world = World::new();
    let error = |rows: PathBuf| world.run(&rows, json!({})).err().unwrap().message;
    assert!(error(world.rows(&json!([]))).contains("rows.json"));
    let message = error(world.rows(&json!([row("a", "b"), { "input": "", "output": "x" }])));
    assert!(message.contains("instruction") && message.contains('2'), "{message}");
    fs::write(world.model.out("tokenizer.json"), "{").unwrap();
    assert!(error(world.rows(&json!([row("a", "b")]))).contains("tokenizer.json"));
}

/// Bytes overwritten, cut out, or the file cut off, at 300 seeded places.
#[test]
fn no_damage_to_a_tokenizer_makes_the_stage_panic() {
    let world = World::new();
    let rows = world.rows(&json!([row("copy sun moon", "sun moon"), row("é\r\n🦀", "")]));
    let good = fs::read(world.model.out("tokenizer.json")).unwrap();
    let mut state = 5u64;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let mut refused = 0;
    for round in 0..300 {
        let mut bytes = good.clone();
        match round % 3 {
            0 => (0..=below(4)).for_each(|_| bytes[below(good.len())] = b" \"{}[],:0a\\"[below(11)]),
            1 => bytes.truncate(below(good.len())),
            _ => drop(bytes.drain({
                let at = below(good.len() - 40);
                at..at + 1 + below(39)
            })),
        }
        fs::write(world.model.out("tokenizer.json"), bytes).unwrap();
        refused += usize::from(world.run(&rows, json!({ "heldout": 0 })).is_err());
    }
    assert!(refused > 150, "{refused} of 300 refused");
}

#[test]
fn bos_can_be_left_out_or_forced() {
    let world = World::new();
    let rows = world.rows(&json!([row("Repeat the words.", "apple")]));
    let first = |bos: &str| {
        let bench = world.run(&rows, json!({ "add_bos": bos })).unwrap();
        set(&bench, "train.safetensors").rows[0].ids.clone()
    };
    assert_eq!(first("auto"), first("always"));
    assert_eq!(first("auto")[1..], first("never"));
}

/// Unicode, emoji, CRLF, empty input, special strings, a row over the cut-off; made by
/// `tests/golden/make_tokenize.py`.
#[test]
fn parity_tokenize_equals_the_golden_ids_on_odd_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("tokenize.json")).unwrap()).unwrap();
    for (template, expected) in golden["templates"].as_object().unwrap() {
        let bench = Bench::new().input("dataset", "rows", &folder.join("rows.json")).input(
            "tokenizer",
            "tokenizer",
            &folder.join("tokenizer"),
        );
        bench.run(&Tokenize, json!({ "template": template, "cutoff": golden["cutoff"] })).unwrap();
        let found = set(&bench, "train.safetensors");
        assert_eq!(found.rows.len(), expected.as_array().unwrap().len());
        for (number, (row, expected)) in found.rows.iter().zip(expected.as_array().unwrap()).enumerate() {
            assert_eq!(json!(row.ids), expected["ids"], "{template} row {number}");
            assert_eq!(json!(row.prompt_len), expected["prompt_len"], "{template} row {number}");
        }
    }
}

/// Ids, cut and prompt lengths of real Alpaca rows under real tokenizers. The data may not be
/// copied here: the test runs where `PIPE_SHARED` names the folder that holds `data/tokenize`.
#[test]
fn parity_tokenize_equals_hugging_face_on_alpaca_rows() {
    let Ok(shared) = std::env::var("PIPE_SHARED") else { return };
    let data = Path::new(&shared).join("data");
    let read = |path: PathBuf| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
    let meta = read(data.join("tokenize/meta.json"));
    for file in meta["files"].as_object().unwrap().keys() {
        let (vocabulary, form) = file.trim_end_matches(".json").split_once('-').unwrap();
        let folder = [format!("{vocabulary}-tokenizer"), vocabulary.to_owned()];
        let folder = folder.iter().map(|name| data.join(name)).find(|path| path.exists()).unwrap();
        let template = if form == "newline" { "alpaca" } else { "alpaca-stanford" };
        let bench = Bench::new().input("dataset", "rows", &data.join("tokenize/rows.json")).input(
            "tokenizer",
            vocabulary,
            &folder,
        );
        bench.run(&Tokenize, json!({ "template": template, "cutoff": meta["max_seq_len"] })).unwrap();
        let (found, expected) = (set(&bench, "train.safetensors"), read(data.join("tokenize").join(file)));
        assert_eq!(found.rows.len(), expected.as_array().unwrap().len());
        for (number, (row, golden)) in found.rows.iter().zip(expected.as_array().unwrap()).enumerate() {
            assert_eq!(json!(row.ids), golden["ids"], "{file} row {number}");
            let prompt = golden["prompt_len"].as_u64().unwrap() as usize;
            assert_eq!(row.prompt_len, prompt.min(row.ids.len()), "{file} row {number}");
        }
    }
    for (name, folder) in [("edge_llama2", "llama2-tokenizer"), ("edge_tok512", "tok512")] {
        let tokenizer = Tokenizer::from_file(data.join(folder).join("tokenizer.json")).unwrap();
        for case in meta[name].as_array().into_iter().flatten() {
            let ids = tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(json!(ids.get_ids()), case["hf_ids"], "{case}");
        }
    }
}

fn chat_folder() -> PathBuf {
    crate::testing::fixtures().join("chat")
}

/// Ids and masks of chats whose template marks what is learnt; see `tests/fixtures/chat`.
#[test]
fn parity_chats_have_the_ids_and_masks_of_transformers() {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(chat_folder().join("chat.json")).unwrap()).unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer/tokenizer.json");
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap().iter().filter(|case| case["ids"].is_array()) {
        let bench = Bench::new();
        fs::create_dir(bench.path("model")).unwrap();
        fs::copy(&tokenizer, bench.path("model/tokenizer.json")).unwrap();
        let name = case["template"].as_str().unwrap();
        fs::copy(chat_folder().join("templates").join(name), bench.path("model/chat_template.jinja"))
            .unwrap();
        bench.write("model/tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
        let rows = bench.write("rows.jsonl", &json!({ "messages": case["messages"] }).to_string());
        let model = bench.path("model");
        let bench = bench.input("dataset", "rows", &rows).input("tokenizer", "model", &model);
        bench.run(&Tokenize, json!({ "template": "chat", "mask_prompt": true })).unwrap();
        let found = set(&bench, "train.safetensors");
        let row = &found.rows[0];
        let what = format!("{name}, {}", case["chat"]);
        assert_eq!(json!(row.ids), case["ids"], "{what}");
        let mask: Vec<u8> = (0..row.ids.len()).map(|at| row.counts(at).into()).collect();
        assert_eq!(json!(mask), case["mask"], "{what}");
        compared += 1;
    }
    assert_eq!(compared, 6);
}

fn chat(turns: &[(&str, &str)]) -> Value {
    let turns = turns.iter().map(|(role, content)| json!({ "role": role, "content": content }));
    json!({ "messages": turns.collect::<Vec<_>>() })
}

#[test]
fn of_a_chat_all_answers_are_learnt_and_shown() {
    let world = World::new();
    let rows = world.rows(&json!([chat(&[
        ("user", "a b"),
        ("assistant", "apple"),
        ("user", "c"),
        ("assistant", "bird")
    ])]));
    let bench =
        world.run(&rows, json!({ "template": "chatml", "mask_prompt": true, "cutoff": 4096 })).unwrap();
    let samples = bench.read("samples.txt");
    let learnt: Vec<&str> =
        samples.split("⟦/masked⟧").skip(2).map(|rest| rest.split('⟦').next().unwrap()).collect();
    assert_eq!(learnt.len(), 2, "{samples}");
    assert!(learnt[0].contains("apple<|im_end|>") && learnt[1].contains("bird<|im_end|>"), "{samples}");
    let held = world.run(&rows, json!({ "template": "chatml" })).unwrap();
    assert!(!set(&held, "train.safetensors").rows[0].counts(0));
    assert!(bench.notes().iter().any(|note| note.contains("does not know `<|im_start|>` as one token")));
}

#[test]
fn a_chat_under_a_prompt_template_says_what_to_do() {
    let world = World::new();
    let rows = world.rows(&json!([row("a", "b"), chat(&[("user", "a"), ("assistant", "b")])]));
    let error = world.run(&rows, json!({})).err().unwrap();
    assert!(error.message.starts_with("row 2 is a chat") && error.message.contains("\"chatml\""), "{error}");
    let error = world.run(&rows, json!({ "template": "chat" })).err().unwrap();
    assert!(error.message.contains("no chat template of its own"), "{error}");
}

#[test]
fn a_template_may_be_a_file_and_its_fields_are_checked() {
    let world = World::new();
    let rows = world.rows(&json!([row("Repeat the words.", "apple bird")]));
    let file = world.corpus.write("own.jinja", "Instruction: {{ instruction }}\nResponse:\n\n");
    let own = world.run(&rows, json!({ "template": file })).unwrap();
    let plain = world.run(&rows, json!({ "template": "plain" })).unwrap();
    assert_eq!(set(&own, "train.safetensors"), set(&plain, "train.safetensors"));
    let file = world.corpus.write("wrong.jinja", "{{ instruction }} {{ context }}");
    let error = world.run(&rows, json!({ "template": file })).err().unwrap();
    assert!(error.message.contains("wrong.jinja`: names the field `context`"), "{error}");
    let errors = crate::testing::plan_errors(&Tokenize, json!({ "template": "alpca", "date": "today" }));
    let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(keys, ["template", "date"]);
}

#[test]
fn broken_lines_are_named_and_left_out_only_if_asked() {
    let world = World::new();
    let text = format!("{}\n{{\"instruction\": \n{}\n", row("a", "apple"), row("b", "bird"));
    let rows = world.corpus.write("rows.jsonl", &text);
    let error = world.run(&rows, json!({ "template": "plain" })).err().unwrap();
    assert!(error.message.contains("rows.jsonl`: line 2 is no JSON"), "{error}");
    assert!(error.hint.unwrap().contains("skip_broken = true"));
    let bench = world.run(&rows, json!({ "template": "plain", "skip_broken": true })).unwrap();
    assert_eq!(set(&bench, "train.safetensors").rows.len(), 2);
    let notes = bench.notes();
    assert!(notes.iter().any(|note| note.contains("left out: ") && note.contains("line 2")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("1 rows could not be read")), "{notes:?}");
}

#[test]
fn completions_need_no_template() {
    let world = World::new();
    let rows = world.rows(&json!([{ "text": "apple bird" }, { "prompt": "apple ", "completion": "bird" }]));
    let bench = world.run(&rows, json!({ "mask_prompt": true })).unwrap();
    let found = set(&bench, "train.safetensors").rows;
    assert_eq!((found[0].prompt_len, found[0].ids.last()), (1, Some(&2)));
    assert!(found[1].prompt_len > 1 && found[1].prompt_len < found[1].ids.len());
}

#[test]
fn a_letter_in_bytes_is_learnt_whole_and_the_next_turns_prefix_is_not() {
    // Four bytes of one letter at the end of a turn, and a prefix that shares the place of the turn's end.
    let places = [(0, 1), (1, 5), (1, 5), (1, 5), (1, 5), (5, 6), (6, 7), (6, 7), (7, 8)];
    let learnt = |turn: std::ops::Range<usize>| encoder::learnt(&places, &[turn]);
    assert_eq!(learnt(1..5), (vec![false, true, true, true, true, false, false, false, false], true));
    assert_eq!(learnt(5..7), (vec![false, false, false, false, false, true, true, false, false], true));
    assert!(!learnt(2..6).1);
}
