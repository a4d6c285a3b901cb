//! Data set files, row by row: a JSON list, one JSON object a line, or Parquet.
//!
//! A row that is broken is named by its line or number. Lines are read one at a time, so that a file may
//! be larger than memory as text; what is made of the rows is the caller's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek as _};
use std::path::Path;

use serde_json::Value;

use crate::alpaca::sentence;
use crate::error::at;
use crate::example::Example;
use crate::json::text;
use crate::{Error, Result};

/// Endings of files that hold rows.
pub const ENDINGS: &[&str] = &["json", "jsonl", "ndjson", "parquet"];

/// The rows of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    /// Those that could be read, in order.
    pub rows: Vec<Example>,
    /// What was wrong with the others.
    pub broken: Vec<Error>,
}

/// Reads a file by its ending and its first letter. Broken rows are an error, unless `skip_broken`.
///
/// # Errors
/// With the place of the first broken row; or if the file as a whole cannot be read.
pub fn read_examples(path: &Path, skip_broken: bool) -> Result<Examples> {
    let mut examples = Examples::default();
    let mut take = |place: String, value: std::result::Result<Value, String>| {
        let example = value.and_then(Example::from_value);
        match example.map_err(|why| Error::new(path, sentence(&place, &why))) {
            Ok(example) => examples.rows.push(example),
            Err(error) if skip_broken => examples.broken.push(error),
            Err(error) => {
                return Err(
                    error.hint("mend the row, or leave out all that are broken with `skip_broken = true`")
                );
            }
        }
        Ok(())
    };
    if path.extension().is_some_and(|ending| ending == "parquet") {
        parquet(path, &mut take)?;
    } else if is_list(path)? {
        list(path, &mut take)?;
    } else {
        lines(path, &mut take)?;
    }
    Ok(examples)
}

type Take<'a> = &'a mut dyn FnMut(String, std::result::Result<Value, String>) -> Result<()>;

/// Whether the first letter is that of a list.
fn is_list(path: &Path) -> Result<bool> {
    let mut file = BufReader::new(File::open(path).map_err(at(path))?);
    let mut byte = [0];
    loop {
        match file.read(&mut byte).map_err(at(path))? {
            0 => return Ok(false),
            // White space, or one of the three bytes of a byte order mark.
            _ if byte[0].is_ascii_whitespace() || [0xEF, 0xBB, 0xBF].contains(&byte[0]) => {}
            _ => return Ok(byte[0] == b'['),
        }
    }
}

fn list(path: &Path, take: Take<'_>) -> Result<()> {
    let values: Vec<Value> = serde_json::from_str(&text(path)?).map_err(|error| {
        Error::new(path, format!("no JSON list of rows: {error}"))
            .hint("a data set is a list of objects, or one object a line")
    })?;
    (1..).zip(values).try_for_each(|(number, value): (u64, _)| take(format!("row {number}"), Ok(value)))
}

fn lines(path: &Path, take: Take<'_>) -> Result<()> {
    let mut file = BufReader::new(File::open(path).map_err(at(path))?);
    let mut mark = [0; 3];
    if file.read(&mut mark).map_err(at(path))? < 3 || mark != [0xEF, 0xBB, 0xBF] {
        file.rewind().map_err(at(path))?;
    }
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(at(path))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value = serde_json::from_slice(&line).map_err(|error| format!("is no JSON object: {error}"));
        take(format!("line {number}"), value)?;
    }
    Ok(())
}

fn parquet(path: &Path, take: Take<'_>) -> Result<()> {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    let wrong = |error: parquet::errors::ParquetError| {
        Error::new(path, format!("no Parquet file that can be read: {error}"))
            .hint("the file may be cut off, or packed in a way that is not known here (snappy, zstd, gzip and lz4 are)")
    };
    let file = File::open(path).map_err(at(path))?;
    let reader = SerializedFileReader::new(file).map_err(wrong)?;
    for (number, row) in (1..).zip(reader.get_row_iter(None).map_err(wrong)?) {
        let number: u64 = number;
        take(format!("row {number}"), Ok(row.map_err(wrong)?.to_json_value()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, skip: bool) -> Result<Examples> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_examples(&path, skip)
    }

    #[test]
    fn a_list_and_lines_give_the_same_rows() {
        let list = read("a.json", "\u{feff} [{\"text\": \"a\"},\n {\"text\": \"b\"}]", false).unwrap();
        let lines = read("a.jsonl", "\u{feff}{\"text\": \"a\"}\r\n\n{\"text\": \"b\"}", false).unwrap();
        assert_eq!(list, lines);
        assert_eq!(list.rows.len(), 2);
        assert!(read("empty.json", "", false).unwrap().rows.is_empty());
    }

    #[test]
    fn a_broken_line_is_named_and_left_out_only_if_asked() {
        let text = "{\"text\": \"a\"}\n\n{\"text\": \"b\n{\"text\": 3}\n{\"text\": \"c\"}\n";
        let error = read("a.jsonl", text, false).unwrap_err();
        assert!(error.message.starts_with("line 3 is no JSON object"), "{error}");
        assert!(error.hint.as_ref().unwrap().contains("skip_broken = true"));
        let skipped = read("a.jsonl", text, true).unwrap();
        assert_eq!((skipped.rows.len(), skipped.broken.len()), (2, 2));
        assert!(skipped.broken[1].message.starts_with("line 4: `text` is `3`"), "{}", skipped.broken[1]);
        let error = read("a.json", "[{\"text\": \"a\"}, {\"tex\": \"b\"}]", false).unwrap_err();
        assert!(error.message.starts_with("row 2 has none of"), "{error}");
        let error = read("a.json", "[{\"text\": \"a\"}, {\"text\"", true).unwrap_err();
        assert!(error.message.contains("no JSON list of rows"), "{error}");
    }

    #[test]
    fn what_is_no_parquet_is_refused() {
        let error = read("a.parquet", "PAR1 and no more", false).unwrap_err();
        assert!(error.message.contains("no Parquet file"), "{error}");
    }
}
