//! Data set files, row by row: a JSON list, one JSON object a line, or Parquet.
//!
//! A row that is broken is named by its line or number. Rows are handed on one at a time, so that a file may
//! be larger than memory; what is made of them is the caller's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek as _};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::alpaca::sentence;
use crate::error::at;
use crate::example::Example;
use crate::{Error, Result, mapped};

/// Endings of files that hold rows.
pub const ENDINGS: &[&str] = &["json", "jsonl", "ndjson", "parquet"];

/// Hands each row of a file, or what is wrong with it, to `take`, until that returns an error. How the file is
/// read follows from its ending and its first letter.
///
/// # Errors
/// Those of `take`; or if the file as a whole cannot be read, which for a list may come after its first rows.
pub fn for_each<E: From<Error>>(
    path: &Path,
    mut take: impl FnMut(Result<Example>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut refused = None;
    let mut take = |place: String, value: std::result::Result<Value, String>| {
        let example = value.and_then(Example::from_value);
        let example = example.map_err(|why| Error::new(path, sentence(&place, &why)));
        take(example).map_err(|error| refused = Some(error)).is_ok()
    };
    let read = if path.extension().is_some_and(|ending| ending == "parquet") {
        parquet(path, &mut take)
    } else if is_list(path)? {
        list(path, &mut take)
    } else {
        lines(path, &mut take)
    };
    match refused {
        Some(error) => Err(error),
        None => Ok(read?),
    }
}

/// Takes a row's place and what stands there; false if no more is wanted.
type Take<'a> = &'a mut dyn FnMut(String, std::result::Result<Value, String>) -> bool;

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
    let bytes = mapped::map(path)?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Error::new(path, format!("not UTF-8 text from byte {}", error.valid_up_to())))?;
    let mut text = serde_json::Deserializer::from_str(text);
    List(take).deserialize(&mut text).and_then(|()| text.end()).map_err(|error| {
        Error::new(path, format!("no JSON list of rows: {error}"))
            .hint("a data set is a list of objects, or one object a line")
    })
}

/// Takes the values of a list as they are parsed; the list as a whole never exists.
struct List<'a>(Take<'a>);

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> std::result::Result<(), A::Error> {
        let mut number = 0u64;
        while let Some(value) = values.next_element()? {
            number += 1;
            if !(self.0)(format!("row {number}"), Ok(value)) {
                break;
            }
        }
        Ok(())
    }
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
        if !take(format!("line {number}"), value) {
            break;
        }
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
        if !take(format!("row {number}"), Ok(row.map_err(wrong)?.to_json_value())) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows, and what is wrong with others.
    fn read(name: &str, text: &str) -> Result<(Vec<Example>, Vec<Error>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let (mut rows, mut broken) = (Vec::new(), Vec::new());
        for_each(&path, |example| {
            match example {
                Ok(example) => rows.push(example),
                Err(error) => broken.push(error),
            }
            Ok::<(), Error>(())
        })?;
        Ok((rows, broken))
    }

    #[test]
    fn a_list_and_lines_give_the_same_rows() {
        let list = read("a.json", "\u{feff} [{\"text\": \"a\"},\n {\"text\": \"b\"}]").unwrap();
        let lines = read("a.jsonl", "\u{feff}{\"text\": \"a\"}\r\n\n{\"text\": \"b\"}").unwrap();
        assert_eq!(list, lines);
        assert_eq!(list.0.len(), 2);
        assert!(read("empty.json", "").unwrap().0.is_empty());
    }

    #[test]
    fn a_broken_row_is_named_and_the_others_are_read() {
        let text = "{\"text\": \"a\"}\n\n{\"text\": \"b\n{\"text\": 3}\n{\"text\": \"c\"}\n";
        let (rows, broken) = read("a.jsonl", text).unwrap();
        assert_eq!((rows.len(), broken.len()), (2, 2));
        assert!(broken[0].message.starts_with("line 3 is no JSON object"), "{}", broken[0]);
        assert!(broken[1].message.starts_with("line 4: `text` is `3`"), "{}", broken[1]);
        let (rows, broken) =
            read("a.json", "[{\"text\": \"a\"}, {\"tex\": \"b\"}, {\"text\": \"c\"}]").unwrap();
        assert_eq!((rows.len(), broken.len()), (2, 1));
        assert!(broken[0].message.starts_with("row 2 has none of"), "{}", broken[0]);
    }

    #[test]
    fn a_list_is_refused_as_a_whole_if_it_is_cut_off_or_goes_on_behind_its_end() {
        for text in ["[{\"text\": \"a\"}, {\"text\"", "[{\"text\": \"a\"}] []", "[{\"text\": \"a\"},]"] {
            let error = read("a.json", text).unwrap_err();
            assert!(error.message.contains("no JSON list of rows"), "{error}");
        }
    }

    #[test]
    fn no_row_is_read_behind_an_error_of_the_taker() {
        let folder = tempfile::tempdir().unwrap();
        let list = r#"[{"text": "a"}, {"text": "b"}, {"text": "c"}]"#;
        let lines = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n";
        for text in [list, lines] {
            let path = folder.path().join("rows.json");
            std::fs::write(&path, text).unwrap();
            let mut taken = 0;
            let error = for_each(&path, |_| {
                taken += 1;
                if taken == 2 { Err(Error::new(&path, "enough")) } else { Ok(()) }
            });
            assert_eq!((error.unwrap_err().message.as_str(), taken), ("enough", 2));
        }
    }

    #[test]
    fn what_is_no_parquet_is_refused() {
        let error = read("a.parquet", "PAR1 and no more").unwrap_err();
        assert!(error.message.contains("no Parquet file"), "{error}");
    }
}
