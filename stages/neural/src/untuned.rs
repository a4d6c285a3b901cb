//! Stands in for `tuned` in builds without the cargo feature `autotune`, where a problem has one kernel.

use std::path::Path;

use contract::StageError;

/// Whether the work folder is of a build like this one.
///
/// # Errors
/// None.
pub fn keep(work: &Path, _rank: usize) -> Result<bool, StageError> {
    Ok(!work.join("kernels.db").exists())
}

/// Takes nothing.
///
/// # Errors
/// None.
pub fn take(_output: &Path, _rank: usize) -> Result<bool, StageError> {
    Ok(false)
}

/// Writes nothing.
///
/// # Errors
/// None.
pub fn publish(_output: &Path, _rank: usize) -> Result<(), StageError> {
    Ok(())
}
