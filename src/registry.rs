//! The one list of stage kinds; the only place that knows whether the tensor backend is built in.
//!
//! `cli::run` takes a [`Registry`], so that tests and examples bring their own kinds. Nothing else in
//! `src/` names a stage kind.

use std::path::PathBuf;

use contract::{Stage, StageError};

/// What `pipe generate` asks.
#[derive(Clone, Debug)]
pub struct Question {
    /// The model's folder.
    pub model: PathBuf,
    /// The folder of an adapter for it.
    pub adapter: Option<PathBuf>,
    /// Where to compute.
    pub device: String,
    /// Length of the answer at most.
    pub max_new_tokens: usize,
    /// The text to go on from.
    pub prompt: String,
}

/// Answers a question piece by piece; returns where that was computed.
pub type Answer = fn(&Question, &mut dyn FnMut(&str) -> Result<(), StageError>) -> Result<String, StageError>;

/// The stage kinds that a binary offers, and how it lists the machine's adapters.
#[derive(Clone)]
pub struct Registry {
    /// One unit struct per kind.
    pub stages: Vec<&'static dyn Stage>,
    /// Lists adapters as JSON for `pipe devices`. It loads drivers and may crash: called in a child
    /// process only. `None` where no tensor backend is built in.
    pub devices: Option<fn() -> serde_json::Value>,
    /// Answers questions for `pipe generate`. `None` where no tensor backend is built in.
    pub generate: Option<Answer>,
    /// What to add when a kind is unknown because the binary was built without it.
    pub missing: Option<&'static str>,
}

impl Registry {
    /// A registry of these kinds, without adapters.
    #[must_use]
    pub fn new(stages: impl IntoIterator<Item = &'static dyn Stage>) -> Self {
        Self { stages: stages.into_iter().collect(), devices: None, generate: None, missing: None }
    }

    /// The same registry with one more kind.
    #[must_use]
    pub fn with(mut self, stage: &'static dyn Stage) -> Self {
        self.stages.push(stage);
        self
    }

    /// The kind behind a name.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<&'static dyn Stage> {
        self.stages.iter().copied().find(|stage| stage.kind() == kind)
    }
}

/// The house's kinds.
#[must_use]
pub fn all() -> Registry {
    let registry = Registry::new(data::STAGES.iter().copied());
    #[cfg(feature = "neural")]
    let registry = with_neural(registry);
    #[cfg(not(feature = "neural"))]
    let registry = Registry {
        missing: Some("this binary was built without the feature `neural`: no `train`, `merge`, `evaluate`"),
        ..registry
    };
    registry
}

#[cfg(feature = "neural")]
fn with_neural(mut registry: Registry) -> Registry {
    registry.stages.extend(neural::STAGES.iter().copied());
    registry.devices =
        Some(|| serde_json::to_value(neural::devices()).unwrap_or_else(|error| error.to_string().into()));
    registry.generate = Some(|question, said| {
        let Question { model, adapter, device, max_new_tokens, prompt } = question;
        neural::answer::answer(model, adapter.as_deref(), device, *max_new_tokens, prompt, said)
    });
    registry
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use contract::Ports;

    use super::*;
    use crate::pipeline::{RUNNER_KEYS, default_fits};

    #[test]
    fn every_kind_is_in_the_file_of_its_name() {
        let stages = Path::new(env!("CARGO_MANIFEST_DIR")).join("stages");
        for stage in all().stages {
            let file = format!("src/{}.rs", stage.kind());
            let crates = std::fs::read_dir(&stages).unwrap().map(|entry| entry.unwrap().path());
            let found = crates.filter(|folder| folder.join(&file).is_file()).count();
            assert_eq!(found, 1, "`{}` is not in one {file} below stages/", stage.kind());
        }
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        let registry = all();
        let names: HashSet<&str> = registry.stages.iter().map(|stage| stage.kind()).collect();
        assert_eq!(names.len(), registry.stages.len());
    }

    #[test]
    fn parameters_and_inputs_have_names_of_their_own() {
        for stage in all().stages {
            let mut names: HashSet<&str> = RUNNER_KEYS.into_iter().collect();
            let inputs: &[contract::Input] = match stage.inputs() {
                Ports::Listed(ports) => ports,
                Ports::Any => &[],
            };
            let params = stage.params().iter().map(|param| param.name);
            for name in params.chain(inputs.iter().map(|port| port.name)) {
                assert!(names.insert(name), "`{name}` of kind `{}` is taken", stage.kind());
            }
        }
    }

    #[test]
    fn every_default_is_a_value_that_could_be_written() {
        for stage in all().stages {
            for param in stage.params() {
                assert!(default_fits(param), "the default of `{}` of kind `{}`", param.name, stage.kind());
            }
        }
    }
}
