//! Which rows a step sees, and how they become rectangles of token ids.
//!
//! Knows neither model nor device. The order of the rows is a function of (seed, epoch) alone, and
//! the position in it a function of the step: resuming needs the step number and nothing else.
//! Generator: `SplitMix64` (Steele, Lea & Flood 2014) seeded with seed and epoch; Fisher–Yates from
//! the end, indices drawn by Lemire's rejection.

use formats::tokens::TokenSet;
use serde::{Deserialize, Serialize};

/// A source of random bits with one word of state.
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so `Option` would only be in the way")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, each equally likely; 0 if `n` is 0.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a 128-bit product")]
    pub fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(n);
            if (product as u64) >= n.wrapping_neg() % n.max(1) {
                return (product >> 64) as u64;
            }
        }
    }
}

/// One rectangle of token ids, rows padded at the end. A row holds one example, or several that do not
/// see each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub length: usize,
    /// Token ids, `[rows, length]`, row by row.
    pub ids: Vec<i32>,
    /// Whether the position holds a token (and no padding), `[rows, length]`.
    pub attention: Vec<bool>,
    /// Flat positions (`row·length + column`) whose next token is to be predicted.
    pub positions: Vec<i32>,
    /// That next token, one for each of `positions`.
    pub targets: Vec<i32>,
    /// Column at which the example of each position begins, `[rows, length]`, padding standing for
    /// itself; empty where every row holds one example.
    pub starts: Vec<u32>,
}

impl Batch {
    /// Examples of any length, one a row, padded to the longest, rounded up to a multiple of
    /// `multiple`. An example's `first_label` is the index of the first token that is a label.
    #[must_use]
    pub fn ragged<'a>(examples: impl Iterator<Item = (&'a [u32], usize)>, multiple: usize) -> Self {
        let (ids, labels): (Vec<_>, Vec<_>) = examples.unzip();
        let rows: Vec<Vec<usize>> = (0..ids.len()).map(|example| vec![example]).collect();
        Self::laid(&ids, &rows, multiple, |example, token| token >= labels[example])
    }

    /// Lays out examples by row: `rows` names them by index, and `counts` says whether an example's
    /// token is a label.
    #[expect(
        clippy::cast_possible_wrap,
        clippy::cast_possible_truncation,
        reason = "ids and positions are far below 2^31"
    )]
    fn laid(
        examples: &[&[u32]],
        rows: &[Vec<usize>],
        multiple: usize,
        counts: impl Fn(usize, usize) -> bool,
    ) -> Self {
        let fill = |row: &Vec<usize>| row.iter().map(|&example| examples[example].len()).sum::<usize>();
        let length = rows.iter().map(fill).max().unwrap_or(0).next_multiple_of(multiple.max(1));
        let packed = rows.iter().any(|row| row.len() > 1);
        let mut batch = Self { rows: rows.len(), length, ..Self::default() };
        for (number, row) in rows.iter().enumerate() {
            for &example in row {
                let (ids, base) = (examples[example], batch.ids.len());
                batch.ids.extend(ids.iter().map(|&id| id as i32));
                for (token, &id) in
                    ids.iter().enumerate().skip(1).filter(|&(token, _)| counts(example, token))
                {
                    batch.positions.push((base + token - 1) as i32);
                    batch.targets.push(id as i32);
                }
                if packed {
                    batch.starts.resize(batch.ids.len(), (base - number * length) as u32);
                }
            }
            let used = batch.ids.len() - number * length;
            batch.attention.resize(batch.ids.len(), true);
            batch.ids.resize((number + 1) * length, 0);
            batch.attention.resize(batch.ids.len(), false);
            if packed {
                batch.starts.extend(used as u32..length as u32);
            }
        }
        batch
    }

    /// A rectangle as transformers takes it: `labels` as long as `ids`, negative where there is none.
    #[must_use]
    #[expect(
        clippy::cast_possible_wrap,
        clippy::cast_possible_truncation,
        reason = "ids and positions are far below 2^31"
    )]
    pub fn dense(rows: usize, ids: &[i64], attention: &[i64], labels: &[i64]) -> Self {
        let length = ids.len() / rows.max(1);
        let next_is_label = (0..ids.len()).filter(|p| (p + 1) % length != 0 && labels[p + 1] >= 0);
        let (positions, targets) = next_is_label.map(|p| (p as i32, labels[p + 1] as i32)).unzip();
        Self {
            rows,
            length,
            ids: ids.iter().map(|&id| id as i32).collect(),
            attention: attention.iter().map(|&on| on != 0).collect(),
            positions,
            targets,
            starts: Vec::new(),
        }
    }

    /// Whether any position is padding.
    #[must_use]
    pub fn padded(&self) -> bool {
        self.attention.contains(&false)
    }

    /// Tokens that are no padding.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.attention.iter().filter(|&&on| on).count()
    }
}

