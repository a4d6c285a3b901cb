//! `pipe runs`: what was run, the last run last.

use super::args::{Globals, Runs};
use super::table::align;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::store::{Check, RunRecord, Store};

/// Runs the command.
pub fn run(args: &Runs, globals: &Globals) -> Result<Exit, Error> {
    let runs = Store::open(&globals.store, Check::Stat)?.runs()?;
    if args.json {
        return print_json(&serde_json::json!({"version": 1, "runs": runs}));
    }
    if runs.is_empty() {
        anstream::eprintln!("no runs yet; start one with `pipe run PIPELINE`");
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["run", "pipeline", "started", "took", "exit", "stages"].map(str::to_owned).to_vec()];
    rows.extend(runs.iter().map(row));
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
