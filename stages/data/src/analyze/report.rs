//! The figures as numbers: JSON for programs, CSV for spreadsheets, a table for the terminal.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use contract::{StageError, Table, at};
use serde_json::{Value, json};

use super::Definition;
use super::figures::{Dot, Panel};
use super::measure::{Floor, Point, Run};
use super::statistics::{Correlation, correlation};

/// Everything that was measured.
pub struct Report {
    runs: Vec<Value>,
    labels: Vec<String>,
    modules: Vec<String>,
    definition: Definition,
    points: Vec<Point>,
    floor: Vec<Floor>,
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

    /// Runs, points, correlations (per module and, as `all`, over the modules) and noise floor.
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
            let modules = self.modules.iter().map(|module| (module.as_str(), Some(module.as_str())));
            for (name, module) in modules.chain([("all", None)]) {
                let Correlation { n, r, slope, intercept } = self.correlation(label, module);
                correlations.push(json!({ "label": label, "module": name, "n": n, "r": r, "slope": slope, "intercept": intercept }));
            }
        }
        let file = json!({
            "definition": match self.definition {
                Definition::Paper => "paper: DoRA (arXiv 2402.09353v1) section 3.2, equations 3 and 4, norms and cosines of output rows",
                Definition::AsPublished => "as-published: the formulas of github.com/shreyassks/DoRA, mistakes included",
            },
            "runs": self.runs, "points": points, "correlations": correlations, "noise_floor": floor,
        });
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

    /// Correlations by run and module, and the noise floor.
    pub fn table(&self) -> Table {
        let mut columns = vec!["run".to_owned()];
        columns.extend(self.modules.iter().map(|module| format!("{module}: r of \u{394}D and \u{394}M")));
        columns.push("all".into());
        let cell = |label: &str, module| {
            let found = self.correlation(label, module);
            found.r.map_or("\u{2013}".to_owned(), |r| format!("{r:+.2} (n = {})", found.n))
        };
        let mut rows: Vec<Vec<String>> = self
            .labels
            .iter()
            .map(|label| {
                let modules = self.modules.iter().map(|module| cell(label, Some(module)));
                [label.clone()].into_iter().chain(modules).chain([cell(label, None)]).collect()
            })
            .collect();
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

/// A CSV field.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
