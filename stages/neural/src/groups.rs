//! Trainable tensors as a few flat vectors: one per transformer block, one for the embedding, one
//! for the final norm and head.
//!
//! Optimizer, clipping, reduction over devices and checkpoints all work on these vectors: a handful
//! of operations and reads in place of one for each of hundreds of small tensors. The model's own
//! tensors are slices of them. Knows of the model only what a [`Visitor`] sees.

use burn::tensor::{Gradients, Tensor};

use crate::model::{Llama, Visitor};

/// One tensor of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its name on disk.
    pub name: String,
    /// One or two sizes.
    pub shape: Vec<usize>,
    /// Where it begins in the group's vector.
    pub start: usize,
}

impl Leaf {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a group's vector holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `embed`, `block-000`, …, `final`.
    pub name: String,
    /// The model's number for it.
    pub index: usize,
    /// Its tensors, without gaps.
    pub leaves: Vec<Leaf>,
    /// Elements in all.
    pub len: usize,
}

/// The groups of a model that hold anything, each with its present values, `[len]`.
#[must_use]
pub fn collect(model: &mut Llama) -> Vec<(Layout, Tensor<1>)> {
    let last = model.groups() - 1;
    let mut groups = Vec::new();
    for index in 0..=last {
        let mut collect = Collect::default();
        model.visit_group(index, &mut collect);
        if collect.parts.is_empty() {
            continue;
        }
        let name = match index {
            0 => "embed".into(),
            _ if index == last => "final".into(),
            _ => format!("block-{:03}", index - 1),
        };
        groups.push((
            Layout { name, index, leaves: collect.leaves, len: collect.len },
            Tensor::cat(collect.parts, 0),
        ));
    }
    groups
}

/// Makes the model's tensors slices of a group's vector, without gradients.
pub fn scatter(model: &mut Llama, layout: &Layout, flat: &Tensor<1>) {
    model.visit_group(layout.index, &mut Scatter { flat, start: 0 });
}

/// Makes a group's tensors leaves of a graph, or plain again.
pub fn track(model: &mut Llama, group: usize, on: bool) {
    model.visit_group(group, &mut Track { on });
}

/// The gradients of a group's tensors by name, in order; `None` where there is none.
#[must_use]
pub fn gradients(model: &mut Llama, group: usize, grads: &mut Gradients) -> Vec<(String, Option<Tensor<1>>)> {
    let mut take = Take { grads, parts: Vec::new() };
    model.visit_group(group, &mut take);
    take.parts
}

#[derive(Default)]
struct Collect {
    leaves: Vec<Leaf>,
    parts: Vec<Tensor<1>>,
    len: usize,
}

impl Collect {
    fn add<const D: usize>(&mut self, name: &str, tensor: &Tensor<D>) {
        let leaf = Leaf { name: name.into(), shape: tensor.dims().to_vec(), start: self.len };
        self.len += leaf.len();
        self.parts.push(tensor.clone().inner().reshape([leaf.len()]));
        self.leaves.push(leaf);
    }
}

impl Visitor for Collect {
    fn matrix(&mut self, name: &str, tensor: &mut Tensor<2>) {
        self.add(name, tensor);
    }
    fn vector(&mut self, name: &str, tensor: &mut Tensor<1>) {
        self.add(name, tensor);
    }
}

struct Scatter<'a> {
    flat: &'a Tensor<1>,
    start: usize,
}

impl Scatter<'_> {
    fn next<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let end = self.start + shape.iter().product::<usize>();
        let slice = self.flat.clone().slice_dim(0, self.start..end);
        self.start = end;
        slice.reshape(shape)
    }
}

impl Visitor for Scatter<'_> {
    fn matrix(&mut self, _: &str, tensor: &mut Tensor<2>) {
        *tensor = self.next(tensor.dims());
    }
    fn vector(&mut self, _: &str, tensor: &mut Tensor<1>) {
        *tensor = self.next(tensor.dims());
    }
}

struct Track {
    on: bool,
}

impl Track {
    fn set<const D: usize>(&self, tensor: &mut Tensor<D>) {
        let plain = tensor.clone().inner();
        *tensor = if self.on { plain.autodiff().require_grad() } else { plain };
    }
}

impl Visitor for Track {
    fn matrix(&mut self, _: &str, tensor: &mut Tensor<2>) {
        self.set(tensor);
    }
    fn vector(&mut self, _: &str, tensor: &mut Tensor<1>) {
        self.set(tensor);
    }
}

struct Take<'a> {
    grads: &'a mut Gradients,
    parts: Vec<(String, Option<Tensor<1>>)>,
}

impl Take<'_> {
    fn take<const D: usize>(&mut self, name: &str, tensor: &Tensor<D>) {
        let len = tensor.dims().iter().product::<usize>();
        let grad = tensor.grad_remove(self.grads).map(|grad| grad.reshape([len]));
        self.parts.push((name.into(), grad));
    }
}

impl Visitor for Take<'_> {
    fn matrix(&mut self, name: &str, tensor: &mut Tensor<2>) {
        self.take(name, tensor);
    }
    fn vector(&mut self, name: &str, tensor: &mut Tensor<1>) {
        self.take(name, tensor);
    }
}
