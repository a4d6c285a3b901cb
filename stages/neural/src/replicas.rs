//! Copies of a model, one a device and thread, that compute the gradients of their share of a step.
//!
//! A [`Replica`] turns micro-batches into summed losses and flat gradients; it knows nothing of
//! optimizers or steps. A [`Team`] is one replica on the calling thread, or several on threads of
//! their own; burn has no collectives on wgpu, so between several only host vectors travel.
//!
//! Checkpointing (`checkpointing = true`) keeps the inputs of the blocks and re-runs each block in
//! backward (arXiv 1604.06174): burn's own recomputes element-wise operations only.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use burn::tensor::{DType, Int, Tensor, TensorData};
use contract::StageError;
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::device;
use crate::groups::{self, Layout};
use crate::loss::{self, CrossEntropy};
use crate::model::{Llama, Mask};
use crate::optimizer::Slab;
use crate::sum::total;

/// One device's share of a step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Share {
    /// Micro-batches.
    pub batches: Vec<Batch>,
    /// For each the factor of its summed loss.
    pub factors: Vec<f64>,
    /// For each the key of its dropout masks.
    pub keys: Vec<u64>,
}

/// What a share gives, on the replica's device.
pub struct Outcome {
    /// `Σ nll` of each micro-batch, `[1]`, not multiplied with its factor.
    pub losses: Vec<Tensor<1>>,
    /// Sum of the micro-batches' gradients, one vector a group; none if the share was empty.
    pub grads: Vec<Tensor<1>>,
}

/// A model that gives gradients.
pub struct Replica {
    model: Llama,
    layouts: Vec<Layout>,
    checkpointing: bool,
    masks: HashMap<usize, Mask>,
    /// What it updates of the parameters, with the moments, where that is shared out (`shards`).
    pub share: Vec<Slab>,
}

impl Replica {
    /// Makes a replica of a model, adapters attached.
    #[must_use]
    pub fn new(mut model: Llama, checkpointing: bool) -> Self {
        let layouts = groups::collect(&mut model).into_iter().map(|(layout, _)| layout).collect();
        Self { model, layouts, checkpointing, masks: HashMap::new(), share: Vec::new() }
    }

