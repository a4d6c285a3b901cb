//! What `train` writes besides what it trains, when it ends before its time, and how a longer run
//! goes on from a finished one.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contract::{Artifact, ErrorKind};
use formats::adapter::Adapter;
use formats::run::{RunInfo, step_dir};
use neural::batch::SplitMix64;
use neural::tensorboard;
use serde_json::{Map, Value, json};
use support::{Bench, Told, VOCAB, plan, rows, tree};

fn lora(more: Value) -> Value {
    let mut given = json!({ "method": "lora", "rank": 4, "alpha": 8.0, "lr": 1e-2, "max_steps": 24, "warmup_steps": 3, "batch_size": 8, "save_every": 10, "eval_every": 12, "device": "cpu" });
    given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    given
}

/// Runs, stops at random, goes on, until the run is whole; returns how often it was stopped.
fn stopped_again_and_again(bench: &Bench, name: &str, given: &Value) -> usize {
    let (mut random, mut stops) = (SplitMix64(4), 0);
    loop {
        let stop = AtomicBool::new(false);
        let wait = Duration::from_millis(20 + random.below(150));
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(wait);
                stop.store(true, Ordering::SeqCst);
            });
            bench.attempt(name, given, &stop, &Told::default())
        });
        match ended {
            Ok(()) => return stops,
            Err(error) => assert_eq!(error.kind, ErrorKind::Cancelled, "{error}"),
        }
        stops += 1;
    }
}

/// The records of an event file, checked against their lengths.
fn records(file: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut records) = (file, Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        records.push(&rest[12..12 + length]);
        rest = &rest[16 + length..];
    }
    records
}

#[test]
fn an_event_file_holds_a_record_for_every_step() {
    let bench = Bench::new();
    bench.run("run", &lora(json!({})));
    let file = std::fs::read(bench.out("run").join(tensorboard::FILE)).unwrap();
    let records = records(&file);
    assert_eq!(records.len(), 1 + 24);
    assert!(records[0].ends_with(b"brain.Event:2"));
    let metrics = bench.metrics("run");
    let holds = |step: usize, tag: &str| records[step].windows(tag.len()).any(|part| part == tag.as_bytes());
    for step in 1..=24 {
        for tag in ["loss", "lr", "grad_norm", "eval_loss", "delta_magnitude", "delta_direction"] {
            let measured = metrics[step - 1].get(tag).is_some()
                || (tag == "loss" && metrics[step - 1].get("eval_loss").is_some());
            assert_eq!(holds(step, tag), measured, "{tag} at step {step}");
        }
    }
    // step 1's first value, byte by byte: tag `loss`, then its float
    let loss = (metrics[0]["loss"].as_f64().unwrap() as f32).to_le_bytes();
    let expected = [&[10, 11, 10, 4][..], b"loss", &[21], &loss].concat();
    assert!(records[1].windows(expected.len()).any(|part| part == expected));
}

#[test]
fn movement_is_measured_as_often_as_asked() {
    let bench = Bench::new();
    bench.run("every", &lora(json!({ "movement_every": 1, "method": "dora" })));
    bench.run("saved", &lora(json!({ "method": "dora" })));
    let (every, saved) = (bench.metrics("every"), bench.metrics("saved"));
    for (every, saved) in every.iter().zip(&saved) {
        assert!(every["delta_magnitude"].is_f64() && every["delta_direction"].is_f64(), "{every}");
        if saved.get("delta_magnitude").is_some() {
            assert_eq!(every, saved, "looking changes nothing");
        }
    }
    assert_eq!(saved.iter().filter(|line| line.get("delta_direction").is_some()).count(), 3);
    assert!(every[23]["delta_direction"].as_f64() > every[1]["delta_direction"].as_f64());
}

#[test]
fn a_stopped_run_has_the_event_file_of_one_that_was_not() {
    let bench = Bench::new();
    let settings = lora(json!({ "max_steps": 120, "checkpoint_every": 7, "movement_every": 5 }));
    bench.run("whole", &settings);
    assert!(stopped_again_and_again(&bench, "stopped", &settings) > 0);
    assert!(tree(&bench.out("whole")) == tree(&bench.out("stopped")));
}

