//! The connection as MPI makes it: the only file that knows it.
//!
//! MPI's own waiting turns a core at full speed. Ranks wait for each other's computing, perhaps on the
//! same cores: so what may take long is waited for by looking now and then. An error within MPI ends the
//! process, which is MPI's default.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use contract::StageError;
use mpi::environment::Universe;
use mpi::point_to_point::send_receive_into_with_tags;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};
use mpi::{Tag, Threading};

use super::{Place, Way};

/// Orders and answers.
const WORDS: Tag = 1;
/// Chunks of a sum.
const SUMS: Tag = 2;

/// How long a message is waited for at full speed, and how often it is looked for after that.
const EAGER: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_micros(100);

/// A connection to the other ranks.
pub struct Link {
    world: SimpleCommunicator,
    /// Not dropped but by [`Link::end`]: MPI's end waits for all ranks, and one that failed must not wait.
    universe: Cell<Option<ManuallyDrop<Universe>>>,
}

impl Link {
    pub fn join() -> Result<(Self, Place), StageError> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| StageError::new("MPI was started twice in this process"))?;
        let world = universe.world();
        let local = world.split_shared(world.rank());
        let number = |number: i32| usize::try_from(number).unwrap_or(0);
        let place = Place {
            rank: number(world.rank()),
            size: number(world.size()),
            local: number(local.rank()),
            neighbours: number(local.size()),
        };
        Ok((Self { world, universe: Cell::new(Some(ManuallyDrop::new(universe))) }, place))
    }

    pub fn send(&self, rank: usize, bytes: &[u8]) {
        self.world.process_at_rank(raw(rank)).send_with_tag(bytes, WORDS);
    }

    pub fn receive(&self, rank: usize) -> Vec<u8> {
        let from = self.world.process_at_rank(raw(rank));
        self.wait(raw(rank), WORDS);
        from.receive_vec_with_tag::<u8>(WORDS).0
    }

    pub fn end(&self) {
        if let Some(universe) = self.universe.take() {
            drop(ManuallyDrop::into_inner(universe));
        }
    }

    /// Until a message is there.
    fn wait(&self, rank: i32, tag: Tag) {
        let (from, since) = (self.world.process_at_rank(rank), Instant::now());
        while from.immediate_probe_with_tag(tag).is_none() {
            if since.elapsed() > EAGER {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

impl Way for &Link {
    fn pass(&mut self, give: Option<(usize, &[f32])>, take: Option<(usize, &mut [f32])>) {
        let process = |rank: usize| self.world.process_at_rank(raw(rank));
        match (give, take) {
            (Some((to, give)), Some((from, take))) => {
                let (to, from) = (process(to), process(from));
                let _ = send_receive_into_with_tags(give, &to, SUMS, take, &from, SUMS);
            }
            (Some((to, give)), None) => process(to).send_with_tag(give, SUMS),
            (None, Some((from, take))) => {
                self.wait(raw(from), SUMS);
                process(from).receive_into_with_tag(take, SUMS);
            }
            (None, None) => {}
        }
    }
}

fn raw(rank: usize) -> i32 {
    i32::try_from(rank).unwrap_or(i32::MAX)
}
