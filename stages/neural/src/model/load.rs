//! From a model folder to a [`Llama`]: float or quantized, every tensor checked against `config.json`
//! before the first goes to the device.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use contract::StageError;
use formats::config::LlamaConfig;
use formats::packed::Packed;
use formats::weights::{self, Weights};

use super::attention::Attention;
use super::linear::{Base, Linear};
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::{Block, Llama};
use crate::adapter::row_norms;
use crate::packed_linear::PackedWeight;

impl Llama {
    /// The model of a folder in f32; quantized weights stay packed.
    ///
    /// # Errors
    /// If the folder lacks a tensor, a shape does not fit, or a tensor is too large for the device.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, StageError> {
        Self::load_frozen(dir, device, DType::F32)
    }

    /// The same with weights and activations in `compute`.
    ///
    /// # Errors
    /// As for [`Llama::load`], and if the device cannot compute so.
    pub fn load_frozen(dir: &Path, device: &Device, compute: DType) -> Result<Self, StageError> {
        Loader::open(dir, device, compute, false)?.model()
    }

    /// The model of a folder to train the whole of it: all weights as f32, activations in `compute`.
    ///
    /// # Errors
    /// As for [`Llama::load_frozen`].
    pub fn load_trained(dir: &Path, device: &Device, compute: DType) -> Result<Self, StageError> {
        Loader::open(dir, device, compute, true)?.model()
    }
}

struct Loader<'a> {
    config: LlamaConfig,
    weights: Weights,
    device: &'a Device,
    compute: DType,
    /// The whole model: nothing packed, nothing in 16 bit.
    trained: bool,
    limit: u64,
}

impl<'a> Loader<'a> {
    fn open(dir: &Path, device: &'a Device, compute: DType, trained: bool) -> Result<Self, StageError> {
        crate::device::check_dtype(device, compute)?;
        let config = LlamaConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        weights.check(&config)?;
        let limit = crate::device::binding_bytes(device);
        Ok(Self { config, weights, device, compute, trained, limit })
    }

    fn model(self) -> Result<Llama, StageError> {
        let blocks =
            (0..self.config.num_hidden_layers).map(|layer| self.block(layer)).collect::<Result<_, _>>()?;
        let head = if self.config.tie_word_embeddings { None } else { Some(self.matrix("lm_head.weight")?) };
        Ok(Llama {
            embed: self.matrix("model.embed_tokens.weight")?,
            blocks,
            norm: self.norm("model.norm")?,
            head,
            rope: Rope::new(&self.config),
            compute: self.compute,
            device: self.device.clone(),
            config: self.config,
        })
    }

    fn block(&self, layer: usize) -> Result<Block, StageError> {
        let c = &self.config;
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let attention = Attention {
            q: self.linear(at("self_attn.q_proj"), c.qkv_bias)?,
            k: self.linear(at("self_attn.k_proj"), c.qkv_bias)?,
            v: self.linear(at("self_attn.v_proj"), c.qkv_bias)?,
            o: self.linear(at("self_attn.o_proj"), c.o_bias)?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
        };
        let mlp = Mlp {
            gate: self.linear(at("mlp.gate_proj"), c.mlp_bias)?,
            up: self.linear(at("mlp.up_proj"), c.mlp_bias)?,
            down: self.linear(at("mlp.down_proj"), c.mlp_bias)?,
        };
        Ok(Block {
            input_norm: self.norm(&at("input_layernorm"))?,
            attention,
            post_norm: self.norm(&at("post_attention_layernorm"))?,
            mlp,
        })
    }

    fn linear(&self, path: String, bias: bool) -> Result<Linear, StageError> {
        let name = format!("{path}.weight");
        let (base, shape, base_norm) = if Packed::is_quantized(&self.weights, &name) && !self.trained {
            let weight = Packed::read(&self.weights, &name)?;
            let shape = weight.shape();
            let norms = row_norms(&weight.dequantize(), shape[1]);
            self.fits(&name, shape[0] * shape[1])?;
            (Base::Packed(PackedWeight::new(&weight, self.device)), shape, norms)
        } else {
            let (mut values, shape) = weights::linear_f32(&self.weights, &name)?;
            round(&mut values, self.stored());
            let norms = row_norms(&values, shape[1]);
            (Base::Float(self.tensor(&name, values, shape, self.stored())?), shape, norms)
        };
        let bias = if bias { Some(self.vector(&format!("{path}.bias"))?) } else { None };
        Ok(Linear { path, base, bias, adapter: None, shape, base_norm })
    }

    fn norm(&self, path: &str) -> Result<RmsNorm, StageError> {
        let weight = self.vector(&format!("{path}.weight"))?;
        Ok(RmsNorm { weight, epsilon: self.config.rms_norm_eps })
    }

    fn vector(&self, name: &str) -> Result<Tensor<1>, StageError> {
        let values = self.weights.f32(name)?;
        let length = values.len();
        self.tensor(name, values, [length], DType::F32)
    }

    fn matrix(&self, name: &str) -> Result<Tensor<2>, StageError> {
        let shape = self.weights.shape(name)?;
        let &[rows, columns] = shape else {
            return Err(StageError::new(format!("`{name}` has the shape {shape:?} and should be a matrix")));
        };
        self.tensor(name, self.weights.f32(name)?, [rows, columns], self.stored())
    }

    fn tensor<const D: usize>(
        &self,
        name: &str,
        values: Vec<f32>,
        shape: [usize; D],
        dtype: DType,
    ) -> Result<Tensor<D>, StageError> {
        self.fits(name, values.len())?;
        Ok(Tensor::from_data(TensorData::new(values, shape), (self.device, dtype)))
    }

    /// The element type of the large weights.
    fn stored(&self) -> DType {
        if self.trained { DType::F32 } else { self.compute }
    }

    fn fits(&self, name: &str, elements: usize) -> Result<(), StageError> {
        let bytes = elements as u64 * self.stored().size() as u64;
        if bytes > self.limit {
            return Err(StageError::new(format!(
                "`{name}` takes {bytes} bytes on the device, whose largest tensor may have {}",
                self.limit
            ))
            .hint("`device = \"cpu\"` has no such limit"));
        }
        Ok(())
    }
}

/// Rounds values to what the element type can hold: magnitudes start at the norms of the weights as
/// they are computed with.
fn round(values: &mut [f32], dtype: DType) {
    match dtype {
        DType::F16 => values.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
        DType::BF16 => values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
        _ => {}
    }
}
