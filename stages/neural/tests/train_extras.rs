//! What `train` writes besides what it trains, when it ends before its time, and how a longer run
//! goes on from a finished one.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contract::ErrorKind;
use neural::batch::SplitMix64;
use neural::tensorboard;
use serde_json::{Value, json};
use support::{Bench, Told, tree};

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