    /// Its model: plain between two calls, no gradients recorded.
    #[must_use]
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// What is trained.
    #[must_use]
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }

    /// The groups with their present values.
    #[must_use]
    pub fn groups(&mut self) -> Vec<(Layout, Tensor<1>)> {
        groups::collect(&mut self.model)
    }

    /// Takes new values of all groups.
    pub fn set(&mut self, params: &[Tensor<1>]) {
        for (layout, flat) in self.layouts.iter().zip(params) {
            groups::scatter(&mut self.model, layout, flat);
        }
        self.model.refresh();
    }

    /// Losses and gradients of a share of a step.
    ///
    /// # Errors
    /// If a row is too long for the model. Failures of the device show when the result is read.
    pub fn gradients(&mut self, share: &Share) -> Result<Outcome, StageError> {
        let mut outcome = Outcome { losses: Vec::new(), grads: Vec::new() };
        for ((batch, &factor), &key) in share.batches.iter().zip(&share.factors).zip(&share.keys) {
            self.model.dropout(Some(key));
            let inputs = self.inputs(batch)?;
            let (loss, grads) = if self.checkpointing {
                self.recomputed(&inputs, factor)
            } else {
                self.recorded(&inputs, factor)
            };
            outcome.losses.push(loss);
            outcome.grads = if outcome.grads.is_empty() {
                grads
            } else {
                outcome.grads.into_iter().zip(grads).map(|(sum, grad)| sum + grad).collect()
            };
        }
        self.model.dropout(None);
        Ok(outcome)
    }

    /// `Σ nll` of each batch, `[1]`, without gradients.
    ///
    /// # Errors
    /// If a row is too long for the model.
    pub fn losses(&mut self, batches: &[Batch]) -> Result<Vec<Tensor<1>>, StageError> {
        let mut losses = Vec::new();
        for batch in batches {
            let inputs = self.inputs(batch)?;
            let h = top(&self.model, below(&self.model, &inputs), &inputs);
            losses.push(total(loss::nll(&h, &head(&self.model), &inputs.targets)));
        }
        Ok(losses)
    }

    fn inputs(&mut self, batch: &Batch) -> Result<Inputs, StageError> {
        let mask = match self.masks.get(&batch.length) {
            _ if !batch.starts.is_empty() => self.model.packed_mask(batch.length, &batch.starts)?,
            Some(mask) => mask.clone(),
            None => {
                let mask = self.model.mask(batch.length)?;
                self.masks.insert(batch.length, mask.clone());
                mask
            }
        };
        let device = &self.model.device;
        let ints = |values: &[i32]| {
            Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
        };
        let ids = ints(&batch.ids).reshape([batch.rows, batch.length]);
        Ok(Inputs { ids, mask, positions: ints(&batch.positions), targets: ints(&batch.targets) })
    }

    /// The whole graph at once.
    fn recorded(&mut self, inputs: &Inputs, factor: f64) -> (Tensor<1>, Vec<Tensor<1>>) {
        self.track_all(true);
        let h = top(&self.model, below(&self.model, inputs), inputs);
        let loss = self.head_loss(&h, inputs, factor);
        let mut grads = (h * loss.hidden).sum().backward();
        let mut parts = HashMap::new();
        for layout in &self.layouts {
            parts.insert(layout.index, groups::gradients(&mut self.model, layout.index, &mut grads));
        }
        self.track_all(false);
        (loss.sum, self.flat(parts, loss.weight))
    }

    /// Block by block: inputs kept, blocks re-run in backward.
    fn recomputed(&mut self, inputs: &Inputs, factor: f64) -> (Tensor<1>, Vec<Tensor<1>>) {
        let (blocks, mut parts) = (self.model.blocks.len(), HashMap::new());
        let whole = self.layouts.iter().any(|layout| layout.index == 0);
        let mut kept = Vec::new();
        let mut x = self.model.embed(inputs.ids.clone());
        for index in 0..blocks - 1 {
            kept.push(x.clone());
            x = self.model.block(index, x, &inputs.mask);
        }
        // the last block goes with the head; below the first nothing is trained with adapters
        let input =
            |x: Tensor<3>, index: usize| if index > 0 || whole { x.autodiff().require_grad() } else { x };
        let x = input(x, blocks - 1);
        groups::track(&mut self.model, blocks, true);
        groups::track(&mut self.model, blocks + 1, true);
        let h = top(&self.model, x.clone(), inputs);
        let loss = self.head_loss(&h, inputs, factor);
        let mut grads = (h * loss.hidden).sum().backward();
        for group in [blocks, blocks + 1] {
            parts.insert(group, groups::gradients(&mut self.model, group, &mut grads));
            groups::track(&mut self.model, group, false);
        }
        let mut above = x.grad_remove(&mut grads);
        for (index, x) in kept.into_iter().enumerate().rev() {
            let Some(grad) = above.take() else { break };
            groups::track(&mut self.model, index + 1, true);
            let x = input(x, index);
            let y = self.model.block(index, x.clone(), &inputs.mask);
            let mut grads = (y * grad).sum().backward();
            parts.insert(index + 1, groups::gradients(&mut self.model, index + 1, &mut grads));
            groups::track(&mut self.model, index + 1, false);
            above = x.grad_remove(&mut grads);
        }
        if let (true, Some(grad)) = (whole, above) {
            groups::track(&mut self.model, 0, true);
            let mut grads = (self.model.embed(inputs.ids.clone()) * grad).sum().backward();
            parts.insert(0, groups::gradients(&mut self.model, 0, &mut grads));
            groups::track(&mut self.model, 0, false);
        }
        (loss.sum, self.flat(parts, loss.weight))
    }

    fn track_all(&mut self, on: bool) {
        for layout in &self.layouts {
            groups::track(&mut self.model, layout.index, on);
        }
    }

    fn head_loss(&self, h: &Tensor<2>, inputs: &Inputs, factor: f64) -> CrossEntropy {
        let trained = !self.model.has_adapters();
        loss::cross_entropy(&h.clone().inner(), &head(&self.model), &inputs.targets, factor, trained)
    }

    /// One vector a group; the head's gradient, which the loss made by hand, put where it belongs.
    fn flat(
        &self,
        mut parts: HashMap<usize, Vec<(String, Option<Tensor<1>>)>>,
        mut head: Option<Tensor<2>>,
    ) -> Vec<Tensor<1>> {
        let owner = if self.model.head.is_some() { "lm_head.weight" } else { "model.embed_tokens.weight" };
        let mut groups = Vec::new();
        for layout in &self.layouts {
            let found = parts.remove(&layout.index).unwrap_or_default();
            let mut found: HashMap<String, Option<Tensor<1>>> = found.into_iter().collect();
            let leaves = layout.leaves.iter().map(|leaf| {
                let own = found.remove(&leaf.name).flatten();
                let by_hand = if leaf.name == owner {
                    head.take().map(|grad| grad.reshape([leaf.len()]))
                } else {
                    None
                };
                let by_hand = by_hand.map(|grad| grad.cast(DType::F32));
                match (own, by_hand) {
                    (Some(own), Some(by_hand)) => own + by_hand,
                    (Some(grad), None) | (None, Some(grad)) => grad,
                    (None, None) => Tensor::zeros([leaf.len()], &self.model.device),
                }
            });
            groups.push(Tensor::cat(leaves.collect(), 0));
        }
        groups
    }
}

