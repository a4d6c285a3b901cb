//! `pipe diff`: what differs between two runs, and nothing else.

use clap::Args;
use serde_json::json;

use super::args::Globals;
use super::table::align;
use super::{print, print_json};
use crate::compare::{Change, StageChange, compare};
use crate::error::{Error, Exit};
use crate::key::{Explanation, differences};
use crate::measured::figure;
use crate::recorded::Recorded;
use crate::store::{Check, Store};

/// `pipe diff`
#[derive(Args, Clone, Debug)]
pub struct Diff {
    /// A run, by its name or its first letters
    #[arg(value_name = "RUN")]
    pub before: String,
    /// The run to compare it with; the last run if absent
    #[arg(value_name = "RUN")]
    pub after: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Diff, globals: &Globals) -> Result<Exit, Error> {
    let store = Store::open(&globals.store, Check::Stat)?;
    let _in_use = store.hold()?;
    let before = Recorded::new(store.find_run(Some(&args.before))?, &store);
    let after = Recorded::new(store.find_run(args.after.as_deref())?, &store);
    let changes = compare(&before, &after);
    if args.json {
        return print_json(&json!({
            "version": 1, "before": before.run.id, "after": after.run.id, "stages": changes,
        }));
    }
    let substance: Vec<&StageChange> = changes.iter().filter(|change| change.is_of_substance()).collect();
    let mut text = head(&before, &after);
    text.extend(substance.iter().map(|change| format!("\n{}", one(change))));
    text += &times(&changes);
    if substance.is_empty() {
        text += "\nboth runs come to the same\n";
    }
    print(&text)
}

fn head(before: &Recorded, after: &Recorded) -> String {
    let line = |sign: &str, recorded: &Recorded| {
        let run = &recorded.run;
        let set = run.set.iter().map(|set| format!(" --set {set}")).collect::<String>();
        vec![format!("{sign} {}", run.id), run.pipeline.clone(), format!("{}{set}", run.file)]
    };
    align(&[line("−", before), line("+", after)], "")
}

fn one(change: &StageChange) -> String {
    let state = |state: &Option<String>| state.clone().unwrap_or_else(|| "(not in this run)".to_owned());
    let mut text = format!("{}\n", change.stage);
    if let Some(Change { before, after }) = &change.state {
        text += &format!("  state: {} → {}\n", state(before), state(after));
        if before.is_none() || after.is_none() {
            return text;
        }
    }
    text.extend(fields(change).iter().map(|line| format!("  {line}\n")));
    if change.output.is_some() && change.fields.is_empty() {
        text += "  the same run gave another output\n";
    }
    let shown = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "–".to_owned());
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, Change { before, after }) in &change.summary {
        rows.push(vec![name.clone(), shown(before), "→".to_owned(), shown(after)]);
    }
    for (name, Change { before, after }) in &change.metrics {
        let [before, after] = [before, after].map(|point| point.map(|point| figure(point.value)));
        // Figures that differ in their last step only are no difference to a person.
        if before != after {
            rows.push(vec![name.clone(), shown(&before), "→".to_owned(), shown(&after)]);
        }
    }
    text + &align(&rows, "  ")
}

/// The fields of the key that differ, as `plan` says it.
fn fields(change: &StageChange) -> Vec<String> {
    let (mut before, mut after) = (Explanation::new(), Explanation::new());
    for (name, change) in &change.fields {
        let (one, other) = match (&change.before, &change.after) {
            (Some(one), Some(other)) => {
                let (one, other) = narrowed(one, other);
                (Some(one), Some(other))
            }
            (one, other) => (one.clone(), other.clone()),
        };
        before.extend(one.map(|value| (name.clone(), value)));
        after.extend(other.map(|value| (name.clone(), value)));
    }
    differences(&before, &after)
}

/// Two long texts around the place where they differ.
fn narrowed(one: &str, other: &str) -> (String, String) {
    const LONG: usize = 72;
    const AROUND: usize = 24;
    let (a, b): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    if a.len().max(b.len()) <= LONG {
        return (one.to_owned(), other.to_owned());
    }
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let rest = a.len().min(b.len()) - same;
    let end = a.iter().rev().zip(b.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let cut = |text: &[char]| {
        let (from, to) = (same.saturating_sub(AROUND), (text.len() - end + AROUND).min(text.len()));
        let (left, right) = (if from > 0 { "…" } else { "" }, if to < text.len() { "…" } else { "" });
        format!("{left}{}{right}", text[from..to].iter().collect::<String>())
    };
    (cut(&a), cut(&b))
}

/// How long stages took, where both have a time and these differ by more than a twentieth.
fn times(changes: &[StageChange]) -> String {
    let mut rows = Vec::new();
    for change in changes {
        let Some(Change { before: Some(before), after: Some(after) }) = &change.seconds else { continue };
        let (shorter, longer) = (before.min(*after), before.max(*after));
        if longer > shorter * 1.05 && longer - shorter > 0.05 {
            let factor = format!("×{:.2}", after / before);
            rows.push(vec![
                change.stage.clone(),
                format!("{before:.1} s"),
                "→".to_owned(),
                format!("{after:.1} s"),
                factor,
            ]);
        }
    }
    if rows.is_empty() { String::new() } else { format!("\ntook\n{}", align(&rows, "  ")) }
}

#[cfg(test)]
mod tests {
    use super::narrowed;

    #[test]
    fn of_long_texts_the_part_that_differs_is_shown() {
        let text = |middle: &str| format!("{}{middle}{}", "a".repeat(100), "z".repeat(100));
        let (before, after) = narrowed(&text("0.05"), &text("0.5"));
        let around = |middle: &str| format!("…{}{middle}{}…", "a".repeat(22), "z".repeat(23));
        assert_eq!((before, after), (around("0.05"), around("0.5")));
        let (before, after) = narrowed(&"a".repeat(80), &"a".repeat(81));
        assert_eq!((before.chars().count(), after.chars().count()), (25, 26));
        assert_eq!(narrowed("8", "16"), ("8".to_owned(), "16".to_owned()));
    }
}
