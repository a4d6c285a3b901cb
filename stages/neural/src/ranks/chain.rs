//! A sum over ranks in a fixed order, at the price of one pass.
//!
//! Vectors, laid end to end, are cut into chunks. Rank 0 sends its chunks to rank 1, which adds its own and
//! sends on; the last rank hands each sum to the rank whose it is, while later chunks are still on their
//! way. A rank sends one chunk and receives the next at the same time, so the whole takes little longer
//! than sending the vectors once, for any number of ranks, and no library decides on the order. New values
//! go down the same chain from rank 0 ([`share`]), or around it from whoever has a part of them
//! ([`gather`]).

/// Elements of a chunk: a megabyte. Larger ones fill the chain later, smaller ones pay more latency.
const CHUNK: usize = 1 << 18;

/// The way to other ranks.
pub trait Way {
    /// Sends to one rank and receives from another, at the same time.
    fn pass(&mut self, give: Option<(usize, &[f32])>, take: Option<(usize, &mut [f32])>);
}

/// Which rank of how many.
pub type Rank = (usize, usize);

/// All chunks, each with the rank whose it is: of the vectors, laid end to end, rank r has the `own[r]`
/// elements after those of the ranks before it.
fn chunks<'a>(vectors: &'a mut [Vec<f32>], own: &[usize]) -> Vec<(usize, &'a mut [f32])> {
    let (mut owner, mut left, mut all) = (0, own.first().copied().unwrap_or(usize::MAX), Vec::new());
    for vector in vectors {
        let mut rest = &mut vector[..];
        while !rest.is_empty() {
            while left == 0 {
                owner += 1;
                left = own.get(owner).copied().unwrap_or(usize::MAX);
            }
            let (chunk, later) = rest.split_at_mut(rest.len().min(left).min(CHUNK));
            left -= chunk.len();
            all.push((owner, chunk));
            rest = later;
        }
    }
    all
}

/// The sum as one rank plays it. What is its `own` of `vectors` becomes the sum, the rest is used up. A rank
/// that has nothing to add (`mine` is false) passes on what comes.
///
/// Every turn, each chunk moves one rank on: in turn t rank r sends chunk t − r and receives the next.
pub fn sum((rank, size): Rank, vectors: &mut [Vec<f32>], mine: bool, own: &[usize], way: &mut impl Way) {
    let mut parts = chunks(vectors, own);
    if size < 2 || parts.is_empty() {
        return;
    }
    let (last, mut came) = (size - 1, vec![0.0; if rank > 0 { CHUNK } else { 0 }]);
    for turn in 0..parts.len() + last {
        let next = (turn + 1).checked_sub(rank).filter(|&next| rank > 0 && next < parts.len());
        let length = next.map(|next| parts[next].1.len());
        let here = turn.saturating_sub(rank).min(parts.len());
        let (before, now) = parts.split_at_mut(here);
        let give = now.first().filter(|_| turn >= rank).and_then(|(owner, chunk)| {
            let to = if rank < last { rank + 1 } else { *owner };
            (to != rank).then_some((to, &**chunk))
        });
        let done = turn.checked_sub(last).and_then(|done| before.get_mut(done));
        let done = done.filter(|(owner, _)| *owner == rank).map(|(_, chunk)| (last, &mut **chunk));
        let (Some(next), Some(length)) = (next, length) else {
            way.pass(give, done);
            continue;
        };
        way.pass(give, Some((rank - 1, &mut came[..length])));
        if done.is_some() {
            way.pass(None, done);
        }
        let part = &mut parts[next].1;
        if mine {
            part.iter_mut().zip(&came).for_each(|(own, came)| *own += came);
        } else {
            part.copy_from_slice(&came[..length]);
        }
    }
}

/// Gives rank 0's vectors to all ranks, down the same chain.
pub fn share((rank, size): Rank, vectors: &mut [Vec<f32>], way: &mut impl Way) {
    let mut parts = chunks(vectors, &[]);
    if size < 2 || parts.is_empty() {
        return;
    }
    if rank > 0 {
        way.pass(None, Some((rank - 1, &mut *parts[0].1)));
    }
    for index in 0..parts.len() {
        let (here, later) = parts.split_at_mut(index + 1);
        let give = (rank < size - 1).then_some((rank + 1, &*here[index].1));
        let take = later.first_mut().filter(|_| rank > 0).map(|(_, part)| (rank - 1, &mut **part));
        way.pass(give, take);
    }
}

