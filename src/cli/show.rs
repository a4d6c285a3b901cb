//! `pipe show`: one run: its stages, where they ran, what they warned of.

use clap::Args;

use super::args::Globals;
use super::table::align;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::key::StageKey;
use crate::store::{Action, Check, RunRecord, Store};

/// `pipe show`
#[derive(Args, Clone, Debug)]
pub struct Show {
    /// The run's name or its first letters; the last run if absent
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Show, globals: &Globals) -> Result<Exit, Error> {
    let store = Store::open(&globals.store, Check::Stat)?;
    let run = store.find_run(args.run.as_deref())?;
    let actions: Vec<Option<Action>> =
        run.stages.iter().map(|stage| store.action(&StageKey(stage.key?))).collect();
    if args.json {
        return print_json(&serde_json::json!({"version": 1, "run": run, "actions": actions}));
    }
    print(&text(&run, &actions))
}

fn text(run: &RunRecord, actions: &[Option<Action>]) -> String {
    let mut text = format!("run {} of `{}` ({})\n", run.id, run.pipeline, run.file);
    text += &format!("started {}, took {:.1} s, exit code {}\n", run.started, run.seconds, run.exit);
    for set in &run.set {
        text += &format!("set {set}\n");
    }
    let mut rows = vec![["stage", "state", "took", "key", "output"].map(str::to_owned).to_vec()];
    for (stage, action) in run.stages.iter().zip(actions) {
        let short =
            |digest: Option<crate::digest::Digest>| digest.map_or("-".to_owned(), |digest| digest.short());
        let took = action.as_ref().map_or("-".to_owned(), |action| format!("{:.1} s", action.seconds));
        rows.push(vec![
            stage.stage.clone(),
            stage.state.clone(),
            took,
            short(stage.key),
            short(stage.object),
        ]);
    }
    text.push('\n');
    text += &align(&rows, "");
    for action in
        actions.iter().flatten().filter(|action| !action.provenance.is_empty() || !action.warnings.is_empty())
    {
        text += &format!("\n{} (ran {}):\n", action.stage, action.started);
        text.extend(action.provenance.iter().map(|(name, value)| format!("  {name}: {value}\n")));
        text.extend(action.warnings.iter().map(|warning| format!("  warning: {warning}\n")));
    }
    text
}
