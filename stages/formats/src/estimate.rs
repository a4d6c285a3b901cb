//! How much memory training takes on each device: a function of `config.json` and a few settings, so
//! that it is known before the first weight is read.
//!
//! It counts what `neural` keeps at its peak, the backward pass of one micro-batch: weights in their
//! format, what is trained with its gradient and moments in f32, the activations that backward needs
//! (of every block, or with `checkpointing` of one, and all blocks' inputs), the attention of one chunk of
//! tokens, the logits of one chunk of rows, and the largest weight dequantized or cast.
//! It does not know devices.

use crate::config::{Format, LlamaConfig, PROJECTIONS};
use crate::run::Method;

/// What decides on memory beside the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// What is trained.
    pub method: Method,
    /// r of the adapter.
    pub rank: usize,
    /// Projections that get one.
    pub targets: Vec<String>,
    /// What the linear weights lie in, where they are quantized.
    pub packed: Option<Format>,
    /// Bytes of an activation and of a frozen weight: 4 or 2.
    pub element: u64,
    /// Rows of a micro-batch.
    pub rows: u64,
    /// Tokens of the longest row, padding included.
    pub length: u64,
    /// Keep block inputs only.
    pub checkpointing: bool,
    /// Devices that share a batch: with more than one the moments lie on the host.
    pub devices: u64,
    /// Or, with ZeRO-1, on the devices, each its share.
    pub zero: bool,
    /// Whether norms, SwiGLU, attention and cross entropy are fused operations that keep only their
    /// inputs: so on the CPU backend.
    pub fused: bool,
}

/// Bytes on one device, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Frozen weights.
    pub base: u64,
    /// Trained parameters, f32.
    pub trained: u64,
    /// Their gradients, and what summing and clipping them takes.
    pub gradients: u64,
    /// Adam's moments; 0 where they lie on the host.
    pub moments: u64,
    /// What forward keeps for backward, and the gradients of the block at work.
    pub activations: u64,
    /// Weights of the attention of one chunk of tokens with their temporaries; 0 where it is fused.
    pub attention: u64,
    /// Logits of one chunk with its temporaries, hidden states of the head.
    pub logits: u64,
    /// A weight dequantized for one product, and its transpose.
    pub temporary: u64,
}

/// Weights of the attention of one chunk; as in `neural::chunked_attention`.
const WEIGHTS: u64 = 32 << 20;

/// Elements of the logits of one chunk, and how many tensors of them there are at a time; as in
/// `neural::loss`.
const LOGITS: (u64, u64) = (8 << 20, 3);

/// The same of the fused operation; as in `neural::cpu::loss`.
const FUSED_LOGITS: (u64, u64) = (32 << 20, 1);

