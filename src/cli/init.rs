//! `pipe init FILE`: writes a commented pipeline to start from. It runs as it is.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::error::{Error, Exit, io_at};
use crate::registry::Registry;

/// What is written; `{name}` is the pipeline's name.
const TEMPLATE: &str = include_str!("init/pipeline.toml");

/// `pipe init`
#[derive(Args, Clone, Debug)]
pub struct Init {
    /// The file to write; it must not exist
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,
}

pub fn run(args: &Init, registry: &Registry) -> Result<Exit, Error> {
    let path = &args.file;
    if path.extension().is_none_or(|extension| extension != "toml") {
        let hint = format!("for example `{}`", path.with_extension("toml").display());
        return Err(Error::usage(format!("`{}` does not end in `.toml`", path.display())).hint(hint));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let text = text(&stem, registry);
    let mut file = File::create_new(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::usage(format!("`{}` exists already", path.display()))
            .hint("choose another name, or remove it first"),
        _ => Error::io(path, &error),
    })?;
    file.write_all(text.as_bytes()).map_err(io_at(path))?;
    print(&format!("wrote `{0}`; try `pipe dag {0}` and `pipe run {0}`\n", path.display()))
}

fn text(name: &str, registry: &Registry) -> String {
    let kinds: Vec<String> =
        registry.stages.iter().map(|stage| format!("#   {:12} {}", stage.kind(), stage.doc())).collect();
    let name = serde_json::Value::from(name).to_string();
    TEMPLATE.replace("{name}", &name).replace("{kinds}", &kinds.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Pipeline;
    use crate::registry::all;

    #[test]
    fn what_is_written_is_a_pipeline() {
        let text = text("mine", &all());
        let pipeline =
            Pipeline::parse("mine.toml", &text, &[], &all()).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!((pipeline.name.as_str(), pipeline.instances.len()), ("mine", 6));
        assert!(text.contains("#   command "));
    }

    #[test]
    fn an_existing_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        std::fs::write(&file, "mine").unwrap();
        let error = run(&Init { file: file.clone() }, &all()).unwrap_err();
        assert!(error.message.ends_with("exists already"), "{error}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "mine");
    }
}
