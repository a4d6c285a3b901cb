//! A data set as stages hand it on: a file of rows, or a folder with such files (`*.json`, `*.jsonl`,
//! `*.parquet`, also in folders below) in which `heldout.json`, if there is one, is the held-out part.
//!
//! Every row is looked at before the first is used; what of them stays in memory is where they lie.

mod rows;

use std::fs;
use std::path::{Path, PathBuf};

use contract::{Context, StageError, Table, at};
use formats::rows::{ENDINGS, for_each};

pub use rows::Rows;
use rows::Spool;

/// The name of the held-out part.
pub const HELDOUT: &str = "heldout.json";

/// Files beside the rows of a data set that hold none.
const NO_ROWS: &[&str] = &[HELDOUT, Table::FILE, "dataset_infos.json", "dataset_info.json", "state.json"];

/// What parts of a data set are called, in the names of files.
const SPLITS: &[&str] = &["train", "test", "validation", "valid", "val", "dev", "eval"];

/// How many of the rows that were left out are named.
const BROKEN_SHOWN: usize = 5;

/// The rows behind one artifact.
pub struct Dataset {
    /// To train on, in the order of the file names and of the files.
    pub rows: Rows,
    /// The held-out part, if the folder brings one.
    pub heldout: Option<Rows>,
    /// Rows that were left out.
    pub broken: Broken,
}

/// Rows that cannot be read.
#[derive(Default)]
pub struct Broken {
    /// How many there are.
    pub rows: usize,
    /// What is wrong with the first of them.
    pub first: Vec<formats::Error>,
}

impl Dataset {
    /// Reads a file or a folder. Broken rows are an error, unless `skip_broken`.
    pub fn read(path: &Path, skip_broken: bool, ctx: &Context<'_>) -> Result<Self, StageError> {
        let files = if path.is_dir() { row_files(path)? } else { vec![path.to_owned()] };
        if files.is_empty() {
            let message = format!(
                "folder `{}` holds no data set: there is no file that ends in {}",
                path.display(),
                ENDINGS.iter().map(|ending| format!("`.{ending}`")).collect::<Vec<_>>().join(", ")
            );
            return Err(StageError::new(message)
                .hint("a data set is a list of rows, or one row a line, with `instruction`, `input` and `output`, or `messages`, or `text`"));
        }
        one_split(path, &files)?;
        let mut broken = Broken::default();
        let rows = spool(&files, skip_broken, &mut broken, ctx)?;
        if rows.len() == 0 {
            return Err(StageError::new(format!("`{}`: the data set is empty", path.display()))
                .hint("it needs at least one row"));
        }
        let heldout = path.join(HELDOUT);
        let heldout =
            heldout.exists().then(|| spool(&[heldout], skip_broken, &mut broken, ctx)).transpose()?;
        Ok(Self { rows, heldout, broken })
    }
}

/// The rows of files, one file after the other; what is wrong with others goes to `broken`.
fn spool(
    files: &[PathBuf],
    skip_broken: bool,
    broken: &mut Broken,
    ctx: &Context<'_>,
) -> Result<Rows, StageError> {
    let mut spool = Spool::new(ctx.work())?;
    let mut take = |row: formats::Result<_>| match row {
        _ if ctx.stopping() => Err(Failure(StageError::cancelled())),
        Ok(row) => spool.push(&row).map_err(Failure),
        Err(error) if skip_broken => {
            broken.rows += 1;
            broken.first.extend((broken.first.len() < BROKEN_SHOWN).then_some(error));
            Ok(())
        }
        Err(error) => {
            Err(error.hint("mend the row, or leave out all that are broken with `skip_broken = true`").into())
        }
    };
    files.iter().try_for_each(|file| for_each(file, &mut take)).map_err(|Failure(error)| error)?;
    spool.finish()
}

/// Why rows are not read, with the way out kept apart.
struct Failure(StageError);

impl From<formats::Error> for Failure {
    fn from(error: formats::Error) -> Self {
        let hint = error.hint.clone();
        Self(StageError { hint, ..StageError::new(formats::Error { hint: None, ..error }.to_string()) })
    }
}

/// The files below a folder that hold rows to train on, by name.
fn row_files(folder: &Path) -> Result<Vec<PathBuf>, StageError> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let path = entry.map_err(at(&folder))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            if ENDINGS.contains(&ending) && !NO_ROWS.iter().any(|name| path.ends_with(name)) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Rows to test with must not be trained on because they lie in the same folder.
fn one_split(folder: &Path, files: &[PathBuf]) -> Result<(), StageError> {
    let split = |file: &PathBuf| {
        let below = file.strip_prefix(folder).ok()?;
        let mut parts = below.iter().filter_map(|part| part.to_str());
        parts.find_map(|part| {
            let word = part.split(['-', '_', '.']).next().unwrap_or_default();
            SPLITS.iter().find(|split| **split == word)
        })
    };
    let mut found: Vec<&str> = files.iter().filter_map(split).copied().collect();
    found.sort_unstable();
    found.dedup();
    if found.len() < 2 {
        return Ok(());
    }
    let message =
        format!("folder `{}` holds several parts of a data set: {}", folder.display(), found.join(", "));
    Err(StageError::new(message)
        .hint("choose one with `files` in the stage that fetches it, such as `files = [\"*train*\"]`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    const ROW: &str = r#"[{"instruction": "Say a.", "input": "", "output": "a"}]"#;

    fn read(bench: &Bench, path: &Path) -> Result<Dataset, StageError> {
        Dataset::read(path, false, &bench.context())
    }

    fn instructions(rows: &Rows) -> Vec<String> {
        rows.sections().flat_map(Result::unwrap).map(|row| row.question().instruction).collect()
    }

    #[test]
    fn a_folder_gives_its_files_in_order_and_its_held_out_part() {
        let bench = Bench::new();
        bench.write("set/b.json", &ROW.replace("Say a", "Say b"));
        bench.write("set/a.json", ROW);
        bench.write("set/heldout.json", &ROW.replace("Say a", "Say c"));
        bench.write("set/summary.json", "{}");
        bench.write("set/README.md", "no rows");
        let set = read(&bench, &bench.path("set")).unwrap();
        assert_eq!(instructions(&set.rows), ["Say a.", "Say b."]);
        assert_eq!(instructions(&set.heldout.unwrap()), ["Say c."]);
    }

    #[test]
    fn a_file_has_no_held_out_part() {
        let bench = Bench::new();
        let set = read(&bench, &bench.write("rows.json", ROW)).unwrap();
        assert!(set.rows.len() == 1 && set.heldout.is_none());
    }

    #[test]
    fn a_folder_without_rows_says_what_it_wants() {
        let bench = Bench::new();
        bench.write("set/README.md", "");
        let error = read(&bench, &bench.path("set")).err().unwrap();
        assert!(error.message.contains("no data set") && error.hint.is_some());
    }

    #[test]
    fn files_below_are_found_and_parts_are_not_mixed() {
        let bench = Bench::new();
        bench.write("set/data/train-00000-of-00002.jsonl", "{\"text\": \"a\"}");
        bench.write("set/data/train-00001-of-00002.jsonl", "{\"text\": \"b\"}");
        bench.write("set/dataset_infos.json", "{\"no\": \"rows\"}");
        assert_eq!(read(&bench, &bench.path("set")).unwrap().rows.len(), 2);
        bench.write("set/data/test-00000-of-00001.jsonl", "{\"text\": \"c\"}");
        let error = read(&bench, &bench.path("set")).err().unwrap();
        assert!(error.message.ends_with("several parts of a data set: test, train"), "{error}");
    }
}
