//! Parameters and moments, and who updates them: the one replica on its device, the host for several,
//! or, shared out in equal parts, every replica of every rank its own (ZeRO-1, arXiv 1910.02054).
//!
//! AdamW works element by element, so where a vector is cut changes no bit on devices that round alike.
//! Stored states hold whole vectors: they do not know how many parts there were. What goes from rank to
//! rank is not this file's business.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use contract::StageError;

use crate::device;
use crate::optimizer::{AdamW, Slab};
use crate::replicas::{Replica, Team};
use crate::slabs::on_host;

/// A run of one group's vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which group.
    pub group: usize,
    /// Elements of its vector.
    pub range: Range<usize>,
}

/// Parameters, first and second moments of a group, on the host.
pub type Values = [Vec<f32>; 3];

/// Parameters and moments of all groups.
pub enum Optimizer {
    /// In one place.
    Whole(Vec<Slab>),
    /// Shared out.
    Shared(Shared),
}

/// Parameters on the host; with their moments, what this rank updates of them, in its replicas.
pub struct Shared {
    /// One vector a group.
    params: Vec<Vec<f32>>,
    /// What this rank updates.
    own: Vec<Part>,
    /// What each replica updates of it: runs of the own parts.
    parts: Vec<Vec<Part>>,
}

/// Cuts vectors of these lengths, laid end to end, into `shares` parts of like size. They are cut at
/// multiples of `grain` elements.
#[must_use]
pub fn parts(lengths: &[usize], shares: usize, grain: usize) -> Vec<Vec<Part>> {
    let total: usize = lengths.iter().sum();
    let cut = |share: usize| (total as u128 * share as u128 / shares.max(1) as u128) as usize;
    let mut all = Vec::new();
    for share in 0..shares {
        let (from, to) = (cut(share), cut(share + 1));
        let (mut own, mut start) = (Vec::new(), 0);
        for (group, &length) in lengths.iter().enumerate() {
            let within = |cut: usize| match cut.clamp(start, start + length) - start {
                end if end == length => end,
                within => within - within % grain,
            };
            let range = within(from)..within(to);
            start += length;
            if !range.is_empty() {
                own.push(Part { group, range });
            }
        }
        all.push(own);
    }
    all
}

/// Elements in all of these parts.
#[must_use]
pub fn elements(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.range.len()).sum()
}

/// The values of some parts, end to end.
#[must_use]
pub fn cut(values: &[Values], parts: &[Part]) -> Vec<f32> {
    let runs =
        parts.iter().flat_map(|part| values[part.group].iter().map(|whole| &whole[part.range.clone()]));
    runs.flatten().copied().collect()
}

/// Puts the values of some parts in their places.
pub fn lay(values: &mut [Values], parts: &[Part], mut cut: &[f32]) {
    for part in parts {
        for whole in &mut values[part.group] {
            let (run, later) = cut.split_at(part.range.len().min(cut.len()));
            whole[part.range.clone()][..run.len()].copy_from_slice(run);
            cut = later;
        }
    }
}

impl Optimizer {
    /// The parameters, one vector a group.
    #[must_use]
    pub fn params(&self) -> Vec<Tensor<1>> {
        match self {
            Self::Whole(slabs) => slabs.iter().map(|slab| slab.params.clone()).collect(),
            Self::Shared(shared) => shared.params.iter().cloned().map(on_host).collect(),
        }
    }

    /// Step `t` with the gradients `grads`, clipped: of each group, or of each part that is this rank's own.
    ///
    /// # Errors
    /// If a device failed.
    pub fn update(
        &mut self,
        adam: AdamW,
        grads: Vec<Tensor<1>>,
        (lr, t): (f64, u64),
        team: &mut Team,
    ) -> Result<(), StageError> {
        match self {
            Self::Whole(slabs) => {
                slabs.iter_mut().zip(grads).for_each(|(slab, grad)| adam.update(slab, grad, lr, t));
                Ok(())
            }
            Self::Shared(shared) => shared.update(adam, grads, (lr, t), team),
        }
    }

    /// Parameters and both moments of every group, whole, as far as this rank has them.
    ///
    /// # Errors
    /// If a device failed.
    pub fn read(&self, team: &mut Team) -> Result<Vec<Values>, StageError> {
        match self {
            Self::Whole(slabs) => read(slabs),
            Self::Shared(shared) => shared.read(team),
        }
    }

