//! `pipe pull`: fetches what a shared store has of a pipeline. Nothing is run.

use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::args::{Check, File, Globals, Selection};
use super::print_json;
use super::session::{Pinning, Session};
use super::table::size;
use crate::error::{Error, Exit};
use crate::executor::Stop;
use crate::registry::Registry;
use crate::remote::Remote;
use crate::remote::sharing::{Moved, pull};

/// A pipeline, and the store through which machines share its results: `pipe pull`
#[derive(Args, Clone, Debug)]
pub struct Shared {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// The shared store: `s3://BUCKET/PREFIX` or `file:///FOLDER`
    #[arg(long, env = "PIPE_REMOTE", value_name = "URL", hide_env_values = true)]
    pub remote: String,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Shared, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    moving("fetched", args, globals, registry, |session, remote, stop| {
        pull(&session.pipeline, &session.store, &[], remote, stop)
    })
}

/// Opens what `push` and `pull` work on, has it moved, and tells of it: 1 where something went wrong.
pub fn moving(
    verb: &str,
    args: &Shared,
    globals: &Globals,
    registry: &Registry,
    work: impl FnOnce(&Session, &Remote, &Stop) -> Result<Moved, Error>,
) -> Result<Exit, Error> {
    let started = jiff::Timestamp::now();
    let pinning = Pinning::AsItIs;
    let session = Session::open(&args.file, &args.selection, false, Check::Stat, pinning, globals, registry)?;
    let stop = Arc::new(Stop::default());
    let remote = Remote::open(&args.remote, &stop)?;
    let _in_use = session.store.hold()?;
    let moved = work(&session, &remote, &stop)?;
    tell_moved(verb, &moved, started, globals.quiet || args.json);
    if args.json {
        let Moved { present, moved: count, bytes, absent, .. } = &moved;
        print_json(
            &json!({ "version": 1, "present": present, "moved": count, "bytes": bytes, "absent": absent }),
        )?;
    } else if !globals.quiet && moved.moved == 0 && moved.troubles.is_empty() {
        anstream::eprintln!("nothing {verb}: {} are there, {} have no result", moved.present, moved.absent);
    }
    Ok(if moved.troubles.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// `fetched 12 results, 34.1 MB, in 1.2 s`, and what went wrong.
pub fn tell_moved(verb: &str, moved: &Moved, started: jiff::Timestamp, quiet: bool) {
    for (stage, trouble) in &moved.troubles {
        anstream::eprintln!("warning: {stage}: {}", trouble.text);
    }
    if moved.moved > 0 && !quiet {
        let seconds = jiff::Timestamp::now().duration_since(started).as_secs_f64();
        let results = if moved.moved == 1 { "result" } else { "results" };
        anstream::eprintln!("{verb} {} {results}, {}, in {seconds:.1} s", moved.moved, size(moved.bytes));
    }
}