impl Estimate {
    /// For a model and settings.
    #[must_use]
    pub fn new(config: &LlamaConfig, training: &Training) -> Self {
        let all = config.parameters();
        let linear = linear_parameters(config);
        let full = training.method == Method::Full;
        let trained = match training.method {
            Method::Full => all,
            method => config.adapter_parameters(training.rank, &training.targets, method == Method::Dora),
        };
        let packed = match training.packed {
            // four bits, and an f32 scale for 64 weights
            Some(Format::Nf4 { .. }) => linear / 2 + linear / 16,
            // eight bits; the f32 scale of a row is next to nothing
            Some(Format::Int8) => linear,
            None => linear * training.element,
        };
        let base = if full { 0 } else { packed + (all - linear) * training.element };
        let copies = if training.fused { 1 } else { 2 };
        let blocks = config.num_hidden_layers as u64;
        let (largest, cast) = (largest_linear(config), full && training.element < 4);
        Self {
            base,
            trained: trained * 4 * copies,
            // of each tensor and joined to vectors, of two micro-batches while they are summed
            gradients: trained * 8,
            moments: match (training.devices, training.zero) {
                (0 | 1, _) => trained * 8,
                (_, false) => 0,
                // with the parameters that they belong to
                (devices, true) => trained * 12 / devices,
            },
            activations: activations(config, training, blocks),
            attention: attention(config, training),
            logits: logits(config, training),
            temporary: match training.packed {
                Some(_) if !full => largest * (4 + 2 * training.element),
                _ if cast => largest * (4 + 2 * training.element),
                _ => 0,
            },
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.base
            + self.trained
            + self.gradients
            + self.moments
            + self.activations
            + self.attention
            + self.logits
            + self.temporary
    }

    /// Its parts by name, largest first, the empty ones left out.
    #[must_use]
    pub fn parts(&self) -> Vec<(&'static str, u64)> {
        let mut parts = vec![
            ("base weights", self.base),
            ("trained parameters", self.trained),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("attention", self.attention),
            ("logits", self.logits),
            ("dequantized weights", self.temporary),
        ];
        parts.retain(|(_, bytes)| *bytes > 0);
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        parts
    }
}

impl Training {
    /// What would make it smaller, each on its own and then together: what to write, and the training.
    #[must_use]
    pub fn smaller(&self) -> Vec<(String, Self)> {
        let mut ways: Vec<(String, Self)> = Vec::new();
        let mut all = (Vec::new(), self.clone());
        let mut way = |text: String, change: &dyn Fn(&mut Self)| {
            let mut one = self.clone();
            change(&mut one);
            change(&mut all.1);
            all.0.push(text.clone());
            ways.push((text, one));
        };
        if !self.checkpointing {
            way("`checkpointing = true`".into(), &|training| training.checkpointing = true);
        }
        if self.rows > 1 {
            way("`batch_size = 1`".into(), &|training| training.rows = 1);
        }
        if self.length > 256 {
            let length = self.length / 2;
            way(format!("`cutoff = {length}` in the tokenize stage"), &|training| training.length = length);
        }
        if self.method == Method::Full {
            way("`method = \"dora\"`".into(), &|training| training.method = Method::Dora);
        } else if !matches!(self.packed, Some(Format::Nf4 { .. })) {
            let nf4 = Some(Format::Nf4 { double: false });
            way("an NF4 base from a `quantize` stage".into(), &|training| training.packed = nf4);
        }
        if ways.len() > 1 {
            ways.push((all.0.join(" with "), all.1));
        }
        ways
    }
}

/// `13.5 GB`, `820 MB`: powers of ten, as the sizes of model files.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let mega = bytes as f64 / 1e6;
    if mega >= 999.5 { format!("{:.1} GB", mega / 1e3) } else { format!("{mega:.0} MB") }
}

fn linear_parameters(config: &LlamaConfig) -> u64 {
    let shapes = PROJECTIONS.iter().filter_map(|(_, name)| config.linear_shape(name));
    shapes.map(|[out, inner]| (out * inner) as u64).sum::<u64>() * config.num_hidden_layers as u64
}

fn largest_linear(config: &LlamaConfig) -> u64 {
    let shapes = PROJECTIONS.iter().filter_map(|(_, name)| config.linear_shape(name));
    shapes.map(|[out, inner]| (out * inner) as u64).max().unwrap_or(0)
}

/// Bytes that forward keeps of one token in one block.
fn block_token(config: &LlamaConfig, training: &Training) -> u64 {
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let queries = (config.num_attention_heads * config.head_dim) as u64;
    let keys = (config.num_key_value_heads * config.head_dim) as u64;
    let e = training.element;
    let fused = training.fused && e == 4;
    let heads = config.num_attention_heads as u64;
    // inputs of both norms, their outputs, what the attention gives
    let mut bytes = e * (4 * hidden + queries);
    bytes += if fused {
        // q, k, v; a row's maximum and norm
        e * (queries + 2 * keys) + 8 * heads
    } else {
        // q and k before and after they are turned and scaled, v
        e * (2 * queries + 3 * keys)
    };
    bytes += if fused {
        e * 3 * inner
    } else {
        // the norms in f32; gate, sigmoid, silu, up and their product
        4 * 4 * hidden + e * 5 * inner
    };
    if training.method != Method::Full {
        for (_, name) in PROJECTIONS {
            if !training.targets.iter().any(|target| target == name) {
                continue;
            }
            let out = config.linear_shape(name).map_or(0, |[out, _]| out as u64);
            bytes += e * 2 * training.rank as u64;
            if training.method == Method::Dora {
                bytes += 4 * out;
            }
        }
    }
    bytes
}

