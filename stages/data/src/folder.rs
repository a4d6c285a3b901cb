//! Copies what belongs to a model folder.

use std::fs;
use std::path::Path;

use contract::{StageError, at};

/// What belongs to a tokenizer in a model folder.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Copies the files of `from` (not its folders) whose name `wanted` takes into the folder `to`.
pub fn copy_files(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), StageError> {
    for entry in fs::read_dir(from).map_err(at(from))? {
        let path = entry.map_err(at(from))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_file() && wanted(name) {
            copy_file(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// Copies a model folder's tokenizer and generation settings.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<(), StageError> {
    copy_files(from, to, |name| TOKENIZER_FILES.contains(&name) || name == "generation_config.json")
}

/// Copies the bytes, not the permissions: what comes from the store is read-only.
fn copy_file(from: &Path, to: &Path) -> Result<(), StageError> {
    let mut source = fs::File::open(from).map_err(at(from))?;
    let mut target = fs::File::create(to).map_err(at(to))?;
    std::io::copy(&mut source, &mut target).map_err(at(to))?;
    Ok(())
}
