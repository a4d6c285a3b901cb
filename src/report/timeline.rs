//! When each stage of a run ran, as SVG: a bar a stage, its name above it.
//!
//! Bars lie in per cent of the page's width and letters have their own size, so that it reads well on any
//! screen.

use super::html::{coordinate, duration, escape};
use super::word;
use crate::recorded::{Recorded, Stage};

/// The height of a stage's line of text and bar.
const ROW: f64 = 32.0;

/// Above the first row, for the axis.
const TOP: f64 = 20.0;

/// The timeline, or nothing if no stage ran. A run of an earlier program knows starts to a second only,
/// and those by the clock.
#[must_use]
pub fn svg(recorded: &Recorded) -> Option<String> {
    let mut bars: Vec<(&Stage, f64, f64)> = recorded
        .stages
        .iter()
        .filter_map(|stage| span(stage, recorded).map(|(begun, ended)| (stage, begun, ended)))
        .collect();
    if bars.is_empty() {
        return None;
    }
    bars.sort_by(|a, b| a.1.total_cmp(&b.1));
    let whole = bars.iter().map(|bar| bar.2).fold(recorded.run.seconds, f64::max).max(1e-3);
    let height = coordinate(TOP + ROW * bars.len() as f64 + 4.0);
    let mut svg = format!(
        "<svg class=\"timeline\" width=\"100%\" height=\"{height}\" role=\"img\" aria-label=\"when each stage ran\">\n"
    );
    for quarter in 0..=4 {
        svg += &mark(f64::from(quarter) * 25.0, whole * f64::from(quarter) / 4.0);
    }
    for (row, (stage, begun, ended)) in bars.into_iter().enumerate() {
        svg += &bar(stage, begun / whole * 100.0, (ended - begun) / whole * 100.0, TOP + ROW * row as f64);
    }
    Some(svg + "</svg>\n")
}

/// When a stage started and ended, in seconds from the run's start; `None` if it did not run.
#[must_use]
pub fn span(stage: &Stage, recorded: &Recorded) -> Option<(f64, f64)> {
    let record = &stage.record;
    let begun = match record.begun {
        Some(begun) => begun,
        None if record.state == "done" => {
            let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
            let (run, stage) = (time(&recorded.run.started)?, time(&stage.action.as_ref()?.started)?);
            stage.duration_since(run).as_secs_f64().max(0.0)
        }
        None => return None,
    };
    Some((begun, record.ended.unwrap_or(begun + record.seconds)))
}

fn mark(percent: f64, seconds: f64) -> String {
    let anchor = match percent {
        0.0 => "start",
        100.0 => "end",
        _ => "middle",
    };
    // Four labels do not fit a phone.
    let class = if percent % 50.0 == 0.0 { "tick" } else { "tick quarter" };
    let label = if seconds == 0.0 { "0".to_owned() } else { duration(seconds) };
    format!(
        "<line class=\"grid\" x1=\"{percent}%\" x2=\"{percent}%\" y1=\"{TOP}\" y2=\"100%\"/>\
         <text class=\"{class}\" x=\"{percent}%\" y=\"12\" text-anchor=\"{anchor}\">{label}</text>\n"
    )
}

fn bar(stage: &Stage, left: f64, width: f64, top: f64) -> String {
    let record = &stage.record;
    let took = duration(record.seconds);
    let place = if record.slots.is_empty() {
        String::new()
    } else {
        let slots: Vec<String> = record.slots.iter().map(ToString::to_string).collect();
        format!(", {} {}", record.pool, slots.join("+"))
    };
    let text = format!("{} · {took}", record.stage);
    // A name starts at its bar, or ends with it where the bar lies to the right.
    let (x, anchor) = if left > 55.0 { ((left + width).min(100.0), "end") } else { (left, "start") };
    format!(
        "<g class=\"{state}\"><title>{whole}: {word}, {took}{place}</title>\
         <text x=\"{x:.2}%\" y=\"{text_y}\" text-anchor=\"{anchor}\">{text}</text>\
         <rect x=\"{left:.2}%\" y=\"{bar_y}\" width=\"{width:.2}%\" height=\"10\" rx=\"2\"/></g>\n",
        state = escape(&record.state),
        word = escape(word(&record.state)),
        whole = escape(&record.stage),
        text_y = coordinate(top + 14.0),
        bar_y = coordinate(top + 18.0),
        text = escape(&text),
        place = escape(&place),
        width = width.max(0.2),
    )
}