fn activations(config: &LlamaConfig, training: &Training, blocks: u64) -> u64 {
    let tokens = training.rows * training.length;
    let block = tokens * block_token(config, training);
    let kept = if training.checkpointing {
        block + blocks * tokens * config.hidden_size as u64 * training.element
    } else {
        blocks * block
    };
    // the gradients that travel through the MLP of the block at work
    let travelling = tokens * training.element * 4 * config.intermediate_size as u64;
    kept + travelling
}

fn attention(config: &LlamaConfig, training: &Training) -> u64 {
    let e = training.element;
    if training.fused && e == 4 {
        return 0;
    }
    let token = training.rows * config.num_attention_heads as u64 * training.length;
    let chunk = token * (WEIGHTS / token.max(1)).clamp(1, training.length);
    // in f32 the weights, their gradient, the product of both and the scores'; and what of it is cast
    chunk * (4 * 4 + if e < 4 { 2 * e } else { 0 })
}

fn logits(config: &LlamaConfig, training: &Training) -> u64 {
    let vocab = config.vocab_size as u64;
    let tokens = training.rows * training.length;
    let fused = training.fused && training.element == 4;
    let (elements, tensors) = if fused { FUSED_LOGITS } else { LOGITS };
    let rows = (elements / vocab).max(1).min(tokens);
    let chunk = rows * vocab * 4 * tensors;
    let hidden = tokens * config.hidden_size as u64 * training.element * 3;
    chunk + hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::shapes::tests::llama_2_7b;

    /// The recipe of `pipelines/alpaca_dora.toml` on one of its four devices.
    fn recipe() -> Training {
        Training {
            method: Method::Dora,
            rank: 64,
            targets: PROJECTIONS.iter().map(|(_, name)| (*name).to_owned()).collect(),
            packed: Some(Format::Nf4 { double: false }),
            element: 2,
            rows: 4,
            length: 512,
            checkpointing: true,
            devices: 4,
            zero: false,
            fused: false,
        }
    }

    #[test]
    fn parts_of_the_recipe_are_what_they_are_by_hand() {
        let config = llama_2_7b();
        let estimate = Estimate::new(&config, &recipe());
        // 6,476,005,376 linear weights at 4.5 bits, 262,410,240 others at 16
        assert_eq!(estimate.base, 6_476_005_376 / 16 * 9 + 262_410_240 * 2);
        assert_eq!(estimate.trained, 161_267_712 * 8);
        assert_eq!(estimate.moments, 0);
        assert_eq!(Estimate::new(&config, &Training { devices: 1, ..recipe() }).moments, 161_267_712 * 8);
        let shared = Estimate::new(&config, &Training { zero: true, ..recipe() });
        assert_eq!(shared.moments, 161_267_712 * 3);
        assert_eq!(estimate.total(), estimate.parts().iter().map(|(_, bytes)| bytes).sum::<u64>());
    }

    #[test]
    fn the_recipe_fits_24_gb_with_checkpointing_and_not_without() {
        let (config, recipe) = (llama_2_7b(), recipe());
        assert!(Estimate::new(&config, &recipe).total() < 16_000_000_000);
        let without = Training { checkpointing: false, ..recipe.clone() };
        assert!(Estimate::new(&config, &without).total() > 24_000_000_000);
        let full = Training { method: Method::Full, devices: 1, ..recipe };
        assert!(Estimate::new(&config, &full).total() > 100_000_000_000);
    }

    #[test]
    fn every_way_to_make_it_smaller_does() {
        let config = llama_2_7b();
        let large = Training { checkpointing: false, packed: None, ..recipe() };
        let before = Estimate::new(&config, &large).total();
        let ways = large.smaller();
        assert_eq!(ways.len(), 5);
        for (text, training) in &ways {
            assert!(Estimate::new(&config, training).total() < before, "{text}");
        }
        let least = Estimate::new(&config, &ways[4].1).total();
        assert!(ways[..4].iter().all(|(_, one)| Estimate::new(&config, one).total() > least));
        assert!(recipe().smaller().iter().all(|(text, _)| !text.contains("checkpointing")));
    }

    #[test]
    fn sizes_are_told_in_powers_of_ten() {
        assert_eq!(
            [bytes(13_476_831_232), bytes(820_400_000), bytes(999_600_000)],
            ["13.5 GB", "820 MB", "1.0 GB"]
        );
    }
}
