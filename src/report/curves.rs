//! The figures by step of a run's stages as charts: one chart a figure and table of the pipeline, one curve
//! an instance. `x` and `eval_x` share a chart; the second is dashed.

use std::collections::BTreeMap;

use super::chart::{Curve, figure_of};
use super::html::escape;
use super::seeds::without_seed;
use crate::measured::{Series, series};
use crate::recorded::{Recorded, Stage};

/// What is looked at first, in this order; other figures are folded away below.
const FIRST: [&str; 3] = ["loss", "lr", "grad_norm"];

/// The mark of a figure on held-out data.
const HELD_OUT: &str = "eval_";

/// The charts of `recorded`, or nothing if no stage has figures by step.
#[must_use]
pub fn html(recorded: &Recorded) -> String {
    let mut tables: Vec<(&str, Vec<(&Stage, Series)>)> = Vec::new();
    for stage in &recorded.stages {
        let found = stage.output.as_ref().map_or(Series::new(), |output| series(output));
        if found.is_empty() {
            continue;
        }
        match tables.iter_mut().find(|(name, _)| *name == stage.record.table) {
            Some((_, arms)) => arms.push((stage, found)),
            None => tables.push((&stage.record.table, vec![(stage, found)])),
        }
    }
    tables.into_iter().map(|(name, arms)| of_table(name, &arms)).collect()
}

fn of_table(name: &str, arms: &[(&Stage, Series)]) -> String {
    let mut charts: BTreeMap<(usize, &str), String> = BTreeMap::new();
    for figure in arms.iter().flat_map(|(_, series)| series.keys()) {
        let base = figure.strip_prefix(HELD_OUT).unwrap_or(figure);
        let rank = FIRST.iter().position(|first| *first == base).unwrap_or(FIRST.len());
        charts.entry((rank, base)).or_insert_with(|| figure_of(base, &curves(base, arms)));
    }
    let more = charts.split_off(&(FIRST.len(), ""));
    let mut html = format!("<h3>{}</h3>\n<div class=\"charts\">\n", escape(name));
    html.extend(charts.into_values());
    html += "</div>\n";
    if !more.is_empty() {
        let names: Vec<String> = more.keys().map(|(_, name)| escape(name)).collect();
        html += &format!("<details><summary>More: {}</summary>\n<div class=\"charts\">\n", names.join(", "));
        html.extend(more.into_values());
        html += "</div></details>\n";
    }
    html
}

/// One colour an arm; arms that differ in the seed only share it.
fn curves(figure: &str, arms: &[(&Stage, Series)]) -> Vec<Curve> {
    let mut colors: Vec<String> = Vec::new();
    let mut curves = Vec::new();
    let held_out = format!("{HELD_OUT}{figure}");
    for (stage, series) in arms {
        let name = without_seed(stage).unwrap_or_else(|| stage.record.stage.clone());
        let color = colors.iter().position(|one| *one == name).unwrap_or_else(|| {
            colors.push(name.clone());
            colors.len() - 1
        });
        for (key, dashed) in [(figure, false), (held_out.as_str(), true)] {
            if let Some(points) = series.get(key) {
                curves.push(Curve { name: name.clone(), color, dashed, points: points.clone() });
            }
        }
    }
    curves
}
