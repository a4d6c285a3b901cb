//! Token rows between `tokenize` and the stages that train or evaluate: one safetensors file a
//! split, rows laid end to end, and `tokens.json` about them.
//!
//! It does not know how tokens came about.

mod write;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::json::{text, write_durably};
use crate::weights::{Stored, Weights};
use crate::{Error, Result};

pub use write::TokenWriter;

/// The label of a token that does not count in the loss.
pub const IGNORED: i64 = -100;

/// One row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// All tokens, prompt first.
    pub ids: Vec<u32>,
    /// How many of them are the prompt, at most all.
    pub prompt_len: usize,
    /// Of a chat: where, after the prompt, a turn begins that is not learnt, where the next one begins that
    /// is, and so on; ascending. Empty where all that follows the prompt is learnt.
    pub turns: Vec<usize>,
}

impl TokenRow {
    /// A row whose tokens are learnt where `learnt` is true.
    #[must_use]
    pub fn of_turns(ids: Vec<u32>, learnt: &[bool]) -> Self {
        let prompt_len = learnt.iter().position(|&learnt| learnt).unwrap_or(ids.len());
        let changes = (prompt_len + 1..ids.len()).filter(|&at| learnt[at] != learnt[at - 1]);
        Self { prompt_len, turns: changes.collect(), ids }
    }

    /// Whether the token `at` counts in the loss where prompts do not.
    #[must_use]
    pub fn counts(&self, at: usize) -> bool {
        at >= self.prompt_len && self.turns.partition_point(|&turn| turn <= at) % 2 == 0
    }
}

/// The rows of one split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    /// In the order of the data set.
    pub rows: Vec<TokenRow>,
    /// Whether the prompt's tokens do not count in the loss.
    pub mask_prompt: bool,
}

impl TokenSet {
    /// File of the rows to train on, in the folder of `tokenize`.
    pub const TRAIN: &'static str = "train.safetensors";
    /// File of the held-out rows.
    pub const HELDOUT: &'static str = "heldout.safetensors";

    /// Reads a split.
    ///
    /// # Errors
    /// If the file is damaged or its parts contradict each other.
    pub fn read(path: &Path) -> Result<Self> {
        let weights = Weights::open(path)?;
        let wrong =
            |what: &str| Error::new(path, format!("no token rows: {what}")).hint("run `tokenize` again");
        if weights.dtype("ids")? != Stored::U32 {
            return Err(wrong("`ids` are not stored as U32"));
        }
        // Taken from the file row by row: of all tokens of a large set there is no second copy.
        let mut rest = weights.bytes("ids")?.as_chunks().0;
        let lengths = weights.ints("lengths")?;
        let (prompts, mask) = (weights.ints("prompt_lengths")?, weights.ints("mask_prompt")?);
        if lengths.len() != prompts.len() || mask.len() != 1 {
            return Err(wrong("`lengths`, `prompt_lengths` and `mask_prompt` do not fit each other"));
        }
        let mut turns = Turns::read(&weights, lengths.len())?;
        let mut rows = Vec::with_capacity(lengths.len());
        for (number, (&length, &prompt)) in lengths.iter().zip(&prompts).enumerate() {
            let row = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
            let Some((row, tail)) = row else { return Err(wrong("`lengths` do not fit `ids`")) };
            let ids: Vec<u32> = row.iter().map(|&id| u32::from_le_bytes(id)).collect();
            let prompt_len = usize::try_from(prompt).ok().filter(|&prompt| prompt <= ids.len());
            let prompt_len = prompt_len.ok_or_else(|| wrong("`prompt_lengths` do not fit `lengths`"))?;
            let turns = turns.next(number, prompt_len, ids.len());
            let turns = turns.ok_or_else(|| wrong("`turns` do not fit `lengths`"))?;
            rows.push(TokenRow { ids, prompt_len, turns });
            rest = tail;
        }
        if !rest.is_empty() || !turns.is_used_up() {
            return Err(wrong("`lengths` do not fit `ids`, or `turns` not `turn_counts`"));
        }
        Ok(Self { rows, mask_prompt: mask[0] != 0 })
    }

    /// Tokens of the longest row of a split, without reading the rows.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn longest(path: &Path) -> Result<usize> {
        let lengths = Weights::open(path)?.ints("lengths")?;
        Ok(lengths.into_iter().filter_map(|length| usize::try_from(length).ok()).max().unwrap_or(0))
    }

    /// Writes a split that is in memory.
    ///
    /// # Errors
    /// Those of [`TokenWriter`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut writer = TokenWriter::create(path, self.mask_prompt)?;
        self.rows.iter().try_for_each(|row| writer.push(row))?;
        writer.finish()
    }

    /// A row's labels, one a token, not shifted: the token itself, or [`IGNORED`].
    #[must_use]
    pub fn labels(&self, row: &TokenRow) -> Vec<i64> {
        let label = |(at, &id): (usize, &u32)| {
            if self.mask_prompt && !row.counts(at) { IGNORED } else { id.into() }
        };
        row.ids.iter().enumerate().map(label).collect()
    }

    /// All tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.rows.iter().map(|row| row.ids.len() as u64).sum()
    }
}

/// The turns of all rows, where the file has them.
struct Turns {
    counts: Vec<i64>,
    rest: std::vec::IntoIter<i64>,
}

impl Turns {
    fn read(weights: &Weights, rows: usize) -> Result<Self> {
        if !weights.contains("turn_counts") {
            return Ok(Self { counts: vec![0; rows], rest: Vec::new().into_iter() });
        }
        Ok(Self { counts: weights.ints("turn_counts")?, rest: weights.ints("turns")?.into_iter() })
    }

