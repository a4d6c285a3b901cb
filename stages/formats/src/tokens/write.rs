//! Token rows to disk, row by row.

use std::path::{Path, PathBuf};

use super::TokenRow;
use crate::weights::{Column, Stored, save_columns};
use crate::{Error, Result};

/// Writes one split. However many rows come, none stays in memory.
pub struct TokenWriter {
    path: PathBuf,
    rows: usize,
    lengths: Column,
    prompt_lengths: Column,
    turn_counts: Column,
    turns: Column,
    ids: Column,
    mask_prompt: Column,
}

impl TokenWriter {
    /// A split that gets its name when it is finished.
    ///
    /// # Errors
    /// If the folder of `path` cannot be written to.
    pub fn create(path: &Path, mask_prompt: bool) -> Result<Self> {
        let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let column = |name, dtype| Column::new(dir, name, dtype);
        let mut writer = Self {
            path: path.to_owned(),
            rows: 0,
            lengths: column("lengths", Stored::I64)?,
            prompt_lengths: column("prompt_lengths", Stored::I64)?,
            turn_counts: column("turn_counts", Stored::I64)?,
            turns: column("turns", Stored::I64)?,
            ids: column("ids", Stored::U32)?,
            mask_prompt: column("mask_prompt", Stored::U8)?,
        };
        writer.mask_prompt.push([mask_prompt.into()])?;
        Ok(writer)
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If the disk says no, or the prompt is longer than the row.
    pub fn push(&mut self, row: &TokenRow) -> Result<()> {
        self.rows += 1;
        if row.prompt_len > row.ids.len() {
            let message = format!("row {}: the prompt is longer than the row", self.rows);
            return Err(Error::new(&self.path, message));
        }
        let int = |value: usize| (value as i64).to_le_bytes();
        self.lengths.push(int(row.ids.len()))?;
        self.prompt_lengths.push(int(row.prompt_len))?;
        self.turn_counts.push(int(row.turns.len()))?;
        row.turns.iter().try_for_each(|&at| self.turns.push(int(at)))?;
        row.ids.iter().try_for_each(|id| self.ids.push(id.to_le_bytes()))
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Puts the file together.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn finish(self) -> Result<()> {
        let mut columns = vec![self.ids, self.lengths, self.prompt_lengths, self.mask_prompt];
        // Only chats have turns, and only they are written down.
        if !self.turns.is_empty() {
            columns.extend([self.turn_counts, self.turns]);
        }
        save_columns(&self.path, columns)
    }
}
