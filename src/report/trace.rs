//! A recorded run in the trace-event format that `chrome://tracing` and <https://ui.perfetto.dev> read:
//! one process a run, one thread a slot of a pool, one complete event a stage.

use serde_json::{Value, json};

use super::timeline::span;
use crate::recorded::{Recorded, Stage};

/// The trace.
#[must_use]
pub fn trace(recorded: &Recorded) -> Value {
    let run = &recorded.run;
    let mut lanes: Vec<(String, f64)> = Vec::new();
    let mut events = vec![json!({
        "ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": format!("{} {}", run.pipeline, run.id)},
    })];
    let mut bars: Vec<(&Stage, f64, f64)> = recorded
        .stages
        .iter()
        .filter_map(|stage| span(stage, recorded).map(|(begun, ended)| (stage, begun, ended)))
        .collect();
    bars.sort_by(|a, b| a.1.total_cmp(&b.1));
    for (stage, begun, ended) in bars {
        for lane in lanes_of(stage, begun, &mut lanes) {
            lanes[lane].1 = ended;
            events.push(event(stage, begun, ended, lane));
        }
    }
    for (number, (name, _)) in lanes.iter().enumerate() {
        events
            .push(json!({"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}}));
    }
    json!({
        "displayTimeUnit": "ms", "traceEvents": events,
        "otherData": {"version": 1, "run": run.id, "pipeline": run.pipeline, "started": run.started, "program": run.program},
    })
}

/// The lanes that a stage holds. Where its slots are not known, the first lane that is free.
fn lanes_of(stage: &Stage, begun: f64, lanes: &mut Vec<(String, f64)>) -> Vec<usize> {
    let record = &stage.record;
    if record.slots.is_empty() {
        let free = lanes.iter().position(|(name, until)| name.starts_with("lane ") && *until <= begun);
        return vec![free.unwrap_or_else(|| {
            lanes.push((format!("lane {}", lanes.len()), 0.0));
            lanes.len() - 1
        })];
    }
    let mut found = Vec::new();
    for slot in &record.slots {
        let name = format!("{} {slot}", record.pool);
        found.push(lanes.iter().position(|(lane, _)| *lane == name).unwrap_or_else(|| {
            lanes.push((name, 0.0));
            lanes.len() - 1
        }));
    }
    found
}

fn event(stage: &Stage, begun: f64, ended: f64, lane: usize) -> Value {
    let record = &stage.record;
    let micros = |seconds: f64| (seconds * 1e6).round();
    json!({
        "ph": "X", "pid": 1, "tid": lane, "name": record.stage, "cat": record.kind,
        "ts": micros(begun), "dur": micros((ended - begun).max(0.0)),
        "args": {
            "state": record.state, "seconds": record.seconds, "key": record.key.map(|key| key.short()),
            "inputs": record.inputs,
        },
    })
}
