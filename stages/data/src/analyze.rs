//! `analyze`: how fine-tuning changed the weights, in magnitude (ΔM) and in direction (ΔD).
//!
//! DoRA (arXiv 2402.09353v1), section 3.2 and figure 2: one point per layer and checkpoint for each
//! of `modules`, their correlation, and figures. The base is the model AS TRAINED, that is
//! dequantized if it is NF4; what quantization alone does to ΔM and ΔD is the noise floor, told
//! where the float `original` is given. The formulas are in [`statistics`], those of the reproduced
//! repository in [`published`], the figures in [`figures`].
//!
//! Version log: 1 first; 2 mean and deviation over seeds; 3 as many digits along an axis as its ticks need.

mod figures;
mod measure;
mod published;
mod report;
mod seeds;
mod statistics;
#[cfg(test)]
mod tests;

use std::path::Path;

use contract::{
    Config, ConfigError, Context, Default, Input, Job, Param, Pool, Ports, Stage, StageError, Type,
};
use formats::config::LlamaConfig;
use serde::Deserialize;

use measure::{Floor, Point, Run, measure, noise_floor};
use report::Report;

/// The kind `analyze`.
pub struct Analyze;

const INPUTS: &[Input] = &[
    Input::several("runs", "what `checkpoint` or `train` wrote, one artifact a method"),
    Input::one("model", "the base as trained (float or NF4)"),
    Input::optional("original", "the float model that an NF4 base was made from, for the noise floor"),
];

const PARAMS: &[Param] = &[
    Param::new(
        "modules",
        Type::List(&Type::Choice(&[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ])),
        Default::Texts(&["q_proj", "v_proj"]),
        "which weight matrices of every layer; the paper looks at query and value",
    ),
    Param::new(
        "definition",
        Type::Choice(&["paper", "as-published"]),
        Default::Text("paper"),
        "`paper`: equations 3 and 4; `as-published`: the reproduced repository's own formulas, mistakes included",
    ),
];

#[derive(Deserialize)]
struct Settings {
    modules: Vec<String>,
    definition: Definition,
}

/// Which formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Definition {
    Paper,
    AsPublished,
}

impl Stage for Analyze {
    fn kind(&self) -> &'static str {
        "analyze"
    }

    fn version(&self) -> u32 {
        3
    }

    fn doc(&self) -> &'static str {
        "measures the change of magnitude and direction per layer and checkpoint; tables and figures"
    }

    fn pool(&self) -> Pool {
        Pool::Cpu
    }

    fn inputs(&self) -> Ports {
        Ports::Listed(INPUTS)
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        let mut modules = settings.modules.clone();
        modules.sort_unstable();
        modules.dedup();
        if modules.is_empty() || modules.len() < settings.modules.len() {
            return Err(vec![ConfigError::new("modules", "needs at least one module, each named once")]);
        }
        Ok(Box::new(settings))
    }
}

impl Job for Settings {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let runs = ctx.inputs.all("runs").iter().map(Run::open).collect::<Result<Vec<_>, _>>()?;
        for (index, run) in runs.iter().enumerate() {
            if runs[..index].iter().any(|other| other.file_name() == run.file_name()) {
                let message = format!("two inputs of `runs` have the label `{}`", run.label);
                return Err(StageError::new(message)
                    .hint("take runs of one matrix, or of stages with different names"));
            }
        }
        let base = ctx.input("model")?;
        for run in &runs {
            run.info.check_base(&base)?;
        }
        let points = measure(&runs, &base, &self.modules, self.definition, ctx)?;
        if self.definition == Definition::Paper {
            warn_of_still_magnitudes(&runs, &points, ctx);
        }
        let floor = match ctx.inputs.optional("original") {
            Some(original) => noise_floor(&base, original, &self.modules, ctx)?,
            None => Vec::new(),
        };
        self.write(&runs, points, floor, ctx)
    }
}

impl Settings {
    fn write(
        &self,
        runs: &[Run],
        points: Vec<Point>,
        floor: Vec<Floor>,
        ctx: &Context<'_>,
    ) -> Result<(), StageError> {
        let report = Report::new(runs, &self.modules, self.definition, points, floor);
        report.write_json(&ctx.out().join("analysis.json"))?;
        report.write_csv(&ctx.out().join("analysis.csv"))?;
        for module in &self.modules {
            let heading = format!("{module}: change of magnitude and direction");
            let panels: Vec<_> = runs.iter().map(|run| report.panel(run, module)).collect();
            for (run, panel) in runs.iter().zip(&panels) {
                let base = ctx.out().join(format!("{module}-{}", run.file_name()));
                figures::write(&base, &heading, std::slice::from_ref(panel))?;
            }
            if panels.len() > 1 {
                figures::write(&ctx.out().join(module), &heading, &panels)?;
            }
        }
        ctx.summary(&report.table())
    }
}

/// A magnitude that did not move means that DoRA did not train (a step on it rounded away).
fn warn_of_still_magnitudes(runs: &[Run], points: &[Point], ctx: &Context<'_>) {
    for run in runs.iter().filter(|run| run.has_magnitudes()) {
        let of_run = points.iter().filter(|point| point.label == run.label);
        // The base's norms are f32 in the adapter and f64 here: 1e-6 of them is nothing.
        if of_run.clone().next().is_some()
            && of_run.clone().all(|point| point.change.magnitude <= 1e-6 * point.norm)
        {
            ctx.warn(format!(
                "the magnitudes of the DoRA run `{}` did not move: it trained like no DoRA",
                run.label
            ));
        }
    }
}

/// The index in `model.layers.INDEX.…`.
fn layer_of(path: &str) -> Option<usize> {
    path.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// The paths of the weights named by `modules`, by layer.
fn paths(
    config: &LlamaConfig,
    modules: &[String],
    definition: Definition,
    folder: &Path,
) -> Result<Vec<(String, String, usize)>, StageError> {
    let mut paths = Vec::new();
    for module in modules {
        let before = paths.len();
        for path in config.linear_names() {
            if path.rsplit('.').next() == Some(module)
                && let Some(layer) = layer_of(&path)
                && (definition == Definition::Paper || published::LAYERS.contains(&layer))
            {
                paths.push((path, module.clone(), layer));
            }
        }
        if paths.len() == before {
            let layers = if definition == Definition::Paper { "" } else { " in the layers 1 to 6" };
            return Err(StageError::new(format!(
                "the model `{}` has no `{module}`{layers}",
                folder.display()
            )));
        }
    }
    Ok(paths)
}
