//! `pipe logs`: what a stage said when it last ran.

use clap::Args;

use super::args::{File, Globals};
use super::print;
use super::session::Session;
use crate::error::{Error, Exit, io_at};
use crate::plan::plan;
use crate::registry::Registry;

mod follow;

/// `pipe logs`
#[derive(Args, Clone, Debug)]
pub struct Logs {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// The stage: `train`, or one instance: `train[lora]`
    #[arg(value_name = "STAGE")]
    pub stage: String,
    /// Print where the log lies, not what it says
    #[arg(long)]
    pub path: bool,
    /// Go on printing until the stage ends
    #[arg(short, long, conflicts_with = "path")]
    pub follow: bool,
}

/// Runs the command.
pub fn run(args: &Logs, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let (session, found) = Session::of_stage(&args.file, &args.stage, globals, registry)?;
    if args.follow {
        return follow::follow(args, &session, &found);
    }
    let planned = plan(&session.pipeline, &session.store, &session.options)?;
    let last = session.store.runs()?;
    let mut missing = Vec::new();
    for stage in found.iter().map(|&index| &planned[index]) {
        // Without a key (an input is to be made anew) the last run of the same name is meant.
        let of_run = || {
            last.iter()
                .rev()
                .flat_map(|run| &run.stages)
                .find(|one| one.stage == stage.id.0 && one.key.is_some())
        };
        let key = stage.key.or_else(|| Some(crate::key::StageKey(of_run()?.key?)));
        let log = key.map(|key| session.store.log_path(&key)).filter(|path| path.exists());
        let Some(log) = log else {
            missing.push(format!("`{}`", stage.id));
            continue;
        };
        if args.path {
            print(&format!("{}\n", log.display()))?;
            continue;
        }
        if found.len() > 1 {
            print(&format!("== {}\n", stage.id))?;
        }
        let text = std::fs::read(&log).map_err(io_at(&log))?;
        print(&String::from_utf8_lossy(&text))?;
    }
    if missing.len() == found.len() {
        let message = format!("{} has not run yet", missing.join(", "));
        return Err(Error::new(Exit::Failed, message)
            .hint(format!("run it: `pipe run {}`", args.file.pipeline.display())));
    }
    Ok(Exit::Ok)
}
