//! The figures as numbers: JSON for programs, CSV for spreadsheets, a table for the terminal.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use contract::{StageError, Table, at};
use serde_json::{Value, json};

use super::Definition;
use super::figures::{Dot, Panel};
use super::measure::{Floor, Point, Run};
use super::seeds::{Arm, Spread, arms, spread};
use super::statistics::{Correlation, correlation};

/// Everything that was measured.
pub struct Report {
    runs: Vec<Value>,
    labels: Vec<String>,
    modules: Vec<String>,
    definition: Definition,
    points: Vec<Point>,
    floor: Vec<Floor>,
    arms: Vec<Arm>,
}

impl Report {
    /// Of points in the order they are to be written in.
    pub fn new(
        runs: &[Run],
        modules: &[String],
        definition: Definition,
        points: Vec<Point>,
        floor: Vec<Floor>,
    ) -> Self {
        let run =
            |run: &Run| json!({ "label": run.label, "method": run.info.method, "steps": run.info.steps });
        Self {
            runs: runs.iter().map(run).collect(),
            labels: runs.iter().map(|run| run.label.clone()).collect(),
            modules: modules.to_vec(),
            definition,
            points,
            floor,
            arms: arms(runs.iter().map(|run| (run.label.as_str(), run.info.seed))),
        }
    }

    /// The points of a run and of a module, or of all modules.
    fn of(&self, label: &str, module: Option<&str>) -> impl Iterator<Item = &Point> {
        self.points
            .iter()
            .filter(move |point| point.label == label && module.is_none_or(|module| point.module == module))
    }

    fn correlation(&self, label: &str, module: Option<&str>) -> Correlation {
        let points: Vec<(f64, f64)> =
            self.of(label, module).map(|point| (point.change.direction, point.change.magnitude)).collect();
        correlation(&points)
    }

    /// The modules by name, and `all` of them.
    fn modules(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.modules.iter().map(|module| (module.as_str(), Some(module.as_str()))).chain([("all", None)])
    }

    /// The saved steps of an arm.
    fn steps(&self, arm: &Arm) -> BTreeSet<u64> {
        self.points.iter().filter(|point| arm.labels.contains(&point.label)).map(|point| point.step).collect()
    }

    /// Over seeds: a figure of the points of one module (or all), at one step (or all).
    fn over_seeds(
        &self,
        arm: &Arm,
        module: Option<&str>,
        step: Option<u64>,
        figure: impl Fn(&[(f64, f64)]) -> Option<f64>,
    ) -> Option<Spread> {
        spread(arm.labels.iter().filter_map(|label| {
            let points = self.of(label, module).filter(|point| step.is_none_or(|step| point.step == step));
            figure(&points.map(|point| (point.change.direction, point.change.magnitude)).collect::<Vec<_>>())
        }))
    }

    /// What [`Report::write_json`] says of an arm: its correlations, and by step the mean change over
    /// layers and the correlation over them.
    fn arm(&self, arm: &Arm) -> Value {
        let of = |name: &str, module: Option<&str>, step: Option<u64>| {
            let over = |figure: fn(&[(f64, f64)]) -> Option<f64>| self.over_seeds(arm, module, step, figure);
            let mut figures = json!({
                "module": name,
                "r": over(|points| correlation(points).r),
                "slope": over(|points| correlation(points).slope),
                "intercept": over(|points| correlation(points).intercept),
            });
            if let Some(step) = step {
                figures["step"] = step.into();
                figures["delta_magnitude"] = json!(over(magnitude));
                figures["delta_direction"] = json!(over(direction));
            }
            figures
        };
        let steps = self.steps(arm);
        let by_step =
            steps.iter().flat_map(|step| self.modules().map(|(name, module)| of(name, module, Some(*step))));
        json!({
            "arm": arm.name, "labels": arm.labels, "seeds": arm.seeds,
            "correlations": self.modules().map(|(name, module)| of(name, module, None)).collect::<Vec<_>>(),
            "steps": by_step.collect::<Vec<_>>(),
        })
    }

    /// An arm's rows of the table: its correlations, then by step how far it moved.
    fn rows_of(&self, arm: &Arm) -> Vec<Vec<String>> {
        let r = |(_, module)| match self.over_seeds(arm, module, None, |points| correlation(points).r) {
            Some(Spread { mean, deviation: Some(deviation), .. }) => {
                format!("{mean:+.2} \u{b1} {deviation:.2}")
            }
            Some(Spread { mean, .. }) => format!("{mean:+.2}"),
            None => "\u{2013}".to_owned(),
        };
        let short = |found: Option<Spread>| match found {
            Some(Spread { mean, deviation: Some(deviation), .. }) => {
                format!("{mean:.1e} \u{b1} {deviation:.1e}")
            }
            Some(Spread { mean, .. }) => format!("{mean:.1e}"),
            None => "\u{2013}".to_owned(),
        };
        let moved = |module, step| {
            let over =
                |figure: fn(&[(f64, f64)]) -> Option<f64>| self.over_seeds(arm, module, Some(step), figure);
            format!("\u{394}M {}, \u{394}D {}", short(over(magnitude)), short(over(direction)))
        };
        let mut rows: Vec<Vec<String>> = vec![
            [format!("{} ({} seeds)", arm.name, arm.seeds.len())]
                .into_iter()
                .chain(self.modules().map(r))
                .collect(),
        ];
        rows.extend(self.steps(arm).into_iter().map(|step| {
            let cells = self.modules().map(|(_, module)| moved(module, step));
            [format!("{}, step {step}", arm.name)].into_iter().chain(cells).collect()
        }));
        rows
    }

