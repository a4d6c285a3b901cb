//! `pipe runs`: what was run, the last run last, and what goes on.

use clap::Args;

use super::args::Globals;
use super::table::align;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::store::{Check, RunRecord, Running, Store};

/// `pipe runs`
#[derive(Args, Clone, Debug)]
pub struct Runs {
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Runs, globals: &Globals) -> Result<Exit, Error> {
    let store = Store::open(&globals.store, Check::Stat)?;
    let (runs, running) = (store.runs()?, store.running());
    if args.json {
        return print_json(&serde_json::json!({"version": 1, "runs": runs, "running": running}));
    }
    if runs.is_empty() && running.is_empty() {
        anstream::eprintln!("no runs yet; start one with `pipe run PIPELINE`");
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["run", "pipeline", "started", "took", "exit", "stages"].map(str::to_owned).to_vec()];
    rows.extend(runs.iter().map(row));
    let going_on = |run: Running| {
        let place = if store.is_elsewhere(&run) { run.host } else { None };
        let state = place.map_or("goes on".to_owned(), |host| format!("goes on at `{host}`"));
        vec![run.id, run.pipeline, run.started, state]
    };
    rows.extend(running.into_iter().map(going_on));
    print(&align(&rows, ""))
}

fn row(run: &RunRecord) -> Vec<String> {
    let count = |state: &str| run.stages.iter().filter(|stage| stage.state == state).count();
    let mut stages = format!("{} cached, {} ran", count("cached"), count("done"));
    if count("failed") > 0 {
        stages.push_str(&format!(", {} failed", count("failed")));
    }
    vec![
        run.id.clone(),
        run.pipeline.clone(),
        run.started.clone(),
        format!("{:.1} s", run.seconds),
        run.exit.to_string(),
        stages,
    ]
}
