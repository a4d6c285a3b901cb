//! What ranks cost a step: the sum of gradients, the update and the return of parameters, for vectors as an
//! adapter of Llama-2-7B has them; with all of it at rank 0, and shared out (`zero = 1`).
//!
//!     cargo bench --workspace --features mpi --bench ranks --no-run     # prints where it lies
//!     mpirun -n 2 target/release/deps/ranks-…
//!
//! `PIPE_ROUNDS=n` makes n rounds of each; the best counts on a machine with other work. The figures are in `docs/scale.md`.

use std::time::Instant;

use burn::tensor::Tensor;
use neural::optimizer::{self, AdamW, Slab};
use neural::ranks::Ranks;
use neural::slabs::on_host;

/// Elements of LoRA on all seven projections of Llama-2-7B, a vector a block.
const ADAPTERS: [(&str, usize); 2] = [("r = 16", 39_976_960), ("r = 64", 159_907_840)];
const BLOCKS: usize = 32;

/// Seconds that clipping and AdamW of some vectors take on the host.
fn update(vectors: &[Vec<f32>]) -> f64 {
    let grads: Vec<Tensor<1>> = vectors.iter().cloned().map(on_host).collect();
    let mut slabs: Vec<Slab> = vectors.iter().cloned().map(on_host).map(Slab::new).collect();
    let adam = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let start = Instant::now();
    let factor = optimizer::clip_factor(optimizer::norm_squared(&grads), 1.0);
    for (slab, grad) in slabs.iter_mut().zip(grads) {
        adam.update(slab, grad * factor.clone(), 1e-4, 1);
    }
    start.elapsed().as_secs_f64()
}

/// Prints what a rank 0 has measured.
fn tell(what: &str, bytes: f64, mut seconds: Vec<f64>) {
    seconds.remove(0); // the first makes buffers and connections
    seconds.sort_by(f64::total_cmp);
    let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
    let (rate, megabytes) = (bytes / best / 1e9, bytes / 1e6);
    println!(
        "{what} of {megabytes:.0} MB: best {:.0} ms ({rate:.2} GB/s), median {:.0} ms",
        best * 1e3,
        median * 1e3
    );
}

fn main() {
    let size = std::env::var("OMPI_COMM_WORLD_SIZE").ok().and_then(|size| size.parse().ok()).unwrap_or(1);
    let rounds = std::env::var("PIPE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let ranks = Ranks::join(size).unwrap_or_else(|error| panic!("{error}"));
    for (name, elements) in ADAPTERS {
        let mut vectors = vec![vec![1.0f32; elements / BLOCKS]; BLOCKS];
        let lengths = vec![elements / BLOCKS; BLOCKS];
        for shared in [false, true] {
            let own = ranks.own(&lengths, shared);
            let (mut sums, mut returns) = (Vec::new(), Vec::new());
            for _ in 0..=rounds {
                vectors.iter_mut().for_each(|vector| vector.fill(1.0));
                ranks.share(&mut [vec![0.0]]);
                let start = Instant::now();
                ranks.sum(&mut vectors, true, &own);
                // Rank 0 is through when its sum is whole.
                sums.push(start.elapsed().as_secs_f64());
                let mut mine = vectors.iter().flatten().take(own[0]);
                assert!(ranks.place().rank > 0 || mine.all(|&x| x == size as f32));
                ranks.share(&mut [vec![0.0]]);
                let start = Instant::now();
                if shared {
                    ranks.gather(&mut vectors, &own);
                } else {
                    ranks.share(&mut vectors);
                }
                returns.push(start.elapsed().as_secs_f64());
            }
            if ranks.place().rank == 0 {
                let part = ranks.parts(&lengths).swap_remove(0);
                let cut = part.iter().map(|part| vectors[part.group][part.range.clone()].to_vec());
                let part: Vec<Vec<f32>> = if shared { cut.collect() } else { vectors.clone() };
                // The others wait, as if they had hosts of their own.
                let updates = (0..=rounds).map(|_| update(&part)).collect();
                let how = if shared { "shared out" } else { "at rank 0" };
                for (what, own, seconds) in
                    [("sum", elements, sums), ("update", own[0], updates), ("return", elements, returns)]
                {
                    tell(&format!("{name}, {size} ranks, {how}, {what}"), own as f64 * 4.0, seconds);
                }
            }
        }
    }
    ranks.end().unwrap_or_else(|error| panic!("{error}"));
}
