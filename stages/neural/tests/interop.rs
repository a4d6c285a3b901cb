//! Logits of transformers, PEFT and bitsandbytes on files that went from one side to the other.
//!
//! `tests/interop/run` makes the cases and sets `PIPE_INTEROP`; without it there is nothing to compare,
//! which is said. See `tests/interop/peers.py` for the form of a case.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod common;

use std::path::Path;

use burn::tensor::Device;
use common::{far, ids, read};
use formats::adapter::Adapter;
use formats::weights::Weights;
use neural::model::Llama;

/// Largest difference of a logit between the peer and us, both in float32.
const ABSOLUTE: f64 = 1e-4;

on_both! {
    cases => interop_on_flex, interop_on_wgpu;
}

fn cases(device: &Device) {
    let Some(root) = std::env::var_os("PIPE_INTEROP") else {
        eprintln!("SKIPPED: PIPE_INTEROP is not set; tests/interop/run makes the cases and sets it");
        return;
    };
    let mut folders: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no cases");
    let mut wrong = Vec::new();
    for folder in &folders {
        let difference = compare(folder, device);
        println!("{}: {difference:.1e}", folder.file_name().unwrap().display());
        if difference > ABSOLUTE {
            wrong.push(folder);
        }
    }
    assert!(wrong.is_empty(), "more than {ABSOLUTE} apart: {wrong:?}");
}

fn compare(folder: &Path, device: &Device) -> f64 {
    let mut model = Llama::load(&folder.join("model"), device).unwrap();
    let adapter = folder.join("adapter");
    if adapter.exists() {
        model.attach(&Adapter::read(&adapter).unwrap()).unwrap();
    }
    let golden = Weights::open(&folder.join("logits.safetensors")).unwrap();
    let shape = golden.shape("input_ids").unwrap();
    let [rows, time] = [shape[0], shape[1]];
    let input = ids(&golden.ints("input_ids").unwrap(), [rows, time], device);
    let logits = model.forward(input, &model.mask(time).unwrap());
    far(&read(logits), &golden.f32("logits").unwrap())
}
