//! How the program says no: a kind, a sentence, the way out, an exit code.
//!
//! Modules return [`Error`]; only `cli` prints it.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use crate::pipeline::Diagnostics;

/// How a command ended. The number is the process' exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: everything was done.
    Ok,
    /// 1: a stage failed, or the machine did (disk, permissions).
    Failed,
    /// 2: the command line or the pipeline file is wrong.
    Usage,
    /// 3: `plan --exit-code` found work.
    WorkFound,
    /// 4: waiting for another run took longer than `--lock-wait`.
    LockTimeout,
    /// 5: the store is damaged, or was made by a newer version.
    DamagedStore,
    /// 75: stopped, and the next run goes on from here.
    Stopped,
    /// 128 + the signal that ended the run: 130 (Ctrl-C), 143 (SIGTERM).
    Signal(u8),
}

impl Exit {
    /// The number that the shell sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::WorkFound => 3,
            Self::LockTimeout => 4,
            Self::DamagedStore => 5,
            Self::Stopped => 75,
            Self::Signal(signal) => 128 + (signal & 127),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not succeed: a sentence for a person, and the way out.
#[derive(Clone, Debug)]
pub struct Error {
    /// The exit code that it leads to.
    pub exit: Exit,
    /// Lower-case sentence, names in backticks.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Everything that is wrong with a pipeline file, each with its place.
    pub diagnostics: Option<Box<Diagnostics>>,
}

impl Error {
    /// An error that ends the command with `exit`.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, diagnostics: None }
    }

    /// The command line is wrong.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The machine said no: names the path.
    #[must_use]
    pub fn io(path: &Path, error: &std::io::Error) -> Self {
        let failure = contract::at(path)(std::io::Error::from(error.kind()));
        Self { hint: failure.hint, ..Self::new(Exit::Failed, format!("`{}`: {error}", path.display())) }
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
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Diagnostics> for Error {
    fn from(diagnostics: Diagnostics) -> Self {
        Self {
            diagnostics: Some(Box::new(diagnostics)),
            ..Self::new(Exit::Usage, "the pipeline file cannot be used")
        }
    }
}

/// Names the path of an I/O error: `fs::read(&path).map_err(io_at(&path))?`.
pub fn io_at(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::io(path, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let all = [
            (Exit::Ok, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::WorkFound, 3),
            (Exit::LockTimeout, 4),
            (Exit::DamagedStore, 5),
            (Exit::Stopped, 75),
            (Exit::Signal(2), 130),
            (Exit::Signal(15), 143),
        ];
        for (exit, code) in all {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }

    #[test]
    fn an_io_error_names_its_path_and_the_way_out() {
        let error = Error::io(Path::new("/x"), &std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(error.message.starts_with("`/x`: "), "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("free some space")));
    }
}
