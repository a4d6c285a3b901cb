//! One JSON object a line on standard output: `{"version": 1, "stage": …, "event": …}`.

use serde_json::{Value, json};

use super::{Progress, Update};
use crate::pipeline::StageId;

/// The form of the lines. Raise it when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// JSON lines on standard output.
#[derive(Clone, Copy, Debug)]
pub struct JsonLines;

impl Progress for JsonLines {
    fn update(&self, stage: &StageId, update: &Update<'_>) {
        let mut line = match update {
            Update::Waiting { holder } => json!({"event": "waiting", "holder": holder}),
            Update::Started { slots } => json!({"event": "started", "slots": slots}),
            Update::Retrying { attempt, why } => json!({"event": "retrying", "attempt": attempt, "why": why}),
            Update::Told(event) => serde_json::to_value(event).expect("an event is plain data"),
            Update::Ended { state, seconds, failure } => {
                let state = format!("{state:?}").to_lowercase();
                json!({"event": "ended", "state": state, "seconds": seconds, "failure": failure})
            }
        };
        if let Value::Object(fields) = &mut line {
            fields.insert("version".into(), VERSION.into());
            fields.insert("stage".into(), stage.0.clone().into());
        }
        anstream::println!("{line}");
    }
}