/// The rows of a set as a batch, one a row.
#[must_use]
pub fn of_rows(set: &TokenSet, rows: &[usize], multiple: usize) -> Batch {
    let alone: Vec<Vec<usize>> = (0..rows.len()).map(|example| vec![example]).collect();
    laid(set, rows, &alone, multiple)
}

/// The rows of a set as a batch of few rows, none longer than the longest of those given (rounded up to
/// `multiple`).
#[must_use]
pub fn packed(set: &TokenSet, rows: &[usize], multiple: usize) -> Batch {
    let lengths: Vec<usize> = rows.iter().map(|&row| set.rows[row].ids.len()).collect();
    laid(set, rows, &pack(&lengths, multiple), multiple)
}

fn laid(set: &TokenSet, rows: &[usize], laid: &[Vec<usize>], multiple: usize) -> Batch {
    let examples: Vec<&[u32]> = rows.iter().map(|&row| set.rows[row].ids.as_slice()).collect();
    Batch::laid(&examples, laid, multiple, |example, token| {
        !set.mask_prompt || set.rows[rows[example]].counts(token)
    })
}

/// Which examples share a row, by index: best fit decreasing, into rows as long as the longest.
fn pack(lengths: &[usize], multiple: usize) -> Vec<Vec<usize>> {
    let capacity = lengths.iter().max().map_or(0, |longest| longest.next_multiple_of(multiple.max(1)));
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&example| std::cmp::Reverse(lengths[example]));
    let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
    for example in order {
        let fits = |(_, (left, _)): &(usize, &(usize, Vec<usize>))| *left >= lengths[example];
        let best = rows.iter().enumerate().filter(fits).min_by_key(|(_, (left, _))| *left).map(|(at, _)| at);
        let at = best.unwrap_or_else(|| {
            rows.push((capacity, Vec::new()));
            rows.len() - 1
        });
        rows[at].0 -= lengths[example];
        rows[at].1.push(example);
    }
    rows.into_iter().map(|(_, examples)| examples).collect()
}

/// How rows are dealt out to steps, devices and micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deal {
    /// Rows of the set.
    pub rows: usize,
    /// Rows per device and micro-batch.
    pub batch: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
    /// Devices.
    pub devices: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Whether rows of like length stand together.
    pub by_length: bool,
}

impl Deal {
    /// Rows of a full step.
    #[must_use]
    pub fn step_rows(&self) -> usize {
        self.batch * self.accumulation * self.devices
    }

    /// Steps of an epoch; the last may be short. A step never spans two epochs.
    #[must_use]
    pub fn epoch_steps(&self) -> u64 {
        self.rows.div_ceil(self.step_rows()) as u64
    }

    /// The order of all rows in `epoch` (from 0). With `by_length`, sections of 50 steps are sorted
    /// by length, longest first (transformers' `LengthGroupedSampler`), and steps then shuffled.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "an index below the number of rows")]
    pub fn order(&self, epoch: u64, set: &TokenSet) -> Vec<usize> {
        let mut random = SplitMix64(self.seed ^ SplitMix64(epoch).next());
        let mut order: Vec<usize> = (0..self.rows).collect();
        for last in (1..self.rows).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        if self.by_length {
            for section in order.chunks_mut(self.step_rows() * 50) {
                section.sort_by_key(|&row| std::cmp::Reverse(set.rows[row].ids.len()));
            }
            // only full steps change places, so that the short one stays last
            let full = self.rows / self.step_rows();
            for last in (1..full).rev() {
                let other = random.below(last as u64 + 1) as usize;
                if other != last {
                    let (head, tail) = order.split_at_mut(last * self.step_rows());
                    head[other * self.step_rows()..][..self.step_rows()]
                        .swap_with_slice(&mut tail[..self.step_rows()]);
                }
            }
        }
        order
    }

