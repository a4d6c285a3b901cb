//! Stage kinds that need no tensor backend, one file a kind.
//!
//! Each file holds the kind's parameter table, its settings and its job; what a kind writes is in
//! ARCHITECTURE.md, section "Files between stages". Nothing here knows the runner or burn; files of
//! other programs are read and written by `formats`.
#![forbid(unsafe_code)]

mod command;
mod download;
mod random;
mod synthesize;
#[cfg(test)]
mod testing;

/// Every kind of this crate.
pub const STAGES: &[&dyn contract::Stage] =
    &[&synthesize::Synthesize, &download::Download, &command::Command];