/// Too fast a learner for so few rows: its held-out loss soon rises.
fn overfits(more: Value) -> Value {
    let mut given = lora(
        json!({ "lr": 3e-2, "max_steps": 200, "eval_every": 4, "save_every": 0, "schedule": "constant", "keep_best": true, "checkpoint_every": 7 }),
    );
    given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    given
}

fn run_info(bench: &Bench, name: &str) -> RunInfo {
    RunInfo::read(&bench.out(name)).unwrap()
}

#[test]
fn a_run_ends_when_its_patience_does_and_keeps_its_best_step() {
    let bench = Bench::with(&rows(12, 1), &rows(10, 2));
    let told = bench.run("early", &overfits(json!({ "early_stop_patience": 3 })));
    bench.run("late", &overfits(json!({ "max_steps": 60 })));
    let losses: Vec<(u64, f64)> = bench
        .metrics("early")
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line.get("eval_loss")?.as_f64()?)))
        .collect();
    let best = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let end = losses.last().unwrap().0;
    assert_eq!(end, best.0 + 3 * 4, "three evaluations after the best: {losses:?}");
    assert!(end < 200);
    let info = run_info(&bench, "early");
    assert_eq!((info.steps, info.total_steps, info.best_step), (vec![best.0, end], end, Some(best.0)));
    assert!(told.notes().iter().any(|note| note.starts_with("stops early")), "{:?}", told.notes());
    assert_eq!(
        bench.losses("early")[..],
        bench.losses("late")[..end as usize],
        "stopping changes nothing before"
    );
    let summary = std::fs::read_to_string(bench.out("early").join("summary.json")).unwrap();
    assert!(summary.contains(&format!("at {}", best.0)), "{summary}");
    // the best step as the run that saves every step has it
    bench.run("all", &overfits(json!({ "max_steps": end, "save_every": 1 })));
    let step = step_dir(best.0);
    assert_eq!(tree(&bench.out("early").join(&step)), tree(&bench.out("all").join(&step)));
}

#[test]
fn a_stopped_run_ends_early_where_one_does_that_was_not() {
    let bench = Bench::with(&rows(12, 1), &rows(10, 2));
    let settings = overfits(json!({ "early_stop_patience": 20, "lr": 1e-2 }));
    bench.run("whole", &settings);
    assert!(run_info(&bench, "whole").total_steps < 200);
    assert!(stopped_again_and_again(&bench, "stopped", &settings) > 0);
    assert_eq!(tree(&bench.out("whole")), tree(&bench.out("stopped")));
    let left = std::fs::read_dir(bench.work("stopped")).unwrap().map(|entry| entry.unwrap().file_name());
    let steps = left.filter(|name| name.to_string_lossy().starts_with("step-")).count();
    assert_eq!(steps, 2, "the best and the last");
}

#[test]
fn going_by_a_loss_that_nobody_measures_is_refused() {
    let errors = plan(&json!({ "early_stop_patience": 2, "keep_best": true })).err().unwrap();
    let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(keys, ["early_stop_patience", "keep_best"]);
    let bench = Bench::with(&rows(12, 1), &rows(0, 2));
    let refused = bench.attempt("run", &overfits(json!({})), &AtomicBool::new(false), &Told::default());
    assert!(refused.unwrap_err().message.contains("no held-out rows"));
}

