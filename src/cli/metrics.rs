//! `pipe metrics`: what the stages of a run measured.

use std::collections::BTreeMap;

use clap::Args;
use contract::Table;
use serde_json::json;

use super::args::Globals;
use super::table::align;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::measured::{self, Point, figure};
use crate::pipeline::near::{did_you_mean, list};
use crate::recorded::{Recorded, Stage};
use crate::store::{Check, Store};

/// `pipe metrics`
#[derive(Args, Clone, Debug)]
pub struct Metrics {
    /// The pipeline, by file or name: its last run is meant; the last run at all if absent
    #[arg(value_name = "PIPELINE", value_hint = clap::ValueHint::FilePath)]
    pub pipeline: Option<String>,
    /// Stages (`train`, or one instance: `train[lora]`); all if absent
    #[arg(value_name = "STAGE")]
    pub stages: Vec<String>,
    /// Another run, by its name or its first letters; only stages follow then
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Metrics, globals: &Globals) -> Result<Exit, Error> {
    let store = Store::open(&globals.store, Check::Stat)?;
    let _in_use = store.hold()?;
    let mut names = args.stages.clone();
    let run = match (&args.run, &args.pipeline) {
        // Where a run is named no pipeline has to be: the first word is a stage as well.
        (Some(run), first) => {
            names.extend(first.clone());
            store.find_run(Some(run))?
        }
        (None, Some(pipeline)) => store.last_run_of(pipeline)?,
        (None, None) => store.find_run(None)?,
    };
    let recorded = Recorded::new(run, &store);
    names.iter().try_for_each(|name| known(name, &recorded))?;
    let measured: Vec<Measured<'_>> = recorded.chosen(&names).into_iter().map(Measured::of).collect();
    if args.json {
        let stages: Vec<_> = measured.iter().map(Measured::document).collect();
        let run = &recorded.run;
        return print_json(&json!({"version": 1, "run": run.id, "pipeline": run.pipeline, "stages": stages}));
    }
    if measured.iter().all(Measured::is_empty) {
        anstream::eprintln!(
            "these stages measured nothing: no `{}`, no `{}`",
            Table::FILE,
            measured::METRICS
        );
    }
    let texts: Vec<String> = measured.iter().filter(|one| !one.is_empty()).map(|one| one.text()).collect();
    print(&texts.join("\n"))
}

/// Refuses a name that no stage of the run has.
fn known(name: &String, recorded: &Recorded) -> Result<(), Error> {
    if !recorded.chosen(std::slice::from_ref(name)).is_empty() {
        return Ok(());
    }
    let names = || recorded.stages.iter().map(|stage| stage.record.stage.as_str());
    let tables = recorded.stages.iter().map(|stage| stage.record.table.as_str());
    let hint = did_you_mean(name, names().chain(tables))
        .unwrap_or_else(|| format!("its stages are {}", list(names())));
    Err(Error::usage(format!("run {} has no stage `{name}`", recorded.run.id)).hint(hint))
}

/// What one stage measured.
struct Measured<'a> {
    stage: &'a Stage,
    summary: Option<Table>,
    last: BTreeMap<String, Point>,
}

impl<'a> Measured<'a> {
    fn of(stage: &'a Stage) -> Self {
        let (summary, last) = stage.output.as_ref().map_or((None, BTreeMap::new()), |output| {
            (measured::summary(output), measured::last(&measured::series(output)))
        });
        Self { stage, summary, last }
    }

    fn is_empty(&self) -> bool {
        self.summary.is_none() && self.last.is_empty()
    }

    fn document(&self) -> serde_json::Value {
        let record = &self.stage.record;
        json!({"stage": record.stage, "state": record.state, "summary": self.summary, "metrics": self.last})
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let name = &self.stage.record.stage;
        if let Some(Table { title, columns, rows }) = &self.summary {
            let rows: Vec<Vec<String>> = std::iter::once(columns).chain(rows).cloned().collect();
            text += &format!("{name}: {title}\n{}", align(&rows, "  "));
        }
        if !self.last.is_empty() {
            let mut rows = vec![["figure", "last", "step"].map(str::to_owned).to_vec()];
            let row = |(name, point): (&String, &Point)| {
                vec![name.clone(), figure(point.value), figure(point.step)]
            };
            rows.extend(self.last.iter().map(row));
            text += &format!("{name}: last figures\n{}", align(&rows, "  "));
        }
        text
    }
}
