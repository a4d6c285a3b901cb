//! What holds for any input: error bounds of NF4, and that no file from outside, however damaged,
//! makes a reader panic or take memory that the file does not justify.

use std::path::Path;

use formats::adapter::{Adapter, AdapterConfig};
use formats::alpaca::{Template, parse_rows, read_rows};
use formats::config::LlamaConfig;
use formats::int8::Int8;
use formats::nf4::{Absmax, BLOCK, CODEBOOK, Nf4};
use formats::split::{permutation, train_test_split};
use formats::tokens::{TokenRow, TokenSet};
use formats::weights::{Dtype, Tensor, Weights, linear_f32, save};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Half of the widest gap between two entries of the code book: between the first two.
fn half_gap() -> f32 {
    CODEBOOK.windows(2).map(|pair| (pair[1] - pair[0]) / 2.0).fold(0.0, f32::max)
}

fn matrix() -> impl Strategy<Value = (Vec<f32>, [usize; 2])> {
    let scale = prop_oneof![Just(1.0f32), Just(1e-6), Just(1e4), Just(0.0)];
    (1usize..20, 1usize..90, scale).prop_flat_map(|(out, inner, scale)| {
        let weight = prop_oneof![4 => -1.0f32..1.0, 1 => Just(0.0f32)];
        let weights = prop::collection::vec(weight.prop_map(move |x| x * scale), out * inner);
        weights.prop_map(move |w| (w, [out, inner]))
    })
}

proptest! {
    #[test]
    fn a_weight_moves_by_at_most_half_the_widest_gap_of_its_block((w, shape) in matrix()) {
        let found = Nf4::quantize(&w, shape, false);
        let values = found.dequantize();
        prop_assert_eq!(values.len(), w.len());
        for (block, (w, values)) in w.chunks(BLOCK).zip(values.chunks(BLOCK)).enumerate() {
            let most = w.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (x, y) in w.iter().zip(values) {
                let bound = half_gap() * most * (1.0 + 1e-6) + f32::MIN_POSITIVE;
                prop_assert!((x - y).abs() <= bound, "block {}: {} became {}", block, x, y);
            }
        }
    }

    #[test]
    fn the_largest_weight_of_a_block_is_kept_exactly((w, shape) in matrix()) {
        let values = Nf4::quantize(&w, shape, false).dequantize();
        for (w, values) in w.chunks(BLOCK).zip(values.chunks(BLOCK)) {
            let most = w.iter().fold(0f32, |most, x| most.max(x.abs()));
            let found = values.iter().fold(0f32, |most, x| most.max(x.abs()));
            prop_assert_eq!(most, found);
        }
    }

    #[test]
    fn quantizing_twice_changes_nothing((w, shape) in matrix()) {
        let once = Nf4::quantize(&w, shape, false);
        let twice = Nf4::quantize(&once.dequantize(), shape, false);
        prop_assert_eq!(once.dequantize(), twice.dequantize());
    }

    #[test]
    fn double_quantization_keeps_the_codes_and_moves_a_scale_by_little((w, shape) in matrix()) {
        let (plain, double) = (Nf4::quantize(&w, shape, false), Nf4::quantize(&w, shape, true));
        prop_assert_eq!(&plain.packed, &double.packed);
        let Absmax::Nested { scales, .. } = &double.absmax else { panic!("not nested") };
        // widest gap of the dynamic map: 0.9 / 64 between two of its upper entries, half of it lost
        let loss = 0.9 / 128.0 * 1.01;
        for (at, (x, y)) in plain.absmax().iter().zip(double.absmax()).enumerate() {
            let bound = loss * scales[at / 256] + 1e-6 * x.abs() + f32::MIN_POSITIVE;
            prop_assert!((x - y).abs() <= bound, "scale {}: {} became {}", at, x, y);
        }
    }

    #[test]
    fn an_8_bit_weight_is_at_most_half_a_step_off((w, [rows, columns]) in matrix()) {
        let packed = Int8::quantize(&w, [rows, columns]);
        for (at, (x, y)) in w.iter().zip(packed.dequantize()).enumerate() {
            let step = packed.scales[at / columns] / 127.0;
            // and what rounding to float16 takes: 2⁻¹¹ of the value, or half of the smallest number
            let bound = step * 0.5001 + x.abs() / 2048.0 + 3e-8;
            prop_assert!((x - y).abs() <= bound, "weight {}: {} became {}", at, x, y);
        }
        let again = Int8::quantize(&w, [rows, columns]);
        prop_assert_eq!(packed, again);
    }

    #[test]
    fn nf4_does_not_depend_on_the_number_of_threads(seed in any::<u32>(), rows in 1usize..6) {
        let w: Vec<f32> = (0..rows * 70_001u32 as usize)
            .map(|i| ((i as u32).wrapping_mul(2_654_435_761) ^ seed) as f32 / 4.3e9 - 0.5)
            .collect();
        let shape = [rows, 70_001];
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Nf4::quantize(&w, shape, true))
        };
        prop_assert_eq!(run(1), run(3));
    }

    #[test]
    fn every_index_is_trained_on_or_held_out_once(rows in 0usize..400, share in 0.0f64..=1.0, seed in any::<u64>()) {
        let size = (rows as f64 * share) as usize;
        let (train, test) = train_test_split(rows, size, seed);
        prop_assert_eq!((test.len(), train.len()), (size, rows - size));
        let mut all = [test, train].concat();
        prop_assert_eq!(&all, &permutation(rows, seed));
        all.sort_unstable();
        prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
    }

    #[test]
    fn token_rows_survive_a_round_trip(rows in prop::collection::vec((prop::collection::vec(any::<u32>(), 0..20), 0.0f64..=1.0), 0..20), mask_prompt in any::<bool>()) {
        let rows = rows.into_iter().map(|(ids, share)| TokenRow { prompt_len: (ids.len() as f64 * share) as usize, ids, turns: Vec::new() });
        let set = TokenSet { rows: rows.collect(), mask_prompt };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.safetensors");
        set.write(&path).unwrap();
        prop_assert_eq!(&TokenSet::read(&path).unwrap(), &set);
        for row in &set.rows {
            let labels = set.labels(row);
            let masked = labels.iter().filter(|&&label| label == -100).count();
            prop_assert_eq!(masked, if mask_prompt { row.prompt_len } else { 0 });
        }
    }

    #[test]
    fn sixteen_bits_round_to_the_nearest_neighbour(x in any::<f32>().prop_filter("finite", |x| x.is_finite() && x.abs() < 6e4)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            save(&path, vec![Tensor::float("x", [1], &[x], dtype)], &[]).unwrap();
            let y = Weights::open(&path).unwrap().f32("x").unwrap()[0];
            // half an ulp: 2^-12 of float16 (2^-25 below its normal numbers), 2^-9 of bfloat16
            let bound = match dtype {
                Dtype::F32 => 0.0,
                Dtype::F16 => (x.abs() * 2f32.powi(-11)).max(2f32.powi(-25)),
                Dtype::Bf16 => (x.abs() * 2f32.powi(-8)).max(f32::MIN_POSITIVE),
            };
            prop_assert!((x - y).abs() <= bound, "{:?}: {} became {}", dtype, x, y);
        }
    }
}

