//! Rotary position embedding (Su et al., arXiv 2104.09864) in Hugging Face's half-split layout:
//! channel k of a head turns together with channel k + d/2 by the angle position · θ^(−2k/d).
//!
//! Scaling of the frequencies is a property of the tables alone: `linear` (Chen et al., arXiv
//! 2306.15595) and `llama3` (transformers `modeling_rope_utils.py`, `_compute_llama3_parameters`).

use burn::tensor::{Device, Int, Tensor, TensorData};
use formats::config::{LlamaConfig, RopeScaling};

use crate::fused;

/// The frequencies of a model's channels.
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[head_dim/2]`, radians a position
    frequencies: Vec<f64>,
}

impl Rope {
    /// The frequencies that a config asks for.
    #[must_use]
    pub fn new(config: &LlamaConfig) -> Self {
        Self { frequencies: frequencies(config) }
    }

    /// Cosine and sine of `length` positions from `start`, computed in f64 on the host.
    #[must_use]
    pub fn part(&self, start: usize, length: usize, device: &Device) -> RopePart {
        let (half, dim) = (self.frequencies.len(), 2 * self.frequencies.len());
        let (mut cos, mut sin) = (vec![0.0f32; length * dim], vec![0.0f32; length * dim]);
        for (row, position) in (start..start + length).enumerate() {
            for (k, frequency) in self.frequencies.iter().enumerate() {
                let (s, c) = (position as f64 * frequency).sin_cos();
                let at = row * dim + k;
                (cos[at], cos[at + half]) = (c as f32, c as f32);
                (sin[at], sin[at + half]) = (-s as f32, s as f32);
            }
        }
        let table = |values| Tensor::from_data(TensorData::new(values, [1, length, 1, dim]), device);
        RopePart { cos: table(cos), sin: table(sin) }
    }
}

/// The tables of the positions at hand, `[batch or 1, time, 1, head_dim]`.
#[derive(Clone, Debug)]
pub struct RopePart {
    /// Both halves alike.
    cos: Tensor<4>,
    /// The first half negated.
    sin: Tensor<4>,
}

impl RopePart {
    /// The tables of other positions, each below the number of those at hand: `[rows·time]` →
    /// `[rows, time, 1, head_dim]`.
    #[must_use]
    pub fn at(&self, positions: Tensor<1, Int>, rows: usize) -> Self {
        let time = positions.dims()[0] / rows.max(1);
        let pick = |table: &Tensor<4>| {
            let [_, length, _, dim] = table.dims();
            let table = table.clone().reshape([length, dim]).select(0, positions.clone());
            table.reshape([rows, time, 1, dim])
        };
        Self { cos: pick(&self.cos), sin: pick(&self.sin) }
    }

    /// Cosine and sine, `[batch or 1, time, 1, head_dim]`.
    #[must_use]
    pub fn tables(&self) -> [Tensor<4>; 2] {
        [self.cos.clone(), self.sin.clone()]
    }

    /// Turns every head by its position, times `scale`, and moves the heads in front of time: see
    /// [`fused::turn`].
    ///
    /// # Shapes
    /// x `[batch, time, heads, head_dim]` → `[batch, heads, time, head_dim]`
    #[must_use]
    pub fn turn(&self, x: Tensor<4>, scale: f64) -> Tensor<4> {
        fused::turn(x, self.tables(), scale)
    }
}

/// θ^(−2k/d) for k < d/2, scaled as the config says.
#[must_use]
pub fn frequencies(config: &LlamaConfig) -> Vec<f64> {
    let dim = config.head_dim;
    let plain = (0..dim / 2).map(|k| config.rope_theta.powf(-2.0 * k as f64 / dim as f64));
    match &config.rope_scaling {
        None => plain.collect(),
        Some(RopeScaling::Linear { factor }) => plain.map(|frequency| frequency / factor).collect(),
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => {
            let original = *original_max_position_embeddings as f64;
            plain
                .map(|frequency| {
                    let turns = original * frequency / std::f64::consts::TAU;
                    let smooth =
                        ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                })
                .collect()
        }
    }
}
