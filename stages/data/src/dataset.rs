//! A data set as stages hand it on: a file of Alpaca rows, or a folder with `*.json` (or
//! `*.jsonl`) files of them in which `heldout.json`, if there is one, is the held-out part.

use std::fs;
use std::path::{Path, PathBuf};

use contract::{StageError, Table, at};
use formats::alpaca::{Row, read_rows};

/// The name of the held-out part.
pub const HELDOUT: &str = "heldout.json";

/// The rows behind one artifact.
pub struct Dataset {
    /// To train on, in the order of the file names and of the files.
    pub rows: Vec<Row>,
    /// The held-out part, if the folder brings one.
    pub heldout: Option<Vec<Row>>,
}

impl Dataset {
    /// Reads a file or a folder.
    pub fn read(path: &Path) -> Result<Self, StageError> {
        if !path.is_dir() {
            return Ok(Self { rows: read_rows(path)?, heldout: None });
        }
        let mut rows = Vec::new();
        let files = row_files(path)?;
        if files.is_empty() {
            let message = format!(
                "folder `{}` holds no data set: there is no `*.json` or `*.jsonl` file in it",
                path.display()
            );
            return Err(StageError::new(message)
                .hint("a data set is a JSON array of rows with `instruction`, `input` and `output`"));
        }
        for file in files {
            rows.extend(read_rows(&file)?);
        }
        let heldout = path.join(HELDOUT);
        let heldout = if heldout.exists() { Some(read_rows(&heldout)?) } else { None };
        Ok(Self { rows, heldout })
    }
}

/// The files of a folder that hold rows to train on, by name.
fn row_files(folder: &Path) -> Result<Vec<PathBuf>, StageError> {
    let entries: Result<Vec<_>, _> = fs::read_dir(folder).map_err(at(folder))?.collect();
    let mut files: Vec<PathBuf> =
        entries.map_err(at(folder))?.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| {
        let json = file.extension().is_some_and(|extension| extension == "json" || extension == "jsonl");
        json && ![HELDOUT, Table::FILE].iter().any(|name| file.ends_with(name))
    });
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    const ROW: &str = r#"[{"instruction": "Say a.", "input": "", "output": "a"}]"#;

    #[test]
    fn a_folder_gives_its_files_in_order_and_its_held_out_part() {
        let bench = Bench::new();
        bench.write("set/b.json", &ROW.replace("Say a", "Say b"));
        bench.write("set/a.json", ROW);
        bench.write("set/heldout.json", &ROW.replace("Say a", "Say c"));
        bench.write("set/summary.json", "{}");
        bench.write("set/README.md", "no rows");
        let set = Dataset::read(&bench.path("set")).unwrap();
        let instructions: Vec<&str> = set.rows.iter().map(|row| row.instruction.as_str()).collect();
        assert_eq!(instructions, ["Say a.", "Say b."]);
        assert_eq!(set.heldout.unwrap()[0].instruction, "Say c.");
    }

    #[test]
    fn a_file_has_no_held_out_part() {
        let bench = Bench::new();
        let set = Dataset::read(&bench.write("rows.json", ROW)).unwrap();
        assert!(set.rows.len() == 1 && set.heldout.is_none());
    }

    #[test]
    fn a_folder_without_rows_says_what_it_wants() {
        let bench = Bench::new();
        bench.write("set/README.md", "");
        let error = Dataset::read(&bench.path("set")).err().unwrap();
        assert!(error.message.contains("no data set") && error.hint.is_some());
    }
}
