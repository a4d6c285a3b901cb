//! The model side against golden figures of transformers, PEFT and bitsandbytes (tests/fixtures):
//! logits, losses, every gradient, merged weights, and the NF4 base. Everything about a set is read
//! from its own files; `PIPE_FIXTURES=DIR` takes another set of the same form. Tests named `own_…`
//! take tests/fixtures/own, made by its `make.py`.

mod common;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use common::{Batch, far, fixtures, read, relative};
use formats::adapter::Adapter;
use formats::nf4::{Absmax, Nf4};
use formats::packed::Packed;
use formats::weights::{Weights, linear_f32};
use neural::adapter::fuse;
use neural::model::Llama;
use neural::packed_linear::PackedWeight;

/// Largest difference of a logit or a loss.
const ABSOLUTE: f64 = 1e-4;
/// Largest difference of a gradient, relative to the norm of its tensor.
const RELATIVE: f64 = 1e-4;

on_both! {
    tiny_llama => parity_tiny_llama_on_flex, parity_tiny_llama_on_wgpu;
    sharded => parity_sharded_llama_on_flex, parity_sharded_llama_on_wgpu;
    transformers_4 => parity_transformers_4_config_on_flex, parity_transformers_4_config_on_wgpu;
    lora_step => parity_lora_step_on_flex, parity_lora_step_on_wgpu;
    dora_step => parity_dora_step_on_flex, parity_dora_step_on_wgpu;
    merged => parity_merge_on_flex, parity_merge_on_wgpu;
    nf4_base => parity_nf4_base_on_flex, parity_nf4_base_on_wgpu;
    nf4_weights => parity_nf4_weights_on_flex, parity_nf4_weights_on_wgpu;
    families => own_families_on_flex, own_families_on_wgpu;
    own_dropout => own_dropout_has_pefts_mean_and_spread_on_flex, own_dropout_has_pefts_mean_and_spread_on_wgpu;
    own_qdora_merge => own_merge_of_a_qdora_adapter_on_flex, own_merge_of_a_qdora_adapter_on_wgpu;
}

fn same_logits(folder: &Path, device: &Device) {
    let golden = fixtures().join("tiny-llama");
    let model = Llama::load(folder, device).unwrap();
    let batch = Batch::read(&golden.join("inputs.safetensors"));
    let outputs = Weights::open(&golden.join("outputs.safetensors")).unwrap();
    let logits = batch.logits(&model);
    let loss = f64::from(read(batch.loss(logits.clone()))[0]);
    let logits = far(&batch.real(&read(logits)), &batch.real(&outputs.f32("logits").unwrap()));
    let loss = (loss - f64::from(outputs.f32("loss").unwrap()[0])).abs();
    println!("{}: logits {logits:.1e}, loss {loss:.1e}", folder.display());
    assert!(logits <= ABSOLUTE && loss <= ABSOLUTE, "logits {logits}, loss {loss}");

    let alone = Batch {
        ids: batch.ids[..batch.shape[1]].to_vec(),
        attention: vec![1; batch.shape[1]],
        labels: Vec::new(),
        shape: [1, batch.shape[1]],
    };
    let alone = far(&read(alone.logits(&model)), &outputs.f32("logits_row0_no_mask").unwrap());
    assert!(alone <= ABSOLUTE, "row 0 alone: {alone}");
}

fn tiny_llama(device: &Device) {
    same_logits(&fixtures().join("tiny-llama"), device);
}

fn sharded(device: &Device) {
    let shards = fixtures().join("tiny-llama/sharded");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&shards).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    if !folder.path().join("config.json").exists() {
        std::fs::copy(fixtures().join("tiny-llama/config.json"), folder.path().join("config.json")).unwrap();
    }
    same_logits(folder.path(), device);
}

