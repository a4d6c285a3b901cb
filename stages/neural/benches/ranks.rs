//! What ranks cost a step: the sum of gradients and the return of parameters, for vectors as an adapter
//! of Llama-2-7B has them.
//!
//!     cargo bench --workspace --features mpi --bench ranks --no-run     # prints where it lies
//!     mpirun -n 2 target/release/deps/ranks-…
//!
//! With `PIPE_ROUNDS=n` each is the median of n rounds. The figures are in `docs/scale.md`.

use std::time::Instant;

use neural::ranks::Ranks;

/// Elements of LoRA on all seven projections of Llama-2-7B, a vector a block.
const ADAPTERS: [(&str, usize); 2] = [("r = 16", 39_976_960), ("r = 64", 159_907_840)];
const BLOCKS: usize = 32;

fn main() {
    let size = std::env::var("OMPI_COMM_WORLD_SIZE").ok().and_then(|size| size.parse().ok()).unwrap_or(1);
    let rounds = std::env::var("PIPE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let ranks = Ranks::join(size).unwrap_or_else(|error| panic!("{error}"));
    for (name, elements) in ADAPTERS {
        let mut vectors = vec![vec![1.0f32; elements / BLOCKS]; BLOCKS];
        let (mut sums, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..=rounds {
            vectors.iter_mut().for_each(|vector| vector.fill(1.0));
            ranks.share(&mut [vec![0.0]]);
            let start = Instant::now();
            ranks.sum(&mut vectors, true);
            // Rank 0 has the sum when it is whole.
            sums.push(start.elapsed().as_secs_f64());
            assert!(ranks.place().rank > 0 || vectors.iter().flatten().all(|&x| x == size as f32));
            ranks.share(&mut [vec![0.0]]);
            let start = Instant::now();
            ranks.share(&mut vectors);
            shares.push(start.elapsed().as_secs_f64());
        }
        if ranks.place().rank == 0 {
            let bytes = elements as f64 * 4.0;
            for (what, mut seconds) in [("sum", sums), ("return", shares)] {
                seconds.remove(0); // the first makes buffers and connections
                seconds.sort_by(f64::total_cmp);
                let median = seconds[seconds.len() / 2];
                let rate = bytes / median / 1e9;
                println!(
                    "{name}, {size} ranks, {what} of {:.0} MB: {:.0} ms, {rate:.2} GB/s",
                    bytes / 1e6,
                    median * 1e3
                );
            }
        }
    }
    ranks.end().unwrap_or_else(|error| panic!("{error}"));
}
