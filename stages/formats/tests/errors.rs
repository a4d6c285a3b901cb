//! Bad input: each has an error that names the file, what is wrong with it, and the way out.

use std::path::Path;

use formats::adapter::AdapterConfig;
use formats::alpaca::read_rows;
use formats::config::{LlamaConfig, RopeScaling};
use formats::int8::Int8;
use formats::weights::{Tensor, Weights, save};
use serde_json::{Value, json};

fn tiny() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-llama")
}

/// The config of tiny-llama with some fields set anew (null takes one out).
fn config(changes: Value) -> Result<LlamaConfig, String> {
    let mut good: Value =
        serde_json::from_slice(&std::fs::read(tiny().join("config.json")).unwrap()).unwrap();
    good.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    LlamaConfig::parse(&good.to_string(), Path::new("config.json")).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(changes: Value, field: &str) {
    let error = config(changes).expect_err("should be refused");
    assert!(error.contains(&format!("`{field}`")), "`{field}` is not named: {error}");
}

#[test]
fn what_a_config_asks_for_and_is_not_understood_is_refused_by_name() {
    refused(json!({ "model_type": "gemma" }), "model_type");
    refused(json!({ "architectures": ["LlamaForSequenceClassification"] }), "architectures");
    refused(json!({ "hidden_act": "gelu" }), "hidden_act");
    refused(json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor");
    refused(json!({ "attn_logit_softcapping": 50.0 }), "attn_logit_softcapping");
    refused(json!({ "num_local_experts": 8 }), "num_local_experts");
    refused(json!({ "attention_dropout": 0.1 }), "attention_dropout");
    refused(json!({ "sliding_window": 16 }), "sliding_window");
    refused(
        json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4.0 } }),
        "rope_parameters.rope_type",
    );
    refused(json!({ "rope_parameters": { "rope_type": "linear" } }), "rope_parameters.factor");
    refused(
        json!({ "rope_parameters": null, "rope_scaling": { "type": "dynamic", "factor": 2.0 } }),
        "rope_scaling.type",
    );
    refused(
        json!({ "rope_parameters": { "rope_type": "default", "mrope_section": [1] } }),
        "rope_parameters.mrope_section",
    );
    refused(
        json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } }),
        "quantization_config.quant_method",
    );
    refused(
        json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4" } }),
        "quantization_config.bnb_4bit_quant_type",
    );
    refused(
        json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": true } }),
        "quantization_config.load_in_4bit",
    );
    refused(
        json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_has_fp16_weight": true } }),
        "quantization_config.llm_int8_has_fp16_weight",
    );
    refused(json!({ "dtype": "float8" }), "dtype");
}

#[test]
fn damaged_8_bit_weights_are_refused_by_name() {
    let packed = Int8::quantize(&[1.0, -2.0, 3.0, 4.0, 5.0, -6.0], [2, 3]);
    let refused = |change: &dyn Fn(&mut Vec<Tensor<'_>>), wanted: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        let mut tensors = packed.tensors("m.weight");
        change(&mut tensors);
        save(&file, tensors, &[]).unwrap();
        let error = Int8::read(&Weights::open(&file).unwrap(), "m.weight").unwrap_err();
        assert!(error.message.contains(wanted), "{error}");
    };
    refused(&|tensors| tensors[0] = Tensor::u8("m.weight", [2, 3], vec![0; 6]), "`m.weight` is U8");
    refused(&|tensors| tensors[1] = Tensor::f32("m.SCB", [3], vec![1.0; 3]), "`m.SCB` is F32 [3]");
    refused(&|tensors| tensors[2] = Tensor::u8("m.weight_format", [], vec![1]), "`m.weight_format`");
    refused(&|tensors| drop(tensors.remove(1)), "`m.SCB`");
}

#[test]
fn numbers_that_fit_no_model_are_refused_by_name() {
    refused(json!({ "vocab_size": null }), "vocab_size");
    refused(json!({ "hidden_size": -1 }), "hidden_size");
    refused(json!({ "num_hidden_layers": 1_000_000_000 }), "num_hidden_layers");
    refused(json!({ "num_key_value_heads": 3 }), "num_key_value_heads");
    refused(json!({ "head_dim": 15 }), "head_dim");
    refused(json!({ "rms_norm_eps": 0 }), "rms_norm_eps");
    refused(json!({ "head_dim": null, "num_attention_heads": 7, "num_key_value_heads": 7 }), "hidden_size");
}

