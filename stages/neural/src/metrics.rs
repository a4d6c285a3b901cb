//! `metrics.jsonl` and `samples.jsonl`: one JSON object a line.
//!
//! Holds only what is a function of inputs and parameters, never a time: a run that was stopped and
//! resumed must write the same bytes as one that was not. A file grows in the work folder and can
//! be cut back to where a checkpoint left it.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use contract::{StageError, at};
use serde::Serialize;

/// What is known of one step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// The step, from 1.
    pub step: u64,
    /// Loss before the step's update.
    pub loss: f64,
    /// Learning rate of the step's update.
    pub lr: f64,
    /// Norm of the gradient before clipping; null where it overflowed and the step was left out.
    pub grad_norm: f64,
    /// Tokens that were predicted.
    pub label_tokens: u64,
    /// What the loss was multiplied with, in float16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Held-out loss after the update, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// ΔM of DoRA's paper (eq. 3), mean over the adapted matrices, at saved steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta_magnitude: Option<f64>,
    /// ΔD of DoRA's paper (eq. 4), mean over the adapted matrices, at saved steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta_direction: Option<f64>,
}

/// The open file.
pub struct Lines {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Lines {
    /// The file of the steps' figures.
    pub const METRICS: &'static str = "metrics.jsonl";
    /// The file of generated answers.
    pub const SAMPLES: &'static str = "samples.jsonl";

    /// Opens a file in `folder` and cuts it back to its first `length` bytes.
    ///
    /// # Errors
    /// If it cannot be opened, or is shorter than that.
    pub fn resume(folder: &Path, name: &str, length: u64) -> Result<Self, StageError> {
        let path = folder.join(name);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(at(&path))?;
        let found = file.metadata().map_err(at(&path))?.len();
        if found < length {
            return Err(StageError::new(format!(
                "`{}` has {found} bytes, the checkpoint saw {length}",
                path.display()
            ))
            .hint("delete the stage's work folder to start it over"));
        }
        file.set_len(length).map_err(at(&path))?;
        file.seek(SeekFrom::End(0)).map_err(at(&path))?;
        Ok(Self { path, file, length })
    }

    /// Whether `folder` holds at least `length` bytes of it.
    #[must_use]
    pub fn reaches(folder: &Path, name: &str, length: u64) -> bool {
        folder.join(name).metadata().map_or(length == 0, |meta| meta.len() >= length)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, record: &impl Serialize) -> Result<(), StageError> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(at(&self.path))?;
        self.length += line.len() as u64;
        Ok(())
    }

    /// Makes sure that what was added outlives a power cut; returns the length in bytes.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn sync(&self) -> Result<u64, StageError> {
        self.file.sync_data().map_err(at(&self.path))?;
        Ok(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record { step, loss: 0.1 * step as f64, ..Record::default() }
    }

    #[test]
    fn a_file_cut_back_and_written_again_has_the_same_bytes() {
        let (whole, cut) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let mut metrics = Lines::resume(whole.path(), Lines::METRICS, 0).expect("open");
        (1..=5).for_each(|step| metrics.add(&record(step)).expect("add"));

        let mut metrics = Lines::resume(cut.path(), Lines::METRICS, 0).expect("open");
        (1..=2).for_each(|step| metrics.add(&record(step)).expect("add"));
        let kept = metrics.sync().expect("sync");
        (3..=4).for_each(|step| metrics.add(&record(step)).expect("add"));
        drop(metrics);
        let mut metrics = Lines::resume(cut.path(), Lines::METRICS, kept).expect("open");
        (3..=5).for_each(|step| metrics.add(&record(step)).expect("add"));

        let read =
            |dir: &tempfile::TempDir| std::fs::read_to_string(dir.path().join(Lines::METRICS)).expect("read");
        assert_eq!(read(&whole), read(&cut));
        assert_eq!(read(&whole).lines().count(), 5);
    }

    #[test]
    fn a_file_shorter_than_its_checkpoint_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(!Lines::reaches(dir.path(), Lines::METRICS, 10));
        assert!(Lines::reaches(dir.path(), Lines::METRICS, 0));
        assert!(Lines::resume(dir.path(), Lines::METRICS, 10).is_err());
    }
}
