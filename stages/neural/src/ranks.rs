//! The processes that train one model together, and what travels between them.
//!
//! Every rank is the same program with the same job. Rank 0 leads: it deals rows, holds parameters and
//! moments, writes every file and hears every request to stop. The others [`follow`]: they answer its
//! orders with the gradients and losses of their share, and take the parameters that it sends. So ranks
//! cannot drift apart, and nothing has to be agreed upon. A rank that fails ends its process, and whoever
//! started them ends the rest.
//!
//! Gradients are summed on the host in f32 as `((g₀ + g₁) + g₂) + …`, whatever the MPI library is: chunks
//! travel along the chain of ranks, each adds its own, and the last hands the sum to rank 0 ([`chain`]).
//! Every rank sends and receives each element once. With one device a rank, these are the bits that as
//! many devices of one process give. Where moments and update are shared out over the ranks (`zero = 1`),
//! the sum of each part goes to the rank that updates it, and all hand each other the new parameters.
//! It does not know what the numbers mean, and only `mpi` knows MPI.

use contract::StageError;
use serde::{Deserialize, Serialize};

pub use chain::Way;
pub use follow::{Greeting, follow, host};
use link::Link;

use crate::batch::Batch;
use crate::replicas::Share;
use crate::shards::{self, Part};
use crate::sum;

mod chain;
mod follow;
#[cfg(feature = "mpi")]
#[path = "ranks/mpi.rs"]
mod link;
#[cfg(not(feature = "mpi"))]
#[path = "ranks/none.rs"]
mod link;

/// What to do about a build without MPI.
pub const BUILD: &str = "build with `cargo build --release --features mpi`, which needs an MPI and libclang (Debian: `libopenmpi-dev openmpi-bin libclang-dev`)";

/// Figures in a message: a quarter of a gigabyte. MPI counts bytes in 32 bits.
const MOST: usize = 1 << 26;

/// Where this process stands among the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// Ranks in all.
    pub size: usize,
    /// Its number among those of this machine.
    pub local: usize,
    /// Ranks on this machine.
    pub neighbours: usize,
}

/// This process's end of the connection to the other ranks.
pub struct Ranks {
    place: Place,
    link: Option<Link>,
}

/// What rank 0 asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Gradients of these shares, one a device, into the sum; then the losses. Who updates a part of the
    /// parameters also divides its sum by the scale of the loss, and gives the squares of it.
    Gradients {
        /// What to compute, a share a device.
        shares: Vec<Share>,
        /// The scale of the loss, if it can change.
        scale: Option<f64>,
    },
    /// Update the own part with the last sum, and give and take the new parameters.
    Update(Update),
    /// Take the parameters that follow.
    Take,
    /// Give the own part of parameters and moments.
    Give,
    /// Take the own part of parameters and moments.
    Place,
    /// Losses of these batches, dealt out to its devices.
    Losses(Vec<Vec<Batch>>),
    /// No more orders.
    End,
}

/// A step of the optimizer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Update {
    /// What the gradient is multiplied with so that it is not too long, as bits: not every f32 has a
    /// decimal.
    pub clip: Option<u32>,
    /// The learning rate.
    pub lr: f64,
    /// Which step, from 1.
    pub step: u64,
}

impl Ranks {
    /// One process alone.
    #[must_use]
    pub fn alone() -> Self {
        Self { place: Place { rank: 0, size: 1, local: 0, neighbours: 1 }, link: None }
    }

    /// Meets the others, if there are to be more than one.
    ///
    /// # Errors
    /// If this build has no MPI, or as many were not started.
    pub fn join(size: usize) -> Result<Self, StageError> {
        if size <= 1 {
            return Ok(Self::alone());
        }
        let (link, place) = Link::join()?;
        if place.size == size {
            return Ok(Self { place, link: Some(link) });
        }
        Err(StageError::new(format!("`ranks` is {size}, and MPI has started {} of them", place.size))
            .hint("the program's MPI and the one whose `mpirun` or `srun` started it must be the same"))
    }

