//! What a stage's output tells a person: the files that are conventions between stages.
//!
//! * `summary.json`: a [`Table`].
//! * `metrics.jsonl`: one JSON object a line, `step` and figures by name; `eval_x` is `x` on held-out data.
//! * `samples.txt`: a text, in which what stands between `⟦masked⟧` and `⟦/masked⟧` is not learnt.
//! * `samples.jsonl`: one JSON object a line with `prompt`, `answer`, and if known `step`, `row`, `expected`; texts,
//!   or lists of token ids.
//! * `*.svg`, `*.png`: figures.
//!
//! It goes by these names only and knows no stage kind. A file of another form is not shown: a program's
//! own `summary.json` may hold anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use contract::Table;
use serde::Serialize;
use serde_json::Value;

/// The file with figures by step.
pub const METRICS: &str = "metrics.jsonl";

/// The file with texts to read.
pub const SAMPLES: &str = "samples.txt";

/// The file with answers by step.
pub const ANSWERS: &str = "samples.jsonl";

/// A figure and the step that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The step; the number of the line, from 1, where a line names none.
    pub step: f64,
    /// The figure.
    pub value: f64,
}

/// Name → figures in the order of the file.
pub type Series = BTreeMap<String, Vec<Point>>;

/// The table in an output.
#[must_use]
pub fn summary(output: &Path) -> Option<Table> {
    let table: Table = serde_json::from_slice(&fs::read(output.join(Table::FILE)).ok()?).ok()?;
    let fits = table.rows.iter().all(|row| row.len() == table.columns.len());
    fits.then_some(table)
}

/// The figures in an output. Lines that are no JSON object are left out.
#[must_use]
pub fn series(output: &Path) -> Series {
    let text = fs::read(output.join(METRICS)).unwrap_or_default();
    let mut series = Series::new();
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let Ok(Value::Object(fields)) = serde_json::from_slice(line) else { continue };
        let step = fields.get("step").and_then(Value::as_f64).unwrap_or(number as f64 + 1.0);
        for (name, value) in fields.iter().filter(|(name, _)| *name != "step") {
            if let Some(value) = value.as_f64() {
                series.entry(name.clone()).or_default().push(Point { step, value });
            }
        }
    }
    series
}

/// What a model answered at some step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The step; 0 where the line names none.
    pub step: u64,
    /// Which of the rows was asked.
    pub row: u64,
    /// What was asked.
    pub prompt: String,
    /// What stands in the data set.
    pub expected: Option<String>,
    /// What came.
    pub answer: String,
}

/// The answers in an output, in the order of the file. Lines of another form are left out.
#[must_use]
pub fn answers(output: &Path) -> Vec<Answer> {
    let text = fs::read(output.join(ANSWERS)).unwrap_or_default();
    let answer = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).ok()?;
        let number = |key: &str| line.get(key).and_then(Value::as_u64).unwrap_or(0);
        let text = |key: &str| match line.get(key)? {
            Value::String(text) => Some(text.clone()),
            ids @ Value::Array(_) => Some(ids.to_string()),
            _ => None,
        };
        Some(Answer {
            step: number("step"),
            row: number("row"),
            prompt: text("prompt")?,
            expected: text("expected"),
            answer: text("answer")?,
        })
    };
    text.split(|&byte| byte == b'\n').filter_map(answer).collect()
}

/// The last figure of every name.
#[must_use]
pub fn last(series: &Series) -> BTreeMap<String, Point> {
    series.iter().filter_map(|(name, points)| Some((name.clone(), *points.last()?))).collect()
}

/// A figure for a person: five significant digits, no needless zeros.
#[must_use]
pub fn figure(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    if !(1e-3..1e7).contains(&size) {
        let text = format!("{value:.3e}");
        let (figure, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", figure.trim_end_matches('0').trim_end_matches('.'));
    }
    if value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    // The size lies between 1e-3 and 1e7, so the number of digits is small.
    let before = size.log10().floor() as i32 + 1;
    let places = usize::try_from(5 - before).unwrap_or(0);
    let text = format!("{value:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_never_lose_their_size() {
        for (value, text) in [
            (0.0, "0"),
            (1000.0, "1000"),
            (0.123_456, "0.12346"),
            (12.5, "12.5"),
            (-3.25, "-3.25"),
            (0.000_012_3, "1.23e-5"),
            (123_456.7, "123457"),
            (2e9, "2e9"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn figures_are_read_by_step_and_what_is_none_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let text = "{\"step\": 5, \"loss\": 2}\nnoise\n{\"step\": 10, \"loss\": 1.5, \"name\": \"x\", \"eval_loss\": 3}\n{\"loss\": 1}";
        fs::write(folder.path().join(METRICS), text).unwrap();
        let series = series(folder.path());
        assert_eq!(series.keys().collect::<Vec<_>>(), ["eval_loss", "loss"]);
        assert_eq!(series["loss"][1], Point { step: 10.0, value: 1.5 });
        assert_eq!(last(&series)["loss"], Point { step: 4.0, value: 1.0 });
    }

    #[test]
    fn answers_are_texts_or_token_ids() {
        let folder = tempfile::tempdir().unwrap();
        let text = "{\"step\": 5, \"row\": 1, \"prompt\": \"a\", \"expected\": \"b\", \"answer\": \"c\"}\nnoise\n\
                    {\"prompt\": [1, 2], \"answer\": [3]}\n{\"prompt\": \"no answer\"}\n";
        fs::write(folder.path().join(ANSWERS), text).unwrap();
        let found = answers(folder.path());
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].step, found[0].row, found[0].expected.as_deref()), (5, 1, Some("b")));
        assert_eq!((found[1].prompt.as_str(), found[1].answer.as_str()), ("[1,2]", "[3]"));
    }

    #[test]
    fn a_table_with_rows_of_another_length_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(Table::FILE), r#"{"title":"t","columns":["a","b"],"rows":[["1"]]}"#)
            .unwrap();
        assert_eq!(summary(folder.path()), None);
    }
}
