//! Reads base, checkpoints and original, and measures every point. One base matrix is in memory at
//! a time.

use std::path::{Path, PathBuf};

use contract::{Artifact, Context, StageError};
use formats::adapter::Adapter;
use formats::config::LlamaConfig;
use formats::run::{Method, RunInfo, step_dir};
use formats::weights::{Weights, linear_f32};

use super::statistics::{Change, Moved, change};
use super::{Definition, paths, published};

/// A training run with its saved steps.
pub struct Run {
    /// Tells it from the other runs.
    pub label: String,
    /// What `run.json` says.
    pub info: RunInfo,
    folder: PathBuf,
}

/// ΔM and ΔD of one weight at one checkpoint.
#[derive(Clone, Debug)]
pub struct Point {
    /// The run's label.
    pub label: String,
    /// `q_proj` and its like.
    pub module: String,
    /// From 0.
    pub layer: usize,
    /// Optimizer steps taken.
    pub step: u64,
    /// Against the base as trained.
    pub change: Change,
    /// Mean norm of the base's rows.
    pub norm: f64,
}

/// What quantization alone does to a weight.
#[derive(Clone, Debug)]
pub struct Floor {
    /// `q_proj` and its like.
    pub module: String,
    /// From 0.
    pub layer: usize,
    /// From the original to the dequantized base.
    pub change: Change,
}

impl Run {
    /// Reads `run.json`.
    pub fn open(artifact: &Artifact) -> Result<Self, StageError> {
        let info = RunInfo::read(&artifact.path)?;
        if info.steps.is_empty() {
            return Err(StageError::new(format!("run `{}` saved no step", artifact.label)));
        }
        Ok(Self { label: artifact.label.clone(), info, folder: artifact.path.clone() })
    }

    /// The label with nothing in it that a file name cannot have.
    pub fn file_name(&self) -> String {
        let fits = |c: char| c.is_alphanumeric() || ".-_".contains(c);
        self.label.chars().map(|c| if fits(c) { c } else { '_' }).collect()
    }

    /// Whether it trained magnitudes of their own.
    pub fn has_magnitudes(&self) -> bool {
        self.info.method == Method::Dora
    }

    fn checkpoint(&self, step: u64, config: &LlamaConfig) -> Result<Checkpoint, StageError> {
        let folder = self.folder.join(step_dir(step));
        match self.info.method {
            Method::Full => {
                let weights = Weights::open(&folder)?;
                weights.check(config)?;
                Ok(Checkpoint::Model(weights))
            }
            Method::Lora | Method::Dora => {
                let adapter = Adapter::read(&folder)?;
                adapter.check(config)?;
                Ok(Checkpoint::Adapter(adapter))
            }
        }
    }
}

/// One saved step.
enum Checkpoint {
    Model(Weights),
    Adapter(Adapter),
}

impl Checkpoint {
    /// Gives `measure` what became of the weight at `path`.
    fn with<T>(
        &self,
        path: &str,
        label: &str,
        measure: impl FnOnce(Moved<'_>) -> T,
    ) -> Result<T, StageError> {
        match self {
            Self::Model(weights) => {
                let (matrix, _) = linear_f32(weights, &format!("{path}.weight"))?;
                Ok(measure(Moved::Matrix(&matrix)))
            }
            Self::Adapter(adapter) => {
                let Some(tensors) = adapter.modules.get(path) else {
                    let message = format!("run `{label}` has no adapter on `{path}`");
                    return Err(StageError::new(message)
                        .hint("name in `modules` only what was trained (`target_modules`)"));
                };
                let magnitude = tensors.magnitude.as_deref();
                Ok(measure(Moved::Adapter {
                    a: &tensors.a,
                    b: &tensors.b,
                    scale: adapter.config.scale(),
                    magnitude,
                }))
            }
        }
    }
}

/// A base weight, and what the checkpoints of a run made of it so far.
struct Weight<'a> {
    definition: Definition,
    matrix: &'a [f32],
    shape: [usize; 2],
    merged: Option<(usize, Vec<f64>)>,
}