    /// The rows of `step` (from 1) out of its epoch's `order`, as `[device][micro-batch][row]`.
    /// A short step is spread evenly over the devices; a device may be left without rows.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a step of an epoch")]
    pub fn shares(&self, step: u64, order: &[usize]) -> Vec<Vec<Vec<usize>>> {
        let start = ((step - 1) % self.epoch_steps()) as usize * self.step_rows();
        let rows = &order[start..order.len().min(start + self.step_rows())];
        let mut devices = vec![Vec::new(); self.devices];
        for micro in rows.chunks(self.batch * self.devices) {
            let (share, extra) = (micro.len() / self.devices, micro.len() % self.devices);
            let mut from = 0;
            for (index, device) in devices.iter_mut().enumerate() {
                let to = from + share + usize::from(index < extra);
                if to > from {
                    device.push(micro[from..to].to_vec());
                }
                from = to;
            }
        }
        devices
    }

    /// The epoch (from 0) of `step` (from 1).
    #[must_use]
    pub fn epoch(&self, step: u64) -> u64 {
        (step - 1) / self.epoch_steps()
    }
}

#[cfg(test)]
mod tests {
    use formats::tokens::TokenRow;
    use proptest::prelude::*;

    use super::*;

    fn set(lengths: &[usize]) -> TokenSet {
        let rows = lengths
            .iter()
            .map(|&n| TokenRow { ids: (0..n as u32).collect(), prompt_len: n / 2, turns: Vec::new() })
            .collect();
        TokenSet { rows, mask_prompt: true }
    }

    #[test]
    fn rows_are_padded_and_only_answers_are_labels() {
        let set = set(&[4, 2]);
        let batch = of_rows(&set, &[0, 1], 1);
        assert_eq!((batch.rows, batch.length), (2, 4));
        assert_eq!(batch.ids, [0, 1, 2, 3, 0, 1, 0, 0]);
        assert_eq!(batch.attention, [true, true, true, true, true, true, false, false]);
        assert_eq!((batch.positions, batch.targets), (vec![1, 2, 4], vec![2, 3, 1]));
    }

    #[test]
    fn ragged_and_dense_agree() {
        let batch = of_rows(&set(&[4, 2]), &[0, 1], 1);
        let labels = [-100, -100, 2, 3, -100, 1, -100, -100];
        let dense = Batch::dense(2, &[0, 1, 2, 3, 0, 1, 0, 0], &[1, 1, 1, 1, 1, 1, 0, 0], &labels);
        assert_eq!(batch, dense);
    }

    #[test]
    fn unmasked_rows_predict_all_but_the_first_token() {
        let mut set = set(&[3]);
        set.mask_prompt = false;
        assert_eq!(of_rows(&set, &[0], 8).targets, [1, 2]);
        assert_eq!(of_rows(&set, &[0], 8).length, 8);
    }

    #[test]
    fn of_a_chat_only_the_answers_are_labels() {
        let learnt = [false, false, true, true, false, true];
        let chat = TokenRow::of_turns((10..16).collect(), &learnt);
        let plain = TokenRow { ids: vec![20, 21, 22], prompt_len: 1, turns: Vec::new() };
        let mut set = TokenSet { rows: vec![plain, chat], mask_prompt: true };
        let batch = of_rows(&set, &[1, 0], 4);
        assert_eq!((batch.length, batch.targets.as_slice()), (8, [12, 13, 15, 21, 22].as_slice()));
        assert_eq!(batch.positions, [1, 2, 4, 8, 9]);
        set.mask_prompt = false;
        assert_eq!(of_rows(&set, &[1], 1).targets, [11, 12, 13, 14, 15]);
    }