// Damaged files. The readers may accept or refuse; they may not panic.

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)).unwrap()
}

/// A JSON value of any kind, a few levels deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_.]{0,12}".prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        prop_oneof![Just("llama3"), Just("silu"), Just("nf4"), Just("none"), Just("float32")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A good object with some of its fields set to anything, or taken out.
fn spoilt(good: &[u8]) -> impl Strategy<Value = String> + use<> {
    let good: Map<String, Value> = serde_json::from_slice(good).unwrap();
    let keys: Vec<String> = good.keys().cloned().collect();
    let change = (prop::sample::select(keys), prop::option::of(any_json()));
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut map = good.clone();
        for (key, value) in changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Value::Object(map).to_string()
    })
}

/// A good file with bytes overwritten, cut off or appended.
fn damaged(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    // the header is what matters: most of the damage goes there
    let place = prop_oneof![4 => 0..length.min(400), 1 => 0..length];
    let change = (place, any::<u8>());
    (
        prop::collection::vec(change, 0..6),
        prop::option::of(0..length),
        prop::collection::vec(any::<u8>(), 0..9),
    )
        .prop_map(move |(changes, cut, tail)| {
            let mut bytes = good.clone();
            changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
            bytes.truncate(cut.unwrap_or(length));
            bytes.extend(tail);
            bytes
        })
}

/// Reads everything that a file of weights says about itself.
fn read_all(path: &Path) {
    let Ok(weights) = Weights::open(path) else { return };
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    for name in names {
        let _ = (weights.f32(&name), weights.ints(&name), linear_f32(&weights, &name));
    }
}

