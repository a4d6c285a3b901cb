//! What a device cannot hold or compute is refused before the first kernel, by name.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod common;

use std::path::Path;

use burn::tensor::DType;
use formats::config::LlamaConfig;
use formats::weights::{self, Stored, Tensor};
use neural::device;
use neural::model::Llama;

/// A Llama of one narrow layer whose embedding has `vocab` rows of 128, all zero, in bfloat16.
fn write_wide(dir: &Path, vocab: usize) {
    let text = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": 128, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    });
    let config = LlamaConfig::parse(&text.to_string(), &dir.join("config.json")).unwrap();
    config.write(dir).unwrap();
    let tensors = config.tensors().into_iter().map(|(name, shape)| {
        let data = vec![0u8; 2 * shape.iter().product::<usize>()].into();
        Tensor { name, dtype: Stored::BF16, shape, data }
    });
    weights::save(&dir.join("model.safetensors"), tensors.collect(), &[]).unwrap();
}

#[test]
fn a_tensor_beyond_the_adapters_binding_limit_is_named_with_both_sizes() {
    let Some(wgpu) = common::wgpu() else { return };
    let limit = device::binding_bytes(&wgpu);
    if limit > 1 << 30 {
        eprintln!("SKIPPED: this adapter binds {limit} bytes; a test file beyond that is too large");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rows = usize::try_from(limit).unwrap() / (4 * 128) + 1;
    write_wide(dir.path(), rows);
    let error = Llama::load(dir.path(), &wgpu).unwrap_err();
    let bytes = (rows * 128 * 4).to_string();
    assert!(error.message.contains("model.embed_tokens.weight"), "{error}");
    assert!(error.message.contains(&bytes) && error.message.contains(&limit.to_string()), "{error}");
    assert!(error.hint.unwrap().contains("cpu"));
    // in 16 bit it is half as large, and the processor has no such limit
    Llama::load_frozen(dir.path(), &wgpu, DType::F16).unwrap();
    Llama::load(dir.path(), &burn::tensor::Device::flex()).unwrap();
}

#[test]
fn an_element_type_that_the_device_lacks_is_refused_with_those_it_has() {
    let Some(wgpu) = common::wgpu() else { return };
    if wgpu.supports_dtype(DType::BF16) {
        eprintln!("SKIPPED: this adapter computes in bfloat16");
        return;
    }
    let error = Llama::load_frozen(&common::fixtures().join("tiny-llama"), &wgpu, DType::BF16).unwrap_err();
    assert!(error.message.contains("BF16") && error.message.contains("f32"), "{error}");
    assert!(error.hint.unwrap().contains("compute_dtype"));
}
