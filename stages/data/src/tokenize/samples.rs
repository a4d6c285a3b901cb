//! The first rows as a person can read them: what the model sees, and what counts in the loss.

use std::fmt::Write as _;

use contract::StageError;
use formats::tokens::TokenRow;
use tokenizers::Tokenizer;

/// How many rows are shown.
pub const ROWS: usize = 8;

/// What stands above them.
pub const HEAD: &str = "The first rows as the model gets them, decoded from their token ids.\n\
    ⟦masked⟧ … ⟦/masked⟧ is read by the model but does not count in the loss.\n";

/// Each row as a text.
pub fn texts(rows: &[TokenRow], mask_prompt: bool, tokenizer: &Tokenizer) -> Result<Vec<String>, StageError> {
    (1..).zip(rows).map(|(number, row)| text(number, row, mask_prompt, tokenizer)).collect()
}

fn text(
    number: usize,
    row: &TokenRow,
    mask_prompt: bool,
    tokenizer: &Tokenizer,
) -> Result<String, StageError> {
    let counts = |at: usize| !mask_prompt || row.counts(at);
    let decode = |ids: &[u32]| {
        tokenizer.decode(ids, false).map_err(|error| StageError::new(format!("tokenizer: {error}")))
    };
    let counted = (0..row.ids.len()).filter(|&at| counts(at)).count();
    let mut text =
        format!("\n=== row {number}: {} tokens, {counted} of them count in the loss\n", row.ids.len());
    let mut start = 0;
    while start < row.ids.len() {
        let end = (start + 1..row.ids.len()).find(|&at| counts(at) != counts(start));
        let end = end.unwrap_or(row.ids.len());
        let piece = decode(&row.ids[start..end])?;
        if counts(start) {
            text += &piece;
        } else {
            write!(text, "⟦masked⟧{piece}⟦/masked⟧")?;
        }
        start = end;
    }
    writeln!(text, "\n--- ids {:?}", row.ids)?;
    Ok(text)
}
