//! The first rows as a person can read them: what the model sees, and what counts in the loss.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use contract::{StageError, at};
use formats::tokens::TokenSet;
use tokenizers::Tokenizer;

/// How many rows are shown.
const ROWS: usize = 8;

/// Writes the first rows of `set` to `path`.
pub fn write(path: &Path, set: &TokenSet, tokenizer: &Tokenizer) -> Result<(), StageError> {
    let mut text = String::from(
        "The first rows as the model gets them, decoded from their token ids.\n\
         ⟦masked⟧ … ⟦/masked⟧ is read by the model but does not count in the loss.\n",
    );
    for (number, row) in (1..).zip(set.rows.iter().take(ROWS)) {
        let masked = if set.mask_prompt { row.prompt_len.min(row.ids.len()) } else { 0 };
        let decode = |ids: &[u32]| {
            tokenizer.decode(ids, false).map_err(|error| StageError::new(format!("tokenizer: {error}")))
        };
        let counted = row.ids.len() - masked;
        writeln!(text, "\n=== row {number}: {} tokens, {counted} of them count in the loss", row.ids.len())?;
        if masked > 0 {
            write!(text, "⟦masked⟧{}⟦/masked⟧", decode(&row.ids[..masked])?)?;
        }
        writeln!(text, "{}", decode(&row.ids[masked..])?)?;
        writeln!(text, "--- ids {:?}", row.ids)?;
    }
    fs::write(path, text).map_err(at(path))
}
