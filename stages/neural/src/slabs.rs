//! What a model trains, as slabs before the first step: its values, and the factors that go by a tensor's
//! name. The same on every rank.

use burn::tensor::{Device, Tensor, TensorData};
use contract::StageError;

use crate::device;
use crate::groups::{Layout, Leaf};
use crate::optimizer::Slab;
use crate::replicas::Team;

/// What learning rate and weight decay depend on, from tensor to tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate of B over that of A (LoRA+); 1 for the same.
    pub lora_plus: f64,
    /// Whether weights decay: then biases and norms do not.
    pub decay: bool,
}

/// Layouts and slabs of what the team's first replica trains, on its device or on the host.
///
/// # Errors
/// If nothing is trainable, or the device failed.
pub fn of(team: &mut Team, rates: Rates, host: bool) -> Result<(Vec<Layout>, Vec<Slab>), StageError> {
    let groups = team.first(move |replica| {
        let (layouts, values): (Vec<_>, Vec<_>) = replica.groups().into_iter().unzip();
        let values = if host { device::read_all(values)?.into_iter().map(on_host).collect() } else { values };
        Ok((layouts, values))
    });
    let (layouts, values) = groups?;
    if layouts.is_empty() {
        return Err(StageError::new("the model has nothing to train"));
    }
    let slabs = layouts.iter().zip(values).map(|(layout, params)| {
        let mut slab = Slab::new(params);
        let device = slab.params.device();
        slab.scale = scale(layout, rates.lora_plus, &device);
        slab.decay = decay(layout, rates.decay, &device);
        slab
    });
    let slabs = slabs.collect();
    Ok((layouts, slabs))
}

/// The factor of the learning rate for each parameter, if it is not 1 for all.
fn scale(layout: &Layout, lora_plus: f64, device: &Device) -> Option<Tensor<1>> {
    by_leaf(layout, device, |leaf| if leaf.name.contains(".lora_B.") { lora_plus } else { 1.0 })
}

/// The factor of the weight decay for each parameter, if it is not 1 for all: biases and norms have none
/// (transformers `Trainer.get_decay_parameter_names`).
fn decay(layout: &Layout, decays: bool, device: &Device) -> Option<Tensor<1>> {
    let spared = |name: &str| {
        name.ends_with(".bias") || name.ends_with("layernorm.weight") || name == "model.norm.weight"
    };
    let factor = |leaf: &Leaf| if spared(&leaf.name) { 0.0 } else { 1.0 };
    if decays { by_leaf(layout, device, factor) } else { None }
}

/// One factor for all parameters of a leaf; `None` if they are all 1.
fn by_leaf(layout: &Layout, device: &Device, factor: impl Fn(&Leaf) -> f64) -> Option<Tensor<1>> {
    if layout.leaves.iter().all(|leaf| (factor(leaf) - 1.0).abs() < f64::EPSILON) {
        return None;
    }
    let parts = layout.leaves.iter().map(|leaf| Tensor::full([leaf.len()], factor(leaf), device));
    Some(Tensor::cat(parts.collect(), 0))
}

/// A vector on the host.
#[must_use]
pub fn on_host(values: Vec<f32>) -> Tensor<1> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), &Device::flex())
}
