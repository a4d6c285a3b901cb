//! What a running stage tells the runner: one JSON object a line on the child's standard output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of a stage's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How far it is. `metrics` holds current figures by name (`loss`, `tokens/s`, `lr`).
    Progress {
        /// Units done.
        done: u64,
        /// Units in all; 0 if not known.
        total: u64,
        /// What is counted: `steps`, `rows`, `bytes`.
        unit: String,
        /// Current figures by name.
        metrics: BTreeMap<String, f64>,
    },
    /// Something a person should read once.
    Note {
        /// The sentence.
        text: String,
    },
    /// Something that may be wrong but does not stop the stage.
    Warning {
        /// The sentence.
        text: String,
    },
    /// Where it ran (adapter, driver): stored with the result, not in the key.
    Provenance {
        /// What is told: `adapter`, `driver`, `backend`.
        name: String,
        /// Its value.
        value: String,
    },
    /// The stage said no.
    Failed {
        /// The sentence.
        message: String,
        /// The way out.
        hint: Option<String>,
        /// Whether it stopped because it was asked to, its work kept.
        cancelled: bool,
    },
    /// The stage has filled its folder.
    Finished,
}