struct Inputs {
    /// `[rows, length]`
    ids: Tensor<2, Int>,
    mask: Mask,
    /// `[labels]`
    positions: Tensor<1, Int>,
    /// `[labels]`
    targets: Tensor<1, Int>,
}

/// Embedding and all blocks but the last: `[rows, length, hidden]`.
fn below(model: &Llama, inputs: &Inputs) -> Tensor<3> {
    let blocks = 0..model.blocks.len() - 1;
    blocks.fold(model.embed(inputs.ids.clone()), |x, index| model.block(index, x, &inputs.mask))
}

/// The last block and the final norm. What comes after the last attention is computed at the
/// positions that predict a label only: `[rows, length, hidden]` → `[labels, hidden]`.
fn top(model: &Llama, x: Tensor<3>, inputs: &Inputs) -> Tensor<2> {
    let block = &model.blocks[model.blocks.len() - 1];
    let [rows, length, hidden] = x.dims();
    let x = x.reshape([rows * length, hidden]);
    let mixed = block.attention.forward(block.input_norm.forward(x.clone()), rows, &inputs.mask, None);
    let x = (x + mixed).select(0, inputs.positions.clone());
    let y = block.mlp.forward(block.post_norm.forward(x.clone()));
    model.norm.forward(x + y)
}

fn head(model: &Llama) -> Tensor<2> {
    model.head_weight().inner()
}

type Job = Box<dyn FnOnce(&mut Replica) + Send>;

/// A replica on a thread of its own.
pub struct Worker {
    label: String,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// The replicas of a run.
pub enum Team {
    /// One, on the calling thread: nothing leaves its device.
    One(Box<Replica>),
    /// Several, each on its thread.
    Many(Vec<Worker>),
}

impl Team {
    /// One replica from each of `builders`; several are built at the same time, each on its thread.
    ///
    /// # Errors
    /// The first builder's that fails.
    pub fn new<F>(mut builders: Vec<(String, F)>) -> Result<Self, StageError>
    where
        F: FnOnce() -> Result<Replica, StageError> + Send + 'static,
    {
        if builders.len() == 1 {
            let (_, build) = builders.remove(0);
            return Ok(Self::One(Box::new(build()?)));
        }
        let (mut workers, mut answers) = (Vec::new(), Vec::new());
        for (label, build) in builders {
            let (jobs, todo) = channel::<Job>();
            let (ready, answer) = channel();
            let thread =
                std::thread::Builder::new().name(label.clone()).spawn(move || serve(build, &todo, &ready))?;
            workers.push(Worker { label, jobs: Some(jobs), thread: Some(thread) });
            answers.push(answer);
        }
        for (worker, answer) in workers.iter().zip(answers) {
            answer.recv().map_err(|_| died(&worker.label))??;
        }
        Ok(Self::Many(workers))
    }

