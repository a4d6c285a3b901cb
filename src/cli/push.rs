//! `pipe push`: sends the stored results of a pipeline to a shared store.

use super::args::{Globals, Push};
use super::pull::moving;
use crate::error::{Error, Exit};
use crate::plan::plan;
use crate::registry::Registry;
use crate::remote::Send;
use crate::remote::sharing::push;

/// Runs the command.
pub fn run(args: &Push, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let how = if args.force { Send::All } else { Send::Missing };
    moving("sent", &args.shared, globals, registry, |session, remote, stop| {
        let planned = plan(&session.pipeline, &session.store, &session.options)?;
        Ok(push(&planned, &session.store, remote, how, stop))
    })
}
