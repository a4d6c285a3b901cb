//! A sum over ranks in a fixed order, at the price of one pass.
//!
//! Vectors are cut into chunks. Rank 0 sends its chunks to rank 1, which adds its own and sends on; the
//! last rank hands each sum back to rank 0, while later chunks are still on their way. A rank sends one
//! chunk and receives the next at the same time, so the whole takes little longer than sending the vectors
//! once, for any number of ranks, and no library decides on the order. New values go down the same chain.

/// Elements of a chunk: a megabyte. Larger ones fill the chain later, smaller ones pay more latency.
const CHUNK: usize = 1 << 18;

/// The way to the rank after this one, and from the one before it. The chain is closed.
pub trait Neighbours {
    /// Sends `give` to the next and receives `take` from the one before, at the same time.
    fn pass(&mut self, give: Option<&[f32]>, take: Option<&mut [f32]>);
}

/// A vector in chunks.
fn chunks(vector: &mut [f32]) -> impl Iterator<Item = &mut [f32]> {
    vector.chunks_mut(CHUNK)
}

/// The chain as rank `rank` of `size` plays it. Rank 0's `vectors` become the sums; those of the others
/// are used up.
pub fn sum(rank: usize, size: usize, vectors: &mut [Vec<f32>], mine: bool, way: &mut impl Neighbours) {
    let mut parts: Vec<&mut [f32]> = vectors.iter_mut().flat_map(|vector| chunks(vector)).collect();
    if size < 2 || parts.is_empty() {
        return;
    }
    if rank == 0 {
        lead(size - 1, &mut parts, way);
    } else {
        add(&mut parts, mine, way);
    }
}

/// The sum of a chunk comes back `length` turns after the chunk has left.
fn lead(length: usize, parts: &mut [&mut [f32]], way: &mut impl Neighbours) {
    for turn in 0..parts.len() + length {
        let (before, now) = parts.split_at_mut(turn.min(parts.len()));
        let take = turn.checked_sub(length).and_then(|index| before.get_mut(index));
        way.pass(now.first().map(|part| &**part), take.map(|part| &mut **part));
    }
}

/// Gives rank 0's vectors to all ranks, down the same chain.
pub fn share(rank: usize, size: usize, vectors: &mut [Vec<f32>], way: &mut impl Neighbours) {
    let mut parts: Vec<&mut [f32]> = vectors.iter_mut().flat_map(|vector| chunks(vector)).collect();
    if size < 2 || parts.is_empty() {
        return;
    }
    if rank > 0 {
        way.pass(None, Some(&mut *parts[0]));
    }
    for index in 0..parts.len() {
        let (here, later) = parts.split_at_mut(index + 1);
        let take = later.first_mut().filter(|_| rank > 0);
        way.pass((rank < size - 1).then_some(&*here[index]), take.map(|part| &mut **part));
    }
}

fn add(parts: &mut [&mut [f32]], mine: bool, way: &mut impl Neighbours) {
    let mut came = vec![0.0; CHUNK];
    way.pass(None, Some(&mut came[..parts[0].len()]));
    for index in 0..parts.len() {
        let part = &mut parts[index];
        if mine {
            part.iter_mut().zip(&came).for_each(|(own, came)| *own += came);
        } else {
            part.copy_from_slice(&came[..part.len()]);
        }
        let take = parts.get(index + 1).map(|next| next.len()).map(|length| &mut came[..length]);
        way.pass(Some(&*parts[index]), take);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;
    use crate::batch::SplitMix64;

    /// Between threads, and as strict as MPI may be: a send ends when it is received.
    struct Threads {
        next: SyncSender<Vec<f32>>,
        before: Receiver<Vec<f32>>,
    }

    impl Neighbours for Threads {
        fn pass(&mut self, give: Option<&[f32]>, take: Option<&mut [f32]>) {
            let Self { next, before } = self;
            std::thread::scope(|scope| {
                if let Some(give) = give {
                    scope.spawn(|| next.send(give.to_vec()).unwrap());
                }
                if let Some(take) = take {
                    take.copy_from_slice(&before.recv().unwrap());
                }
            });
        }
    }

    fn vectors(rank: usize, lengths: &[usize]) -> Vec<Vec<f32>> {
        let mut random = SplitMix64(rank as u64);
        let mut number = || (random.next() % 2000) as f32 / 7.0 - 140.0;
        lengths.iter().map(|&length| (0..length).map(|_| number()).collect()).collect()
    }

    #[test]
    fn the_sum_is_in_the_order_of_the_ranks_and_reaches_all() {
        for (size, lengths) in
            [(2, vec![5]), (3, vec![CHUNK + 3, 0, 7]), (5, vec![3 * CHUNK, 1]), (4, vec![])]
        {
            let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..size).map(|_| sync_channel(0)).unzip();
            let idle = 2;
            receivers.rotate_right(1);
            let ranks = senders.into_iter().zip(receivers).enumerate().map(|(rank, (next, before))| {
                let mut own = vectors(rank, &lengths);
                std::thread::spawn(move || {
                    let mut way = Threads { next, before };
                    sum(rank, size, &mut own, rank != idle, &mut way);
                    share(rank, size, &mut own, &mut way);
                    own
                })
            });
            let ranks: Vec<_> = ranks.collect::<Vec<_>>().into_iter().map(|r| r.join().unwrap()).collect();
            let mut expected = vectors(0, &lengths);
            for rank in (1..size).filter(|&rank| rank != idle) {
                let own = vectors(rank, &lengths);
                expected.iter_mut().flatten().zip(own.iter().flatten()).for_each(|(sum, x)| *sum += x);
            }
            assert!(ranks.iter().all(|sums| *sums == expected), "{size} ranks");
        }
    }
}
