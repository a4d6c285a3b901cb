//! `pipe explain`: what makes a stage's run the one it is, and what differs from the last one.

use clap::Args;
use serde_json::json;

use super::args::{File, Globals};
use super::plan::answer;
use super::session::Session;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::plan::{Planned, plan};
use crate::registry::Registry;
use crate::store::Action;

/// `pipe explain`
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// The stage: `train`, or one instance: `train[lora]`
    #[arg(value_name = "STAGE")]
    pub stage: String,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Explain, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let (session, found) = Session::of_stage(&args.file, &args.stage, globals, registry)?;
    let planned = plan(&session.pipeline, &session.store, &session.options)?;
    let stages: Vec<(&Planned, Option<Action>)> = found
        .iter()
        .map(|&index| (&planned[index], session.store.latest(&session.pipeline.name, &planned[index].id.0)))
        .collect();
    if args.json {
        let stage = |(stage, last): &(&Planned, Option<Action>)| {
            let (verdict, why) = answer(&stage.verdict);
            json!({
                "stage": stage.id.0, "verdict": verdict.replace(' ', "_"), "why": why,
                "key": stage.key.map(|key| key.to_string()), "fields": stage.fields.as_ref().map(crate::key::KeyFields::explain), "last": last,
            })
        };
        return print_json(&json!({"version": 1, "stages": stages.iter().map(stage).collect::<Vec<_>>()}));
    }
    let texts: Vec<String> = stages.iter().map(|(stage, last)| text(stage, last.as_ref())).collect();
    print(&texts.join("\n"))
}

fn text(stage: &Planned, last: Option<&Action>) -> String {
    let (verdict, why) = answer(&stage.verdict);
    let mut text = format!("{}: {verdict}\n", stage.id);
    text.extend(why.iter().map(|reason| format!("  {reason}\n")));
    if let Some(last) = last {
        text += &format!(
            "last result: {} in {:.1} s, output {}\n",
            last.started,
            last.seconds,
            last.object.short()
        );
    }
    if let Some(fields) = &stage.fields {
        text += "what makes this run what it is:\n";
        text.extend(
            fields.explain().iter().map(|(name, value)| format!("  {name} = {}\n", shortened(value))),
        );
    }
    text
}

/// A digest as its first digits; a text of several lines in one.
fn shortened(value: &str) -> String {
    match value.parse::<crate::digest::Digest>() {
        Ok(digest) => format!("{} (content)", digest.short()),
        Err(_) => value.replace('\n', "⏎"),
    }
}
