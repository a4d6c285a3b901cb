//! Stage kinds that need a tensor backend: `train`, `merge`, `evaluate`.
//!
//! * [`device`]: opening adapters; the only file that names wgpu.
//! * [`model`]: the Llama family, from a model folder; [`adapter`]: LoRA and DoRA on its layers.
//! * [`packed_linear`]: products with quantized weights; [`fused`]: row-wise operations in one pass, on every
//!   backend; [`chunked_attention`]; [`cpu`]: larger operations of the CPU backend.
//! * [`batch`], [`loss`], [`loss_scale`], [`optimizer`], [`schedule`], [`groups`], [`replicas`], [`ranks`], [`slabs`], [`shards`], [`trainer`],
//!   [`state`], [`metrics`], [`tensorboard`], [`watch`], [`sum`]: the parts of training; [`generate`]: greedy generation; [`mod@answer`]: the same for a person.
//! * [`tuned`]: kernels that were chosen by timing, kept beside the checkpoint.
//! * [`mod@train`], [`merge`], [`evaluate`]: the stage kinds, thin: load, call the parts, write.
//!
//! It does not know the graph, the store or other stages: paths in, files out.

use contract::Stage;

pub mod adapter;
pub mod answer;
pub mod batch;
pub mod chunked_attention;
pub mod cpu;
pub mod device;
pub mod evaluate;
pub mod fused;
pub mod generate;
pub mod groups;
pub mod loss;
pub mod loss_scale;
pub mod merge;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod packed_linear;
pub mod ranks;
pub mod replicas;
pub mod schedule;
pub mod shards;
pub mod slabs;
pub mod state;
pub mod sum;
pub mod tensorboard;
pub mod train;
pub mod trainer;
#[cfg_attr(not(feature = "autotune"), path = "untuned.rs")]
pub mod tuned;
pub mod watch;

/// The kinds of this crate.
pub const STAGES: &[&dyn Stage] = &[&train::Train, &merge::Merge, &evaluate::Evaluate];

/// Every adapter of this machine, for `pipe devices`. Opens each one: call it in a child process,
/// because a driver may crash.
#[must_use]
pub fn devices() -> Vec<device::AdapterInfo> {
    device::list()
}
