//! What a stage asks of the machine that runs it: `[stages.x.resources]`.
//!
//! Not part of any key: how much a stage is given says nothing about what it makes. It knows nothing of
//! the programs that hand machines out; what is meant for one of them stands in a table of its name.

use std::time::Duration;

use contract::Type;

use super::check;
use super::diagnostics::Diagnostic;
use super::document::{Datum, Entry, Node};
use super::form::wrong_type;
use super::{near, settings};
use crate::store::gc::parse_size;

/// The keys of `resources`.
pub const KEYS: [&str; 6] = ["cpus", "memory", "gpus", "nodes", "time", "slurm"];

/// The keys of `resources.slurm`.
pub const SLURM_KEYS: [&str; 3] = ["partition", "account", "extra"];

/// Options of `sbatch` that the runner sets itself.
const TAKEN: [&str; 18] = [
    "--job-name",
    "-J",
    "--output",
    "-o",
    "--error",
    "-e",
    "--array",
    "-a",
    "--wrap",
    "--wait",
    "-W",
    "--chdir",
    "-D",
    "--parsable",
    "--signal",
    "--requeue",
    "--no-requeue",
    "--open-mode",
];

/// What a stage asks for. What is absent is left to the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Processor cores.
    pub cpus: Option<u32>,
    /// Bytes of memory on each node.
    pub memory: Option<u64>,
    /// GPUs.
    pub gpus: Option<u32>,
    /// Machines.
    pub nodes: Option<u32>,
    /// After how long the cluster may take the machine back.
    pub time: Option<Duration>,
    /// For Slurm alone.
    pub slurm: Slurm,
}

/// What only Slurm understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slurm {
    /// `--partition`
    pub partition: Option<String>,
    /// `--account`
    pub account: Option<String>,
    /// Further options of `sbatch`, one an item.
    pub extra: Vec<String>,
}

/// Reads the table.
pub fn resources(stage: &str, node: &Node, errors: &mut Vec<Diagnostic>) -> Resources {
    let what = format!("`resources` of stage `{stage}`");
    let mut read = Resources::default();
    for entry in entries(node, &what, &KEYS, errors) {
        let (node, named) = (&entry.node, format!("`{}` in {what}", entry.key));
        match entry.key.as_str() {
            "cpus" => read.cpus = count(node, &named, errors),
            "gpus" => read.gpus = count(node, &named, errors),
            "nodes" => read.nodes = count(node, &named, errors),
            "memory" => read.memory = memory(node, &named, errors),
            "time" => read.time = settings::length("time", &what, node, errors),
            _ => read.slurm = slurm(&named, node, errors),
        }
    }
    read
}

fn slurm(what: &str, node: &Node, errors: &mut Vec<Diagnostic>) -> Slurm {
    let mut read = Slurm::default();
    for entry in entries(node, what, &SLURM_KEYS, errors) {
        let (node, named) = (&entry.node, format!("`{}` in {what}", entry.key));
        match entry.key.as_str() {
            "partition" => read.partition = word(node, &named, errors),
            "account" => read.account = word(node, &named, errors),
            _ => read.extra = extra(node, &named, errors),
        }
    }
    read
}

/// The entries of a table whose keys are among `known`.
fn entries<'a>(
    node: &'a Node,
    what: &str,
    known: &[&'static str],
    errors: &mut Vec<Diagnostic>,
) -> Vec<&'a Entry> {
    let Datum::Table(entries) = &node.datum else {
        wrong_type(node, what, "a table", errors);
        return Vec::new();
    };
    let (good, bad): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| known.contains(&entry.key.as_str()));
    for entry in bad {
        let help = near::did_you_mean(&entry.key, known.iter().copied())
            .unwrap_or_else(|| format!("it takes {}", near::list(known.iter().copied())));
        let message = format!("unknown key `{}` in {what}", entry.key);
        errors.push(Diagnostic::new(message, entry.key_span.clone(), "").help(help));
    }
    good
}

fn count(node: &Node, what: &str, errors: &mut Vec<Diagnostic>) -> Option<u32> {
    match check::value(&Type::Int { min: 1, max: 1_000_000 }, node) {
        Ok(value) => value.and_then(|value| u32::try_from(value.as_u64()?).ok()),
        Err(mismatch) => {
            errors.push(check::error(what, node, mismatch));
            None
        }
    }
}

fn memory(node: &Node, what: &str, errors: &mut Vec<Diagnostic>) -> Option<u64> {
    let Datum::Text(text) = &node.datum else {
        wrong_type(node, what, "text such as `\"16GB\"`", errors);
        return None;
    };
    match parse_size(text) {
        Ok(bytes) if bytes > 0 => Some(bytes),
        _ => {
            let label = format!("this is the text `{text}`");
            let error = Diagnostic::new(format!("{what} must be a size"), node.span.clone(), label);
            errors.push(node.with_via(error).help("write `500MB`, `16GB` or `16GiB`"));
            None
        }
    }
}

fn word(node: &Node, what: &str, errors: &mut Vec<Diagnostic>) -> Option<String> {
    match &node.datum {
        Datum::Text(text) if !text.is_empty() && !text.contains(char::is_whitespace) => Some(text.clone()),
        _ => {
            wrong_type(node, what, "text without blanks", errors);
            None
        }
    }
}

fn extra(node: &Node, what: &str, errors: &mut Vec<Diagnostic>) -> Vec<String> {
    let Datum::List(items) = &node.datum else {
        wrong_type(node, what, "a list of options of `sbatch`", errors);
        return Vec::new();
    };
    let mut options = Vec::new();
    for item in items {
        let Datum::Text(text) = &item.datum else {
            wrong_type(item, &format!("an item of {what}"), "text", errors);
            continue;
        };
        let name = if text.starts_with("--") {
            text.split('=').next().unwrap_or_default()
        } else {
            text.get(..2).unwrap_or(text)
        };
        let fail = |message: String, help: &str| {
            item.with_via(Diagnostic::new(message, item.span.clone(), "").help(help))
        };
        if !text.starts_with('-') || text.len() < 2 {
            let message = format!("an item of {what} must be an option");
            errors.push(fail(message, "write `--qos=long`, one option an item, its value behind `=`"));
        } else if TAKEN.contains(&name) {
            let message = format!("{what} cannot set `{name}`");
            errors.push(fail(message, "the runner sets it itself; leave it out"));
        } else {
            options.push(text.clone());
        }
    }
    options
}
