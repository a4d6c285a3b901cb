//! Rows and columns for a person.

/// Columns two spaces apart, each as wide as its widest cell, behind `indent`; figures to the right.
#[must_use]
pub fn align(rows: &[Vec<String>], indent: &str) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &'_ [String], column: usize| row.get(column).cloned().unwrap_or_default();
    let width = |column: usize| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let numeric: Vec<bool> = (0..columns)
        .map(|column| rows.len() > 1 && rows[1..].iter().all(|row| is_figure(&cell(row, column))))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for column in 0..columns {
            let (cell, width) = (cell(row, column), widths[column]);
            line += &if numeric[column] { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Whether a cell reads as a figure, unit or not: `12`, `-0.5`, `85 %`, `3.2 s`, or nothing.
fn is_figure(cell: &str) -> bool {
    let cell = cell.trim_start_matches(['-', '+', '−']);
    cell.is_empty()
        || (cell.starts_with(|c: char| c.is_ascii_digit())
            && cell.chars().filter(|c| c.is_alphabetic()).count() <= 3)
}

/// Bytes for a person: `1.2 GB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1000.0;
    }
    format!("{size:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_figures_right() {
        let rows = [vec!["arm", "loss"], vec!["lora", "1.25"], vec!["dora 8", "10.5"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        assert_eq!(align(&rows, "  "), "  arm     loss\n  lora    1.25\n  dora 8  10.5\n");
    }
}
