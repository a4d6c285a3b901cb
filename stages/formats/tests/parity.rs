//! The files of transformers, PEFT, bitsandbytes and datasets, read and written as they do it.
//!
//! `PIPE_FIXTURES=DIR` takes another set of golden files of the same form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::adapter::{Adapter, AdapterConfig, CONFIG_FILE};
use formats::config::LlamaConfig;
use formats::int8::Int8;
use formats::nf4::{Absmax, CODEBOOK, MIDPOINTS, Nf4, dynamic_map};
use formats::split::train_test_split;
use formats::weights::{ModelWriter, Weights, linear_f32, save};
use serde_json::Value;

fn own_fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn fixtures() -> PathBuf {
    std::env::var_os("PIPE_FIXTURES").map_or_else(own_fixtures, |dir| {
        let dir = PathBuf::from(dir);
        // a relative folder is meant from where cargo was started, the workspace
        if dir.is_absolute() { dir } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(dir) }
    })
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Equal in value, or with `exact` in every bit; says how many differ and where the first does.
fn same(found: &[f32], wanted: &[f32], exact: bool, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    let differs = |(a, b): (&f32, &f32)| if exact { a.to_bits() != b.to_bits() } else { a != b };
    let at: Vec<usize> = (0..found.len()).filter(|&at| differs((&found[at], &wanted[at]))).collect();
    if let Some(&first) = at.first() {
        let (a, b) = (found[first], wanted[first]);
        panic!("{what}: {} of {} differ, first at {first}: {a:e} and {b:e}", at.len(), found.len());
    }
}

/// Every folder below `dir` that holds an adapter.
fn adapters(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            adapters(&path, found);
        } else if path.file_name().is_some_and(|name| name == CONFIG_FILE) {
            found.push(dir.to_owned());
        }
    }
}

#[test]
fn parity_nf4_code_books_are_bitsandbytes_own() {
    let golden = json(&fixtures().join("nf4/nf4.json"));
    same(&CODEBOOK, &floats(&golden["nf4_codebook"]), true, "code book");
    same(&MIDPOINTS, &floats(&golden["nf4_midpoints"]), true, "midpoints");
    same(dynamic_map(), &floats(&golden["dynamic_map"]), true, "map of scales");
}

#[test]
fn parity_nf4_bytes_scales_and_values_are_bitsandbytes_bit_for_bit() {
    let dir = fixtures().join("nf4");
    let (names, golden) = (json(&dir.join("nf4.json")), Weights::open(&dir.join("nf4.safetensors")).unwrap());
    let weights = names["weights"].as_object().unwrap();
    assert!(!weights.is_empty());
    for name in weights.keys() {
        let part = |suffix: &str| golden.f32(&format!("{name}.{suffix}")).unwrap();
        let (input, shape) = linear_f32(&golden, &format!("{name}.input")).unwrap();

        let plain = Nf4::quantize(&input, shape, false);
        assert_eq!(plain.packed, golden.bytes(&format!("{name}.packed")).unwrap(), "{name}: bytes");
        same(&plain.absmax(), &part("absmax"), true, &format!("{name}: absmax"));
        same(&plain.dequantize(), &part("dequant"), false, &format!("{name}: values"));

        let double = Nf4::quantize(&input, shape, true);
        let Absmax::Nested { codes, scales, offset } = &double.absmax else { panic!("{name}: not nested") };
        assert_eq!(double.packed, plain.packed, "{name}: bytes with double quantization");
        assert_eq!(codes, golden.bytes(&format!("{name}.dq.absmax_u8")).unwrap(), "{name}: nested codes");
        same(&[*offset], &part("dq.offset"), true, &format!("{name}: offset"));
        same(scales, &part("dq.nested_absmax"), true, &format!("{name}: nested scales"));
        same(&double.absmax(), &part("dq.absmax_dequant"), false, &format!("{name}: resolved scales"));
        same(&double.dequantize(), &part("dq.dequant"), false, &format!("{name}: values, double"));
        if golden.contains(&format!("{name}.dq.dequant_as_bf16")) {
            let rounded: Vec<f32> =
                double.dequantize().iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
            same(&rounded, &part("dq.dequant_as_bf16"), false, &format!("{name}: values as bfloat16"));
        }
    }
}

