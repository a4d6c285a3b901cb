//! `pipe push`: sends the stored results of a pipeline to a shared store.

use std::sync::Arc;

use super::args::{Check, Globals, Push};
use super::pull::ended;
use super::session::{Pinning, Session};
use crate::error::{Error, Exit};
use crate::executor::Stop;
use crate::plan::plan;
use crate::registry::Registry;
use crate::remote::sharing::push;
use crate::remote::{Remote, Send};

/// Runs the command.
pub fn run(args: &Push, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let started = jiff::Timestamp::now();
    let pinning = Pinning::AsItIs;
    let session = Session::open(&args.file, &args.selection, false, Check::Stat, pinning, globals, registry)?;
    let stop = Arc::new(Stop::default());
    let remote = Remote::open(&args.remote, &stop)?;
    let _in_use = session.store.hold()?;
    let planned = plan(&session.pipeline, &session.store, &session.options)?;
    let how = if args.force { Send::All } else { Send::Missing };
    let moved = push(&planned, &session.store, &remote, how, &stop);
    ended("sent", &moved, started, globals, args.json)
}