/// Gives every rank's `own` of the vectors to all: around the closed chain, each passes on what it got last.
pub fn gather((rank, size): Rank, vectors: &mut [Vec<f32>], own: &[usize], way: &mut impl Way) {
    let mut parts: Vec<Vec<&mut [f32]>> = (0..size).map(|_| Vec::new()).collect();
    for (owner, chunk) in chunks(vectors, own) {
        parts[owner].push(chunk);
    }
    let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
    for round in 0..size - 1 {
        let (have, get) = ((rank + size - round) % size, (before + size - round) % size);
        let mut gets = std::mem::take(&mut parts[get]);
        for index in 0..gets.len().max(parts[have].len()) {
            let give = parts[have].get(index).map(|chunk| (next, &**chunk));
            way.pass(give, gets.get_mut(index).map(|chunk| (before, &mut **chunk)));
        }
        parts[get] = gets;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;
    use crate::batch::SplitMix64;

    /// Between threads, and as strict as MPI may be: a send ends when it is received.
    #[derive(Default)]
    struct Threads {
        to: HashMap<usize, SyncSender<Vec<f32>>>,
        from: HashMap<usize, Receiver<Vec<f32>>>,
        /// Elements sent.
        sent: usize,
    }

    impl Way for Threads {
        fn pass(&mut self, give: Option<(usize, &[f32])>, take: Option<(usize, &mut [f32])>) {
            let Self { to, from, sent } = self;
            std::thread::scope(|scope| {
                if let Some((rank, give)) = give {
                    *sent += give.len();
                    let to = &to[&rank];
                    scope.spawn(|| to.send(give.to_vec()).unwrap());
                }
                if let Some((rank, take)) = take {
                    take.copy_from_slice(&from[&rank].recv().unwrap());
                }
            });
        }
    }

    /// Has each of `size` ranks do `job` with its vectors; what they then have, and how much each has sent.
    fn together<J>(size: usize, lengths: &[usize], job: J) -> Vec<(Vec<Vec<f32>>, usize)>
    where
        J: Fn(Rank, &mut [Vec<f32>], &mut Threads) + Sync,
    {
        let mut ways: Vec<Threads> = (0..size).map(|_| Threads::default()).collect();
        for (from, to) in (0..size).flat_map(|from| (0..size).map(move |to| (from, to))) {
            let (sender, receiver) = sync_channel(0);
            ways[from].to.insert(to, sender);
            ways[to].from.insert(from, receiver);
        }
        let job = &job;
        std::thread::scope(|scope| {
            let ranks = ways.into_iter().enumerate().map(|(rank, mut way)| {
                scope.spawn(move || {
                    let mut own = vectors(rank, lengths);
                    job((rank, size), &mut own, &mut way);
                    (own, way.sent)
                })
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn vectors(rank: usize, lengths: &[usize]) -> Vec<Vec<f32>> {
        let mut random = SplitMix64(rank as u64);
        let mut number = || (random.next() % 2000) as f32 / 7.0 - 140.0;
        lengths.iter().map(|&length| (0..length).map(|_| number()).collect()).collect()
    }

    /// A rank that has nothing to add, where there is such a one.
    const IDLE: usize = 2;

    fn expected(size: usize, lengths: &[usize]) -> Vec<Vec<f32>> {
        let mut sums = vectors(0, lengths);
        for rank in (1..size).filter(|&rank| rank != IDLE) {
            let own = vectors(rank, lengths);
            sums.iter_mut().flatten().zip(own.iter().flatten()).for_each(|(sum, x)| *sum += x);
        }
        sums
    }

    #[test]
    fn the_sum_is_in_the_order_of_the_ranks_and_reaches_all() {
        for (size, lengths) in
            [(2, vec![5]), (3, vec![CHUNK + 3, 0, 7]), (5, vec![3 * CHUNK, 1]), (4, vec![])]
        {
            let all = [lengths.iter().sum()];
            let ranks = together(size, &lengths, |me, vectors, way| {
                sum(me, vectors, me.0 != IDLE, &all, way);
                share(me, vectors, way);
            });
            let expected = expected(size, &lengths);
            assert!(ranks.iter().all(|(sums, _)| *sums == expected), "{size} ranks");
        }
    }

    #[test]
    fn every_rank_gets_the_sum_of_its_own_and_then_all_of_it() {
        let thirds = |length: usize| vec![length / 3, length / 3, length - 2 * (length / 3)];
        for (size, lengths, own) in [
            (2, vec![5], vec![2, 3]),
            (3, vec![CHUNK + 3, 0, 7], thirds(CHUNK + 10)),
            (3, vec![9 * CHUNK + 1], thirds(9 * CHUNK + 1)),
            (5, vec![3 * CHUNK, 1], vec![0, 2 * CHUNK + 9, 0, CHUNK - 8, 0]),
            (4, vec![2, 1], vec![1, 0, 0, 2]),
            (2, vec![], vec![0, 0]),
        ] {
            let expected = expected(size, &lengths);
            let ranks = together(size, &lengths, |me, vectors, way| {
                sum(me, vectors, me.0 != IDLE, &own, way);
                let start = own[..me.0].iter().sum::<usize>();
                let mine = start..start + own[me.0];
                let flat: Vec<f32> = vectors.iter().flatten().copied().collect();
                let sums: Vec<f32> = expected.iter().flatten().copied().collect();
                assert_eq!(flat[mine.clone()], sums[mine.clone()], "rank {} of {size}", me.0);
                // What is not its own is worth nothing now.
                for (index, x) in vectors.iter_mut().flatten().enumerate() {
                    *x = if mine.contains(&index) { *x } else { f32::NAN };
                }
                gather(me, vectors, &own, way);
            });
            assert!(ranks.iter().all(|(sums, _)| *sums == expected), "{size} ranks");
        }
    }

    #[test]
    fn no_rank_sends_more_than_twice_what_there_is() {
        let (length, size) = (8 * CHUNK, 4);
        let own = [length / size; 4];
        let ranks = together(size, &[length], |me, vectors, way| {
            sum(me, vectors, true, &own, way);
            gather(me, vectors, &own, way);
        });
        let sent: Vec<usize> = ranks.into_iter().map(|(_, sent)| sent).collect();
        // The last one hands out sums in place of passing on.
        assert_eq!(sent, [length / 4 * 7, length / 4 * 7, length / 4 * 7, length / 4 * 6]);
    }
}
