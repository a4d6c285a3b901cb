//! What differs between two recorded runs, stage by stage: what makes each what it is, what it measured,
//! how long it took. What is the same is left out.

use std::collections::{BTreeMap, BTreeSet};

use contract::Table;
use serde::Serialize;

use crate::key::Explanation;
use crate::measured::{Point, last, series, summary};
use crate::recorded::{Recorded, Stage};

/// A value in the one and in the other run; `None` where it is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change<T> {
    /// In the first run.
    pub before: Option<T>,
    /// In the second run.
    pub after: Option<T>,
}

impl<T: PartialEq> Change<T> {
    /// The two values, unless they are the same.
    fn of(before: Option<T>, after: Option<T>) -> Option<Self> {
        (before != after).then_some(Self { before, after })
    }
}

/// What differs in one stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageChange {
    /// The instance.
    pub stage: String,
    /// How it ended. The one and the other kind of success are no difference.
    pub state: Option<Change<String>>,
    /// Fields of the key: `config.rank`, `inputs.model[0].content`.
    pub fields: BTreeMap<String, Change<String>>,
    /// The output's content.
    pub output: Option<Change<String>>,
    /// The last value of figures.
    pub metrics: BTreeMap<String, Change<Point>>,
    /// Cells of the table, by `row / column`.
    pub summary: BTreeMap<String, Change<String>>,
    /// How long the stage took when its result was made.
    pub seconds: Option<Change<f64>>,
}

impl StageChange {
    /// Whether something other than the time that it took differs.
    #[must_use]
    pub fn is_of_substance(&self) -> bool {
        self.state.is_some()
            || self.output.is_some()
            || !(self.fields.is_empty() && self.metrics.is_empty() && self.summary.is_empty())
    }
}

/// The stages that differ, in the order of the first run; those of the second only at the end.
#[must_use]
pub fn compare(before: &Recorded, after: &Recorded) -> Vec<StageChange> {
    let find = |recorded: &'_ Recorded, name: &str| {
        recorded.stages.iter().find(|stage| stage.record.stage == name).cloned()
    };
    let mut names: Vec<&str> = before.stages.iter().map(|stage| stage.record.stage.as_str()).collect();
    let known: BTreeSet<&str> = names.iter().copied().collect();
    let new = after.stages.iter().map(|stage| stage.record.stage.as_str());
    names.extend(new.filter(|name| !known.contains(name)));
    let changes = names.into_iter().map(|name| stage(name, find(before, name), find(after, name)));
    changes.filter(|change| change.is_of_substance() || change.seconds.is_some()).collect()
}

fn stage(name: &str, before: Option<Stage>, after: Option<Stage>) -> StageChange {
    let both = |pick: &dyn Fn(&Stage) -> Option<String>| {
        Change::of(before.as_ref().and_then(pick), after.as_ref().and_then(pick))
    };
    let map = |stage: &Option<Stage>| stage.as_ref().map(Facts::of).unwrap_or_default();
    let (one, other) = (map(&before), map(&after));
    let seconds = |stage: &Option<Stage>| stage.as_ref().and_then(Stage::seconds);
    StageChange {
        stage: name.to_owned(),
        state: both(&|stage| Some(success(&stage.record.state).to_owned())),
        fields: changes(&one.fields, &other.fields),
        output: both(&|stage| stage.record.object.map(|object| object.to_string())),
        metrics: changes(&one.metrics, &other.metrics),
        summary: changes(&one.summary, &other.summary),
        seconds: Change::of(seconds(&before), seconds(&after)),
    }
}

/// Made now or made before: its output is there.
fn success(state: &str) -> &str {
    if state == "cached" { "done" } else { state }
}

/// What is compared name by name.
#[derive(Default)]
struct Facts {
    fields: Explanation,
    metrics: BTreeMap<String, Point>,
    summary: BTreeMap<String, String>,
}

impl Facts {
    fn of(stage: &Stage) -> Self {
        let output = stage.output.as_ref();
        Self {
            fields: stage.fields().clone(),
            metrics: output.map_or(BTreeMap::new(), |output| last(&series(output))),
            summary: output.and_then(|output| summary(output)).map_or(BTreeMap::new(), |table| cells(&table)),
        }
    }
}

/// `row / column` → cell. A row is called by its first cell, and by its number where that is taken.
fn cells(table: &Table) -> BTreeMap<String, String> {
    let mut cells = BTreeMap::new();
    for (number, row) in table.rows.iter().enumerate() {
        let first = row.first().map_or("", String::as_str);
        let taken = table.rows[..number].iter().any(|other| other.first() == row.first());
        let name = if taken { format!("{first} #{}", number + 1) } else { first.to_owned() };
        for (column, cell) in table.columns.iter().zip(row).skip(1) {
            cells.insert(format!("{name} / {column}"), cell.clone());
        }
    }
    cells
}

fn changes<T: Clone + PartialEq>(
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
) -> BTreeMap<String, Change<T>> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let change = |name: &String| Change::of(before.get(name).cloned(), after.get(name).cloned());
    names.into_iter().filter_map(|name| Some((name.clone(), change(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_named_by_row_and_column_and_none_is_lost() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table = Table {
            title: String::new(),
            columns: row(["model", "loss"]),
            rows: vec![row(["a", "1"]), row(["a", "2"])],
        };
        let names: Vec<_> = cells(&table).into_iter().collect();
        assert_eq!(
            names,
            [("a #2 / loss".to_owned(), "2".to_owned()), ("a / loss".to_owned(), "1".to_owned())]
        );
    }

    #[test]
    fn only_what_differs_is_told() {
        let of =
            |pairs: &[(&str, i32)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let found = changes(&of(&[("a", 1), ("b", 1), ("c", 1)]), &of(&[("a", 1), ("b", 2), ("d", 1)]));
        let change = |before, after| Change { before, after };
        let wanted =
            [("b", change(Some(1), Some(2))), ("c", change(Some(1), None)), ("d", change(None, Some(1)))];
        assert_eq!(found, wanted.map(|(name, change)| (name.to_owned(), change)).into());
    }
}
