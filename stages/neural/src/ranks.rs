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
//! many devices of one process give.
//! It does not know what the numbers mean, and only `mpi` knows MPI.

use contract::StageError;
use serde::{Deserialize, Serialize};

pub use chain::Neighbours;
pub use follow::{Greeting, follow, host};
use link::Link;

use crate::batch::Batch;
use crate::replicas::Share;

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
    /// Gradients of these shares, one a device, into the sum; then the losses.
    Gradients(Vec<Share>),
    /// Take the parameters that follow.
    Take,
    /// Losses of these batches, dealt out to its devices.
    Losses(Vec<Vec<Batch>>),
    /// No more orders.
    End,
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

    /// Sends figures to rank 0, to the last bit.
    fn give(&self, figures: &[f32]) -> Result<(), StageError> {
        self.send(0, &figures.iter().map(|figure| figure.to_bits()).collect::<Vec<_>>())
    }

    /// Waits for the figures that a rank gives.
    ///
    /// # Errors
    /// If it sends something else.
    pub fn figures(&self, rank: usize) -> Result<Vec<f32>, StageError> {
        Ok(self.receive::<Vec<u32>>(rank)?.into_iter().map(f32::from_bits).collect())
    }

    /// Sums vectors over all ranks, in their order; rank 0 has the sum. A rank without a share of its own
    /// (`mine` is false) passes on what comes.
    pub fn sum(&self, vectors: &mut [Vec<f32>], mine: bool) {
        if let Some(link) = &self.link {
            chain::sum(self.place.rank, self.place.size, vectors, mine, &mut &*link);
        }
    }

    /// Gives rank 0's vectors to all ranks.
    pub fn share(&self, vectors: &mut [Vec<f32>]) {
        if let Some(link) = &self.link {
            chain::share(self.place.rank, self.place.size, vectors, &mut &*link);
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
