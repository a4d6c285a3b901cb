//! `pipe report`: a recorded run as one HTML file, or as a trace.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::args::Globals;
use super::print;
use crate::error::{Error, Exit, io_at};
use crate::recorded::Recorded;
use crate::report::{document, trace};
use crate::store::{Check, Store};

/// Where the report goes if nothing is said.
const FILE: &str = "report.html";

/// `pipe report`
#[derive(Args, Clone, Debug)]
pub struct Report {
    /// The pipeline, by file or name: its last run is meant; the last run at all if absent
    #[arg(value_name = "PIPELINE", value_hint = clap::ValueHint::FilePath, conflicts_with = "run")]
    pub pipeline: Option<String>,
    /// Another run, by its name or its first letters
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// The HTML file to write (`-`: standard output); `report.html` if absent
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Write a trace for Perfetto or chrome://tracing; HTML then only with `--output`
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Report, globals: &Globals) -> Result<Exit, Error> {
    let store = Store::open(&globals.store, Check::Stat)?;
    let _in_use = store.hold()?;
    let run = match (&args.run, &args.pipeline) {
        (None, Some(pipeline)) => store.last_run_of(pipeline)?,
        (run, _) => store.find_run(run.as_deref())?,
    };
    let recorded = Recorded::new(run, &store);
    if let Some(file) = &args.trace {
        put(&format!("{}\n", trace(&recorded)), file, globals)?;
    }
    match (&args.output, &args.trace) {
        (None, Some(_)) => {}
        (file, _) => put(&document(&recorded), file.as_deref().unwrap_or(Path::new(FILE)), globals)?,
    }
    Ok(Exit::Ok)
}

/// Writes to a file at once, or to standard output if it is called `-`.
fn put(text: &str, file: &Path, globals: &Globals) -> Result<(), Error> {
    if file == Path::new("-") {
        return print(text).map(drop);
    }
    let file = std::path::absolute(file).map_err(io_at(file))?;
    if file.is_dir() || file.file_name().is_none() {
        return Err(Error::usage(format!("`{}` is a folder", file.display())).hint("name a file"));
    }
    replace(&file, text).map_err(io_at(&file))?;
    if !globals.quiet {
        anstream::eprintln!("wrote {}", file.display());
    }
    Ok(())
}

/// Makes `file` hold `text`: a reader sees the old document or the new one. As readable as any new file.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mode = std::fs::Permissions::from_mode(0o666);
    let mut beside = tempfile::Builder::new().permissions(mode).tempfile_in(folder)?;
    beside.write_all(text.as_bytes())?;
    beside.persist(file).map_err(|error| error.error)?;
    Ok(())
}
