//! Low-rank adapters on a linear layer, in the layout of PEFT: A `[r, in]`, B `[out, r]`, s = α/r
//! (rsLoRA: α/√r), and for DoRA a magnitude m `[out]`.
//!
//! Each kind is a type with `from_base`, `forward` and `fuse`: [`Lora`] (Hu et al., arXiv
//! 2106.09685) and [`Dora`] (Liu et al., arXiv 2402.09353). Here is what they share: fresh values
//! from a seed, dropout, and the row norms of W + sBA computed without ever forming it.
//! None of it knows the model around the layer or how adapters are trained.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use formats::adapter::{AdapterConfig, AdapterTensors};

use crate::batch::SplitMix64;
use crate::model::Visitor;
use crate::model::linear::Base;
use crate::sum::total;

pub mod dora;
pub mod lora;

pub use dora::Dora;
pub use lora::Lora;

/// One adapter on a device.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has few of these, each beside far larger weights")]
pub enum Adapter {
    /// y = Wx + s·B(Ax)
    Lora(Lora),
    /// y = g·(Wx + s·B(Ax)), g = m/‖W + sBA‖
    Dora(Dora),
}

impl Adapter {
    /// An adapter with the given values on a base whose row norms are `base_norm`.
    #[must_use]
    pub fn from_base(
        base_norm: &[f32],
        config: &AdapterConfig,
        tensors: &AdapterTensors,
        stream: u64,
        device: &Device,
    ) -> Self {
        let lora = Lora::from_base(base_norm, config, tensors, stream, device);
        match &tensors.magnitude {
            None => Self::Lora(lora),
            Some(magnitude) => Self::Dora(Dora::from_base(lora, magnitude, device)),
        }
    }

    /// # Shapes
    /// x `[n, in]` → `[n, out]`, bias not added
    #[must_use]
    pub fn forward(&self, base: &Base, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Lora(lora) => lora.forward(base, x),
            Self::Dora(dora) => dora.forward(base, x),
        }
    }

    /// Shows A, B and m under PEFT's keys for the module at `path`.
    pub fn visit(&mut self, path: &str, visitor: &mut dyn Visitor) {
        let lora = match self {
            Self::Lora(lora) => lora,
            Self::Dora(dora) => &mut dora.lora,
        };
        visitor.matrix(&format!("base_model.model.{path}.lora_A.weight"), &mut lora.a);
        visitor.matrix(&format!("base_model.model.{path}.lora_B.weight"), &mut lora.b);
        if let Self::Dora(dora) = self {
            visitor.vector(&format!("base_model.model.{path}.lora_magnitude_vector"), &mut dora.magnitude);
        }
    }

    /// Recomputes what depends on A and B alone. To be called once after they changed.
    pub fn refresh(&mut self, base: &Base) {
        if let Self::Dora(dora) = self {
            dora.refresh(base);
        }
    }

    /// Switches dropout on under a key (same key, same mask) or off.
    pub fn dropout(&mut self, key: Option<u64>) {
        match self {
            Self::Lora(lora) => lora.dropout.key = key,
            Self::Dora(dora) => dora.lora.dropout.key = key,
        }
    }

    /// ΔM and ΔD of the paper's equations 3 and 4 as they stand now, each `[1]`: mean over rows of
    /// |m′ − m₀| and of 1 − cos(V′, W₀).
    #[must_use]
    pub fn movement(&self, base: &Base) -> [Tensor<1>; 2] {
        let (lora, terms) = match self {
            Self::Lora(lora) => (lora, lora.terms(base)),
            Self::Dora(dora) => (&dora.lora, dora.terms.clone()),
        };
        let norm = terms.norm(&lora.base_norm, lora.scale);
        let turned = terms.one_minus_cosine(&lora.base_norm, &norm, lora.scale);
        let magnitude = match self {
            Self::Lora(_) => norm,
            Self::Dora(dora) => dora.magnitude.clone().inner(),
        };
        let rows = lora.base_norm.dims()[0] as f64;
        [(magnitude - lora.base_norm.clone()).abs(), turned].map(|moved| total(moved) / rows)
    }
}

/// What the row norms of V′ = W + sBA and its angles to W need, each `[out]`, f32:
/// c = rowsum(U∘B) with U = W·Aᵀ, and g = rowsum((B·AAᵀ)∘B). From "Scaling DoRA", arXiv 2603.22276.
#[derive(Clone, Debug)]
pub struct Terms {
    /// ⟨W, BA⟩ by row.
    pub c: Tensor<1>,
    /// ‖BA‖² by row.
    pub g: Tensor<1>,
}

impl Terms {
    /// Never forms a matrix of `[out, in]` beyond the base itself.
    #[must_use]
    pub fn new(base: &Base, a: &Tensor<2>, b: &Tensor<2>) -> Self {
        let (a, b) = (a.clone().inner(), b.clone().inner());
        let u = base.product(a.clone()).transpose();
        let gram = a.clone().matmul(a.transpose());
        Self {
            c: (u * b.clone()).sum_dim(1).squeeze_dim(1),
            g: (b.clone().matmul(gram) * b).sum_dim(1).squeeze_dim(1),
        }
    }

