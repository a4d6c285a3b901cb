//! The one list of stage kinds; the only place that knows whether the tensor backend is built in.
//!
//! `cli::run` takes a [`Registry`], so that tests and examples bring their own kinds. Nothing else in
//! `src/` names a stage kind.

use contract::Stage;

/// The stage kinds that a binary offers, and how it lists the machine's adapters.
#[derive(Clone)]
pub struct Registry {
    /// One unit struct per kind.
    pub stages: Vec<&'static dyn Stage>,
    /// Lists adapters as JSON for `pipe devices`. It loads drivers and may crash: called in a child
    /// process only. `None` where no tensor backend is built in.
    pub devices: Option<fn() -> serde_json::Value>,
    /// What to add when a kind is unknown because the binary was built without it.
    pub missing: Option<&'static str>,
}

impl Registry {
    /// A registry of these kinds, without adapters.
    #[must_use]
    pub fn new(stages: impl IntoIterator<Item = &'static dyn Stage>) -> Self {
        Self { stages: stages.into_iter().collect(), devices: None, missing: None }
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
    registry.devices = Some(|| {
        serde_json::to_value(neural::devices()).unwrap_or_else(|error| error.to_string().into())
    });
    registry
}
