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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::STAGES;

    #[test]
    fn every_kind_has_the_file_of_its_name_and_parameters_of_different_names() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut kinds = HashSet::new();
        for stage in STAGES {
            assert!(source.join(format!("{}.rs", stage.kind())).exists(), "{}", stage.kind());
            assert!(kinds.insert(stage.kind()), "{} comes twice", stage.kind());
            let names: HashSet<&str> = stage.params().iter().map(|param| param.name).collect();
            assert_eq!(names.len(), stage.params().len(), "{}", stage.kind());
        }
    }
}