fn transformers_4(device: &Device) {
    let model = fixtures().join("tiny-llama");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(model.join("config.v4.json"), folder.path().join("config.json")).unwrap();
    std::fs::copy(model.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    same_logits(folder.path(), device);
}

fn adapter_step(kind: &str, device: &Device) {
    let (base, golden) = (fixtures().join("tiny-llama"), fixtures().join(kind));
    let mut model = Llama::load(&base, device).unwrap();
    model.attach(&Adapter::read(&golden).unwrap()).unwrap();
    let batch = Batch::read(&golden.join("inputs.safetensors"));
    let outputs = Weights::open(&golden.join("outputs.safetensors")).unwrap();
    let expected = Weights::open(&golden.join("grads.safetensors")).unwrap();

    let (logits, loss, grads) = common::step(&mut model, &batch);
    let logits = far(&batch.real(&logits), &batch.real(&outputs.f32("logits").unwrap()));
    let loss = (f64::from(loss) - f64::from(outputs.f32("loss").unwrap()[0])).abs();
    let mut ours: Vec<&str> = grads.iter().map(|(name, _)| name.as_str()).collect();
    ours.sort_unstable();
    assert_eq!(ours, expected.names().collect::<Vec<_>>(), "the trainable tensors are those of PEFT");
    let worst = grads
        .iter()
        .map(|(name, grad)| (relative(grad, &expected.f32(name).unwrap()), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap();
    println!("{kind}: logits {logits:.1e}, loss {loss:.1e}, worst gradient {:.1e} ({})", worst.0, worst.1);
    assert!(logits <= ABSOLUTE && loss <= ABSOLUTE, "logits {logits}, loss {loss}");
    assert!(worst.0 <= RELATIVE, "the gradient of `{}` is off by {}", worst.1, worst.0);
}

fn lora_step(device: &Device) {
    adapter_step("lora-step", device);
}

fn dora_step(device: &Device) {
    adapter_step("dora-step", device);
}

fn merged(device: &Device) {
    let base = Weights::open(&fixtures().join("tiny-llama")).unwrap();
    for kind in ["lora", "dora"] {
        let step = fixtures().join(format!("{kind}-step"));
        let golden = fixtures().join("merge");
        let adapter = Adapter::read(&step).unwrap();
        let expected = Weights::open(&golden.join(format!("{kind}-merged.safetensors"))).unwrap();
        let mut merged = Llama::load(&fixtures().join("tiny-llama"), device).unwrap();
        let (mut worst, mut seen) = (0.0f64, 0);
        for linear in merged.linears_mut() {
            if let Some(tensors) = adapter.modules.get(&linear.path) {
                let name = format!("{}.weight", linear.path);
                let (mut weight, shape) = linear_f32(&base, &name).unwrap();
                fuse(&mut weight, &adapter.config, tensors);
                worst = worst.max(far(&weight, &expected.f32(&name).unwrap()));
                linear.base = neural::model::linear::Base::Float(common::tensor(&weight, shape, device));
                seen += 1;
            }
        }
        assert_eq!(seen, expected.names().count(), "every merged weight of the fixture was compared");
        let batch = Batch::read(&step.join("inputs.safetensors"));
        let golden = Weights::open(&golden.join(format!("{kind}-logits.safetensors"))).unwrap();
        let name = golden.names().find(|name| name.contains("logits")).unwrap();
        let logits = far(&batch.real(&read(batch.logits(&merged))), &batch.real(&golden.f32(name).unwrap()));
        println!("merge {kind}: weights {worst:.1e}, logits {logits:.1e}");
        assert!(worst <= 1e-6, "{kind}: weights {worst}");
        assert!(logits <= ABSOLUTE, "{kind}: logits {logits}");
    }
}

/// The dequantized base of qdora-train, weight by weight and through the custom product.
fn nf4_base(device: &Device) {
    let base = Weights::open(&fixtures().join("tiny-llama")).unwrap();
    let golden = Weights::open(&fixtures().join("qdora-train/base_dequant.safetensors")).unwrap();
    let mut seen = 0;
    for name in golden.names() {
        let &[rows, columns] = golden.shape(name).unwrap() else { continue };
        let plain = base.f32(name).unwrap();
        let expected = golden.f32(name).unwrap();
        if plain == expected {
            continue; // embedding and head stay float
        }
        let quantized = Nf4::quantize(&plain, [rows, columns], true);
        let host = quantized.dequantize();
        // A mean summed in another order may move the offset of the nested scales by one unit in
        // the last place (README of the nf4 fixture).
        assert!(relative(&host, &expected) <= 1e-6, "`{name}` on the host: {}", relative(&host, &expected));
        let weight = PackedWeight::new(&Packed::Nf4(quantized.clone()), device);
        assert!(read(weight.dequantize()) == host, "`{name}` on the device");
        let x: Vec<f32> = (0..3 * columns).map(|k| ((k * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let y = weight.forward(common::tensor(&x, [3, columns], device));
        let dense = common::tensor(&expected, [rows, columns], device);
        let y_dense = common::tensor(&x, [3, columns], device).matmul(dense.transpose());
        assert!(far(&read(y), &read(y_dense)) <= 1e-6, "`{name}`: product");
        seen += 1;
    }
    assert!(seen > 0, "the fixture holds quantized weights");
}

/// Every weight of the nf4 fixture, odd shapes and padded tails included: from the bytes of
/// bitsandbytes to floats on the device, bit for bit.
fn nf4_weights(device: &Device) {
    let golden = Weights::open(&fixtures().join("nf4/nf4.safetensors")).unwrap();
    let names: Vec<&str> = golden.names().filter_map(|name| name.strip_suffix(".input")).collect();
    assert!(!names.is_empty());
    for name in names {
        let get = |part: &str| format!("{name}.{part}");
        let shape: [usize; 2] = golden.shape(&get("input")).unwrap().try_into().unwrap();
        let packed = golden.bytes(&get("packed")).unwrap().to_vec();
        let plain = Absmax::Plain(golden.f32(&get("absmax")).unwrap());
        // Nested scales go to the device resolved; resolving them is tested in `formats`.
        let nested = Absmax::Plain(golden.f32(&get("dq.absmax_dequant")).unwrap());
        for (absmax, part) in [(plain, "dequant"), (nested, "dq.dequant")] {
            let weight =
                PackedWeight::new(&Packed::Nf4(Nf4 { shape, packed: packed.clone(), absmax }), device);
            let (ours, expected) = (read(weight.dequantize()), golden.f32(&get(part)).unwrap());
            assert!(ours == expected, "`{name}.{part}` differs by up to {}", far(&ours, &expected));
        }
    }
}

fn own(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/own").join(part)
}

/// Llama 2 and 3, Mistral within and beyond its window, Qwen2, SmolLM, TinyLlama; files in f32, bf16
/// and f16.
fn families(device: &Device) {
    let mut seen = 0;
    for entry in std::fs::read_dir(own("families")).unwrap() {
        let folder = entry.unwrap().path();
        let file = Weights::open(&folder.join("inputs.safetensors")).unwrap();
        let shape: [usize; 2] = file.shape("input_ids").unwrap().try_into().unwrap();
        let model = Llama::load(&folder, device).unwrap();
        let ids = common::ids(&file.ints("input_ids").unwrap(), shape, device);
        let logits = read(model.forward(ids, &model.mask(shape[1]).unwrap()));
        let golden = Weights::open(&folder.join("outputs.safetensors")).unwrap().f32("logits").unwrap();
        let worst = far(&logits, &golden);
        println!("{}: logits {worst:.1e}", folder.display());
        assert!(worst <= ABSOLUTE, "{}: {worst}", folder.display());
        seen += 1;
    }
    assert_eq!(seen, 7);
}

/// Dropout draws other masks here than in torch: the loss must have the same mean and deviation.
fn own_dropout(device: &Device) {
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(own("dropout.json")).unwrap()).unwrap();
    let number = |kind: &str, key: &str| golden[kind][key].as_f64().unwrap();
    let masks = if *device == Device::flex() { 1000 } else { 150 };
    for kind in ["lora", "dora"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let mut adapter = Adapter::read(&folder.join(format!("{kind}-step"))).unwrap();
        adapter.config.dropout = golden["probability"].as_f64().unwrap();
        let mut model = Llama::load(&folder.join("tiny-llama"), device).unwrap();
        model.attach(&adapter).unwrap();
        let batch = Batch::read(&folder.join(format!("{kind}-step/inputs.safetensors")));
        let losses: Vec<f64> = (0..masks)
            .map(|key| {
                model.dropout(Some(key));
                f64::from(read(batch.loss(batch.logits(&model)))[0])
            })
            .collect();
        let n = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / n;
        let deviation = (losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let (wanted, spread) = (number(kind, "mean"), number(kind, "deviation"));
        // standard error of the difference of two means, and of a deviation's logarithm
        let error = spread * (1.0 / n + 1.0 / golden["masks"].as_f64().unwrap()).sqrt();
        println!("{kind}: mean {mean:.5} ({wanted:.5} ± {error:.5}), deviation {deviation:.5} ({spread:.5})");
        assert!((mean - wanted).abs() <= 4.0 * error, "{kind}: mean {mean}, not {wanted} ± {error}");
        assert!(
            (deviation / spread).ln().abs() <= 4.0 / (2.0 * n).sqrt(),
            "{kind}: {deviation}, not {spread}"
        );
    }
}

/// PEFT's merge of a trained QDoRA adapter into the base that it was trained on.
fn own_qdora_merge(device: &Device) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let base = Weights::open(&root.join("tiny-llama")).unwrap();
    let adapter = Adapter::read(&root.join("qdora-train/wd0.01/step-20")).unwrap();
    let golden = Weights::open(&own("qdora-merge/merged.safetensors")).unwrap();
    let mut merged = Llama::load(&root.join("tiny-llama"), device).unwrap();
    let mut seen = 0;
    for linear in merged.linears_mut() {
        let name = format!("{}.weight", linear.path);
        let packed = Nf4::quantize(&base.f32(&name).unwrap(), linear.shape, true);
        let mut weight = packed.dequantize();
        if let Some(tensors) = adapter.modules.get(&linear.path) {
            fuse(&mut weight, &adapter.config, tensors);
        }
        if golden.contains(&name) {
            let worst = far(&weight, &golden.f32(&name).unwrap());
            assert!(worst <= 1e-6, "`{name}`: {worst}");
            seen += 1;
        }
        linear.base = neural::model::linear::Base::Float(common::tensor(&weight, linear.shape, device));
    }
    assert_eq!(seen, golden.names().count());
    let batch = Batch::read(&root.join("dora-step/inputs.safetensors"));
    let golden = Weights::open(&own("qdora-merge/logits.safetensors")).unwrap().f32("logits").unwrap();
    let worst = far(&batch.real(&read(batch.logits(&merged))), &batch.real(&golden));
    println!("merged QDoRA: logits {worst:.1e}");
    assert!(worst <= ABSOLUTE, "logits {worst}");
}
