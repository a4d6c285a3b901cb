//! Actions: key → what came of it, with everything `explain` and `show` want to know later.
//!
//! One file a key, written last: an action that is there speaks of an object that is there. The file
//! ends in the digest of its own text, so that a cut-off or edited one is a miss and not a lie.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::key::Explanation;

/// The result of one run of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// The output.
    pub object: Digest,
    /// The kind that made it.
    pub kind: String,
    /// The instance as it was called then.
    pub stage: String,
    /// The key's fields for a person.
    pub explanation: Explanation,
    /// When the run started, ISO-8601 UTC.
    pub started: String,
    /// How long it took.
    pub seconds: f64,
    /// Which adapter, driver and program served.
    pub provenance: BTreeMap<String, String>,
    /// What the stage warned of.
    pub warnings: Vec<String>,
}

impl Action {
    /// The file's text: one line of JSON, one line with its digest.
    #[must_use]
    pub fn to_text(&self) -> String {
        let json = serde_json::to_string(self).expect("an action is plain data");
        format!("{json}\n{}\n", Digest::of(json.as_bytes()))
    }

    /// Reads [`Action::to_text`]. `None`: the text is cut off, edited or of another form.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let (json, digest) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        if digest.parse::<Digest>().ok()? != Digest::of(json.as_bytes()) {
            return None;
        }
        serde_json::from_str(json).ok()
    }
}
