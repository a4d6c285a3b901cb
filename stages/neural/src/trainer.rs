//! One optimizer step: micro-batches in, loss and gradient norm out, parameters moved.
//!
//! Knows neither files nor stages. Parameters and moments live as flat vectors on the replica's own
//! device, or, with several replicas, on the host, where gradients are summed in the replicas'
//! order and from where all replicas take the new values: they cannot drift apart. The same over
//! ranks, where it leads ([`crate::ranks`]); or every rank updates a part, and all take it from there.

use std::rc::Rc;

use burn::tensor::Tensor;
use contract::StageError;

use crate::batch::{Batch, SplitMix64};
use crate::device;
use crate::generate;
use crate::groups::{Layout, Leaf};
use crate::loss_scale::LossScale;
use crate::optimizer::{self, AdamW};
use crate::ranks::{Order, Ranks, Update};
use crate::replicas::{Share, Team};
use crate::schedule::Schedule;
use crate::shards::{self, Optimizer, Part, Shared};
use crate::slabs::{self, Rates, on_host};
use crate::state::HostSlab;
use crate::sum;

/// What the loss of a step is the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalisation {
    /// All predicted tokens of the step, over micro-batches and devices (transformers#34191).
    Token,
    /// The means of the micro-batches.
    MicroBatchMean,
}

impl Normalisation {
    /// The words for [`Normalisation::by_name`].
    pub const NAMES: &'static [&'static str] = &["token", "micro-batch-mean"];

    /// The normalisation called `name`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "token" => Some(Self::Token),
            "micro-batch-mean" => Some(Self::MicroBatchMean),
            _ => None,
        }
    }
}

/// How a step is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The update.
    pub adam: AdamW,
    /// Largest norm of the gradient; 0 for any.
    pub max_grad_norm: f64,
    /// The learning rate.
    pub schedule: Schedule,
    /// What the loss is the mean of.
    pub normalisation: Normalisation,
    /// Learning rate of B over that of A (LoRA+); 1 for the same.
    pub lora_plus: f64,
    /// Scale of the loss at the first step.
    pub loss_scale: LossScale,
    /// Whether several replicas, of all ranks, share out moments and updates (ZeRO-1), in place of the host.
    pub zero: bool,
    /// Seed of dropout.
    pub seed: u64,
}

/// What is known of a step that was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// The step, from 1.
    pub step: u64,
    /// Loss before the update.
    pub loss: f64,
    /// Norm of the gradient before clipping; not finite if it overflowed and the step was left out.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Tokens that were predicted.
    pub label_tokens: u64,
    /// What the loss was multiplied with, if that can change.
    pub loss_scale: Option<f64>,
}

impl Options {
    /// What learning rate and decay go by.
    #[must_use]
    pub fn rates(&self) -> Rates {
        Rates { lora_plus: self.lora_plus, decay: self.adam.weight_decay > 0.0 }
    }
}

/// A model in training.
pub struct Trainer {
    team: Team,
    ranks: Rc<Ranks>,
    layouts: Vec<Layout>,
    optimizer: Optimizer,
    /// What each rank updates, where all do.
    parts: Option<Vec<Vec<Part>>>,
    /// How much of a sum each rank gets.
    own: Vec<usize>,
    options: Options,
    scale: LossScale,
    step: u64,
    /// Whether a step has begun to change what is trained, and has not ended.
    changing: bool,
}

impl Trainer {
    /// Starts before the first step, with the values that the replicas have.
    ///
    /// # Errors
    /// If nothing is trainable, or the device failed.
    pub fn new(mut team: Team, ranks: Rc<Ranks>, options: Options) -> Result<Self, StageError> {
        let host = team.len() > 1 || !ranks.is_alone();
        let (layouts, slabs) = slabs::of(&mut team, options.rates(), host)?;
        let lengths: Vec<usize> = layouts.iter().map(|layout| layout.len).collect();
        let parts = ranks.parts(&lengths);
        let own = ranks.own(&lengths, options.zero);
        let optimizer = if options.zero && host {
            Optimizer::Shared(Shared::new(&slabs, parts[0].clone(), &mut team)?)
        } else {
            Optimizer::Whole(slabs)
        };
        let parts = Some(parts).filter(|_| options.zero && !ranks.is_alone());
        let (scale, step, changing) = (options.loss_scale, 0, false);
        let mut trainer =
            Self { team, ranks, layouts, optimizer, parts, own, options, scale, step, changing };
        let values =
            trainer.parts.is_some().then(|| trainer.optimizer.read(&mut trainer.team)).transpose()?;
        trainer.place(values.as_deref().unwrap_or_default())?;
        trainer.spread()?;
        Ok(trainer)
    }

