//! Alpaca rows (`instruction`, `input`, `output`) and the templates that make prompts of them.
//!
//! Sources: stanford_alpaca `train.py` (`PROMPT_DICT`); the reproduced repository's own, which is
//! alpaca-lora's, ends the prompt with a line break.
//!
//! It does not know tokens.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::at;
use crate::json::{brief, text};
use crate::{Error, Result};

/// One task and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// What to do.
    pub instruction: String,
    /// What to do it to; may be empty.
    pub input: String,
    /// The answer.
    pub output: String,
}

/// Reads rows: a JSON list of objects, a file of one object a line, or a folder of such files, in
/// the order of their names. A missing `input` is empty; other keys are ignored.
///
/// # Errors
/// If a row lacks `instruction` or `output` (its number and the key are named), or there is none.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in files(path)? {
        rows.extend(parse_rows(&text(&file)?, &file)?);
    }
    if rows.is_empty() {
        return Err(Error::new(path, "the data set is empty").hint("it needs at least one row"));
    }
    Ok(rows)
}

/// The JSON files behind a path.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(at(path))? {
        let file = entry.map_err(at(path))?.path();
        let is_json = file.extension().is_some_and(|ext| ext == "json" || ext == "jsonl");
        if is_json && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(
            Error::new(path, "no `.json` file is there").hint("rows are read from `.json` or `.jsonl` files")
        );
    }
    files.sort();
    Ok(files)
}

/// Rows from text: a JSON list, or one object a line. May be empty.
///
/// # Errors
/// As for [`read_rows`]; `path` is for errors.
pub fn parse_rows(text: &str, path: &Path) -> Result<Vec<Row>> {
    let start = text.trim_start();
    if start.starts_with('{') {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        return lines
            .map(|(index, line)| {
                let number = index + 1;
                let value = serde_json::from_str(line).map_err(|error| {
                    Error::new(path, format!("line {number} is no JSON object: {error}"))
                        .hint("a data set is a JSON list of rows, or one row a line")
                })?;
                row(value, &format!("line {number}"), path)
            })
            .collect();
    }
    if start.is_empty() {
        return Ok(Vec::new());
    }
    let values: Vec<Value> = serde_json::from_str(text).map_err(|error| {
        Error::new(path, format!("no JSON list of rows: {error}"))
            .hint("a data set is a JSON list of objects with `instruction`, `input` and `output`")
    })?;
    (1..).zip(values).map(|(number, value)| row(value, &format!("row {number}"), path)).collect()
}

fn row(value: Value, place: &str, path: &Path) -> Result<Row> {
    let Value::Object(map) = value else {
        return Err(Error::new(path, format!("{place} is {} and should be an object", brief(&value))));
    };
    row_of(map).map_err(|why| {
        let error = Error::new(path, sentence(place, &why));
        if why.starts_with("has no") {
            error.hint("every row needs `instruction` and `output`; `input` may be left out")
        } else {
            error
        }
    })
}

/// Joins a row's place and what is wrong with it.
pub(crate) fn sentence(place: &str, why: &str) -> String {
    let colon = if why.starts_with('`') { ":" } else { "" };
    format!("{place}{colon} {why}")
}

/// Reads a row; what is wrong with it is the end of a sentence that begins with its place.
pub(crate) fn row_of(mut map: serde_json::Map<String, Value>) -> std::result::Result<Row, String> {
    let mut take = |key: &str| match map.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{key}` is {} and should be a text", brief(&other))),
    };
    let (instruction, input, output) = (take("instruction")?, take("input")?, take("output")?);
    let need = |key: &str, value: Option<String>| value.ok_or_else(|| format!("has no `{key}`"));
    Ok(Row {
        instruction: need("instruction", instruction)?,
        input: input.unwrap_or_default(),
        output: need("output", output)?,
    })
}

/// How a row becomes a prompt; the text to learn is the prompt with the output right behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// `alpaca`: the reproduced repository's; the prompt ends with a line break.
    Alpaca,
    /// `alpaca-stanford`: the same without that line break.
    Stanford,
    /// `plain`: three short lines, for tiny models.
    Plain,
}

impl Template {
    /// All names.
    pub const NAMES: &'static [&'static str] = &["alpaca", "alpaca-stanford", "plain"];

    /// The template of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "alpaca" => Some(Self::Alpaca),
            "alpaca-stanford" => Some(Self::Stanford),
            "plain" => Some(Self::Plain),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Stanford => "alpaca-stanford",
            Self::Plain => "plain",
        }
    }

    /// Everything that stands before the answer. Only an empty `input` counts as none.
    #[must_use]
    pub fn prompt(self, row: &Row) -> String {
        let Row { instruction, input, .. } = row;
        let end = if self == Self::Stanford { "" } else { "\n" };
        match (self, input.is_empty()) {
            (Self::Plain, true) => format!("Instruction: {instruction}\nResponse:\n"),
            (Self::Plain, false) => format!("Instruction: {instruction}\nInput: {input}\nResponse:\n"),
            (_, true) => format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes \
                 the request.\n\n### Instruction:\n{instruction}\n\n### Response:{end}"
            ),
            (_, false) => format!(
                "Below is an instruction that describes a task, paired with an input that provides further \
                 context. Write a response that appropriately completes the request.\n\n### \
                 Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:{end}"
            ),
        }
    }
}
