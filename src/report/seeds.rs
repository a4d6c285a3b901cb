//! Over seeds: tables of instances that differ only in the axis `seed` become one, its numbers mean ±
//! standard deviation (of the sample: n − 1) with n.

use contract::Table;

use crate::recorded::Stage;

/// The axis.
const AXIS: &str = "seed";

/// The name of an instance without its seed: `train[lora]` for `train[lora,1]`. `None`: it has no seed.
#[must_use]
pub fn without_seed(stage: &Stage) -> Option<String> {
    let record = &stage.record;
    let rest: Vec<String> =
        record.axes.iter().filter(|(axis, _)| axis != AXIS).map(|(_, value)| text(value)).collect();
    if rest.len() == record.axes.len() {
        return None;
    }
    Some(if rest.is_empty() { record.table.clone() } else { format!("{}[{}]", record.table, rest.join(",")) })
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
    let numbers: Option<Vec<(f64, usize, &str)>> = cells.iter().map(|cell| number(cell)).collect();
    match numbers {
        Some(numbers) if numbers.iter().all(|number| number.2 == numbers[0].2) => {
            let (mean, deviation) = spread(&numbers.iter().map(|number| number.0).collect::<Vec<_>>());
            let places = numbers.iter().map(|number| number.1).max().unwrap_or(0);
            format!("{mean:.places$} ± {deviation:.places$}{}", numbers[0].2)
        }
        _ => cells.join(" / "),
    }
}

/// `88.3 %` → 88.3, one place, ` %`.
fn number(cell: &str) -> Option<(f64, usize, &str)> {
    let end = cell.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(cell.len());
    let (figure, unit) = cell.split_at(end);
    if unit.chars().any(|c| c.is_ascii_digit()) {
        return None;
    }
    let places = figure.split_once('.').map_or(0, |(_, places)| places.len());
    Some((figure.parse().ok()?, places, unit))
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
            table(&["lora", "0.10", "88.0 %", "5", "+0.5 (n = 5)", "x"]),
            table(&["lora", "0.20", "90.0 %", "5", "+0.7 (n = 5)", "y"]),
            table(&["lora", "0.30", "92.0 %", "5", "+0.9 (n = 5)", "x"]),
        ])
        .unwrap();
        assert_eq!(
            merged.rows[0],
            [
                "lora",
                "0.20 ± 0.10",
                "90.0 ± 2.0 %",
                "5",
                "+0.5 (n = 5) / +0.7 (n = 5) / +0.9 (n = 5)",
                "x / y / x"
            ]
        );
        assert!(merged.title.contains("n = 3"));
    }

    #[test]
    fn tables_of_different_form_are_not_one() {
        assert_eq!(over_seeds(&[table(&["1"]), table(&["1", "2"])]), None);
    }
}