#[test]
fn parity_8_bit_codes_scales_and_values_are_bitsandbytes_bit_for_bit() {
    let golden = Weights::open(&fixtures().join("int8/int8.safetensors")).unwrap();
    let names: Vec<&str> = golden.names().filter_map(|name| name.strip_suffix(".input")).collect();
    assert_eq!(names.len(), 6);
    for name in names {
        let (input, shape) = linear_f32(&golden, &format!("{name}.input")).unwrap();
        let ours = Int8::quantize(&input, shape);
        let theirs = Int8::read(&golden, &format!("{name}.weight")).unwrap();
        let differ = ours.codes.iter().zip(&theirs.codes).filter(|(ours, theirs)| ours != theirs).count();
        assert_eq!(differ, 0, "{name}: codes that differ");
        same(&ours.scales, &theirs.scales, true, &format!("{name}: scales"));
        let values = golden.f32(&format!("{name}.dequant")).unwrap();
        same(&ours.dequantize(), &values, true, &format!("{name}: values"));
        let (read, _) = linear_f32(&golden, &format!("{name}.weight")).unwrap();
        same(&read, &values, true, &format!("{name}: values as read"));
        let byte = |at: usize| (ours.words()[at / 4] >> (8 * (at % 4))) & 255;
        assert!(
            ours.codes.iter().enumerate().all(|(at, &code)| byte(at).cast_signed() - 128 == i32::from(code))
        );
    }
}

#[test]
fn parity_nf4_words_hold_the_codes_in_order() {
    let dir = fixtures().join("nf4");
    let golden = Weights::open(&dir.join("nf4.safetensors")).unwrap();
    for name in json(&dir.join("nf4.json"))["weights"].as_object().unwrap().keys() {
        let (input, shape) = linear_f32(&golden, &format!("{name}.input")).unwrap();
        let weight = Nf4::quantize(&input, shape, false);
        let (words, absmax) = (weight.words(), weight.absmax());
        let value = |at: usize| CODEBOOK[(words[at / 8] >> (4 * (at % 8)) & 15) as usize] * absmax[at / 64];
        let values: Vec<f32> = (0..input.len()).map(value).collect();
        same(&values, &golden.f32(&format!("{name}.dequant")).unwrap(), false, name);
    }
}

#[test]
fn parity_nf4_of_the_quantized_base_is_what_peft_trained_on() {
    let dir = fixtures();
    let golden = dir.join("qdora-train/base_dequant.safetensors");
    let (golden, base) = (Weights::open(&golden).unwrap(), Weights::open(&dir.join("tiny-llama")).unwrap());
    let config = LlamaConfig::read(&dir.join("tiny-llama")).unwrap();
    let mut compared = 0;
    for module in config.linear_names() {
        let name = format!("{module}.weight");
        let Some(key) = golden.names().find(|key| **key == name || **key == module) else { continue };
        let (weight, shape) = linear_f32(&base, &name).unwrap();
        let found = Nf4::quantize(&weight, shape, true).dequantize();
        same(&found, &golden.f32(key).unwrap(), false, &module);
        compared += 1;
    }
    assert!(compared > 0, "no linear weight in {:?}", golden.names().collect::<Vec<_>>());
}