    /// Steps made.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Whether, where the next step failed, parameters and moments are still those after the last: several
    /// replicas have them on the host, out of the way of a device that is lost. Of other ranks nobody knows
    /// how far they got.
    #[must_use]
    pub fn survives(&self) -> bool {
        (self.team.len() > 1 || !self.ranks.is_alone()) && self.parts.is_none() && !self.changing
    }

    /// What is trained.
    #[must_use]
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }

    /// Makes one step with the micro-batches of each device. Where the gradient overflows under a
    /// scale of the loss that can change, nothing is updated.
    ///
    /// # Errors
    /// If no token is to be predicted, if loss or gradient are not finite, or if a device failed.
    pub fn step(&mut self, devices: Vec<Vec<Batch>>) -> Result<Report, StageError> {
        let step = self.step + 1;
        let (shares, label_tokens) = self.shares(step, devices)?;
        let scale = self.scale.value();
        let factors: Vec<f64> = shares.iter().flat_map(|share| &share.factors).map(|f| f / scale).collect();
        let (losses, grads) = self.gradients(shares)?;
        let grads = optimizer::unscaled(grads, self.scale.is_dynamic().then_some(scale));
        let squared = self.norm_squared(&grads)?;
        let overflowed = self.scale.is_dynamic() && !is_finite(squared.clone())?;
        let most = self.options.max_grad_norm;
        let clip = (most > 0.0).then(|| optimizer::clip_factor(squared.clone(), most));
        let lr = self.options.schedule.rate(step);
        self.changing = true;
        if !overflowed {
            self.update(grads, clip.as_ref(), (lr, step))?;
        }
        let figures = device::read(Tensor::cat(losses.into_iter().chain([squared]).collect(), 0))?;
        let (losses, squared) = figures.split_at(factors.len());
        let loss = losses.iter().zip(&factors).map(|(&loss, factor)| f64::from(loss) * factor).sum::<f64>();
        let grad_norm = f64::from(squared.first().copied().unwrap_or(f32::NAN)).sqrt();
        let after = self.scale.after(overflowed).filter(|_| loss.is_finite());
        let Some(after) = after.filter(|_| overflowed || grad_norm.is_finite()) else {
            return Err(not_finite(step, loss, grad_norm, self.scale));
        };
        let loss_scale = self.scale.is_dynamic().then_some(scale);
        (self.step, self.scale) = (step, after);
        if self.parts.is_some() {
            self.take()?;
        } else {
            self.spread()?;
        }
        self.changing = false;
        Ok(Report { step, loss, grad_norm, lr, label_tokens, loss_scale })
    }

    /// Gives every batch its factor and key, and counts what is to be predicted.
    fn shares(&self, step: u64, devices: Vec<Vec<Batch>>) -> Result<(Vec<Share>, u64), StageError> {
        let labels = |batch: &Batch| batch.targets.len();
        let tokens: usize = devices.iter().flatten().map(labels).sum();
        let batches = devices.iter().flatten().filter(|batch| labels(batch) > 0).count();
        if tokens == 0 {
            return Err(StageError::new(format!("no row of step {step} has a token to predict"))
                .hint("a larger `cutoff`, or `mask_prompt = false`, in the tokenize stage"));
        }
        let mut shares = Vec::new();
        for (index, device) in devices.into_iter().enumerate() {
            let mut share = Share::default();
            for (micro, batch) in device.into_iter().enumerate().filter(|(_, batch)| labels(batch) > 0) {
                let factor = match self.options.normalisation {
                    Normalisation::Token => 1.0 / tokens as f64,
                    Normalisation::MicroBatchMean => 1.0 / (labels(&batch) as f64 * batches as f64),
                };
                share.factors.push(factor * self.scale.value());
                share.keys.push(key(&[self.options.seed, step, micro as u64, index as u64]));
                share.batches.push(batch);
            }
            shares.push(share);
        }
        Ok((shares, tokens as u64))
    }

    /// Losses and summed gradients, where the slabs are; of what this rank updates.
    fn gradients(&mut self, mut shares: Vec<Share>) -> Result<(Vec<Tensor<1>>, Vec<Tensor<1>>), StageError> {
        if let (Team::One(replica), true) = (&mut self.team, self.ranks.is_alone()) {
            let share = shares.into_iter().next().unwrap_or_default();
            let outcome = replica.gradients(&share)?;
            return Ok((outcome.losses, outcome.grads));
        }
        let mut rest = shares.split_off(self.team.len().min(shares.len()));
        for rank in self.ranks.followers() {
            let later = rest.split_off(self.team.len().min(rest.len()));
            let shares = std::mem::replace(&mut rest, later);
            let scale = self.scale.is_dynamic().then(|| self.scale.value());
            self.ranks.order(rank, &Order::Gradients { shares, scale })?;
        }
        let (mut losses, mut sums) = self.team.gradients(shares)?;
        if !self.ranks.is_alone() {
            if sums.is_empty() {
                sums = self.layouts.iter().map(|layout| vec![0.0; layout.len]).collect();
            }
            self.ranks.sum(&mut sums, true, &self.own);
            for rank in self.ranks.followers() {
                losses.append(&mut self.ranks.figures(rank));
            }
        }
        if let Optimizer::Shared(shared) = &self.optimizer {
            sums = shared.of(sums);
        }
        let losses = losses.into_iter().map(|loss| on_host(vec![loss])).collect();
        Ok((losses, sums.into_iter().map(on_host).collect()))
    }

    /// `‖g‖²`, to which every rank brings what it has of the gradient.
    fn norm_squared(&self, grads: &[Tensor<1>]) -> Result<Tensor<1>, StageError> {
        if self.parts.is_none() {
            return Ok(optimizer::norm_squared(grads));
        }
        let mut runs = device::read_all(grads.iter().map(optimizer::squares).collect())?.concat();
        for rank in self.ranks.followers() {
            runs.append(&mut self.ranks.figures(rank));
        }
        let mut runs = runs.into_iter();
        let mut next = |layout: &Layout| runs.by_ref().take(layout.len.div_ceil(sum::WIDTH)).collect();
        Ok(optimizer::joined(self.layouts.iter().map(|layout| on_host(next(layout)))))
    }

    /// Makes step `step` at rate `lr`; where every rank has a part, all have the new parameters then.
    fn update(
        &mut self,
        grads: Vec<Tensor<1>>,
        clip: Option<&Tensor<1>>,
        (lr, step): (f64, u64),
    ) -> Result<(), StageError> {
        if self.parts.is_some() {
            let factor = clip.cloned().map(device::read).transpose()?;
            let clip = factor.and_then(|factor| factor.first().copied()).map(f32::to_bits);
            for rank in self.ranks.followers() {
                self.ranks.order(rank, &Order::Update(Update { clip, lr, step }))?;
            }
        }
        let grads = optimizer::clipped(grads, clip);
        self.optimizer.update(self.options.adam, grads, (lr, step), &mut self.team)?;
        if let (Some(_), Optimizer::Shared(shared)) = (&self.parts, &mut self.optimizer) {
            self.ranks.gather(shared.params(), &self.own);
        }
        Ok(())
    }

    /// Gives the parameters to the replicas of this rank.
    fn take(&mut self) -> Result<(), StageError> {
        let values = device::read_all(self.optimizer.params())?;
        self.team.set(values)
    }

    /// Gives the parameters to every replica of every rank.
    fn spread(&mut self) -> Result<(), StageError> {
        let params = self.optimizer.params();
        if let (Team::One(replica), true) = (&mut self.team, self.ranks.is_alone()) {
            replica.set(&params);
            return Ok(());
        }
        let mut values = device::read_all(params)?;
        for rank in self.ranks.followers() {
            self.ranks.order(rank, &Order::Take)?;
        }
        self.ranks.share(&mut values);
        self.team.set(values)
    }

    /// `Σ nll` over all batches and the number of tokens predicted, without dropout.
    ///
    /// # Errors
    /// If a row is too long, or a device failed.
    pub fn evaluate(&mut self, batches: &[Batch]) -> Result<(f64, u64), StageError> {
        let devices = self.team.len();
        let share = batches.len().div_ceil(devices * self.ranks.place().size).max(1);
        let mut shares = batches.chunks(share).map(<[Batch]>::to_vec);
        let own = shares.by_ref().take(devices).collect();
        for rank in self.ranks.followers() {
            self.ranks.order(rank, &Order::Losses(shares.by_ref().take(devices).collect()))?;
        }
        let mut sums = self.team.losses(own)?;
        for rank in self.ranks.followers() {
            sums.append(&mut self.ranks.figures(rank));
        }
        let sum = sums.iter().map(|&sum| f64::from(sum)).sum();
        Ok((sum, batches.iter().map(|batch| batch.targets.len() as u64).sum()))
    }

    /// The most likely answer to every prompt, up to `most` tokens each, as the model stands.
    ///
    /// # Errors
    /// As for [`generate::greedy`].
    pub fn generate(&mut self, prompts: Vec<Vec<u32>>, most: usize) -> Result<Vec<Vec<u32>>, StageError> {
        self.team.first(move |replica| {
            let model = replica.model();
            generate::greedy(model, &prompts, most, &model.config.eos_token_ids, |_| Ok(()))
        })
    }

    /// ΔM and ΔD of every adapted module as they stand: `(module, ΔM, ΔD)`.
    ///
    /// # Errors
    /// If the device failed.
    pub fn movement(&mut self) -> Result<Vec<(String, f64, f64)>, StageError> {
        self.team.first(|replica| replica.model().movement())
    }

    /// Every trained tensor with its values.
    ///
    /// # Errors
    /// If the device failed.
    pub fn tensors(&self) -> Result<Vec<(Leaf, Vec<f32>)>, StageError> {
        let values = device::read_all(self.optimizer.params())?;
        let groups = self.layouts.iter().zip(&values);
        Ok(groups
            .flat_map(|(layout, flat)| {
                layout.leaves.iter().map(|leaf| (leaf.clone(), flat[leaf.start..][..leaf.len()].to_vec()))
            })
            .collect())
    }

    /// Parameters and moments, to be stored.
    ///
    /// # Errors
    /// If the device failed.
    pub fn save(&mut self) -> Result<Vec<HostSlab>, StageError> {
        let mut values = self.optimizer.read(&mut self.team)?;
        for (rank, part) in self.parts.iter().flatten().enumerate().skip(1) {
            self.ranks.order(rank, &Order::Give)?;
            shards::lay(&mut values, part, &self.ranks.figures(rank));
        }
        let names = self.layouts.iter().map(|layout| layout.name.clone());
        Ok(names.zip(values).map(|(name, values)| HostSlab { name, values }).collect())
    }

    /// Hands the other ranks their parts.
    fn place(&self, values: &[shards::Values]) -> Result<(), StageError> {
        for (rank, part) in self.parts.iter().flatten().enumerate().skip(1) {
            self.ranks.order(rank, &Order::Place)?;
            self.ranks.give(rank, &shards::cut(values, part));
        }
        Ok(())
    }

    /// The scale of the loss for the next step, to be stored.
    #[must_use]
    pub fn loss_scale(&self) -> LossScale {
        self.scale
    }

    /// Goes back to a stored state after `step` steps.
    ///
    /// # Errors
    /// If it is of another model.
    pub fn restore(&mut self, step: u64, scale: LossScale, stored: &[HostSlab]) -> Result<(), StageError> {
        let mut values = Vec::new();
        for layout in &self.layouts {
            let found = stored.iter().find(|stored| stored.name == layout.name);
            let Some(found) = found.filter(|found| found.values.iter().all(|part| part.len() == layout.len))
            else {
                return Err(StageError::new(format!(
                    "the stored training state does not hold `{}` as the model has it",
                    layout.name
                ))
                .hint("delete the stage's work folder to start it over"));
            };
            values.push(found.values.clone());
        }
        self.place(&values)?;
        self.optimizer.write(values, &mut self.team)?;
        (self.step, self.scale) = (step, scale);
        self.spread()
    }
}

fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |key, &part| SplitMix64(key ^ part).next())
}

fn is_finite(value: Tensor<1>) -> Result<bool, StageError> {
    Ok(device::read(value)?.iter().all(|value| value.is_finite()))
}

fn not_finite(step: u64, loss: f64, grad_norm: f64, scale: LossScale) -> StageError {
    let what = if loss.is_finite() {
        format!("the gradient's norm is {grad_norm}")
    } else if scale.is_dynamic() {
        return StageError::new(format!("the loss is {loss} at step {step}, computed in float16")).hint(
            "`compute_dtype = \"bfloat16\"` or `\"float32\"` has the range; else a smaller `lr` or a longer warm-up",
        );
    } else {
        format!("the loss is {loss}")
    };
    StageError::new(format!("{what} at step {step}"))
        .hint("try a smaller `lr`, a longer warm-up, or `max_grad_norm = 1.0`; the last checkpoint before this step is kept")
}

#[cfg(test)]
mod tests;
