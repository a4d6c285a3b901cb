//! Token rows between `tokenize` and the stages that train or evaluate: one safetensors file a
//! split, rows laid end to end, and `tokens.json` about them.
//!
//! It does not know how tokens came about.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::json::{text, write_durably};
use crate::weights::{Tensor, Weights, save};
use crate::{Error, Result};

/// The label of a token that does not count in the loss.
pub const IGNORED: i64 = -100;

/// One row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// All tokens, prompt first.
    pub ids: Vec<u32>,
    /// How many of them are the prompt, at most all.
    pub prompt_len: usize,
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
        let (ids, lengths) = (weights.ints("ids")?, weights.ints("lengths")?);
        let (prompts, mask) = (weights.ints("prompt_lengths")?, weights.ints("mask_prompt")?);
        if lengths.len() != prompts.len() || mask.len() != 1 {
            return Err(wrong("`lengths`, `prompt_lengths` and `mask_prompt` do not fit each other"));
        }
        let mut rows = Vec::with_capacity(lengths.len());
        let mut rest = ids.as_slice();
        for (&length, &prompt) in lengths.iter().zip(&prompts) {
            let row = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
            let Some((row, tail)) = row else { return Err(wrong("`lengths` do not fit `ids`")) };
            let ids = row.iter().map(|&id| u32::try_from(id)).collect::<std::result::Result<Vec<_>, _>>();
            let ids = ids.map_err(|_| wrong("`ids` holds what is no token id"))?;
            let prompt_len = usize::try_from(prompt).ok().filter(|&prompt| prompt <= ids.len());
            let prompt_len = prompt_len.ok_or_else(|| wrong("`prompt_lengths` do not fit `lengths`"))?;
            rows.push(TokenRow { ids, prompt_len });
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(wrong("`lengths` do not fit `ids`"));
        }
        Ok(Self { rows, mask_prompt: mask[0] != 0 })
    }

    /// Writes a split.
    ///
    /// # Errors
    /// If the disk says no, or a prompt is longer than its row.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(at) = self.rows.iter().position(|row| row.prompt_len > row.ids.len()) {
            return Err(Error::new(path, format!("row {}: the prompt is longer than the row", at + 1)));
        }
        let ids: Vec<u8> =
            self.rows.iter().flat_map(|row| &row.ids).flat_map(|id| id.to_le_bytes()).collect();
        let lengths: Vec<i64> = self.rows.iter().map(|row| row.ids.len() as i64).collect();
        let prompts: Vec<i64> = self.rows.iter().map(|row| row.prompt_len as i64).collect();
        let ids = Tensor {
            name: "ids".into(),
            dtype: crate::weights::Stored::U32,
            shape: vec![ids.len() / 4],
            data: ids.into(),
        };
        let tensors = vec![
            ids,
            Tensor::i64("lengths", [lengths.len()], &lengths),
            Tensor::i64("prompt_lengths", [prompts.len()], &prompts),
            Tensor::u8("mask_prompt", [1], vec![self.mask_prompt.into()]),
        ];
        save(path, tensors, &[])
    }

    /// A row's labels, one a token, not shifted: the token itself, or [`IGNORED`].
    #[must_use]
    pub fn labels(&self, row: &TokenRow) -> Vec<i64> {
        let masked = if self.mask_prompt { row.prompt_len } else { 0 };
        (0..).zip(&row.ids).map(|(at, &id)| if at < masked { IGNORED } else { id.into() }).collect()
    }

    /// All tokens.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.rows.iter().map(|row| row.ids.len() as u64).sum()
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