#[test]
fn parity_tiny_llama_reads_the_same_from_one_file_and_from_shards_in_both_config_forms() {
    let dir = fixtures().join("tiny-llama");
    let config = LlamaConfig::read(&dir).unwrap();
    let old = dir.join("config.v4.json");
    let old = LlamaConfig::parse(&std::fs::read_to_string(&old).unwrap(), &old).unwrap();
    assert_eq!(old, config);
    assert_eq!(LlamaConfig::read(&dir.join("sharded")).unwrap(), config);

    let (whole, shards) = (Weights::open(&dir).unwrap(), Weights::open(&dir.join("sharded")).unwrap());
    whole.check(&config).unwrap();
    shards.check(&config).unwrap();
    let raw = json(&dir.join("config.json"));
    assert_eq!(config.num_hidden_layers as u64, raw["num_hidden_layers"].as_u64().unwrap());
    let mut parameters = 0;
    for name in whole.names() {
        assert_eq!(whole.f32(name).unwrap(), shards.f32(name).unwrap(), "{name}");
        parameters += whole.f32(name).unwrap().len() as u64;
    }
    assert_eq!(config.parameters(), parameters);
}

#[test]
fn parity_adapters_of_peft_are_read_and_written_back_unchanged() {
    let mut folders = Vec::new();
    adapters(&fixtures(), &mut folders);
    assert!(!folders.is_empty());
    let mut checked = 0;
    for folder in folders {
        let adapter = Adapter::read(&folder).unwrap();
        let base = fixtures().join(&adapter.config.base_model);
        if !adapter.config.base_model.is_empty() && base.join("config.json").exists() {
            let (base, c) = (LlamaConfig::read(&base).unwrap(), &adapter.config);
            adapter.check(&base).unwrap();
            let expected = base.adapter_parameters(c.rank, &c.target_modules, c.dora);
            assert_eq!(adapter.parameters(), expected, "{folder:?}");
            checked += 1;
        }
        let raw = json(&folder.join(CONFIG_FILE));
        let c = &adapter.config;
        assert_eq!(raw["r"], c.rank, "{folder:?}");
        assert_eq!(raw["lora_alpha"].as_f64(), Some(c.alpha), "{folder:?}");
        assert_eq!(raw["use_dora"], c.dora, "{folder:?}");
        assert_eq!(raw["use_rslora"], c.rslora, "{folder:?}");
        assert_eq!(raw["lora_dropout"].as_f64(), Some(c.dropout), "{folder:?}");

        let out = tempfile::tempdir().unwrap();
        adapter.write(out.path()).unwrap();
        assert_eq!(Adapter::read(out.path()).unwrap(), adapter, "{folder:?}");
        let (theirs, ours) = (
            Weights::open(&folder.join("adapter_model.safetensors")).unwrap(),
            Weights::open(&out.path().join("adapter_model.safetensors")).unwrap(),
        );
        assert_eq!(theirs.names().collect::<Vec<_>>(), ours.names().collect::<Vec<_>>(), "{folder:?}");
        for name in theirs.names() {
            assert_eq!(theirs.bytes(name).unwrap(), ours.bytes(name).unwrap(), "{folder:?} {name}");
        }
        let written = json(&out.path().join(CONFIG_FILE));
        for (key, value) in written.as_object().unwrap() {
            let known = raw.get(key).unwrap_or_else(|| panic!("PEFT does not know `{key}`"));
            if key != "target_modules" {
                assert_eq!(value.as_f64().is_some(), known.as_f64().is_some(), "{key}");
                assert!(value == known || value.as_f64() == known.as_f64(), "{key}: {value} and {known}");
            }
        }
    }
    assert!(checked > 0, "no adapter names a base of the fixtures");
}

