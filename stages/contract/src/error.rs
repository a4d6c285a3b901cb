//! How a stage says no.

use std::fmt;
use std::path::Path;

/// Why a run did not succeed: a sentence for a person, and the way out.
///
/// Any `std::error::Error` turns into one with `?`; for I/O errors use [`at`], which names the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageError {
    /// Lower-case sentence, names in backticks.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Failed or stopped.
    pub kind: ErrorKind,
}

/// Whether a stage failed or was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// It cannot go on.
    Failed,
    /// It was asked to stop and left its work resumable.
    Cancelled,
}

impl StageError {
    /// A failure.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, kind: ErrorKind::Failed }
    }

    /// The same failure with the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The answer to a request to stop.
    #[must_use]
    pub fn cancelled() -> Self {
        Self { message: "stopped on request".into(), hint: None, kind: ErrorKind::Cancelled }
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for StageError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !message.contains(&cause_text) {
                message.push_str(": ");
                message.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self::new(message)
    }
}

/// Names the path of an I/O error: `fs::read(&path).map_err(at(&path))?`.
pub fn at(path: &Path) -> impl FnOnce(std::io::Error) -> StageError {
    move |error| {
        let failure = StageError::new(format!("`{}`: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::StorageFull => {
                failure.hint("free some space and run again; nothing that was finished is lost")
            }
            std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
                failure.hint("choose a writable store with `--store DIR`, or change the permissions")
            }
            _ => failure,
        }
    }
}

/// A parameter that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The parameter; empty for the whole stage.
    pub key: String,
    /// Lower-case sentence.
    pub message: String,
}

impl ConfigError {
    /// An error at `key`.
    #[must_use]
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}
