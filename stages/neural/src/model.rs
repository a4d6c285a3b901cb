//! The Llama family on a device: `rope`, `attention`, `mlp`, `norm` and `linear` make a block,
//! `llama` makes the model of a folder.
//!
//! Everything computes in f32 ([`COMPUTE`] is the one place that says so): adapters, magnitudes and
//! moments must be f32 in any case, and on the CPU backend 16-bit floats are slower.
//! None of it knows files of training, losses or optimizers.

use burn::tensor::DType;

pub mod attention;
pub mod linear;
pub mod llama;
pub mod load;
pub mod mlp;
pub mod norm;
pub mod rope;

pub use attention::Mask;
pub use linear::Linear;
pub use llama::{Block, Llama};

/// The element type of weights and activations on the device.
pub const COMPUTE: DType = DType::F32;

/// Sees every trainable tensor of a model in a fixed order, under its name on disk: PEFT's key for
/// adapters (`base_model.model.….lora_A.weight`), the HF name for whole models.
pub trait Visitor {
    /// A matrix.
    fn matrix(&mut self, name: &str, tensor: &mut burn::tensor::Tensor<2>);
    /// A vector.
    fn vector(&mut self, name: &str, tensor: &mut burn::tensor::Tensor<1>);
}
