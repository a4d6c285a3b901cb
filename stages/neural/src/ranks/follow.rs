//! What a rank does that does not lead: it obeys.

use burn::tensor::Tensor;
use contract::StageError;
use serde::{Deserialize, Serialize};

use super::{Order, Ranks, Update};
use crate::optimizer::{self, AdamW};
use crate::replicas::{Share, Team};
use crate::shards::{self, Shared};
use crate::slabs::{self, Rates, on_host};

/// How a rank introduces itself to rank 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The machine it runs on.
    pub host: String,
    /// What it computes on, one a device.
    pub devices: Vec<String>,
    /// Which of their kind on the machine these are.
    pub places: Vec<String>,
    /// Name and length of the vectors that it trains.
    pub groups: Vec<(String, usize)>,
}

/// Answers orders until the last. With `update` it has a part of the moments.
///
/// # Errors
/// If a device fails.
pub fn follow(
    ranks: &Ranks,
    team: Team,
    greeting: &Greeting,
    update: Option<(AdamW, Rates)>,
) -> Result<(), StageError> {
    ranks.send(0, greeting)?;
    let lengths: Vec<usize> = greeting.groups.iter().map(|(_, length)| *length).collect();
    let mut follower =
        Follower { ranks, team, own: ranks.own(&lengths, update.is_some()), lengths, part: None };
    if let Some((adam, rates)) = update {
        follower.share(adam, rates)?;
    }
    loop {
        match ranks.receive(0)? {
            Order::Gradients { shares, scale } => follower.gradients(shares, scale)?,
            Order::Update(update) => follower.update(update)?,
            Order::Take => {
                let mut values = follower.zeros();
                ranks.share(&mut values);
                follower.take(values)?;
            }
            Order::Give => follower.give()?,
            Order::Place => follower.place()?,
            Order::Losses(devices) => ranks.give(0, &follower.team.losses(devices)?),
            Order::End => return Ok(()),
        }
    }
}

struct Follower<'a> {
    ranks: &'a Ranks,
    team: Team,
    /// Of the vectors.
    lengths: Vec<usize>,
    /// How much of a sum each rank gets.
    own: Vec<usize>,
    part: Option<Part>,
}

/// What this rank updates.
struct Part {
    adam: AdamW,
    shared: Shared,
    /// The last sum of its gradients, one vector a part.
    grads: Vec<Tensor<1>>,
}

impl Follower<'_> {
    fn zeros(&self) -> Vec<Vec<f32>> {
        self.lengths.iter().map(|&length| vec![0.0; length]).collect()
    }

    /// Takes its share of what is updated.
    fn share(&mut self, adam: AdamW, rates: Rates) -> Result<(), StageError> {
        let (_, slabs) = slabs::of(&mut self.team, rates, true)?;
        let own = self.ranks.parts(&self.lengths).swap_remove(self.ranks.place().rank);
        let shared = Shared::new(&slabs, own, &mut self.team)?;
        self.part = Some(Part { adam, shared, grads: Vec::new() });
        Ok(())
    }

    fn gradients(&mut self, shares: Vec<Share>, scale: Option<f64>) -> Result<(), StageError> {
        let (losses, mut sums) = self.team.gradients(shares)?;
        let mine = !sums.is_empty();
        if !mine {
            sums = self.zeros();
        }
        self.ranks.sum(&mut sums, mine, &self.own);
        self.ranks.give(0, &losses);
        let Some(part) = &mut self.part else { return Ok(()) };
        part.grads = optimizer::unscaled(part.shared.of(sums).into_iter().map(on_host).collect(), scale);
        let squares = part.grads.iter().map(optimizer::squares).collect();
        let squares = crate::device::read_all(squares)?;
        self.ranks.give(0, &squares.concat());
        Ok(())
    }

    fn update(&mut self, update: Update) -> Result<(), StageError> {
        let Some(part) = &mut self.part else { return Ok(()) };
        let clip = update.clip.map(|bits| on_host(vec![f32::from_bits(bits)]));
        let grads = optimizer::clipped(std::mem::take(&mut part.grads), clip.as_ref());
        part.shared.update(part.adam, grads, (update.lr, update.step), &mut self.team)?;
        self.ranks.gather(part.shared.params(), &self.own);
        let values = part.shared.params().clone();
        self.team.set(values)
    }

    fn take(&mut self, values: Vec<Vec<f32>>) -> Result<(), StageError> {
        if let Some(part) = &mut self.part {
            part.shared.params().clone_from(&values);
        }
        self.team.set(values)
    }

    fn give(&mut self) -> Result<(), StageError> {
        let Some(part) = &self.part else { return Ok(()) };
        let values = part.shared.read(&mut self.team)?;
        self.ranks.give(0, &shards::cut(&values, part.shared.own()));
        Ok(())
    }

    fn place(&mut self) -> Result<(), StageError> {
        let mut values: Vec<shards::Values> =
            self.lengths.iter().map(|&length| [(); 3].map(|()| vec![0.0; length])).collect();
        let figures = self.ranks.figures(0);
        let Some(part) = &mut self.part else { return Ok(()) };
        shards::lay(&mut values, part.shared.own(), &figures);
        part.shared.place(values, None, &mut self.team)
    }
}

/// The name of this machine.
#[must_use]
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or("?".to_owned(), |name| name.trim().to_owned())
}