    /// Takes parameters and moments as [`Optimizer::read`] gives them.
    ///
    /// # Errors
    /// If a device failed.
    pub fn write(&mut self, values: Vec<Values>, team: &mut Team) -> Result<(), StageError> {
        match self {
            Self::Whole(slabs) => {
                for (slab, [params, m, v]) in slabs.iter_mut().zip(&values) {
                    let device = slab.params.device();
                    (slab.params, slab.m, slab.v) =
                        (flat(params, &device), flat(m, &device), flat(v, &device));
                }
                Ok(())
            }
            Self::Shared(shared) => shared.place(values, None, team),
        }
    }
}

impl Shared {
    /// Shares out the parts `own` of `slabs`, which lie on the host, over the team's replicas.
    ///
    /// # Errors
    /// If a device failed.
    pub fn new(slabs: &[Slab], own: Vec<Part>, team: &mut Team) -> Result<Self, StageError> {
        let lengths: Vec<usize> = own.iter().map(|part| part.range.len()).collect();
        let mut shared = Self { params: Vec::new(), own, parts: parts(&lengths, team.len(), 1) };
        let factor = |factor: &Option<Tensor<1>>| factor.clone().map(device::read).transpose();
        let factors = slabs.iter().map(|slab| Ok([factor(&slab.scale)?, factor(&slab.decay)?]));
        let factors = factors.collect::<Result<Vec<_>, StageError>>()?;
        shared.place(read(slabs)?, Some(&factors), team)?;
        Ok(shared)
    }

    /// What this rank updates.
    #[must_use]
    pub fn own(&self) -> &[Part] {
        &self.own
    }

    /// The parameters, one vector a group: the own parts' after an update, until the others' are put there.
    pub fn params(&mut self) -> &mut Vec<Vec<f32>> {
        &mut self.params
    }

    /// Of vectors, one a group, the own parts.
    #[must_use]
    pub fn of(&self, vectors: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let all = |own: &Part| own.range == (0..vectors[own.group].len());
        if self.own.len() == vectors.len() && self.own.iter().all(all) {
            return vectors;
        }
        self.own.iter().map(|part| vectors[part.group][part.range.clone()].to_vec()).collect()
    }

    /// Where a replica's part lies: group and elements of its vector.
    fn at(&self, part: &Part) -> Part {
        let own = &self.own[part.group];
        Part { group: own.group, range: own.range.start + part.range.start..own.range.start + part.range.end }
    }

    /// Step `t` with the gradients of the own parts, clipped.
    ///
    /// # Errors
    /// If a device failed.
    pub fn update(
        &mut self,
        adam: AdamW,
        grads: Vec<Tensor<1>>,
        (lr, t): (f64, u64),
        team: &mut Team,
    ) -> Result<(), StageError> {
        let grads = device::read_all(grads)?;
        let job = |parts: &Vec<Part>| {
            let grads: Vec<Vec<f32>> =
                parts.iter().map(|part| grads[part.group][part.range.clone()].to_vec()).collect();
            move |replica: &mut Replica| {
                let device = replica.model().device.clone();
                for (slab, grad) in replica.share.iter_mut().zip(&grads) {
                    adam.update(slab, flat(grad, &device), lr, t);
                }
                device::read_all(replica.share.iter().map(|slab| slab.params.clone()).collect())
            }
        };
        let moved = team.each(self.parts.iter().map(job).collect())?;
        for (part, values) in self.parts.iter().flatten().zip(moved.into_iter().flatten()) {
            let Part { group, range } = self.at(part);
            self.params[group][range].copy_from_slice(&values);
        }
        Ok(())
    }

    /// Parameters and moments of every group, whole; the moments of what is not its own are 0.
    ///
    /// # Errors
    /// If a device failed.
    pub fn read(&self, team: &mut Team) -> Result<Vec<Values>, StageError> {
        let job = |_: &Vec<Part>| {
            |replica: &mut Replica| {
                let moments = replica.share.iter().flat_map(|slab| [slab.m.clone(), slab.v.clone()]);
                device::read_all(moments.collect())
            }
        };
        let found = team.each(self.parts.iter().map(job).collect())?;
        let zeros = |values: &Vec<f32>| vec![0.0; values.len()];
        let mut all: Vec<Values> =
            self.params.iter().map(|values| [values.clone(), zeros(values), zeros(values)]).collect();
        for (parts, found) in self.parts.iter().zip(&found) {
            for (part, moments) in parts.iter().zip(found.chunks(2)) {
                let Part { group, range } = self.at(part);
                for (to, from) in all[group][1..].iter_mut().zip(moments) {
                    to[range.clone()].copy_from_slice(from);
                }
            }
        }
        Ok(all)
    }