    #[test]
    fn examples_share_rows_no_longer_than_the_longest() {
        let set = set(&[3, 6, 2, 4]);
        let batch = packed(&set, &[0, 1, 2, 3], 1);
        assert_eq!((batch.rows, batch.length), (3, 6));
        // 6 | 4 and 2 | 3
        assert_eq!(batch.ids, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 0, 0]);
        assert_eq!(batch.starts, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 0, 0, 0, 3, 4, 5]);
        assert_eq!(batch.positions, [2, 3, 4, 7, 8, 10, 12, 13]);
        assert_eq!(batch.targets, [3, 4, 5, 2, 3, 1, 1, 2]);
        assert_eq!(batch.tokens(), 15);
        assert_eq!(packed(&set, &[1], 1), of_rows(&set, &[1], 1), "nothing to pack");
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let deal = Deal { rows: 50, batch: 4, accumulation: 1, devices: 1, seed: 1, by_length: false };
        let tokens = set(&[3; 50]);
        let other = Deal { seed: 2, ..deal };
        assert_ne!(deal.order(0, &tokens), deal.order(1, &tokens));
        assert_ne!(deal.order(0, &tokens), other.order(0, &tokens));
        assert_eq!(deal.order(0, &tokens), deal.order(0, &tokens));
    }

    /// An example's ids, and its labels by their place in it.
    type Example = (Vec<i32>, Vec<(usize, i32)>);

    /// What a batch consists of.
    fn examples(batch: &Batch) -> Vec<Example> {
        let mut found = std::collections::BTreeMap::<usize, Example>::new();
        let start = |at: usize| match batch.starts.get(at) {
            Some(&start) => at / batch.length * batch.length + start as usize,
            None => at / batch.length * batch.length,
        };
        for (at, &id) in batch.ids.iter().enumerate().filter(|&(at, _)| batch.attention[at]) {
            found.entry(start(at)).or_default().0.push(id);
        }
        for (&at, &target) in batch.positions.iter().zip(&batch.targets) {
            let at = at as usize;
            found.get_mut(&start(at)).expect("a label of an example").1.push((at + 1 - start(at), target));
        }
        let mut all: Vec<_> = found.into_values().collect();
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn packing_changes_no_example_and_no_label(
            lengths in prop::collection::vec(1usize..30, 1..20), multiple in 1usize..9, mask_prompt: bool,
        ) {
            let set = TokenSet { mask_prompt, ..set(&lengths) };
            let rows: Vec<usize> = (0..lengths.len()).collect();
            let (alone, packed) = (of_rows(&set, &rows, multiple), packed(&set, &rows, multiple));
            prop_assert_eq!(examples(&alone), examples(&packed));
            prop_assert_eq!(packed.length, alone.length);
            prop_assert!(packed.rows <= alone.rows);
            // of two rows that are both at most half full one is too many
            let fill = |row: &[bool]| row.iter().filter(|&&on| on).count() * 2 <= packed.length;
            prop_assert!(packed.attention.chunks(packed.length).filter(|row| fill(row)).count() <= 1);
        }

        #[test]
        fn every_epoch_deals_every_row_exactly_once(
            rows in 1usize..120, batch in 1usize..5, accumulation in 1usize..4, devices in 1usize..4, by_length: bool, seed: u64, epoch in 0u64..3,
        ) {
            let deal = Deal { rows, batch, accumulation, devices, seed, by_length };
            let tokens = set(&(0..rows).map(|row| 2 + row % 7).collect::<Vec<_>>());
            let order = deal.order(epoch, &tokens);
            let first = epoch * deal.epoch_steps() + 1;
            let mut seen = Vec::new();
            for step in first..first + deal.epoch_steps() {
                prop_assert_eq!(deal.epoch(step), epoch);
                let shares = deal.shares(step, &order);
                prop_assert_eq!(shares.len(), devices);
                for device in shares {
                    prop_assert!(device.len() <= accumulation);
                    for micro in device {
                        prop_assert!(!micro.is_empty() && micro.len() <= batch);
                        seen.extend(micro);
                    }
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows).collect::<Vec<_>>());
        }

        #[test]
        fn devices_times_batch_sees_the_rows_of_one_device_with_the_larger_batch(rows in 1usize..60, batch in 1usize..4, accumulation in 1usize..3, devices in 1usize..4) {
            let many = Deal { rows, batch, accumulation, devices, seed: 5, by_length: false };
            let one = Deal { batch: batch * devices, devices: 1, ..many };
            let order = many.order(0, &set(&vec![3; rows]));
            for step in 1..=many.epoch_steps() {
                let mut left: Vec<usize> = many.shares(step, &order).into_iter().flatten().flatten().collect();
                let mut right: Vec<usize> = one.shares(step, &order).into_iter().flatten().flatten().collect();
                left.sort_unstable();
                right.sort_unstable();
                prop_assert_eq!(left, right);
            }
        }
    }
}
