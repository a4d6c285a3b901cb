//! `pipe status`: where each stage of a pipeline stands.

use clap::Args;
use serde_json::json;

use super::args::{Check, File, Globals, Selection};
use super::plan::answer;
use super::session::{Pinning, Session};
use super::table::{align, size};
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::plan::{Planned, plan};
use crate::registry::Registry;
use crate::store::Store;

/// `pipe status`
#[derive(Args, Clone, Debug)]
pub struct Status {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Status, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let session = Session::open(
        &args.file,
        &Selection::default(),
        false,
        Check::Stat,
        Pinning::AsItIs,
        globals,
        registry,
    )?;
    let planned = plan(&session.pipeline, &session.store, &session.options)?;
    if args.json {
        let stage = |stage: &Planned| {
            json!({
                "stage": stage.id.0, "state": state(&session.store, stage), "key": stage.key.map(|key| key.to_string()),
                "result": stage.action,
            })
        };
        return print_json(&json!({"version": 1, "stages": planned.iter().map(stage).collect::<Vec<_>>()}));
    }
    let mut rows = vec![["stage", "state", "made", "took", "size"].map(str::to_owned).to_vec()];
    for stage in &planned {
        let mut row = vec![stage.id.0.clone(), state(&session.store, stage).to_owned()];
        if let Some(action) = &stage.action {
            let bytes = session.store.objects.manifest(&action.object)?.size();
            row.extend([action.started.clone(), format!("{:.1} s", action.seconds), size(bytes)]);
        }
        rows.push(row);
    }
    print(&align(&rows, ""))
}

/// `stored`, `running`, `to do`; `stale` where its inputs are to be made anew.
fn state(store: &Store, stage: &Planned) -> &'static str {
    match (answer(&stage.verdict).0, stage.key) {
        ("cached", _) => "stored",
        (_, Some(key)) if store.is_running(&key) => "running",
        ("may run", _) => "waiting",
        _ if stage.key.is_some_and(|key| store.has_work(&key)) => "interrupted",
        _ => "to do",
    }
}