fn header_only(header: &Value, data: usize) -> Vec<u8> {
    let text = header.to_string().into_bytes();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_damage_to_a_config_makes_the_reader_panic(text in spoilt(&fixture("tiny-llama/config.json"))) {
        if let Ok(config) = LlamaConfig::parse(&text, Path::new("config.json")) {
            let again = LlamaConfig::parse(&config.to_json().to_string(), Path::new("config.json"));
            prop_assert_eq!(again.unwrap(), config);
        }
    }

    #[test]
    fn no_damage_to_a_config_of_version_4_makes_the_reader_panic(text in spoilt(&fixture("tiny-llama/config.v4.json"))) {
        if let Ok(config) = LlamaConfig::parse(&text, Path::new("config.json")) {
            prop_assert!(config.parameters() > 0);
        }
    }

    #[test]
    fn no_damage_to_adapter_settings_makes_the_reader_panic(text in spoilt(&fixture("dora-train/init/adapter_config.json"))) {
        if let Ok(config) = AdapterConfig::parse(&text, Path::new("adapter_config.json")) {
            prop_assert!(config.rank > 0 && !config.target_modules.is_empty());
        }
    }

    #[test]
    fn no_damage_to_rows_makes_the_reader_panic(rows in prop::collection::vec(any_json(), 0..5), good in any::<bool>(), cut in 0usize..400) {
        let mut rows = rows;
        if good {
            rows.insert(0, json!({ "instruction": "a", "output": "é" }));
        }
        let text = Value::from(rows).to_string();
        let _ = parse_rows(&text, Path::new("rows.json"));
        let cut: String = text.chars().take(cut).collect();
        let _ = parse_rows(&cut, Path::new("rows.json"));
    }

    #[test]
    fn no_text_at_all_makes_a_reader_panic(text in "\\PC{0,60}|[\\[\\]{}\":,0-9a-z\\n ]{0,60}") {
        let path = Path::new("x.json");
        let _ = parse_rows(&text, path);
        let _ = LlamaConfig::parse(&text, path);
        let _ = AdapterConfig::parse(&text, path);
    }

    #[test]
    fn no_damage_to_weights_makes_the_reader_panic(bytes in damaged(fixture("dora-train/init/adapter_model.safetensors"))) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adapter_model.safetensors"), &bytes).unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), fixture("dora-train/init/adapter_config.json")).unwrap();
        read_all(&dir.path().join("adapter_model.safetensors"));
        let _ = Adapter::read(dir.path());
        let _ = TokenSet::read(&dir.path().join("adapter_model.safetensors"));
    }

    #[test]
    fn no_header_makes_the_reader_panic_or_believe_sizes(dtype in "F32|U8|BF16|I64|F4|X", shape in prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..4), from in prop_oneof![0u64..40, any::<u64>()], to in prop_oneof![0u64..40, any::<u64>()], second in any_json(), data in 0usize..64) {
        let header = json!({ "a": { "dtype": dtype, "shape": shape, "data_offsets": [from, to] }, "b": second });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, header_only(&header, data)).unwrap();
        read_all(&path);
        let length = data as u64 + 8;
        std::fs::write(&path, [&from.to_le_bytes()[..], &vec![b'{'; length as usize]].concat()).unwrap();
        read_all(&path);
    }

    #[test]
    fn no_state_of_a_quantized_weight_makes_the_reader_panic(state in any_json(), shape in prop::collection::vec(any::<u64>(), 2), odd in any::<bool>()) {
        let weight = Nf4::quantize(&[0.5; 70], [5, 14], true);
        let mut tensors = weight.tensors("w");
        let good: Value = serde_json::from_slice(&tensors.last().unwrap().data).unwrap();
        let text = if odd {
            let mut text = good.clone();
            text["shape"] = json!(shape);
            text.to_string()
        } else {
            state.to_string()
        };
        tensors.pop();
        let name = "w.quant_state.bitsandbytes__nf4";
        tensors.push(Tensor::u8(name, [text.len()], text.into_bytes()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        save(&path, tensors, &[]).unwrap();
        let weights = Weights::open(&path).unwrap();
        prop_assert!(Nf4::is_quantized(&weights, "w"));
        prop_assert!(Nf4::read(&weights, "w").is_err());
    }
}

#[test]
fn every_template_puts_the_row_into_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.json");
    std::fs::write(&path, r#"[{"instruction": "Sort.", "input": "b a", "output": "a b", "id": 7}]"#).unwrap();
    let row = read_rows(&path).unwrap().remove(0);
    for name in Template::NAMES {
        let prompt = Template::by_name(name).unwrap().prompt(&row);
        assert!(prompt.contains("Sort.") && prompt.contains("b a") && !prompt.contains("a b"), "{name}");
    }
}
