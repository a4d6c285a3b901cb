//! `pipe plan` and `pipe run --dry-run`: what would run, and why.

use clap::Args;
use serde_json::json;

use super::args::{Check, File, Globals, Selection};
use super::session::{Pinning, Session};
use super::table::align;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::plan::{Planned, Verdict, plan};
use crate::preview::preview;
use crate::registry::Registry;

/// `pipe plan`
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// Plan as if the selected stages had no stored results
    #[arg(short, long)]
    pub force: bool,
    /// How stored results are checked
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub check: Check,
    /// A store that machines share: what it has would be fetched
    #[arg(long, env = "PIPE_REMOTE", value_name = "URL", hide_env_values = true)]
    pub remote: Option<String>,
    /// End with code 3 if there is work
    #[arg(long)]
    pub exit_code: bool,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Plan, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let mut session = Session::open(
        &args.file,
        &args.selection,
        args.force,
        args.check,
        Pinning::AsItIs,
        globals,
        registry,
    )?;
    session.look(args.remote.as_deref())?;
    let planned = plan(&session.pipeline, &session.store, &session.options)?;
    let told = preview(&session.pipeline, &session.store, &planned)?;
    if args.json {
        print_json(&document(&planned, &told))?;
    } else {
        print(&text(&planned, &told))?;
    }
    let work = planned.iter().any(|stage| !stage.verdict.needs_no_run());
    Ok(if args.exit_code && work { Exit::WorkFound } else { Exit::Ok })
}

/// One JSON object a stage, with what it tells beforehand.
pub fn document(planned: &[Planned], told: &[Vec<String>]) -> serde_json::Value {
    let stage = |(stage, told): (&Planned, &Vec<String>)| {
        let (verdict, why) = answer(&stage.verdict);
        let key = stage.key.map(|key| key.to_string());
        json!({"stage": stage.id.0, "verdict": verdict.replace(' ', "_"), "why": why, "key": key, "told": told})
    };
    json!({"version": 1, "stages": planned.iter().zip(told).map(stage).collect::<Vec<_>>()})
}

/// A line a stage, its reasons behind it, what it tells beforehand below, and a line with the figures.
pub fn text(planned: &[Planned], told: &[Vec<String>]) -> String {
    let mut rows = Vec::new();
    for (stage, told) in planned.iter().zip(told) {
        let (verdict, why) = answer(&stage.verdict);
        let mut why = why.iter().chain(told);
        let first = why.next().cloned().unwrap_or_default();
        rows.push(vec![stage.id.0.clone(), verdict.to_owned(), first]);
        rows.extend(why.map(|reason| vec![String::new(), String::new(), reason.clone()]));
    }
    let count = |name: &str| planned.iter().filter(|stage| answer(&stage.verdict).0 == name).count();
    let mut figures = format!(
        "{} {}: {} cached, {} will run, {} may run",
        planned.len(),
        if planned.len() == 1 { "stage" } else { "stages" },
        count("cached"),
        count("will run"),
        count("may run")
    );
    for more in ["will fetch", "cannot run"] {
        if count(more) > 0 {
            figures += &format!(", {} {more}", count(more));
        }
    }
    figures.push('\n');
    align(&rows, "") + "\n" + &figures
}

/// The verdict in two words, and its reasons.
pub fn answer(verdict: &Verdict) -> (&'static str, &[String]) {
    match verdict {
        Verdict::Cached => ("cached", &[]),
        Verdict::WillFetch(from) => ("will fetch", std::slice::from_ref(from)),
        Verdict::WillRun(why) => ("will run", why),
        Verdict::MayRun(why) => ("may run", why),
        Verdict::Missing(why) => ("cannot run", why),
    }
}