fn samples(bench: &Bench, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(bench.out(name).join("samples.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answering(more: Value) -> Value {
    let mut given = lora(
        json!({ "method": "dora", "max_steps": 120, "generate_every": 25, "generate_rows": 3, "generate_tokens": 5, "eval_every": 0, "checkpoint_every": 7 }),
    );
    given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    given
}

#[test]
fn held_out_prompts_are_answered_while_training_and_that_changes_nothing() {
    let heldout = rows(10, 2);
    let bench = Bench::with(&rows(50, 1), &heldout);
    bench.run("run", &answering(json!({ "dropout": 0.1 })));
    bench.run("silent", &answering(json!({ "dropout": 0.1, "generate_every": 0 })));
    assert_eq!(bench.losses("run"), bench.losses("silent"));
    assert!(!bench.out("silent").join("samples.jsonl").exists());
    let samples = samples(&bench, "run");
    let places: Vec<_> = samples.iter().map(|line| (line["step"].as_u64(), line["row"].as_u64())).collect();
    let expected = [25, 50, 75, 100, 120].map(|step| [0, 1, 2].map(|row| (Some(step), Some(row))));
    assert_eq!(places, expected.concat());
    for line in &samples {
        let row = &heldout.rows[line["row"].as_u64().unwrap() as usize];
        assert_eq!(line["prompt"], json!(row.ids[..row.prompt_len]));
        assert_eq!(line["expected"], json!(row.ids[row.prompt_len..]));
        assert!(line["answer"].as_array().unwrap().len() <= 5);
    }
    let answers = |step: u64| -> Vec<&Value> {
        samples.iter().filter(|line| line["step"] == step).map(|line| &line["answer"]).collect()
    };
    assert_ne!(answers(25), answers(120), "what is learnt shows");
    // the saved adapter on the base says the same
    let device = neural::device::open("cpu", 0).unwrap().device;
    let mut model = neural::model::Llama::load(&bench.dir.path().join("model"), &device).unwrap();
    model.attach(&Adapter::read(&bench.out("run").join(step_dir(120))).unwrap()).unwrap();
    let prompts: Vec<_> = heldout.rows[..3].iter().map(|row| row.ids[..row.prompt_len].to_vec()).collect();
    let again = neural::generate::greedy(&model, &prompts, 5, &[2], |_| Ok(())).unwrap();
    assert_eq!(
        answers(120),
        again.iter().map(|ids| json!(ids)).collect::<Vec<_>>().iter().collect::<Vec<_>>()
    );
}

#[test]
fn a_stopped_run_has_the_samples_of_one_that_was_not() {
    let bench = Bench::new();
    bench.run("whole", &answering(json!({ "generate_every": 3 })));
    assert!(stopped_again_and_again(&bench, "stopped", &answering(json!({ "generate_every": 3 }))) > 0);
    assert_eq!(samples(&bench, "whole").len(), 120);
    assert_eq!(tree(&bench.out("whole")), tree(&bench.out("stopped")));
}

#[test]
fn samples_are_text_where_the_model_has_a_tokenizer() {
    let bench = Bench::new();
    write_tokenizer(&bench.dir.path().join("model"));
    bench.run("run", &answering(json!({ "max_steps": 6 })));
    let first = &samples(&bench, "run")[0];
    let ids = &rows(10, 2).rows[0];
    let words: Vec<String> = ids.ids[..ids.prompt_len].iter().map(|id| format!("w{id}")).collect();
    assert_eq!(first["prompt"], json!(words.join(" ")));
    assert!(first["answer"].is_string());
}

#[test]
fn samples_without_held_out_rows_are_a_warning() {
    let bench = Bench::with(&rows(12, 1), &rows(0, 2));
    let told = bench.run("run", &answering(json!({ "max_steps": 6 })));
    assert!(told.warnings()[0].contains("no samples"), "{:?}", told.warnings());
}

/// A word for each token: `w3 w4 …`; ids below 3 are special.
fn write_tokenizer(model: &Path) {
    let vocab: Map<String, Value> =
        (0..VOCAB).map(|id| (if id < 3 { format!("<{id}>") } else { format!("w{id}") }, json!(id))).collect();
    let special: Vec<Value> = (0..3)
        .map(|id| json!({ "id": id, "content": format!("<{id}>"), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true }))
        .collect();
    let text = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<0>" },
    });
    std::fs::write(model.join("tokenizer.json"), text.to_string()).unwrap();
}

/// 24 steps with their last state, and the same bench with these as the input `resume`.
fn resumable(given: &Value) -> Bench {
    let mut bench = Bench::new();
    let mut short = given.clone();
    short["max_steps"] = json!(24);
    short["save_state"] = json!(true);
    bench.run("short", &short);
    let short = Artifact { label: "short".into(), path: bench.out("short") };
    bench.inputs.0.insert("resume".into(), vec![short]);
    bench
}

