//! What a merge changed: the merged folder, read back, against the base as trained with its adapter
//! beside it.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use contract::{Context, StageError, Table, at};
use formats::weights::Weights;
use serde::Serialize;

use super::Plan;
use crate::batch::SplitMix64;
use crate::device;
use crate::model::Llama;

/// Token rows on which logits are compared, and their length.
const ROWS: [usize; 2] = [4, 32];

#[derive(Serialize)]
struct Report<'a> {
    method: &'a str,
    step: u64,
    dtype: &'a str,
    base: &'a str,
    weights: Difference,
    logits: Difference,
    /// Share of positions at which both models give the same next token.
    same_token: f64,
}

/// How far two sets of values are apart.
#[derive(Clone, Copy, Default, Serialize)]
struct Difference {
    max_abs: f64,
    /// Root mean square of the difference over that of the values.
    relative_rms: f64,
    #[serde(skip)]
    squares: [f64; 2],
}

impl Difference {
    fn add(&mut self, truth: &[f32], other: &[f32]) {
        for (&truth, &other) in truth.iter().zip(other) {
            let far = f64::from(truth) - f64::from(other);
            self.max_abs = self.max_abs.max(far.abs());
            self.squares[0] += far * far;
            self.squares[1] += f64::from(truth) * f64::from(truth);
        }
        let [far, all] = self.squares;
        self.relative_rms = if all > 0.0 { (far / all).sqrt() } else { 0.0 };
    }
}

/// Measures and writes `merge.json` and the summary.
pub fn write(plan: &Plan, ctx: &Context<'_>, device: &Device) -> Result<(), StageError> {
    let weights = weights(plan, ctx.out())?;
    let (logits, same_token) = logits(plan, ctx.out(), device)?;
    let report = Report {
        method: plan.method.name(),
        step: plan.step,
        dtype: plan.config.dtype.name(),
        base: if plan.source == plan.model {
            "as trained"
        } else if plan.adapter.is_none() {
            "none"
        } else {
            "original"
        },
        weights,
        logits,
        same_token,
    };
    let path = ctx.out().join("merge.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n").map_err(at(&path))?;
    let row = |what: &str, d: &Difference| {
        vec![what.to_owned(), format!("{:.2e}", d.max_abs), format!("{:.2e}", d.relative_rms)]
    };
    ctx.summary(&Table {
        title: format!(
            "merged {} step {} against the adapter model: same next token at {:.1} % of positions",
            report.method,
            report.step,
            100.0 * same_token
        ),
        columns: ["difference of", "largest", "relative rms"].map(String::from).to_vec(),
        rows: vec![row("weights", &weights), row("logits", &logits)],
    })
}

/// Linear weights as stored against those that were trained.
fn weights(plan: &Plan, out: &Path) -> Result<Difference, StageError> {
    let trained = Weights::open(if plan.adapter.is_none() { &plan.source } else { &plan.model })?;
    let merged = Weights::open(out)?;
    let mut difference = Difference::default();
    for path in plan.config.linear_names() {
        difference.add(&plan.fused(&trained, &path)?, &merged.f32(&format!("{path}.weight"))?);
    }
    Ok(difference)
}

fn logits(plan: &Plan, out: &Path, device: &Device) -> Result<(Difference, f64), StageError> {
    let mut trained = Llama::load(if plan.adapter.is_none() { &plan.trained } else { &plan.model }, device)?;
    if let Some(adapter) = &plan.adapter {
        trained.attach(adapter)?;
    }
    let before = probe(&trained)?;
    drop(trained);
    let after = probe(&Llama::load(out, device)?)?;
    let mut difference = Difference::default();
    difference.add(&before, &after);
    let vocab = plan.config.vocab_size;
    let rows = before.chunks(vocab).zip(after.chunks(vocab));
    let same = rows.clone().filter(|(a, b)| best(a) == best(b)).count();
    Ok((difference, same as f64 / rows.count().max(1) as f64))
}

/// Index of the largest value.
fn best(values: &[f32]) -> Option<usize> {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]))
}

/// Logits on rows of seeded random tokens.
fn probe(model: &Llama) -> Result<Vec<f32>, StageError> {
    let [rows, length] = ROWS;
    let length = length.min(model.config.max_position_embeddings);
    let mut random = SplitMix64(0);
    let ids: Vec<i32> =
        (0..rows * length).map(|_| random.below(model.config.vocab_size as u64) as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, length]), &model.device);
    device::read(model.forward(ids, &model.mask(length)?))
}
