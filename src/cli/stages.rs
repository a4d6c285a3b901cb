//! `pipe stages [KIND]`: what can stand behind `kind = "…"`, from the same lists that validate it.

use std::fmt::Write;

use clap::Args;
use contract::{Default, Effect, Many, Param, Ports, Stage};
use serde_json::{Value, json};

use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::pipeline::near::{did_you_mean, list};
use crate::pipeline::{RUNNER_KEYS, default, describe};
use crate::registry::Registry;

/// `pipe stages`
#[derive(Args, Clone, Debug)]
pub struct Stages {
    /// A kind to describe
    #[arg(value_name = "KIND")]
    pub kind: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Stages, registry: &Registry) -> Result<Exit, Error> {
    let Some(name) = &args.kind else {
        return if args.json { print_json(&json_all(registry)) } else { print(&overview(registry)) };
    };
    let stage = registry.get(name).ok_or_else(|| unknown(name, registry))?;
    if args.json { print_json(&json_one(stage)) } else { print(&one(stage)) }
}

fn unknown(name: &str, registry: &Registry) -> Error {
    let known = || registry.stages.iter().map(|stage| stage.kind());
    let hint = did_you_mean(name, known()).unwrap_or_else(|| {
        let kinds = format!("the kinds are {}", list(known()));
        registry.missing.map_or_else(|| kinds.clone(), |missing| format!("{kinds}; {missing}"))
    });
    Error::usage(format!("unknown kind `{name}`")).hint(hint)
}

fn overview(registry: &Registry) -> String {
    let width = registry.stages.iter().map(|stage| stage.kind().len()).max().unwrap_or(0);
    let mut text = String::new();
    for stage in &registry.stages {
        let _ = writeln!(text, "{:width$}  {}", stage.kind(), stage.doc());
    }
    text.push_str("\n`pipe stages KIND` tells its inputs and parameters.\n");
    if let Some(missing) = registry.missing {
        let _ = writeln!(text, "{missing}");
    }
    text
}

fn one(stage: &dyn Stage) -> String {
    let mut text = format!("{}: {}\n", stage.kind(), stage.doc());
    let _ = writeln!(text, "version {}, pool `{}`", stage.version(), stage.pool().name());
    match stage.inputs() {
        Ports::Any => text.push_str("\nInputs: any names\n"),
        Ports::Listed([]) => text.push_str("\nInputs: none\n"),
        Ports::Listed(ports) => {
            text.push_str("\nInputs\n");
            for port in ports {
                let _ = writeln!(text, "  {} ({})\n      {}", port.name, count(port.many), port.doc);
            }
        }
    }
    if !stage.params().is_empty() {
        text.push_str("\nParameters\n");
    }
    for param in stage.params() {
        let _ = writeln!(
            text,
            "  {} = {}\n      {}; {}{}",
            param.name,
            fallback(param),
            describe(&param.ty),
            param.doc,
            notes(param)
        );
    }
    if !stage.secrets().is_empty() {
        let _ = writeln!(text, "\nSecrets from the environment: {}", list(stage.secrets().iter().copied()));
    }
    let _ = writeln!(text, "\nEvery stage also takes {}.", list(RUNNER_KEYS));
    text
}

fn count(many: Many) -> &'static str {
    match many {
        Many::One => "one",
        Many::Optional => "optional",
        Many::Several => "one or more",
    }
}

fn fallback(param: &Param) -> String {
    match param.default {
        Default::Required => "(required)".into(),
        Default::Absent => "(absent)".into(),
        other => default(&other).unwrap_or_default().to_string(),
    }
}

fn notes(param: &Param) -> String {
    let mut notes = String::new();
    if param.effect == Effect::Cosmetic {
        notes.push_str("; changing it re-runs nothing");
    }
    if param.path {
        notes.push_str("; what a local path holds counts as its value");
    }
    notes
}

fn json_all(registry: &Registry) -> Value {
    json!({ "version": 1, "kinds": registry.stages.iter().map(|&stage| json_one(stage)).collect::<Vec<_>>() })
}

fn json_one(stage: &dyn Stage) -> Value {
    let inputs = match stage.inputs() {
        Ports::Any => Value::from("any"),
        Ports::Listed(ports) => ports
            .iter()
            .map(|port| json!({ "name": port.name, "count": count(port.many), "doc": port.doc }))
            .collect(),
    };
    let params: Vec<Value> = stage
        .params()
        .iter()
        .map(|param| {
            json!({
                "name": param.name,
                "type": describe(&param.ty),
                "required": matches!(param.default, Default::Required),
                "default": default(&param.default),
                "doc": param.doc,
                "in_key": param.effect == Effect::Result,
                "local_path": param.path,
            })
        })
        .collect();
    json!({
        "kind": stage.kind(),
        "doc": stage.doc(),
        "version": stage.version(),
        "pool": stage.pool().name(),
        "inputs": inputs,
        "params": params,
        "secrets": stage.secrets(),
    })
}