#[test]
fn parity_split_is_that_of_datasets_for_every_size_and_seed() {
    let golden = json(&own_fixtures().join("split/split.json"));
    let number = |case: &Value, key: &str| case[key].as_u64().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let (rows, size) = (number(case, "rows") as usize, number(case, "test_size") as usize);
        let (train, test) = train_test_split(rows, size, number(case, "seed"));
        let first = |key: &str| -> Vec<usize> { serde_json::from_value(case[key].clone()).unwrap() };
        let what = format!("{rows} rows, seed {}", case["seed"]);
        assert!(test.starts_with(&first("test")) && train.starts_with(&first("train")), "{what}");
        let fnv = |state: u64, &index: &usize| (state ^ index as u64).wrapping_mul(0x100_0000_01B3);
        let hash = test.iter().chain(&train).fold(0xCBF2_9CE4_8422_2325, fnv);
        assert_eq!((hash, test.len(), train.len()), (number(case, "fnv"), size, rows - size), "{what}");
    }
}

#[test]
fn a_quantized_model_written_in_shards_reads_back_as_it_was() {
    let dir = own_fixtures().join("tiny-llama");
    let (config, weights) = (LlamaConfig::read(&dir).unwrap(), Weights::open(&dir).unwrap());
    let linear: Vec<String> = config.linear_names().iter().map(|name| format!("{name}.weight")).collect();
    for (double, shard) in [(false, u64::MAX), (true, 40_000)] {
        let mut kept = BTreeMap::new();
        for name in &linear {
            let (values, shape) = linear_f32(&weights, name).unwrap();
            kept.insert(name.clone(), Nf4::quantize(&values, shape, double));
        }
        let mut tensors: Vec<_> = kept.iter().flat_map(|(name, weight)| weight.tensors(name)).collect();
        for name in weights.names().filter(|name| !kept.contains_key(*name)) {
            let shape = weights.shape(name).unwrap().to_vec();
            tensors.push(formats::weights::Tensor::f32(name, shape, weights.f32(name).unwrap()));
        }
        let out = tempfile::tempdir().unwrap();
        let specs = tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone())).collect();
        let mut writer = ModelWriter::create(out.path(), specs, shard).unwrap();
        for tensor in tensors.iter().rev() {
            writer.write(&tensor.name, &tensor.data).unwrap();
        }
        writer.finish().unwrap();
        let is_sharded = out.path().join("model.safetensors.index.json").exists();
        assert_eq!(is_sharded, shard < u64::MAX);
        let files = std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(files.into_iter().all(|name| !name.to_string_lossy().ends_with(".partial")));
        let read = Weights::open(out.path()).unwrap();
        read.check(&config).unwrap();
        for (name, weight) in &kept {
            assert_eq!(&Nf4::read(&read, name).unwrap(), weight, "{name}");
            assert_eq!(linear_f32(&read, name).unwrap().0, weight.dequantize(), "{name}");
        }
    }
}

#[test]
fn equal_tensors_give_equal_bytes() {
    let out = tempfile::tempdir().unwrap();
    let tensor = |name: &str| formats::weights::Tensor::f32(name, [3], vec![1.0, -2.0, f32::MIN_POSITIVE]);
    for file in ["a", "b"] {
        let tensors = vec![tensor("y"), tensor("x"), formats::weights::Tensor::u8("odd", [3], vec![1, 2, 3])];
        save(&out.path().join(file), tensors, &[("who", "test")]).unwrap();
    }
    let read = |file: &str| std::fs::read(out.path().join(file)).unwrap();
    assert_eq!(read("a"), read("b"));
    let weights = Weights::open(&out.path().join("a")).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["odd", "x", "y"]);
    assert_eq!(weights.ints("odd").unwrap(), [1, 2, 3]);
}

#[test]
fn an_adapter_config_survives_a_round_trip() {
    let config = AdapterConfig {
        rank: 64,
        alpha: 128.5,
        dropout: 0.05,
        dora: true,
        rslora: true,
        target_modules: vec!["q_proj".into(), "down_proj".into()],
        base_model: "meta-llama/Llama-2-7b-hf".into(),
    };
    let out = tempfile::tempdir().unwrap();
    config.write(out.path()).unwrap();
    assert_eq!(AdapterConfig::read(out.path()).unwrap(), config);
    assert_eq!(config.scale(), 128.5 / 8.0);
}