    /// Takes parameters and moments, whole, and hands every replica its part; the factors of rate and decay
    /// stay as they are if none are given.
    ///
    /// # Errors
    /// If a device failed.
    pub fn place(
        &mut self,
        values: Vec<Values>,
        factors: Option<&[[Option<Vec<f32>>; 2]]>,
        team: &mut Team,
    ) -> Result<(), StageError> {
        let job = |parts: &Vec<Part>| {
            let run = |values: &[f32], part: &Part| values[part.range.clone()].to_vec();
            let parts: Vec<_> = parts
                .iter()
                .map(|part| self.at(part))
                .map(|part| {
                    let own = |factor: &Option<Vec<f32>>| factor.as_ref().map(|factor| run(factor, &part));
                    let factors = factors.map(|factors| factors[part.group].each_ref().map(own));
                    (values[part.group].each_ref().map(|values| run(values, &part)), factors)
                })
                .collect();
            move |replica: &mut Replica| {
                let device = replica.model().device.clone();
                let before = std::mem::take(&mut replica.share);
                let before = before.into_iter().map(Some).chain(std::iter::repeat(None));
                replica.share = parts
                    .iter()
                    .zip(before)
                    .map(|(([params, m, v], factors), before)| {
                        let given =
                            |factor: &Option<Vec<f32>>| factor.as_ref().map(|factor| flat(factor, &device));
                        let [scale, decay] = match (factors, before) {
                            (Some(factors), _) => factors.each_ref().map(given),
                            (None, Some(before)) => [before.scale, before.decay],
                            (None, None) => [None, None],
                        };
                        let [params, m, v] = [params, m, v].map(|values| flat(values, &device));
                        Slab { params, m, v, scale, decay }
                    })
                    .collect();
                Ok(())
            }
        };
        team.each(self.parts.iter().map(job).collect()).map(drop)?;
        self.params = values.into_iter().map(|[params, ..]| params).collect();
        Ok(())
    }
}

fn read(slabs: &[Slab]) -> Result<Vec<Values>, StageError> {
    let all = slabs.iter().flat_map(|slab| [&slab.params, &slab.m, &slab.v].map(Clone::clone));
    let mut values = device::read_all(all.collect())?.into_iter();
    let mut next = || values.next().unwrap_or_default();
    Ok(slabs.iter().map(|_| [next(), next(), next()]).collect())
}

fn flat(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_of_like_size_and_hold_every_element_once(
            lengths in prop::collection::vec(0usize..50, 0..8),
            shares in 1usize..6,
            grain in 1usize..8,
        ) {
            let found = parts(&lengths, shares, grain);
            prop_assert_eq!(found.len(), shares);
            let mut seen: Vec<Vec<usize>> = vec![Vec::new(); lengths.len()];
            for part in found.iter().flatten() {
                prop_assert_eq!(part.range.start % grain, 0);
                seen[part.group].extend(part.range.clone());
            }
            for (length, seen) in lengths.iter().zip(seen) {
                prop_assert_eq!(seen, (0..*length).collect::<Vec<_>>());
            }
            let sizes: Vec<usize> = found.iter().map(|own| elements(own)).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(most - least < 2 * grain, "{sizes:?}");
        }

        #[test]
        fn what_is_cut_out_and_laid_elsewhere_is_whole(lengths in prop::collection::vec(0usize..50, 0..8), shares in 1usize..6) {
            let start = |length: usize, from: f32| (0..length).map(|i| i as f32 + from).collect::<Vec<_>>();
            let values: Vec<Values> = lengths.iter().map(|&length| [0.0, 100.0, 200.0].map(|from| start(length, from))).collect();
            let mut laid: Vec<Values> = lengths.iter().map(|&length| [(); 3].map(|()| vec![-1.0; length])).collect();
            for part in parts(&lengths, shares, 3) {
                let run = cut(&values, &part);
                prop_assert_eq!(run.len(), 3 * elements(&part));
                lay(&mut laid, &part, &run);
            }
            prop_assert_eq!(laid, values);
        }
    }
}