    /// Those of the row `number`: ascending, behind its prompt and before its end.
    fn next(&mut self, number: usize, prompt_len: usize, length: usize) -> Option<Vec<usize>> {
        let count = usize::try_from(*self.counts.get(number)?).ok()?;
        let mut last = prompt_len;
        let mut turns = Vec::new();
        for _ in 0..count {
            let at = usize::try_from(self.rest.next()?).ok().filter(|&at| at > last && at < length)?;
            last = at;
            turns.push(at);
        }
        Some(turns)
    }

    fn is_used_up(&self) -> bool {
        self.rest.len() == 0
    }
}

/// `tokens.json`: what `tokenize` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMeta {
    /// Name of the template.
    pub template: String,
    /// Longest row, in tokens.
    pub cutoff: usize,
    /// Whether the prompt's tokens do not count in the loss.
    pub mask_prompt: bool,
    /// Tokens that the tokenizer knows.
    pub vocab_size: usize,
    /// The token before every row, if there is one.
    pub bos_token_id: Option<u32>,
    /// The token after every row, if there is one.
    pub eos_token_id: Option<u32>,
    /// Rows to train on.
    pub train_rows: usize,
    /// Held-out rows.
    pub heldout_rows: usize,
    /// Rows that were cut off.
    pub truncated: usize,
}

impl TokenMeta {
    /// Its file in the folder of `tokenize`.
    pub const FILE: &'static str = "tokens.json";

    /// Reads it from the folder of `tokenize`.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(Self::FILE);
        serde_json::from_str(&text(&path)?)
            .map_err(|error| Error::new(&path, error.to_string()).hint("run `tokenize` again"))
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain values serialize") + "\n";
        write_durably(&dir.join(Self::FILE), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_survive_a_round_trip_and_say_what_counts() {
        let learnt = [false, false, true, true, false, true, false];
        let chat = TokenRow::of_turns(vec![10, 11, 12, 13, 14, 15, 16], &learnt);
        assert_eq!((chat.prompt_len, &chat.turns), (2, &vec![4, 5, 6]));
        let plain = TokenRow { ids: vec![1, 2], prompt_len: 1, turns: Vec::new() };
        let set = TokenSet { rows: vec![plain, chat], mask_prompt: true };
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("rows.safetensors");
        set.write(&path).unwrap();
        let read = TokenSet::read(&path).unwrap();
        assert_eq!(read, set);
        assert_eq!(read.labels(&read.rows[0]), [IGNORED, 2]);
        assert_eq!(read.labels(&read.rows[1]), [IGNORED, IGNORED, 12, 13, IGNORED, 15, IGNORED]);
        let whole = TokenSet { mask_prompt: false, ..read };
        assert_eq!(whole.labels(&whole.rows[1]), [10, 11, 12, 13, 14, 15, 16]);
        let ids = crate::weights::Tensor::i64("ids", [1], &[1]);
        crate::weights::save(&path, vec![ids], &[]).unwrap();
        assert!(TokenSet::read(&path).unwrap_err().message.contains("not stored as U32"));
        let none = TokenRow::of_turns(vec![1, 2], &[false, false]);
        assert_eq!((none.prompt_len, none.counts(1)), (2, false));
    }

    #[test]
    fn a_split_is_the_file_that_its_tensors_give_in_one_go() {
        use crate::weights::{Tensor, save};
        let folder = tempfile::tempdir().unwrap();
        let (rows, whole) = (folder.path().join("rows.safetensors"), folder.path().join("whole.safetensors"));
        let plain = TokenRow { ids: vec![1, 2], prompt_len: 1, turns: Vec::new() };
        let chat = TokenRow { ids: vec![3, 4, 70_000], prompt_len: 0, turns: vec![1, 2] };
        let data = [1u32, 2, 3, 4, 70_000].map(u32::to_le_bytes).concat();
        let ids =
            |n| Tensor { name: "ids".into(), dtype: Stored::U32, shape: vec![n], data: data[..4 * n].into() };
        let mask = Tensor::u8("mask_prompt", [1], vec![1]);
        let lists = |lists: &[(&str, &[i64])]| {
            lists.iter().map(|(name, values)| Tensor::i64(*name, [values.len()], values)).collect::<Vec<_>>()
        };
        let mut tensors = vec![ids(2)];
        tensors.extend(lists(&[("lengths", &[2]), ("prompt_lengths", &[1])]));
        tensors.push(mask.clone());
        save(&whole, tensors, &[]).unwrap();
        TokenSet { rows: vec![plain.clone()], mask_prompt: true }.write(&rows).unwrap();
        assert_eq!(std::fs::read(&rows).unwrap(), std::fs::read(&whole).unwrap());

        let mut tensors = vec![ids(5)];
        tensors.extend(lists(&[("lengths", &[2, 3]), ("prompt_lengths", &[1, 0])]));
        tensors.push(mask);
        tensors.extend(lists(&[("turn_counts", &[0, 2]), ("turns", &[1, 2])]));
        save(&whole, tensors, &[]).unwrap();
        TokenSet { rows: vec![plain, chat], mask_prompt: true }.write(&rows).unwrap();
        assert_eq!(std::fs::read(&rows).unwrap(), std::fs::read(&whole).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no scratch file is left");
    }

    #[test]
    fn turns_that_do_not_fit_are_refused() {
        let row = |turns: Vec<usize>| TokenRow { ids: vec![1, 2, 3, 4], prompt_len: 1, turns };
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("rows.safetensors");
        for turns in [vec![1], vec![3, 3], vec![4]] {
            TokenSet { rows: vec![row(turns)], mask_prompt: true }.write(&path).unwrap();
            assert!(TokenSet::read(&path).unwrap_err().message.contains("`turns`"));
        }
    }
}