    /// What is drawn for one run and module.
    pub fn panel(&self, run: &Run, module: &str) -> Panel {
        let dot = |point: &Point| Dot {
            layer: point.layer,
            step: point.step,
            x: point.change.direction,
            y: point.change.magnitude,
        };
        Panel {
            title: run.label.clone(),
            dots: self.of(&run.label, Some(module)).map(dot).collect(),
            fit: self.correlation(&run.label, Some(module)),
        }
    }

    /// Runs, points, correlations (per module and, as `all`, over the modules), noise floor and, of arms with
    /// several seeds, mean and standard deviation.
    pub fn write_json(&self, path: &Path) -> Result<(), StageError> {
        let points: Vec<Value> = self
            .points
            .iter()
            .map(|p| {
                json!({ "label": p.label, "module": p.module, "layer": p.layer, "step": p.step,
                        "delta_magnitude": p.change.magnitude, "delta_direction": p.change.direction })
            })
            .collect();
        let floor: Vec<Value> = self
            .floor
            .iter()
            .map(|f| {
                json!({ "module": f.module, "layer": f.layer,
                        "delta_magnitude": f.change.magnitude, "delta_direction": f.change.direction })
            })
            .collect();
        let mut correlations = Vec::new();
        for label in &self.labels {
            for (name, module) in self.modules() {
                let Correlation { n, r, slope, intercept } = self.correlation(label, module);
                correlations.push(json!({ "label": label, "module": name, "n": n, "r": r, "slope": slope, "intercept": intercept }));
            }
        }
        let mut file = json!({
            "definition": match self.definition {
                Definition::Paper => "paper: DoRA (arXiv 2402.09353v1) section 3.2, equations 3 and 4, norms and cosines of output rows",
                Definition::AsPublished => "as-published: the formulas of github.com/shreyassks/DoRA, mistakes included",
            },
            "runs": self.runs, "points": points, "correlations": correlations, "noise_floor": floor,
        });
        if !self.arms.is_empty() {
            file["over_seeds"] = self.arms.iter().map(|arm| self.arm(arm)).collect();
        }
        fs::write(path, serde_json::to_string_pretty(&file)? + "\n").map_err(at(path))
    }

    /// One line a point. Numbers are written so that reading them gives the same bits.
    pub fn write_csv(&self, path: &Path) -> Result<(), StageError> {
        let mut text = String::from("label,module,layer,step,delta_magnitude,delta_direction\n");
        for p in &self.points {
            let (magnitude, direction) = (p.change.magnitude, p.change.direction);
            writeln!(
                text,
                "{},{},{},{},{magnitude:e},{direction:e}",
                quoted(&p.label),
                p.module,
                p.layer,
                p.step
            )?;
        }
        fs::write(path, text).map_err(at(path))
    }

    /// Correlations by run and module, and the noise floor. Runs of an arm with several seeds stand as one,
    /// with how far they moved by step.
    pub fn table(&self) -> Table {
        let mut columns = vec!["run".to_owned()];
        columns.extend(self.modules.iter().map(|module| format!("{module}: r of \u{394}D and \u{394}M")));
        columns.push("all".into());
        let cell = |label: &str, module| {
            let found = self.correlation(label, module);
            found.r.map_or("\u{2013}".to_owned(), |r| format!("{r:+.2} (n = {})", found.n))
        };
        let alone = |label: &&String| !self.arms.iter().any(|arm| arm.labels.contains(label));
        let mut rows: Vec<Vec<String>> = self
            .labels
            .iter()
            .filter(alone)
            .map(|label| {
                let modules = self.modules.iter().map(|module| cell(label, Some(module)));
                [label.clone()].into_iter().chain(modules).chain([cell(label, None)]).collect()
            })
            .collect();
        rows.extend(self.arms.iter().flat_map(|arm| self.rows_of(arm)));
        if !self.floor.is_empty() {
            let mean = |module: &str| {
                let of =
                    || self.floor.iter().filter(|floor| floor.module == module).map(|floor| floor.change);
                let count = of().count().max(1) as f64;
                let (m, d) = (
                    of().map(|c| c.magnitude).sum::<f64>() / count,
                    of().map(|c| c.direction).sum::<f64>() / count,
                );
                format!("\u{394}M {m:.1e}, \u{394}D {d:.1e}")
            };
            let cells = self.modules.iter().map(|module| mean(module));
            rows.push(
                ["(quantization alone)".to_owned()].into_iter().chain(cells).chain([String::new()]).collect(),
            );
        }
        Table { title: "Change of magnitude and direction".into(), columns, rows }
    }
}

/// Mean ΔM of `(ΔD, ΔM)` points.
fn magnitude(points: &[(f64, f64)]) -> Option<f64> {
    spread(points.iter().map(|point| point.1)).map(|found| found.mean)
}

/// Mean ΔD of `(ΔD, ΔM)` points.
fn direction(points: &[(f64, f64)]) -> Option<f64> {
    spread(points.iter().map(|point| point.0)).map(|found| found.mean)
}

/// A CSV field.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
