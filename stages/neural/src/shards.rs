//! Parameters and moments, and who updates them: the one replica on its device, the host for several,
//! or, shared out in equal parts, every replica its own (ZeRO-1, arXiv 1910.02054).
//!
//! AdamW works element by element, so where a vector is cut changes no bit on devices that round alike.
//! Stored states hold whole vectors: they do not know how many parts there were.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use contract::StageError;

use crate::device;
use crate::optimizer::{AdamW, Slab};
use crate::replicas::{Replica, Team};

/// A run of one group's vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which group.
    pub group: usize,
    /// Elements of its vector.
    pub range: Range<usize>,
}

/// Parameters and moments of all groups.
pub enum Optimizer {
    /// In one place.
    Whole(Vec<Slab>),
    /// Parameters on the host, and with their moments in the replicas.
    Shared {
        /// One vector a group.
        params: Vec<Vec<f32>>,
        /// What each replica updates.
        parts: Vec<Vec<Part>>,
    },
}

/// Cuts vectors of these lengths, laid end to end, into `shares` parts of like size.
#[must_use]
pub fn parts(lengths: &[usize], shares: usize) -> Vec<Vec<Part>> {
    let total: usize = lengths.iter().sum();
    let cut = |share: usize| (total as u128 * share as u128 / shares.max(1) as u128) as usize;
    let mut all = Vec::new();
    for share in 0..shares {
        let (from, to) = (cut(share), cut(share + 1));
        let (mut own, mut start) = (Vec::new(), 0);
        for (group, &length) in lengths.iter().enumerate() {
            let range = from.clamp(start, start + length) - start..to.clamp(start, start + length) - start;
            start += length;
            if !range.is_empty() {
                own.push(Part { group, range });
            }
        }
        all.push(own);
    }
    all
}

impl Optimizer {
    /// Shares `slabs`, which lie on the host, out over the team's replicas.
    ///
    /// # Errors
    /// If a device failed.
    pub fn share(slabs: Vec<Slab>, team: &mut Team) -> Result<Self, StageError> {
        let lengths: Vec<usize> = slabs.iter().map(|slab| slab.params.dims()[0]).collect();
        let mut shared =
            Self::Shared { params: vec![Vec::new(); slabs.len()], parts: parts(&lengths, team.len()) };
        let factors = slabs.iter().map(|slab| [slab.scale.clone(), slab.decay.clone()]).collect::<Vec<_>>();
        let values = slabs.into_iter().map(|slab| device::read_all(vec![slab.params, slab.m, slab.v]));
        let values = values.map(|read| Ok(three(read?))).collect::<Result<Vec<_>, StageError>>()?;
        shared.place(values, Some(factors), team)?;
        Ok(shared)
    }

    /// The parameters, one vector a group.
    #[must_use]
    pub fn params(&self) -> Vec<Tensor<1>> {
        match self {
            Self::Whole(slabs) => slabs.iter().map(|slab| slab.params.clone()).collect(),
            Self::Shared { params, .. } => {
                params.iter().map(|values| flat(values, &Device::flex())).collect()
            }
        }
    }