    /// Has every replica do its job, all at the same time; answers in the order of the replicas.
    ///
    /// # Errors
    /// The first job's that fails, or that a replica's thread died.
    pub fn each<T, F>(&mut self, jobs: Vec<F>) -> Result<Vec<T>, StageError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Replica) -> Result<T, StageError> + Send + 'static,
    {
        match self {
            Self::One(replica) => jobs.into_iter().map(|job| job(replica)).collect(),
            Self::Many(workers) => {
                let mut answers = Vec::new();
                for (worker, job) in workers.iter().zip(jobs) {
                    let (give, answer) = channel();
                    let job: Job = Box::new(move |replica| drop(give.send(job(replica))));
                    let sent = worker.jobs.as_ref().map(|jobs| jobs.send(job));
                    if !matches!(sent, Some(Ok(()))) {
                        return Err(died(&worker.label));
                    }
                    answers.push((answer, &worker.label));
                }
                answers.into_iter().map(|(answer, label)| answer.recv().map_err(|_| died(label))?).collect()
            }
        }
    }

    /// Has the first replica do a job.
    ///
    /// # Errors
    /// If the job fails, or the replica's thread died.
    pub fn first<T, F>(&mut self, job: F) -> Result<T, StageError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Replica) -> Result<T, StageError> + Send + 'static,
    {
        let mut answers = self.each(vec![job])?;
        answers.pop().ok_or_else(|| StageError::new("there is no replica"))
    }

    /// Losses and gradients of one share a replica, on the host: every batch's `Σ nll`, and the sum of the
    /// gradients in the replicas' order, one vector a group; none if all shares are empty.
    ///
    /// # Errors
    /// If a row is too long, or a device failed.
    pub fn gradients(&mut self, shares: Vec<Share>) -> Result<(Vec<f32>, Vec<Vec<f32>>), StageError> {
        let job = |share: Share| {
            move |replica: &mut Replica| {
                let outcome = replica.gradients(&share)?;
                let groups = outcome.grads.len();
                let mut read = device::read_all(outcome.grads.into_iter().chain(outcome.losses).collect())?;
                let losses = read.split_off(groups);
                Ok((losses, read))
            }
        };
        let answers = self.each(shares.into_iter().map(job).collect())?;
        let (mut losses, mut sums) = (Vec::new(), Vec::<Vec<f32>>::new());
        for (loss, grads) in answers {
            losses.extend(loss.into_iter().flatten());
            if sums.is_empty() {
                sums = grads;
            } else {
                sums.iter_mut().flatten().zip(grads.iter().flatten()).for_each(|(sum, &grad)| *sum += grad);
            }
        }
        Ok((losses, sums))
    }

    /// `Σ nll` of batches, some a replica, without gradients.
    ///
    /// # Errors
    /// If a row is too long, or a device failed.
    pub fn losses(&mut self, shares: Vec<Vec<Batch>>) -> Result<Vec<f32>, StageError> {
        let job =
            |batches: Vec<Batch>| move |replica: &mut Replica| device::read_all(replica.losses(&batches)?);
        let sums = self.each(shares.into_iter().map(job).collect())?;
        Ok(sums.into_iter().flatten().flatten().collect())
    }

    /// Gives every replica new values of all groups.
    ///
    /// # Errors
    /// If a device failed.
    pub fn set(&mut self, values: Vec<Vec<f32>>) -> Result<(), StageError> {
        let values = Arc::new(values);
        let job = || {
            let values = Arc::clone(&values);
            move |replica: &mut Replica| {
                let device = replica.model().device.clone();
                let flat = |values: &Vec<f32>| {
                    Tensor::from_data(TensorData::new(values.clone(), [values.len()]), &device)
                };
                replica.set(&values.iter().map(flat).collect::<Vec<_>>());
                Ok(())
            }
        };
        let jobs = (0..self.len()).map(|_| job()).collect();
        self.each(jobs).map(drop)
    }

    /// Replicas.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(workers) => workers.len(),
        }
    }

    /// Whether there is no replica.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn serve<F>(build: F, todo: &Receiver<Job>, ready: &Sender<Result<(), StageError>>)
where
    F: FnOnce() -> Result<Replica, StageError>,
{
    match build() {
        Err(error) => drop(ready.send(Err(error))),
        Ok(mut replica) => {
            drop(ready.send(Ok(())));
            while let Ok(job) = todo.recv() {
                job(&mut replica);
            }
        }
    }
}

fn died(label: &str) -> StageError {
    StageError::new(format!("the thread of `{label}` died")).hint("see the stage's log for what it said last")
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // it ends when its channel closes; a panic in it was already reported
            drop(thread.join());
        }
    }
}
