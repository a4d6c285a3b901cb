//! The mean of a vector with torch's roundings: the offset of doubly quantized scales is one, and a
//! last bit in it moves every weight.
//!
//! Source: torch 2.15 `aten/src/ATen/native/cpu/SumKernel.cpp` (`vectorized_inner_sum`, `row_sum`,
//! `multi_row_sum`) on one thread. Eight lanes at every level of instructions: checked against
//! `ATEN_CPU_CAPABILITY` default and avx2.

/// Numbers that are summed side by side.
const LANES: usize = 8;
/// Rows of lanes that are summed side by side.
const ROWS: usize = 4;
/// Partial sums of partial sums, against the growth of the error.
const LEVELS: usize = 4;

type Lanes = [f32; LANES];

/// torch's `x.mean()`; 0 of nothing.
pub(super) fn mean(x: &[f32]) -> f32 {
    if x.is_empty() { 0.0 } else { sum(x) / x.len() as f32 }
}

fn sum(x: &[f32]) -> f32 {
    if x.len() < LANES {
        // a lane of its own for every number, the rest empty
        let padded: Vec<Lanes> =
            x.iter().map(|&x| std::array::from_fn(|k| if k == 0 { x } else { 0.0 })).collect();
        return rows(&padded)[0];
    }
    let (whole, rest) = x.as_chunks::<LANES>();
    let tail = rest.iter().fold(0.0, |sum, x| sum + x);
    rows(whole).iter().fold(tail, |sum, x| sum + x)
}

/// `row_sum`: four interleaved sums, then what is left, then the four together.
fn rows(x: &[Lanes]) -> Lanes {
    let (whole, rest) = x.as_chunks::<ROWS>();
    let [mut first, others @ ..] = cascade(whole);
    rest.iter().chain(&others).for_each(|lanes| add(&mut first, lanes));
    first
}

/// `multi_row_sum`: after every 2^power rows a level is added to the next one.
fn cascade(x: &[[Lanes; ROWS]]) -> [Lanes; ROWS] {
    let bits = x.len().next_power_of_two().trailing_zeros() as usize;
    let power = (bits / LEVELS).max(4);
    let mut levels = [[[0f32; LANES]; ROWS]; LEVELS];
    for (done, row) in (1..).zip(x) {
        add_rows(&mut levels[0], row);
        let mut level = 1;
        while level < LEVELS && done & ((1usize << (level * power)) - 1) == 0 {
            let lower = std::mem::take(&mut levels[level - 1]);
            add_rows(&mut levels[level], &lower);
            level += 1;
        }
    }
    let [mut first, others @ ..] = levels;
    others.iter().for_each(|level| add_rows(&mut first, level));
    first
}

fn add_rows(to: &mut [Lanes; ROWS], from: &[Lanes; ROWS]) {
    to.iter_mut().zip(from).for_each(|(to, from)| add(to, from));
}

fn add(to: &mut Lanes, from: &Lanes) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x[i] of a generator that NumPy and Rust compute alike.
    fn numbers(n: u32) -> Vec<f32> {
        (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * (0.2 / 16_777_216.0)).collect()
    }

    #[test]
    fn the_mean_is_that_of_torch_to_the_last_bit() {
        // torch.from_numpy(x).mean() of the same numbers, torch 2.15.0, as bits
        let golden = [
            (1, 0x00000000),
            (5, 0x3DB29D0A),
            (8, 0x3DA936A9),
            (31, 0x3DCB4A87),
            (64, 0x3DCC858F),
            (100, 0x3DC9CD7C),
            (172, 0x3DCC57A2),
            (300, 0x3DCC8F63),
            (2752, 0x3DCCCD95),
            (4096, 0x3DCCCFAB),
            (16384, 0x3DCCC3D2),
            (65536, 0x3DCCCC6B),
            (100003, 0x3DCCCC7F),
        ];
        for (n, bits) in golden {
            let found = mean(&numbers(n));
            assert_eq!(found.to_bits(), bits, "{n}: {found:e} and {:e}", f32::from_bits(bits));
        }
    }

    #[test]
    fn the_mean_is_near_that_in_double_precision() {
        for n in [1, 5, 8, 31, 32, 33, 512, 4_096, 100_003] {
            let x = numbers(n);
            let exact = x.iter().map(|&x| f64::from(x)).sum::<f64>() / f64::from(n);
            assert!((f64::from(mean(&x)) - exact).abs() <= 4e-7 * exact.max(1e-9), "{n}");
        }
        assert_eq!(mean(&[]), 0.0);
    }
}
