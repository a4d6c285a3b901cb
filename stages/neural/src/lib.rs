//! Stage kinds that need a tensor backend: `train`, `merge`, `evaluate`.
//!
//! * [`device`]: opening adapters; the only file that names wgpu.
//! * [`model`]: the Llama family, from a model folder; [`nf4_linear`]: products with NF4 weights.
//! * [`adapter`]: LoRA and DoRA on a linear layer.
pub mod adapter;
pub mod batch;
pub mod device;
pub mod model;
pub mod nf4_linear;
