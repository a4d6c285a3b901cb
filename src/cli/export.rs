//! `pipe export`: puts a stage's output where a person wants it, at once or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::args::{File, Globals};
use super::session::Session;
use crate::digest::{Digest, files_below};
use crate::error::{Error, Exit, io_at};
use crate::plan::plan;
use crate::registry::Registry;
use crate::store::files::{remove_tree, sync_folder};

/// `pipe export`
#[derive(Args, Clone, Debug)]
pub struct Export {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// The stage: `merged`, or one instance: `merged[dora]`
    #[arg(value_name = "STAGE")]
    pub stage: String,
    /// Where its result shall lie
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Replace DIR if it exists
    #[arg(short, long)]
    pub force: bool,
}

/// Runs the command.
pub fn run(args: &Export, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let (session, found) = Session::of_stage(&args.file, &args.stage, globals, registry)?;
    let &[index] = &found[..] else {
        let names: Vec<String> =
            found.iter().map(|&one| format!("`{}`", session.pipeline.instances[one].id)).collect();
        return Err(Error::usage(format!("`{}` has {} instances", args.stage, found.len()))
            .hint(format!("choose one of {}", names.join(", "))));
    };
    if args.dir.exists() && !args.force {
        return Err(Error::usage(format!("`{}` exists", args.dir.display()))
            .hint("choose another folder, or replace it with `--force`"));
    }
    let _in_use = session.store.hold()?;
    let planned = plan(&session.pipeline, &session.store, &session.options)?;
    let Some(action) = &planned[index].action else {
        let message =
            format!("`{}` has no stored result for what the pipeline file says now", planned[index].id);
        return Err(Error::new(Exit::Failed, message)
            .hint(format!("run it: `pipe run {}`", args.file.pipeline.display())));
    };
    place(&session.store.objects.files(&action.object), &args.dir)?;
    anstream::eprintln!("{} → {}", planned[index].id, args.dir.display());
    Ok(Exit::Ok)
}

/// Copies `from` beside `to`, then puts it in place of what is there.
fn place(from: &Path, to: &Path) -> Result<(), Error> {
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(io_at(parent))?;
    let beside =
        tempfile::Builder::new().prefix(".pipe-export-").tempdir_in(parent).map_err(io_at(parent))?;
    let new = beside.path().join("new");
    fs::create_dir(&new).map_err(io_at(&new))?;
    for file in files_below(from)? {
        copy(&from.join(&file), &new.join(&file))?;
    }
    if to.exists() {
        fs::rename(to, beside.path().join("old")).map_err(io_at(to))?;
    }
    fs::rename(&new, to).map_err(io_at(to))?;
    sync_folder(parent)?;
    remove_tree(beside.path())
}

/// A copy that is its owner's to change, hashed against the original (`fs::copy` shares blocks where
/// the file system can).
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let folder = to.parent().expect("a file of an output has a folder");
    fs::create_dir_all(folder).map_err(io_at(folder))?;
    fs::copy(from, to).map_err(io_at(to))?;
    let meta = fs::metadata(to).map_err(io_at(to))?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) | 0o200;
    fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(mode)).map_err(io_at(to))?;
    if Digest::of_file(from)? != Digest::of_file(to)? {
        return Err(
            Error::new(Exit::Failed, format!("`{}` is not what was copied", to.display())).hint("try again")
        );
    }
    Ok(())
}