    /// n = ‖V′‖ = n₀·√(1 + (2s·c + s²·g)/n₀²): exactly n₀ where B is 0.
    ///
    /// # Shapes
    /// base_norm `[out]` → `[out]`
    #[must_use]
    pub fn norm(&self, base_norm: &Tensor<1>, scale: f64) -> Tensor<1> {
        let change = (self.c.clone() * (2.0 * scale) + self.g.clone() * (scale * scale))
            / base_norm.clone().square().clamp_min(f64::from(f32::MIN_POSITIVE));
        base_norm.clone() * (change + 1.0).clamp_min(0.0).sqrt()
    }

    /// 1 − cos(V′, W) without cancellation: sin² = s²(g·n₀² − c²)/(n₀²n²), 1 − cos = sin²/(1 + cos).
    ///
    /// # Shapes
    /// base_norm, norm `[out]` → `[out]`
    #[must_use]
    pub fn one_minus_cosine(&self, base_norm: &Tensor<1>, norm: &Tensor<1>, scale: f64) -> Tensor<1> {
        let n0 = base_norm.clone();
        let tiny = f64::from(f32::MIN_POSITIVE);
        let product = (n0.clone() * norm.clone()).clamp_min(tiny);
        let cosine = (n0.clone().square() + self.c.clone() * scale) / product.clone();
        let spread = (self.g.clone() * n0.square() - self.c.clone().square()).clamp_min(0.0).sqrt() * scale;
        (spread / product).square() / (cosine + 1.0).clamp_min(tiny)
    }
}

/// Inverted dropout in front of an adapter. The mask is a function of (key, layer, position), made
/// on the host: re-running a block in backward, or on another device, sees the same one.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability of a zero.
    pub probability: f64,
    /// Which layer this is.
    pub stream: u64,
    /// What changes from step to step; `None` switches it off.
    pub key: Option<u64>,
}

impl Dropout {
    /// Whether it does anything now.
    #[must_use]
    pub fn active(&self) -> bool {
        self.key.is_some() && self.probability > 0.0
    }

    /// x with a share of its elements zeroed and the rest scaled up.
    ///
    /// # Shapes
    /// x `[n, in]`, the same back
    #[must_use]
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(key) = self.key.filter(|_| self.probability > 0.0) else {
            return x;
        };
        let shape = x.dims();
        let mut random = SplitMix64(SplitMix64(key).next() ^ self.stream);
        let kept = (1.0 / (1.0 - self.probability)) as f32;
        let mask: Vec<f32> = (0..shape[0] * shape[1])
            .map(|_| if unit(&mut random) < self.probability { 0.0 } else { kept })
            .collect();
        let (device, dtype) = (x.device().inner(), x.dtype());
        x * Tensor::from_data(TensorData::new(mask, shape), (&device, dtype))
    }
}

/// Uniform in [0, 1).
fn unit(random: &mut SplitMix64) -> f64 {
    (random.next() >> 11) as f64 / (1u64 << 53) as f64
}

/// FNV-1a: gives every module its own random stream, whatever else is adapted.
#[must_use]
pub fn stream(module: &str) -> u64 {
    module
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A fresh adapter for one module, as PEFT starts it: A kaiming-uniform with a = √5, which is
/// uniform in ±1/√in; B = 0; m = the row norms of the base as trained.
#[must_use]
pub fn fresh_module(
    config: &AdapterConfig,
    module: &str,
    [out, inner]: [usize; 2],
    base_norm: &[f32],
    seed: u64,
) -> AdapterTensors {
    let mut random = SplitMix64(SplitMix64(seed).next() ^ stream(module));
    let bound = (inner as f64).powf(-0.5);
    AdapterTensors {
        in_features: inner,
        out_features: out,
        a: (0..config.rank * inner).map(|_| ((2.0 * unit(&mut random) - 1.0) * bound) as f32).collect(),
        b: vec![0.0; out * config.rank],
        magnitude: config.dora.then(|| base_norm.to_vec()),
    }
}

/// L2 norm of every row of a matrix with rows of `columns`, summed in f64.
#[must_use]
pub fn row_norms(weight: &[f32], columns: usize) -> Vec<f32> {
    use rayon::prelude::*;
    weight
        .par_chunks(columns)
        .map(|row| row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt() as f32)
        .collect()
}

/// Adds an adapter to a weight on the host: LoRA W + sBA, DoRA (m/‖W + sBA‖)·(W + sBA).
pub fn fuse(weight: &mut [f32], config: &AdapterConfig, tensors: &AdapterTensors) {
    lora::fuse(weight, config, tensors);
    if let Some(magnitude) = &tensors.magnitude {
        dora::rescale(weight, tensors.in_features, magnitude);
    }
}

/// Modules of an adapter by path, as `formats` holds them.
pub type Modules = BTreeMap<String, AdapterTensors>;
