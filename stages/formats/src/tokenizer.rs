//! `tokenizer.json`, read by the `tokenizers` library.

use std::path::Path;

use serde::de::IgnoredAny;
use tokenizers::Tokenizer;

use crate::error::at;
use crate::{Error, Result};

/// Reads a tokenizer. The library (0.23) panics at some damaged files (`decoders/mod.rs`, an
/// `expect` on a helper's error): that is a damaged file as any other.
///
/// # Errors
/// If the file is missing, damaged, or not in Hugging Face's format.
pub fn read(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(at(path))?;
    serde_json::from_slice::<IgnoredAny>(&bytes).map_err(|error| Error::new(path, error.to_string()))?;
    match std::panic::catch_unwind(|| Tokenizer::from_bytes(&bytes)) {
        Ok(tokenizer) => tokenizer.map_err(|error| Error::new(path, error.to_string())),
        Err(_) => Err(Error::new(path, "the file is damaged")),
    }
}
