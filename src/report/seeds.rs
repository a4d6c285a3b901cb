//! Over seeds: tables of instances that differ only in the axis `seed` become one, and so do rows of a
//! table that are called by such instances' labels. Numbers become mean ± standard deviation (of the sample:
//! n − 1) with n.

use std::collections::BTreeMap;

use contract::Table;

use crate::recorded::{Recorded, Stage};

/// The axis.
const AXIS: &str = "seed";

/// The name of an instance without its seed: `train[lora]` for `train[lora,1]`. `None`: it has no seed.
#[must_use]
pub fn without_seed(stage: &Stage) -> Option<String> {
    let table = &stage.record.table;
    let label = label_without_seed(stage)?;
    Some(if label.is_empty() { table.clone() } else { format!("{table}[{label}]") })
}

/// The matrix values of an instance less its seed, as labels join them. `None`: it has no seed.
fn label_without_seed(stage: &Stage) -> Option<String> {
    let axes = &stage.record.axes;
    let rest: Vec<String> =
        axes.iter().filter(|(axis, _)| axis != AXIS).map(|(_, value)| text(value)).collect();
    (rest.len() < axes.len()).then(|| rest.join(","))
}

/// The table of a stage that collects instances over seeds, rows of one arm made one: `lora (n = 3)` for
/// `lora,1`, `lora,2` and `lora,3`. `None` if no row is called by such an instance's label.
#[must_use]
pub fn rows_over_seeds(stage: &Stage, table: &Table, recorded: &Recorded) -> Option<Table> {
    let producers: Vec<&String> = stage.record.inputs.values().flatten().collect();
    let of = recorded.stages.iter().filter(|one| producers.contains(&&one.record.stage));
    let label = |one: &Stage| {
        let values: Vec<String> = one.record.axes.iter().map(|(_, value)| text(value)).collect();
        Some((values.join(","), label_without_seed(one)?))
    };
    let arms: BTreeMap<String, String> = of.filter_map(label).collect();
    let mut groups: Vec<(Option<&String>, Vec<&Vec<String>>)> = Vec::new();
    for row in &table.rows {
        let arm = arms.get(row.first()?);
        match groups.iter_mut().find(|(group, _)| arm.is_some() && *group == arm) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((arm, vec![row])),
        }
    }
    let row = |(arm, rows): &(Option<&String>, Vec<&Vec<String>>)| {
        let mut cells: Vec<String> = (0..table.columns.len())
            .map(|column| merged(&rows.iter().map(|row| row[column].as_str()).collect::<Vec<_>>()))
            .collect();
        if let Some(arm) = arm {
            cells[0] = format!("{arm} (n = {})", rows.len()).trim_start().to_owned();
        }
        cells
    };
    let rows: Vec<Vec<String>> = groups.iter().map(row).collect();
    let title = format!("{} (mean ± standard deviation over seeds)", table.title);
    (rows.len() < table.rows.len()).then(|| Table { title, columns: table.columns.clone(), rows })
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One table of several of the same form; `None` if their forms differ.
#[must_use]
pub fn over_seeds(tables: &[Table]) -> Option<Table> {
    let first = tables.first()?;
    let same = |table: &Table| table.columns == first.columns && table.rows.len() == first.rows.len();
    if !tables.iter().all(same) {
        return None;
    }
    let cell = |row: usize, column: usize| {
        let cells: Vec<&str> = tables.iter().map(|table| table.rows[row][column].as_str()).collect();
        merged(&cells)
    };
    let row = |row: usize| (0..first.columns.len()).map(|column| cell(row, column)).collect();
    let rows = (0..first.rows.len()).map(row).collect();
    Some(Table {
        title: format!("{} (mean ± standard deviation, n = {})", first.title, tables.len()),
        columns: first.columns.clone(),
        rows,
    })
}

/// `0.12 ± 0.01` of numbers with one unit, the text itself where all are the same, else all of them.
fn merged(cells: &[&str]) -> String {
    if cells.iter().all(|cell| *cell == cells[0]) {
        return cells[0].to_owned();
    }
    let numbers: Option<Vec<(f64, usize, &str, bool)>> = cells.iter().map(|cell| number(cell)).collect();
    match numbers {
        Some(numbers) if numbers.iter().all(|number| number.2 == numbers[0].2) => {
            let (mean, deviation) = spread(&numbers.iter().map(|number| number.0).collect::<Vec<_>>());
            let places = numbers.iter().map(|number| number.1).max().unwrap_or(0);
            if numbers.iter().any(|number| number.3) {
                return format!("{mean:.places$e} ± {deviation:.1e}{}", numbers[0].2);
            }
            format!("{mean:.places$} ± {deviation:.places$}{}", numbers[0].2)
        }
        _ => cells.join(" / "),
    }
}

/// `88.3 %` → 88.3, one place, ` %`; `7.4e-3` → 0.0074, one place, written with a power of ten.
fn number(cell: &str) -> Option<(f64, usize, &str, bool)> {
    let end = cell.find(|c: char| c.is_whitespace() || c == '%').unwrap_or(cell.len());
    let (figure, unit) = cell.split_at(end);
    let places = figure.split(['e', 'E']).next()?.split_once('.').map_or(0, |(_, places)| places.len());
    let value = figure.parse().ok().filter(|value: &f64| value.is_finite())?;
    Some((value, places, unit, figure.contains(['e', 'E'])))
}

/// Mean and standard deviation of the sample.
fn spread(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(cells: &[&str]) -> Table {
        let row = cells.iter().map(|cell| (*cell).to_owned()).collect();
        Table { title: "t".into(), columns: cells.iter().map(|_| "c".into()).collect(), rows: vec![row] }
    }

    #[test]
    fn numbers_become_mean_and_deviation_and_words_stay() {
        let merged = over_seeds(&[
            table(&["lora", "0.10", "88.0 %", "5", "+0.5 (n = 5)", "x", "1.0e-3", "5/7"]),
            table(&["lora", "0.20", "90.0 %", "5", "+0.7 (n = 5)", "y", "2.0e-3", "6/7"]),
            table(&["lora", "0.30", "92.0 %", "5", "+0.9 (n = 5)", "x", "3.0e-3", "7/7"]),
        ])
        .unwrap();
        let wanted = [
            "lora",
            "0.20 ± 0.10",
            "90.0 ± 2.0 %",
            "5",
            "0.7 ± 0.2 (n = 5)",
            "x / y / x",
            "2.0e-3 ± 1.0e-3",
            "5/7 / 6/7 / 7/7",
        ];
        assert_eq!(merged.rows[0], wanted);
        assert!(merged.title.contains("n = 3"));
    }

    #[test]
    fn tables_of_different_form_are_not_one() {
        assert_eq!(over_seeds(&[table(&["1"]), table(&["1", "2"])]), None);
    }
}
