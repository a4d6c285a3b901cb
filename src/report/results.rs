//! The tables in outputs, in the pipeline's order; over a seed axis one table in place of
//! several, and one row in place of several.

use std::collections::BTreeSet;

use contract::Table;

use super::html::{escape, table};
use super::seeds::{over_seeds, rows_over_seeds, without_seed};
use crate::measured::summary;
use crate::recorded::{Recorded, Stage};

/// The tables of all stages: of those that nothing takes from open, of the others folded away.
#[must_use]
pub fn html(recorded: &Recorded) -> String {
    let taken: BTreeSet<&String> =
        recorded.stages.iter().flat_map(|stage| stage.record.inputs.values().flatten()).collect();
    let (inner, last): (Vec<&Stage>, Vec<&Stage>) =
        recorded.stages.iter().partition(|stage| taken.contains(&stage.record.stage));
    let (inner, last) = (tables(&inner, recorded), tables(&last, recorded));
    if last.is_empty() || inner.is_empty() {
        return last + &inner;
    }
    format!("{last}<details><summary>Tables of the stages before</summary>\n{inner}</details>\n")
}

fn tables(stages: &[&Stage], recorded: &Recorded) -> String {
    let mut html = String::new();
    let mut groups: Vec<(String, Vec<(String, Table)>)> = Vec::new();
    for stage in stages {
        let Some(table) = stage.output.as_ref().and_then(|output| summary(output)) else { continue };
        if let Some(merged) = rows_over_seeds(stage, &table, recorded) {
            let name = &stage.record.stage;
            let fold = format!("<details><summary>each seed</summary>\n{}</details>\n", one(name, &table));
            html += &(one(name, &merged) + &fold);
            continue;
        }
        let name = without_seed(stage).unwrap_or_else(|| stage.record.stage.clone());
        let member = (stage.record.stage.clone(), table);
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, members)) => members.push(member),
            None => groups.push((name, vec![member])),
        }
    }
    html.extend(groups.iter().map(|(name, members)| group(name, members)));
    html
}

fn group(name: &str, members: &[(String, Table)]) -> String {
    let tables: Vec<Table> = members.iter().map(|(_, table)| table.clone()).collect();
    match over_seeds(&tables) {
        Some(merged) if members.len() > 1 => {
            let each: String = members.iter().map(|(name, table)| one(name, table)).collect();
            let fold = format!("<details><summary>each seed</summary>\n{each}</details>\n");
            one(name, &merged) + &fold
        }
        _ => members.iter().map(|(name, table)| one(name, table)).collect(),
    }
}

fn one(name: &str, Table { title, columns, rows }: &Table) -> String {
    format!("<h3>{} <small>{}</small></h3>\n{}", escape(title), escape(name), table(columns, rows))
}
