//! One split on its way from rows to the disk, a section at a time.

use std::path::Path;

use contract::{Context, StageError};
use formats::tokens::{TokenRow, TokenWriter};

use super::encoder::{Counts, Encoder};
use super::samples;
use crate::dataset::Rows;

/// What became of a split's rows so far.
pub struct Split {
    /// What a row is called in errors.
    what: &'static str,
    /// What happened to the rows.
    pub counts: Counts,
    /// Those to show.
    pub first: Vec<TokenRow>,
    /// All of them.
    pub writer: TokenWriter,
}

impl Split {
    /// A split that will be the file `path`.
    pub fn create(path: &Path, what: &'static str, mask_prompt: bool) -> Result<Self, StageError> {
        let writer = TokenWriter::create(path, mask_prompt)?;
        Ok(Self { what, counts: Counts::default(), first: Vec::new(), writer })
    }

    /// Encodes `rows` into it; progress counts from `before` to `total`.
    pub fn fill(
        &mut self,
        rows: &Rows,
        encoder: &Encoder,
        before: usize,
        total: usize,
        ctx: &Context<'_>,
    ) -> Result<(), StageError> {
        for section in rows.sections() {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            for row in encoder.encode(&section?, self.what, &mut self.counts)? {
                self.writer.push(&row)?;
                if self.first.len() < samples::ROWS {
                    self.first.push(row);
                }
            }
            ctx.progress((before + self.counts.rows) as u64, total as u64, "rows", &[]);
        }
        Ok(())
    }
}
