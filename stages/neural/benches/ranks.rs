//! What ranks cost a step: the sum of gradients, rank 0's update and the return of parameters, for vectors
//! as an adapter of Llama-2-7B has them.
//!
//!     cargo bench --workspace --features mpi --bench ranks --no-run     # prints where it lies
//!     mpirun -n 2 target/release/deps/ranks-…
//!
//! `PIPE_ROUNDS=n` makes n rounds of each; the best counts on a machine with other work. The figures are in `docs/scale.md`.

use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use neural::optimizer::{self, AdamW, Slab};
use neural::ranks::Ranks;

/// Elements of LoRA on all seven projections of Llama-2-7B, a vector a block.
const ADAPTERS: [(&str, usize); 2] = [("r = 16", 39_976_960), ("r = 64", 159_907_840)];
const BLOCKS: usize = 32;

/// Seconds that clipping and AdamW take on the host.
fn update(vectors: &[Vec<f32>]) -> f64 {
    let on_host = |values: &Vec<f32>| {
        Tensor::<1>::from_data(TensorData::new(values.clone(), [values.len()]), &Device::flex())
    };
    let grads: Vec<Tensor<1>> = vectors.iter().map(on_host).collect();
    let mut slabs: Vec<Slab> = vectors.iter().map(on_host).map(Slab::new).collect();
    let adam = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let start = Instant::now();
    let factor = optimizer::clip_factor(optimizer::norm_squared(&grads), 1.0);
    for (slab, grad) in slabs.iter_mut().zip(grads) {
        adam.update(slab, grad * factor.clone(), 1e-4, 1);
    }
    start.elapsed().as_secs_f64()
}

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
            let updates = (0..=rounds).map(|_| update(&vectors)).collect();
            let bytes = elements as f64 * 4.0;
            for (what, mut seconds) in [("sum", sums), ("update", updates), ("return", shares)] {
                seconds.remove(0); // the first makes buffers and connections
                seconds.sort_by(f64::total_cmp);
                let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
                let rate = bytes / best / 1e9;
                println!(
                    "{name}, {size} ranks, {what} of {:.0} MB: best {:.0} ms ({rate:.2} GB/s), median {:.0} ms",
                    bytes / 1e6,
                    best * 1e3,
                    median * 1e3
                );
            }
        }
    }
    ranks.end().unwrap_or_else(|error| panic!("{error}"));
}
