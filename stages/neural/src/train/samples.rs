//! `samples.jsonl`: what the model in training answers to held-out prompts, the most likely token
//! each time.
//!
//! As text where the model's folder has a `tokenizer.json`, else as token ids.

use std::path::Path;

use contract::{Context, StageError};
use formats::tokens::{TokenRow, TokenSet};
use serde::Serialize;
use tokenizers::Tokenizer;

use super::Settings;
use crate::metrics::Lines;
use crate::trainer::Trainer;

/// Held-out prompts and how their answers are read.
pub struct Prompts {
    rows: Vec<TokenRow>,
    tokenizer: Option<Tokenizer>,
    most: usize,
}

/// One line.
#[derive(Serialize)]
struct Sample<T> {
    step: u64,
    /// Of the held-out rows.
    row: usize,
    prompt: T,
    /// What stands in the data set.
    expected: T,
    answer: T,
}

impl Prompts {
    /// The first rows of `heldout`, if answers are asked for.
    pub fn read(
        heldout: &TokenSet,
        settings: &Settings,
        (model, positions): (&Path, usize),
        ctx: &Context<'_>,
    ) -> Result<Option<Self>, StageError> {
        if settings.generate_every == 0 {
            return Ok(None);
        }
        let rows: Vec<TokenRow> = heldout.rows.iter().take(settings.generate_rows).cloned().collect();
        if rows.is_empty() {
            ctx.warn("there are no held-out rows: no samples while training");
            return Ok(None);
        }
        if let Some(row) = rows.iter().position(|row| row.prompt_len == 0) {
            return Err(StageError::new(format!("held-out row {row} has no prompt to answer"))
                .hint("`generate_every = 0`: no samples while training"));
        }
        if let Some(row) = rows.iter().position(|row| row.prompt_len >= positions) {
            return Err(StageError::new(format!(
                "the prompt of held-out row {row} fills all {positions} positions of the model and leaves no room for an answer"
            ))
            .hint("a smaller `cutoff` in the tokenize stage, or `generate_every = 0`"));
        }
        let path = model.join("tokenizer.json");
        let tokenizer = path.exists().then(|| formats::tokenizer::read(&path)).transpose()?;
        Ok(Some(Self { rows, tokenizer, most: settings.generate_tokens }))
    }

    /// Adds the answers after `step` to the file.
    pub fn ask(&self, step: u64, trainer: &mut Trainer, to: &mut Lines) -> Result<(), StageError> {
        let prompts = self.rows.iter().map(|row| row.ids[..row.prompt_len].to_vec()).collect();
        let answers = trainer.generate(prompts, self.most)?;
        for (row, (tokens, answer)) in self.rows.iter().zip(&answers).enumerate() {
            let (prompt, expected) = tokens.ids.split_at(tokens.prompt_len);
            match &self.tokenizer {
                None => to.add(&Sample { step, row, prompt, expected, answer })?,
                Some(tokenizer) => {
                    let text = |ids: &[u32]| {
                        tokenizer.decode(ids, true).map_err(|error| {
                            StageError::new(format!(
                                "cannot decode the answer to held-out row {row}: {error}"
                            ))
                        })
                    };
                    let (prompt, expected, answer) = (text(prompt)?, text(expected)?, text(answer)?);
                    to.add(&Sample { step, row, prompt, expected, answer })?;
                }
            }
        }
        Ok(())
    }
}
