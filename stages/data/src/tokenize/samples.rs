//! The first rows as a person can read them: what the model sees, and what counts in the loss.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use contract::{StageError, at};
use formats::tokens::TokenRow;
use tokenizers::Tokenizer;

/// How many rows are shown.
pub const ROWS: usize = 8;

/// Writes the first rows of a split to `path`.
pub fn write(
    path: &Path,
    rows: &[TokenRow],
    mask_prompt: bool,
    tokenizer: &Tokenizer,
) -> Result<(), StageError> {
    let mut text = String::from(
        "The first rows as the model gets them, decoded from their token ids.\n\
         ⟦masked⟧ … ⟦/masked⟧ is read by the model but does not count in the loss.\n",
    );
    for (number, row) in (1..).zip(rows) {
        let counts = |at: usize| !mask_prompt || row.counts(at);
        let decode = |ids: &[u32]| {
            tokenizer.decode(ids, false).map_err(|error| StageError::new(format!("tokenizer: {error}")))
        };
        let counted = (0..row.ids.len()).filter(|&at| counts(at)).count();
        writeln!(text, "\n=== row {number}: {} tokens, {counted} of them count in the loss", row.ids.len())?;
        let mut start = 0;
        while start < row.ids.len() {
            let end = (start + 1..row.ids.len()).find(|&at| counts(at) != counts(start));
            let end = end.unwrap_or(row.ids.len());
            let piece = decode(&row.ids[start..end])?;
            if counts(start) {
                write!(text, "{piece}")?
            } else {
                write!(text, "⟦masked⟧{piece}⟦/masked⟧")?
            }
            start = end;
        }
        writeln!(text)?;
        writeln!(text, "--- ids {:?}", row.ids)?;
    }
    fs::write(path, text).map_err(at(path))
}
