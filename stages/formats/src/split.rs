//! Which rows are held out: the same as `datasets.Dataset.train_test_split(test_size, seed)`.
//!
//! Sources: `datasets` `arrow_dataset.py` (`np.random.default_rng(seed).permutation(n)`, the first
//! rows are the test set); NumPy `bit_generator.pyx` (`SeedSequence`), `pcg64.h` (PCG64 XSL-RR, O'Neill
//! 2014), `distributions.c` (`random_interval`), `_generator.pyx` (`shuffle`).
//!
//! It does not know rows.

/// The indices of the rows to train on and of the held-out ones, in the order in which `datasets`
/// hands them out.
///
/// # Panics
/// If more rows are held out than there are.
#[must_use]
pub fn train_test_split(rows: usize, test_size: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    assert!(test_size <= rows, "{test_size} of {rows} rows cannot be held out");
    let mut test = permutation(rows, seed);
    let train = test.split_off(test_size);
    (train, test)
}

/// NumPy's `default_rng(seed).permutation(n)`.
#[must_use]
pub fn permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut random = Pcg64::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, random.up_to(last as u64) as usize);
    }
    order
}

/// NumPy's PCG64 with its buffered half word.
struct Pcg64 {
    state: u128,
    increment: u128,
    half: Option<u32>,
}

const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

impl Pcg64 {
    fn new(seed: u64) -> Self {
        let [state_high, state_low, stream_high, stream_low] = seed_words(seed);
        let wide = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        let mut random = Self { state: 0, increment: (wide(stream_high, stream_low) << 1) | 1, half: None };
        random.step();
        random.state = random.state.wrapping_add(wide(state_high, state_low));
        random.step();
        random
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let word = self.next_u64();
        self.half = Some((word >> 32) as u32);
        word as u32
    }

    /// A number from 0 to `most`, both included: the low bits, drawn again while too large
    /// (`random_interval`).
    fn up_to(&mut self, most: u64) -> u64 {
        if most == 0 {
            return 0;
        }
        let mask = u64::MAX >> most.leading_zeros();
        loop {
            let word = if most <= u32::MAX.into() { self.next_u32().into() } else { self.next_u64() };
            if word & mask <= most {
                return word & mask;
            }
        }
    }
}

/// NumPy's `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_words(seed: u64) -> [u64; 4] {
    let mut factor = 0x43B0_D7E5u32;
    let mut hash = |word: u32| {
        let word = word ^ factor;
        factor = factor.wrapping_mul(0x931E_8875);
        let word = word.wrapping_mul(factor);
        word ^ (word >> 16)
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hash);
    for from in 0..4 {
        for to in (0..4).filter(|&to| to != from) {
            let (left, right) = (pool[to], hash(pool[from]));
            let mixed = left.wrapping_mul(0xCA01_F9DD).wrapping_sub(right.wrapping_mul(0x4973_F715));
            pool[to] = mixed ^ (mixed >> 16);
        }
    }
    let mut factor = 0x8B51_F9DDu32;
    let mut word = |at: usize| {
        let word = pool[at % 4] ^ factor;
        factor = factor.wrapping_mul(0x58F3_8DED);
        let word = word.wrapping_mul(factor);
        u64::from(word ^ (word >> 16))
    };
    [0, 2, 4, 6].map(|at| word(at) | (word(at + 1) << 32))
}