    /// Step `t` with the gradients `grads`, one a group, clipped.
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
            Self::Shared { params, parts } => {
                let grads = device::read_all(grads)?;
                let job = |own: &Vec<Part>| {
                    let grads: Vec<Vec<f32>> =
                        own.iter().map(|part| grads[part.group][part.range.clone()].to_vec()).collect();
                    move |replica: &mut Replica| {
                        let device = replica.model().device.clone();
                        for (slab, grad) in replica.share.iter_mut().zip(&grads) {
                            adam.update(slab, flat(grad, &device), lr, t);
                        }
                        device::read_all(replica.share.iter().map(|slab| slab.params.clone()).collect())
                    }
                };
                let moved = team.each(parts.iter().map(job).collect())?;
                for (part, values) in parts.iter().flatten().zip(moved.into_iter().flatten()) {
                    params[part.group][part.range.clone()].copy_from_slice(&values);
                }
                Ok(())
            }
        }
    }

    /// Parameters and both moments of every group, whole.
    ///
    /// # Errors
    /// If a device failed.
    pub fn read(&self, team: &mut Team) -> Result<Vec<[Vec<f32>; 3]>, StageError> {
        match self {
            Self::Whole(slabs) => {
                let all = slabs.iter().flat_map(|slab| [&slab.params, &slab.m, &slab.v].map(Clone::clone));
                let mut values = device::read_all(all.collect())?.into_iter();
                let mut next = || values.next().unwrap_or_default();
                Ok(slabs.iter().map(|_| [next(), next(), next()]).collect())
            }
            Self::Shared { params, parts } => {
                let job = |_: &Vec<Part>| {
                    |replica: &mut Replica| {
                        let moments = replica.share.iter().flat_map(|slab| [slab.m.clone(), slab.v.clone()]);
                        device::read_all(moments.collect())
                    }
                };
                let found = team.each(parts.iter().map(job).collect())?;
                let zeros = |values: &Vec<f32>| vec![0.0; values.len()];
                let mut all: Vec<_> =
                    params.iter().map(|values| [values.clone(), zeros(values), zeros(values)]).collect();
                for (own, found) in parts.iter().zip(&found) {
                    for (part, moments) in own.iter().zip(found.chunks(2)) {
                        for (to, from) in all[part.group][1..].iter_mut().zip(moments) {
                            to[part.range.clone()].copy_from_slice(from);
                        }
                    }
                }
                Ok(all)
            }
        }
    }

    /// Takes parameters and moments as [`Optimizer::read`] gives them.
    ///
    /// # Errors
    /// If a device failed.
    pub fn write(&mut self, values: Vec<[Vec<f32>; 3]>, team: &mut Team) -> Result<(), StageError> {
        match self {
            Self::Whole(slabs) => {
                for (slab, [params, m, v]) in slabs.iter_mut().zip(&values) {
                    let device = slab.params.device();
                    (slab.params, slab.m, slab.v) =
                        (flat(params, &device), flat(m, &device), flat(v, &device));
                }
                Ok(())
            }
            Self::Shared { .. } => self.place(values, None, team),
        }
    }

    /// Hands every replica its part; the factors of rate and decay stay as they are if none are given.
    fn place(
        &mut self,
        values: Vec<[Vec<f32>; 3]>,
        factors: Option<Vec<[Option<Tensor<1>>; 2]>>,
        team: &mut Team,
    ) -> Result<(), StageError> {
        let Self::Shared { params, parts } = self else { return Ok(()) };
        let read = |factor: Option<Tensor<1>>| factor.map(device::read).transpose();
        let factors = factors.map(|factors| {
            let both = factors.into_iter().map(|[scale, decay]| Ok([read(scale)?, read(decay)?]));
            both.collect::<Result<Vec<_>, StageError>>()
        });
        let factors = factors.transpose()?;
        let job = |own: &Vec<Part>| {
            let cut = |values: &[f32], part: &Part| values[part.range.clone()].to_vec();
            let own: Vec<_> = own
                .iter()
                .map(|part| {
                    let [params, m, v] = &values[part.group];
                    let own = |factor: &Option<Vec<f32>>| factor.as_ref().map(|factor| cut(factor, part));
                    let factors = factors.as_ref().map(|factors| factors[part.group].each_ref().map(own));
                    ([cut(params, part), cut(m, part), cut(v, part)], factors)
                })
                .collect();
            move |replica: &mut Replica| {
                let device = replica.model().device.clone();
                let before = std::mem::take(&mut replica.share);
                let before = before.into_iter().map(Some).chain(std::iter::repeat(None));
                replica.share = own
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
        team.each(parts.iter().map(job).collect()).map(drop)?;
        *params = values.into_iter().map(|[params, ..]| params).collect();
        Ok(())
    }
}

fn three(values: Vec<Vec<f32>>) -> [Vec<f32>; 3] {
    let mut values = values.into_iter();
    [(); 3].map(|()| values.next().unwrap_or_default())
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
        fn parts_are_of_like_size_and_hold_every_element_once(lengths in prop::collection::vec(0usize..50, 0..8), shares in 1usize..6) {
            let found = parts(&lengths, shares);
            prop_assert_eq!(found.len(), shares);
            let mut seen: Vec<Vec<usize>> = vec![Vec::new(); lengths.len()];
            for part in found.iter().flatten() {
                seen[part.group].extend(part.range.clone());
            }
            for (length, seen) in lengths.iter().zip(seen) {
                prop_assert_eq!(seen, (0..*length).collect::<Vec<_>>());
            }
            let sizes: Vec<usize> =
                found.iter().map(|own| own.iter().map(|part| part.range.len()).sum()).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{sizes:?}");
        }
    }
}