impl Weight<'_> {
    /// What `moved` (a checkpoint of run number `run`) changed.
    fn change(&mut self, run: usize, moved: Moved<'_>) -> Result<Change, StageError> {
        if self.definition == Definition::Paper {
            return Ok(change(self.matrix, self.shape, moved));
        }
        let base = || self.matrix.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let piles_up = matches!(moved, Moved::Adapter { magnitude: Some(_), .. });
        let before = match self.merged.take() {
            Some((of, merged)) if piles_up && of == run => merged,
            _ => base(),
        };
        let after = published::merged(&before, self.shape, moved)?;
        let change = published::change(&base(), &after, self.shape);
        self.merged = Some((run, after));
        Ok(change)
    }
}

/// The mean norm of the rows.
fn mean_norm(matrix: &[f32], [rows, columns]: [usize; 2]) -> f64 {
    let norm = |row: &[f32]| row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
    matrix.chunks(columns.max(1)).map(norm).sum::<f64>() / rows.max(1) as f64
}

/// Every point of every run: by run, module, step and layer.
pub fn measure(
    runs: &[Run],
    base: &Path,
    modules: &[String],
    definition: Definition,
    ctx: &Context<'_>,
) -> Result<Vec<Point>, StageError> {
    let config = LlamaConfig::read(base)?;
    let weights = Weights::open(base)?;
    // Steps are saved as floats, whatever the base is.
    let float = LlamaConfig { quantization: None, ..config.clone() };
    let mut checkpoints = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let mut steps = run.info.steps.clone();
        if definition == Definition::AsPublished {
            steps.sort_by_key(|step| format!("checkpoint-{step}"));
        }
        for step in steps {
            checkpoints.push((index, step, run.checkpoint(step, &float)?));
        }
    }
    let paths = paths(&config, modules, definition, base)?;
    let (mut points, mut done, total) = (Vec::new(), 0, (paths.len() * checkpoints.len()) as u64);
    for (path, module, layer) in &paths {
        let (matrix, shape) = linear_f32(&weights, &format!("{path}.weight"))?;
        let norm = mean_norm(&matrix, shape);
        let mut weight = Weight { definition, matrix: &matrix, shape, merged: None };
        for (index, step, checkpoint) in &checkpoints {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            let label = runs[*index].label.clone();
            let change = checkpoint.with(path, &label, |moved| weight.change(*index, moved))??;
            let place = modules.iter().position(|known| known == module);
            let order = (*index, place, *step, *layer);
            points.push((
                order,
                Point { label, module: module.clone(), layer: *layer, step: *step, change, norm },
            ));
            done += 1;
            ctx.progress(done, total, "points", &[]);
        }
    }
    points.sort_by_key(|(order, _)| *order);
    Ok(points.into_iter().map(|(_, point)| point).collect())
}

/// ΔM and ΔD from `original` to what `base` is as trained.
pub fn noise_floor(
    base: &Path,
    original: &Path,
    modules: &[String],
    ctx: &Context<'_>,
) -> Result<Vec<Floor>, StageError> {
    let config = LlamaConfig::read(base)?;
    let (base_weights, original_weights) = (Weights::open(base)?, Weights::open(original)?);
    let mut floor = Vec::new();
    for (path, module, layer) in paths(&config, modules, Definition::Paper, base)? {
        if ctx.stopping() {
            return Err(StageError::cancelled());
        }
        let name = format!("{path}.weight");
        let (from, shape) = linear_f32(&original_weights, &name)?;
        let (to, found) = linear_f32(&base_weights, &name)?;
        if shape != found {
            let message =
                format!("`{name}` is {found:?} in the base and {shape:?} in `{}`", original.display());
            return Err(StageError::new(message)
                .hint("`original` must be the model that the base was quantized from"));
        }
        floor.push(Floor { module, layer, change: change(&from, shape, Moved::Matrix(&to)) });
    }
    Ok(floor)
}