#[test]
fn the_families_differ_by_what_their_configs_say() {
    let llama3 = json!({ "rope_parameters": null, "rope_theta": 5e5, "rope_scaling": { "rope_type": "llama3", "factor": 32.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 } });
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let found = config(llama3).unwrap();
    assert_eq!((found.rope_theta, found.rope_scaling), (5e5, Some(scaling)));

    let mistral =
        json!({ "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 100 });
    assert_eq!(config(mistral).unwrap().sliding_window, Some(100));

    let qwen = |window: Value| {
        let mut changes = json!({ "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "sliding_window": 32,
            "max_window_layers": 28, "attention_bias": null });
        changes.as_object_mut().unwrap().extend(window.as_object().unwrap().clone());
        config(changes)
    };
    let found = qwen(json!({ "use_sliding_window": false })).unwrap();
    assert_eq!((found.sliding_window, found.qkv_bias, found.o_bias), (None, true, false));
    assert_eq!(
        qwen(json!({ "use_sliding_window": true, "max_window_layers": 0 })).unwrap().sliding_window,
        Some(32)
    );
    let error = qwen(json!({ "use_sliding_window": true, "max_window_layers": 1 })).unwrap_err();
    assert!(error.contains("`max_window_layers`"), "{error}");
}

#[test]
fn what_peft_can_do_and_this_cannot_is_refused_by_name() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/dora-train/init/adapter_config.json");
    let good: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let parse = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        AdapterConfig::parse(&changed.to_string(), Path::new("adapter_config.json"))
            .map_err(|error| error.to_string())
    };
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({ "q_proj": 4 })),
        ("alpha_pattern", json!({ "q_proj": 4 })),
        ("layers_to_transform", json!([0])),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("lora_bias", json!(true)),
        ("use_qalora", json!(true)),
        ("trainable_token_indices", json!([1])),
        ("target_modules", json!(".*_proj")),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("task_type", json!("SEQ_CLS")),
        ("something_new", json!(3)),
        ("r", json!(0)),
    ] {
        let error = parse(key, value).expect_err(key);
        assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
    }
    let all = parse("target_modules", json!("all-linear")).unwrap().target_modules;
    assert_eq!(all, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
}

#[test]
fn a_cut_off_or_overlong_file_is_told_from_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    save(&path, vec![Tensor::f32("w", [4], vec![1.0; 4])], &[]).unwrap();
    let good = std::fs::read(&path).unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Weights::open(&path).unwrap_err().to_string()
    };
    let cut = error(&good[..good.len() - 3]);
    assert!(cut.contains("cut off: `w` ends at byte 16 of the data, 13 are there"), "{cut}");
    let cut = error(&good[..20]);
    assert!(cut.contains("cut off: the header needs"), "{cut}");
    let empty = error(&[]);
    assert!(empty.contains("0 bytes are too few"), "{empty}");
    let long = error(&[&good[..], &[0; 5]].concat());
    assert!(long.contains("5 bytes stand after the last tensor"), "{long}");
    let text = error(b"version https://git-lfs.github.com/spec/v1");
    assert!(text.contains("claims"), "{text}");
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let overlap = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12]].concat();
    let overlap = error(&overlap);
    assert!(overlap.contains("bad safetensors header") && overlap.contains('b'), "{overlap}");
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny().join("sharded")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("the shard `model-00002-of-00002.safetensors` is missing"), "{error}");

    let index = json!({ "weight_map": { "w": "../outside.safetensors" } });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let error = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`weight_map` names no file beside it for `w`"), "{error}");
}

#[test]
fn weights_of_another_model_are_refused_with_both_shapes() {
    let weights = Weights::open(&tiny()).unwrap();
    let error = weights.check(&config(json!({ "intermediate_size": 171 })).unwrap()).unwrap_err().to_string();
    assert!(
        error.contains("[172, 64]") && error.contains("[171, 64]") && error.contains("gate_proj"),
        "{error}"
    );
    let error = weights.check(&config(json!({ "num_hidden_layers": 5 })).unwrap()).unwrap_err().to_string();
    assert!(
        error.contains("`model.layers.4.input_layernorm.weight`") && error.contains("missing"),
        "{error}"
    );
    let error = weights.check(&config(json!({ "num_hidden_layers": 3 })).unwrap()).unwrap_err().to_string();
    assert!(error.contains("no place") && error.contains("model.layers.3."), "{error}");
}

#[test]
fn a_folder_of_pickled_weights_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    let error = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("pickled"), "{error}");
}

#[test]
fn a_bad_row_is_named_by_its_number_and_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.json");
    let error = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read_rows(&path).unwrap_err().to_string()
    };
    let good = r#"{"instruction": "a", "input": "", "output": "b"}"#;
    assert!(
        error(&format!(r#"[{good}, {{"input": "x", "output": "y"}}]"#))
            .contains("row 2 has no `instruction`")
    );
    assert!(error(&format!(r#"[{good}, {{"instruction": "x"}}]"#)).contains("row 2 has no `output`"));
    assert!(error(r#"[{"instruction": 5, "output": "y"}]"#).contains("row 1: `instruction` is `5`"));
    assert!(error(&format!("{good}\n{{\"instruction\": \"x\"}}")).contains("line 2 has no `output`"));
    assert!(error("[]").contains("the data set is empty"));
    assert!(error("").contains("the data set is empty"));
    assert!(error("[1]").contains("row 1 is `1`"));
    assert!(error("[{").contains("no JSON list of rows"));
    std::fs::write(&path, b"[\"\xff\"]").unwrap();
    assert!(read_rows(&path).unwrap_err().to_string().contains("not UTF-8 text from byte 2"));
}

#[test]
fn rows_are_read_from_a_list_from_lines_and_from_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let row = r#"{"instruction": "a", "output": "b", "source": 1}"#;
    std::fs::write(dir.path().join("2.jsonl"), format!("{row}\n\n{row}\n")).unwrap();
    std::fs::write(dir.path().join("1.json"), format!("\u{feff}[{row}]")).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "no rows").unwrap();
    let rows = read_rows(dir.path()).unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.input.is_empty() && row.output == "b"));
    let empty = tempfile::tempdir().unwrap();
    assert!(read_rows(empty.path()).unwrap_err().to_string().contains("no `.json` file"));
}
