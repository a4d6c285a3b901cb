//! `pipe push`: sends the stored results of a pipeline to a shared store.

use clap::Args;

use super::args::Globals;
use super::pull::{Shared, moving};
use crate::error::{Error, Exit};
use crate::plan::plan;
use crate::registry::Registry;
use crate::remote::Send;
use crate::remote::sharing::push;

/// `pipe push`
#[derive(Args, Clone, Debug)]
pub struct Push {
    /// What, and where to.
    #[command(flatten)]
    pub shared: Shared,
    /// Send also what is there: it may be damaged
    #[arg(short, long)]
    pub force: bool,
}

/// Runs the command.
pub fn run(args: &Push, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let how = if args.force { Send::All } else { Send::Missing };
    moving("sent", &args.shared, globals, registry, |session, remote, stop| {
        let planned = plan(&session.pipeline, &session.store, &session.options)?;
        Ok(push(&planned, &session.store, remote, how, stop))
    })
}