#[test]
fn a_longer_run_goes_on_where_a_finished_one_ended() {
    for (method, compute) in [("dora", "float32"), ("lora", "float16"), ("full", "float32")] {
        let given = lora(
            json!({ "method": method, "compute_dtype": compute, "dropout": 0.1, "schedule": "constant", "max_steps": 120, "eval_every": 40, "checkpoint_every": 7, "save_state": true }),
        );
        let mut bench = resumable(&given);
        bench.run("longer", &given);
        assert!(stopped_again_and_again(&bench, "stopped", &given) > 0, "{method}");
        assert_eq!(tree(&bench.out("longer")), tree(&bench.out("stopped")), "{method}");
        bench.inputs.0.remove("resume");
        bench.run("whole", &given);
        assert_eq!(bench.metrics("longer")[..], bench.metrics("whole")[24..], "{method}");
        for step in (30..=120).step_by(10) {
            let step = step_dir(step);
            assert_eq!(tree(&bench.out("longer").join(&step)), tree(&bench.out("whole").join(&step)));
        }
        assert_eq!(tree(&bench.out("longer").join("state")), tree(&bench.out("whole").join("state")));
        let short = Artifact { label: "short".into(), path: bench.out("short") };
        bench.inputs.0.insert("resume".into(), vec![short]);
        let mut still = given.clone();
        still["lr"] = json!(0.0);
        let stood = bench.run("still", &still).warnings().iter().any(|text| text.contains("did not move"));
        assert_eq!(stood, method == "dora", "magnitudes are held against where the longer run began");
        let info = run_info(&bench, "longer");
        assert_eq!((info.steps[0], info.total_steps), (30, 120));
    }
}

#[test]
fn a_run_that_does_not_fit_is_no_start() {
    let given = lora(json!({ "max_steps": 40 }));
    let bench = resumable(&given);
    let refused = |bench: &Bench, more: Value| {
        let mut given = given.clone();
        given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bench.attempt("run", &given, &AtomicBool::new(false), &Told::default()).unwrap_err()
    };
    assert!(refused(&bench, json!({ "method": "dora" })).message.contains("with `method = \"lora\"`"));
    assert!(refused(&bench, json!({ "rank": 8 })).message.contains("its `rank` is 4, here it is 8"));
    assert!(refused(&bench, json!({ "target_modules": ["q_proj"] })).message.contains("`target_modules`"));
    let error = refused(&bench, json!({ "max_steps": 24 }));
    assert!(error.message.contains("has made 24 steps, and this run has 24"), "{error}");
    // another base
    let other = resumable(&given);
    let path = other.dir.path().join("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(refused(&other, json!({})).message.contains("its base model has other weights"));
    // no state
    let mut bench = bench;
    std::fs::remove_dir_all(bench.out("short").join("state")).unwrap();
    let error = refused(&bench, json!({}));
    assert!(error.message.contains("holds no state") && error.hint.unwrap().contains("save_state"));
    let adapter = Artifact { label: "adapter".into(), path: bench.out("short").join(step_dir(24)) };
    bench.inputs.0.insert("adapter".into(), vec![adapter]);
    assert!(refused(&bench, json!({})).message.contains("`adapter` and `resume`"));
}

#[test]
fn a_model_with_its_adapter_answers_as_its_training_said() {
    let bench = Bench::new();
    let model = bench.dir.path().join("model");
    write_tokenizer(&model);
    bench.run("run", &answering(json!({ "save_every": 60 })));
    let samples = samples(&bench, "run");
    let ask = |adapter: Option<&Path>, prompt: &str| {
        let mut pieces = Vec::new();
        neural::answer::answer(&model, adapter, "cpu", 5, prompt, &mut |piece| {
            pieces.push(piece.to_owned());
            Ok(())
        })
        .map(|_| pieces)
    };
    let run = bench.out("run");
    let last = samples.iter().filter(|line| line["step"] == 120);
    let mut several = false;
    for line in last {
        let (prompt, answer) = (line["prompt"].as_str().unwrap(), line["answer"].as_str().unwrap());
        for adapter in [run.clone(), run.join(step_dir(120))] {
            let pieces = ask(Some(&adapter), prompt).unwrap();
            assert_eq!(pieces.concat(), answer);
            several |= pieces.len() > 1;
        }
        assert_ne!(ask(None, prompt).unwrap().concat(), answer, "the base says something else");
    }
    assert!(several, "told piece by piece");
    assert!(ask(None, "").unwrap_err().message.contains("no token to start from"));
    assert!(ask(Some(&bench.dir.path().join("data")), "w3").is_err());
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    let error = ask(None, "w3").unwrap_err();
    assert!(error.message.ends_with("has no tokenizer.json") && error.hint.is_some(), "{error}");
}
