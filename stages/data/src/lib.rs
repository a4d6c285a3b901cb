//! Stage kinds that need no tensor backend, one file a kind.
//!
//! Each file holds the kind's parameter table, its settings and its job; what a kind writes is in
//! ARCHITECTURE.md, section "Files between stages". Nothing here knows the runner or burn; files of
//! other programs are read and written by `formats`.
#![forbid(unsafe_code)]

mod analyze;
mod checkpoint;
mod command;
mod dataset;
mod download;
mod folder;
mod init;
mod quantize;
mod random;
mod synthesize;
#[cfg(test)]
mod testing;
mod tokenize;

/// Every kind of this crate.
pub const STAGES: &[&dyn contract::Stage] = &[
    &synthesize::Synthesize,
    &download::Download,
    &init::Init,
    &tokenize::Tokenize,
    &quantize::Quantize,
    &checkpoint::Checkpoint,
    &analyze::Analyze,
    &command::Command,
];
