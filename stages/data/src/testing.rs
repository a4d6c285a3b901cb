//! Runs one stage in a temporary folder, as the runner would. Tests only.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use contract::{Artifact, Config, ConfigError, Context, Default, Event, Inputs, Reporter, Stage, StageError};
use formats::run::{Method, RunInfo};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A folder with `out/`, `work/` and whatever a test puts beside them.
pub struct Bench {
    pub dir: TempDir,
    pub inputs: Inputs,
    pub stop: AtomicBool,
    events: Events,
}

#[derive(std::default::Default)]
struct Events(Mutex<Vec<Event>>);

impl Reporter for Events {
    fn report(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        Self { dir, inputs: Inputs::default(), stop: AtomicBool::new(false), events: Events::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.out(name)).unwrap()
    }

    /// Writes a file beside `out/` and gives its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Adds an artifact behind `input`.
    pub fn input(mut self, input: &str, label: &str, path: &Path) -> Self {
        let artifact = Artifact { label: label.into(), path: path.to_owned() };
        self.inputs.0.entry(input.into()).or_default().push(artifact);
        self
    }

    /// Plans and runs `stage` with `params` over its defaults.
    pub fn run(&self, stage: &dyn Stage, params: Value) -> Result<(), StageError> {
        let job = stage.plan(&config(stage, params)).map_err(|errors| {
            StageError::new(
                errors.iter().map(|e| format!("{}: {}", e.key, e.message)).collect::<Vec<_>>().join("; "),
            )
        })?;
        job.run(&mut self.context())
    }

    /// What a job is given.
    pub fn context(&self) -> Context<'_> {
        let (out, work) = (self.path("out"), self.path("work"));
        Context::new(self.inputs.clone(), out, work, vec![0], &self.events, &self.stop)
    }

    /// Takes what a job tells.
    pub fn reporter(&self) -> &dyn Reporter {
        &self.events
    }

    /// The notes and warnings so far.
    pub fn notes(&self) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::Note { text } | Event::Warning { text } => Some(text.clone()),
            _ => None,
        };
        self.events.0.lock().unwrap().iter().filter_map(text).collect()
    }
}

/// `params` with the stage's defaults filled in.
pub fn config(stage: &dyn Stage, params: Value) -> Config {
    let mut values: Map<String, Value> = params.as_object().unwrap().clone();
    for param in stage.params() {
        let value = match param.default {
            Default::Required | Default::Absent => continue,
            Default::Bool(value) => json!(value),
            Default::Int(value) => json!(value),
            Default::Float(value) => json!(value),
            Default::Text(value) => json!(value),
            Default::Texts(value) => json!(value),
            Default::Ints(value) => json!(value),
        };
        values.entry(param.name).or_insert(value);
    }
    Config(values)
}

/// What `plan` has to say about `params`.
pub fn plan_errors(stage: &dyn Stage, params: Value) -> Vec<ConfigError> {
    stage.plan(&config(stage, params)).err().unwrap_or_default()
}

/// The golden figures: `PIPE_FIXTURES`, or the copies in the repository.
pub fn fixtures() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    std::env::var_os("PIPE_FIXTURES").map_or_else(own, PathBuf::from)
}

/// Writes the `run.json` of a run with these saved steps.
pub fn write_run(folder: &Path, method: &str, steps: &[u64]) {
    let info = RunInfo {
        method: Method::by_name(method).unwrap(),
        steps: steps.to_vec(),
        total_steps: steps.last().copied().unwrap_or(0),
        adapter: None,
        base_digest: String::new(),
        seed: 0,
        best_step: None,
    };
    info.write(folder).unwrap();
}
