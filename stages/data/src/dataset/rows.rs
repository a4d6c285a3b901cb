//! The rows of a data set in any order, while none of them is in memory: one JSON text behind the other in a
//! scratch file, and where each ends.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::iter;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use contract::{StageError, at};
use formats::example::Example;
use rayon::prelude::*;

/// Rows that are in memory at a time: at most so many, and no more text than this unless it is one row's.
const SECTION_ROWS: usize = 2048;
const SECTION_BYTES: u64 = 4 << 20;

/// Rows that are still coming in.
pub struct Spool {
    file: BufWriter<File>,
    dir: PathBuf,
    /// Where each row's text ends, and the next one's begins.
    ends: Vec<u64>,
}

impl Spool {
    /// An empty one; its scratch file lies in `dir` and goes with the process.
    pub fn new(dir: &Path) -> Result<Self, StageError> {
        let file = BufWriter::new(tempfile::tempfile_in(dir).map_err(at(dir))?);
        Ok(Self { file, dir: dir.to_owned(), ends: Vec::new() })
    }

    /// Appends a row.
    pub fn push(&mut self, row: &Example) -> Result<(), StageError> {
        let text = serde_json::to_vec(row)?;
        self.ends.push(self.ends.last().unwrap_or(&0) + text.len() as u64);
        self.file.write_all(&text).map_err(at(&self.dir))
    }

    /// All rows, in the order in which they came.
    pub fn finish(self) -> Result<Rows, StageError> {
        let file = self.file.into_inner().map_err(|error| at(&self.dir)(error.into_error()))?;
        let order = (0..self.ends.len()).collect();
        Ok(Rows { texts: Arc::new(Texts { file, dir: self.dir, ends: self.ends }), order })
    }
}

struct Texts {
    file: File,
    dir: PathBuf,
    ends: Vec<u64>,
}

impl Texts {
    fn start(&self, index: usize) -> u64 {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    fn bytes(&self, index: usize) -> u64 {
        self.ends[index] - self.start(index)
    }

    fn read(&self, index: usize) -> Result<Example, StageError> {
        let mut text = vec![0; self.bytes(index) as usize];
        self.file.read_exact_at(&mut text, self.start(index)).map_err(at(&self.dir))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Rows in an order.
pub struct Rows {
    texts: Arc<Texts>,
    order: Vec<usize>,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// None of them.
    pub fn none(&self) -> Self {
        self.pick(Vec::new())
    }

    /// Those with these numbers, in the order of the numbers.
    pub fn pick(&self, mut numbers: Vec<usize>) -> Self {
        numbers.iter_mut().for_each(|number| *number = self.order[*number]);
        Self { texts: self.texts.clone(), order: numbers }
    }

    /// The rows in pieces that fit into memory, whatever the size of the data set.
    pub fn sections(&self) -> impl Iterator<Item = Result<Vec<Example>, StageError>> {
        let mut rest = self.order.as_slice();
        iter::from_fn(move || {
            let mut bytes = 0;
            let fits = |&&index: &&usize| {
                bytes += self.texts.bytes(index);
                bytes <= SECTION_BYTES
            };
            let length = rest.iter().take(SECTION_ROWS).take_while(fits).count().max(1);
            let (section, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(section.par_iter().map(|&index| self.texts.read(index)).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[String]) -> Rows {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(folder.path()).unwrap();
        for text in texts {
            spool.push(&Example::Completion { prompt: String::new(), text: text.clone() }).unwrap();
        }
        spool.finish().unwrap()
    }

    fn texts(rows: &Rows) -> Vec<Vec<String>> {
        let text = |row: Example| row.question().output;
        rows.sections().map(|section| section.unwrap().into_iter().map(text).collect()).collect()
    }

    #[test]
    fn rows_come_back_in_the_order_that_was_asked_for() {
        let rows = rows(&["a \"quoted\"\n".into(), String::new(), "ü🦀\u{0}".into()]);
        assert_eq!(texts(&rows), [["a \"quoted\"\n", "", "ü🦀\u{0}"]]);
        let turned = rows.pick(vec![2, 0]);
        assert_eq!(
            (texts(&turned), turned.len()),
            (vec![vec!["ü🦀\u{0}".into(), "a \"quoted\"\n".into()]], 2)
        );
        assert_eq!(texts(&turned.pick(vec![1])), [["a \"quoted\"\n"]]);
        assert!(texts(&rows.none()).is_empty());
    }

    #[test]
    fn a_section_is_bounded_in_rows_and_in_bytes() {
        let short: Vec<String> = (0..SECTION_ROWS * 2 + 1).map(|number| number.to_string()).collect();
        let sections = texts(&rows(&short));
        assert_eq!(sections.iter().map(Vec::len).collect::<Vec<_>>(), [SECTION_ROWS, SECTION_ROWS, 1]);
        assert_eq!(sections.concat(), short);
        let long = |share: u64| "x".repeat((SECTION_BYTES / share) as usize);
        let sections = texts(&rows(&[long(3), long(3), long(3), long(1), "y".into()]));
        assert_eq!(sections.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1, 1]);
    }
}
