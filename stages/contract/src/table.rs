//! A small table of results.

use serde::{Deserialize, Serialize};

/// What a stage wants shown when a run ends, also when it was cached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// A line above it.
    pub title: String,
    /// Column heads.
    pub columns: Vec<String>,
    /// One vector a row, as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The file in a stage's output that holds it.
    pub const FILE: &'static str = "summary.json";
}
