//! A recorded run together with what the store still knows of its stages.
//!
//! What reports, metrics and comparisons are made of. It needs no pipeline file and no stage kinds: a run
//! can be talked about where neither is at hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::key::{Explanation, StageKey};
use crate::store::{Action, RunRecord, StageRecord, Store};

/// A run.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What was noted when it ended.
    pub run: RunRecord,
    /// Its stages, in the pipeline's order.
    pub stages: Vec<Stage>,
}

/// One stage of a run.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What was noted when the run ended.
    pub record: StageRecord,
    /// The stored result of its key, if it is still there and the one that the run used.
    pub action: Option<Action>,
    /// The folder with its output, if it is still there.
    pub output: Option<PathBuf>,
    /// What it said, if it ran and its log is still there.
    pub log: Option<PathBuf>,
}

impl Recorded {
    /// Looks up everything that `run` names.
    #[must_use]
    pub fn new(run: RunRecord, store: &Store) -> Self {
        let mut stages: Vec<Stage> = run.stages.iter().map(|record| Stage::new(record, store)).collect();
        for stage in &mut stages {
            stage.fill_in();
        }
        guess_inputs(&mut stages);
        Self { run, stages }
    }

    /// The stages that one of `names` means: an instance (`train[lora]`) or all of a table (`train`). All
    /// without names.
    #[must_use]
    pub fn chosen(&self, names: &[String]) -> Vec<&Stage> {
        let wanted = |stage: &&Stage| {
            names.is_empty()
                || names.iter().any(|name| *name == stage.record.stage || *name == stage.record.table)
        };
        self.stages.iter().filter(wanted).collect()
    }
}

impl Stage {
    fn new(record: &StageRecord, store: &Store) -> Self {
        let mut record = record.clone();
        let key = record.key.map(StageKey);
        let mut action = key.and_then(|key| store.action(&key));
        // The key was made again since, to other bytes: what made it the same run still holds, the rest not.
        if let Some(other) = action.take_if(|action| Some(action.object) != record.object) {
            record.fields = other.explanation;
        }
        let output = record.object.map(|object| store.objects.files(&object)).filter(|path| path.is_dir());
        let log = key.map(|key| store.log_path(&key)).filter(|path| path.is_file());
        Self { record, action, output, log }
    }

    /// What earlier programs did not note and can be told from the rest.
    fn fill_in(&mut self) {
        let record = &mut self.record;
        if record.table.is_empty() {
            record.table = record.stage.split('[').next().unwrap_or_default().to_owned();
        }
        if let Some(action) = &self.action
            && record.kind.is_empty()
        {
            record.kind.clone_from(&action.kind);
        }
    }

    /// The key's fields for a person.
    #[must_use]
    pub fn fields(&self) -> &Explanation {
        self.action.as_ref().map_or(&self.record.fields, |action| &action.explanation)
    }

    /// What it took while it ran, in this run or, where it was cached, when its result was made.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let own = Some(self.record.seconds).filter(|seconds| *seconds > 0.0);
        own.or_else(|| Some(self.action.as_ref()?.seconds))
    }
}

/// Earlier programs did not note who took what: the first stage whose output has the content of an input
/// is taken for its producer.
fn guess_inputs(stages: &mut [Stage]) {
    if stages.iter().any(|stage| !stage.record.inputs.is_empty()) {
        return;
    }
    let mut makers: BTreeMap<String, String> = BTreeMap::new();
    for stage in stages.iter() {
        if let Some(object) = stage.record.object {
            makers.entry(object.to_string()).or_insert_with(|| stage.record.stage.clone());
        }
    }
    for stage in stages {
        let mut inputs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (field, value) in stage.fields() {
            let name = field.strip_prefix("inputs.").and_then(|rest| rest.split('[').next());
            if let (Some(name), Some(maker)) = (name, makers.get(value)) {
                inputs.entry(name.to_owned()).or_default().push(maker.clone());
            }
        }
        stage.record.inputs = inputs;
    }
}