    /// Where this process stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether there are no others.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.link.is_none()
    }

    /// What each rank updates of vectors of these lengths where that is shared out: cut so that the norm of
    /// the whole gradient is the sum of the same figures in the same order.
    #[must_use]
    pub fn parts(&self, lengths: &[usize]) -> Vec<Vec<Part>> {
        shards::parts(lengths, self.place.size, sum::WIDTH)
    }

    /// How many elements of a sum of such vectors each rank gets: of its part, or rank 0 all.
    #[must_use]
    pub fn own(&self, lengths: &[usize], shared: bool) -> Vec<usize> {
        if shared {
            return self.parts(lengths).iter().map(|part| shards::elements(part)).collect();
        }
        vec![lengths.iter().sum()]
    }

    /// The numbers of the ranks that follow.
    pub fn followers(&self) -> impl Iterator<Item = usize> + use<> {
        1..self.place.size
    }

    /// Rank 0's order to another.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn order(&self, rank: usize, order: &Order) -> Result<(), StageError> {
        self.send(rank, order)
    }

    /// Sends a value to a rank.
    ///
    /// # Errors
    /// If it cannot be written down.
    fn send<T: Serialize>(&self, rank: usize, value: &T) -> Result<(), StageError> {
        if let Some(link) = &self.link {
            link.send(rank, &serde_json::to_vec(value)?);
        }
        Ok(())
    }

    /// Waits for a value from a rank.
    ///
    /// # Errors
    /// If it is none.
    pub fn receive<T: for<'a> Deserialize<'a>>(&self, rank: usize) -> Result<T, StageError> {
        let text = self.link.as_ref().map(|link| link.receive(rank)).unwrap_or_default();
        Ok(serde_json::from_slice(&text)?)
    }

    /// Sends figures to a rank: in messages of [`MOST`], until one is shorter.
    pub fn give(&self, rank: usize, figures: &[f32]) {
        if let Some(link) = &self.link {
            let end = figures.len().is_multiple_of(MOST).then_some(&[][..]);
            figures.chunks(MOST).chain(end).for_each(|chunk| link.send(rank, bytemuck::cast_slice(chunk)));
        }
    }

    /// Waits for the figures that a rank gives.
    #[must_use]
    pub fn figures(&self, rank: usize) -> Vec<f32> {
        let (mut figures, Some(link)) = (Vec::new(), &self.link) else { return Vec::new() };
        loop {
            let chunk: Vec<f32> = bytemuck::pod_collect_to_vec(&link.receive(rank));
            figures.extend_from_slice(&chunk);
            if chunk.len() < MOST {
                return figures;
            }
        }
    }

    /// Sums vectors over all ranks, in their order. Of the vectors, laid end to end, each rank has the sum
    /// of the `own[rank]` elements after those of the ranks before it. A rank without a share of its own
    /// (`mine` is false) passes on what comes.
    pub fn sum(&self, vectors: &mut [Vec<f32>], mine: bool, own: &[usize]) {
        if let Some(link) = &self.link {
            chain::sum((self.place.rank, self.place.size), vectors, mine, own, &mut &*link);
        }
    }

    /// Gives rank 0's vectors to all ranks.
    pub fn share(&self, vectors: &mut [Vec<f32>]) {
        if let Some(link) = &self.link {
            chain::share((self.place.rank, self.place.size), vectors, &mut &*link);
        }
    }

    /// Gives to all ranks of the vectors what [`Ranks::sum`] gave to each.
    pub fn gather(&self, vectors: &mut [Vec<f32>], own: &[usize]) {
        if let Some(link) = &self.link {
            chain::gather((self.place.rank, self.place.size), vectors, own, &mut &*link);
        }
    }

    /// Takes leave of the others, all of which do so. A rank that fails does not: the end of its process is
    /// what ends the others.
    ///
    /// # Errors
    /// If they cannot be told.
    pub fn end(&self) -> Result<(), StageError> {
        if self.place.rank == 0 {
            self.followers().try_for_each(|rank| self.order(rank, &Order::End))?;
        }
        if let Some(link) = &self.link {
            link.end();
        }
        Ok(())
    }
}
