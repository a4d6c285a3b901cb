//! The Llama family on a device: `rope`, `attention`, `mlp`, `norm` and `linear` make a block,
//! `llama` makes the model of a folder.
//!
//! Weights and activations are in the compute type of the [`Llama`]: f32, f16 or bf16. What is
//! trained (adapters, magnitudes, or the whole model) is f32 whatever that is, and cast where it is
//! used; norms, softmax and the loss are computed in f32, as transformers does.
//! None of it knows files of training, losses or optimizers.

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

/// Sees every trainable tensor of a model in a fixed order, under its name on disk: PEFT's key for
/// adapters (`base_model.model.….lora_A.weight`), the HF name for whole models.
pub trait Visitor {
    /// A matrix.
    fn matrix(&mut self, name: &str, tensor: &mut burn::tensor::Tensor<2>);
    /// A vector.
    fn vector(&mut self, name: &str, tensor: &mut burn::tensor::Tensor<1>);
}
