//! Which weights a config asks for, under which names, and how many parameters they are.

use super::LlamaConfig;

/// The seven projections of a block and the module that holds each, in the order of computation.
pub const PROJECTIONS: [(&str, &str); 7] = [
    ("self_attn", "q_proj"),
    ("self_attn", "k_proj"),
    ("self_attn", "v_proj"),
    ("self_attn", "o_proj"),
    ("mlp", "gate_proj"),
    ("mlp", "up_proj"),
    ("mlp", "down_proj"),
];

impl LlamaConfig {
    /// Every weight: its name on disk and its shape, in the order of computation.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let at = |part: &str| format!("model.layers.{layer}.{part}");
            tensors.push((at("input_layernorm.weight"), vec![hidden]));
            for (module, projection) in PROJECTIONS {
                if module == "mlp" && projection == "gate_proj" {
                    tensors.push((at("post_attention_layernorm.weight"), vec![hidden]));
                }
                let [out, inner] = self.shape_of(projection);
                tensors.push((at(&format!("{module}.{projection}.weight")), vec![out, inner]));
                if self.has_bias(projection) {
                    tensors.push((at(&format!("{module}.{projection}.bias")), vec![out]));
                }
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }

    /// The module paths of the linear layers in the blocks: `model.layers.0.self_attn.q_proj`, ….
    #[must_use]
    pub fn linear_names(&self) -> Vec<String> {
        let layers = 0..self.num_hidden_layers;
        layers
            .flat_map(|layer| {
                PROJECTIONS.map(|(module, name)| format!("model.layers.{layer}.{module}.{name}"))
            })
            .collect()
    }

    /// The shape `[out, in]` of a projection given by its name (`q_proj`) or its module path.
    #[must_use]
    pub fn linear_shape(&self, projection: &str) -> Option<[usize; 2]> {
        let name = projection.rsplit('.').next()?;
        PROJECTIONS.iter().any(|(_, known)| *known == name).then(|| self.shape_of(name))
    }

    fn shape_of(&self, projection: &str) -> [usize; 2] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) =
            (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        match projection {
            "q_proj" => [queries, hidden],
            "k_proj" | "v_proj" => [keys, hidden],
            "o_proj" => [hidden, queries],
            "down_proj" => [hidden, inner],
            _ => [inner, hidden],
        }
    }

    fn has_bias(&self, projection: &str) -> bool {
        match projection {
            "q_proj" | "k_proj" | "v_proj" => self.qkv_bias,
            "o_proj" => self.o_bias,
            _ => self.mlp_bias,
        }
    }

    /// How many parameters the model has; a tied head counts once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// How many parameters an adapter on the projections `targets` trains: r·(in + out) a linear
    /// layer, and `out` more with DoRA's magnitude.
    #[must_use]
    pub fn adapter_parameters(&self, rank: usize, targets: &[String], dora: bool) -> u64 {
        let per_layer: u64 = PROJECTIONS
            .iter()
            .filter(|(_, name)| targets.iter().any(|target| target == name))
            .map(|(_, name)| {
                let [out, inner] = self.shape_of(name).map(|n| n as u64);
                rank as u64 * (out + inner) + if dora { out } else { 0 }
            })
            .sum();
        per_layer * self.num_hidden_layers as u64
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    pub(crate) fn llama_2_7b() -> LlamaConfig {
        let text = r#"{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
            "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}"#;
        LlamaConfig::parse(text, Path::new("config.json")).unwrap()
    }

    #[test]
    fn llama_2_7b_has_as_many_parameters_as_its_name_says() {
        assert_eq!(llama_2_7b().parameters(), 6_738_415_616);
    }

    #[test]
    fn rank_64_on_all_projections_of_llama_2_7b_trains_as_many_parameters_as_peft_says() {
        let targets: Vec<String> = PROJECTIONS.iter().map(|(_, name)| (*name).to_owned()).collect();
        assert_eq!(llama_2_7b().adapter_parameters(64, &targets, false), 159_907_840);
        assert_eq!(llama_2_7b().adapter_parameters(64, &targets, true), 161_267_712);
    }

    #[test]
    fn every_linear_layer_has_a_weight_of_its_shape() {
        let config = llama_2_7b();
        let tensors: std::collections::HashMap<_, _> = config.tensors().into_iter().collect();
        for name in config.linear_names() {
            let shape = config.linear_shape(&name).unwrap();
            assert_eq!(tensors[&format!("{name}.weight")], shape, "{name}");
        }
        assert_eq!(config.linear_shape("lm_head"), None);
    }
}
