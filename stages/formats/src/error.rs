//! How a file is refused: which one, why, and the way out.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The file or folder; empty where the error is not about a file.
    pub path: PathBuf,
    /// Lower-case sentence, names in backticks.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Error {
    /// An error about `path`.
    #[must_use]
    pub fn new(path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), message: message.into(), hint: None }
    }

    /// The same error with the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.as_os_str().is_empty() {
            write!(f, "`{}`: ", self.path.display())?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Names the path of an I/O error: `fs::read(&path).map_err(at(&path))?`.
pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |error| {
        let failure = Error::new(path, error.to_string());
        match error.kind() {
            std::io::ErrorKind::StorageFull => failure.hint("free some space and run again"),
            std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
                failure.hint("choose a writable place, or change the permissions")
            }
            _ => failure,
        }
    }
}
