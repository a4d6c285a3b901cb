//! The walk over the steps: rows, step, metrics, evaluation, saving, checkpoint, stop.
//!
//! Everything that must survive a crash grows in `ctx.work()`: `metrics.jsonl`, `step-NNNNNN/` and
//! the checkpoints of [`crate::state`]. A start finds the newest checkpoint that fits, forgets what
//! is later than it, and goes on; the result is the same to the last bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use contract::{Context, StageError, Table, at};
use formats::run::{Method, RunInfo, step_dir};

use super::export;
use super::setup::Setup;
use super::{Settings, VERSION};
use crate::batch::Batch;
use crate::metrics::{Lines, Record};
use crate::state::{Last, Manifest, State};
use crate::tensorboard;
use crate::trainer::Report;
use crate::tuned;
use crate::watch::Watch;

/// How often progress is told, at most.
const TELL: Duration = Duration::from_millis(200);

/// A run between its first and last step.
pub struct Session<'a> {
    settings: &'a Settings,
    setup: Setup,
    metrics: Lines,
    /// Where prompts are to be answered.
    samples: Option<Lines>,
    heldout: Vec<Batch>,
    /// Magnitudes before the run's first step, by name.
    magnitudes: BTreeMap<String, Vec<f32>>,
    /// Epoch and order of its rows.
    order: (u64, Vec<usize>),
    watch: Watch,
    fingerprint: String,
    /// Steps of the run that this one goes on from.
    start: u64,
}

impl<'a> Session<'a> {
    /// Starts, or goes on where a checkpoint was left.
    pub fn start(settings: &'a Settings, mut setup: Setup, ctx: &Context<'_>) -> Result<Self, StageError> {
        let start = setup.resumed.as_ref().map_or(0, |last| last.step);
        if let Some(last) = setup.resumed.take() {
            let fresh = setup.trainer.loss_scale();
            let same = fresh.is_dynamic() == last.loss_scale.is_dynamic();
            let scale = if same { last.loss_scale } else { fresh };
            setup.trainer.restore(last.step, scale, &last.slabs)?;
        }
        let magnitudes =
            setup.trainer.tensors()?.into_iter().filter(|(leaf, _)| leaf.name.ends_with("_magnitude_vector"));
        let magnitudes = magnitudes.map(|(leaf, values)| (leaf.name, values)).collect();
        let trained: usize = setup.trainer.layouts().iter().map(|layout| layout.len).sum();
        let all = setup.config.parameters();
        ctx.note(format!(
            "trains {trained} parameters on a model of {all}; {} steps, {} an epoch",
            setup.total,
            setup.deal.epoch_steps()
        ));
        let fingerprint = fingerprint(settings, &setup, start)?;
        let stored = State::newest(ctx.work(), &fingerprint)?;
        let (step, bytes, sampled, watch) =
            stored.as_ref().map_or((start, 0, 0, Watch::default()), |state| {
                let found = &state.manifest;
                (found.step, found.metrics_bytes, found.samples_bytes, found.watch)
            });
        fs::create_dir_all(ctx.work()).map_err(at(ctx.work()))?;
        forget(ctx.work(), |saved| saved > step)?;
        if let Some(state) = stored {
            setup.trainer.restore(step, state.manifest.loss_scale, &state.slabs)?;
            ctx.note(format!("goes on after step {step}"));
            if !setup.same_kernels {
                ctx.warn(format!("the kernels that the first {step} steps were computed with are not at hand: the result may not be the same to the last bit"));
            }
            if state.manifest.device != setup.device {
                ctx.warn(format!("the first {step} steps were computed on {}: the result will not be the same to the last bit", state.manifest.device));
            }
        }
        let metrics = Lines::resume(ctx.work(), Lines::METRICS, bytes)?;
        let samples = setup.prompts.as_ref().map(|_| Lines::resume(ctx.work(), Lines::SAMPLES, sampled));
        let samples = samples.transpose()?;
        let heldout = (0..setup.heldout.rows.len()).collect::<Vec<_>>();
        let heldout =
            heldout.chunks(settings.batch_size).map(|rows| settings.batch(&setup.heldout, rows)).collect();
        Ok(Self {
            settings,
            setup,
            metrics,
            samples,
            heldout,
            magnitudes,
            order: (u64::MAX, Vec::new()),
            watch,
            fingerprint,
            start,
        })
    }

    /// All steps that are left.
    pub fn walk(&mut self, ctx: &Context<'_>) -> Result<(), StageError> {
        let mut meter = Meter { since: Instant::now(), tokens: 0 };
        while !self.is_over() {
            if ctx.stopping() {
                self.checkpoint(ctx)?;
                return Err(StageError::cancelled());
            }
            let batches = self.batches(self.setup.trainer.steps() + 1);
            meter.tokens += batches.iter().flatten().map(Batch::tokens).sum::<usize>();
            let report = match self.setup.trainer.step(batches) {
                Ok(report) => report,
                Err(error) => {
                    // without one, the older checkpoint serves
                    let _ = self.setup.trainer.survives().then(|| self.checkpoint(ctx));
                    return Err(self.with_checkpoint(error, ctx));
                }
            };
            self.record(report, ctx)?;
            meter.tell(&report, self.setup.total, ctx);
            if report.step.is_multiple_of(self.settings.checkpoint_every) || self.is_over() {
                self.checkpoint(ctx)?;
            }
        }
        if let (true, Some((best, loss))) = (self.is_early(), self.watch.best) {
            let step = self.setup.trainer.steps();
            ctx.note(format!("stops early, after step {step}: {} evaluations brought no held-out loss below {loss:.4}, of step {best}", self.settings.early_stop_patience));
        }
        Ok(())
    }

    /// Whether there are no more steps to make.
    fn is_over(&self) -> bool {
        self.setup.trainer.steps() >= self.setup.total || self.is_early()
    }

    fn is_early(&self) -> bool {
        self.watch.is_over(self.settings.early_stop_patience)
    }

    /// The micro-batches of a step by device.
    fn batches(&mut self, step: u64) -> Vec<Vec<Batch>> {
        let (deal, set) = (&self.setup.deal, &self.setup.train);
        let epoch = deal.epoch(step);
        if self.order.0 != epoch {
            self.order = (epoch, deal.order(epoch, set));
        }
        let shares = deal.shares(step, &self.order.1);
        let batch = |rows: Vec<usize>| self.settings.batch(set, &rows);
        shares.into_iter().map(|micro| micro.into_iter().map(batch).collect()).collect()
    }

    /// The step's line in the metrics, with what is due at it.
    fn record(&mut self, report: Report, ctx: &Context<'_>) -> Result<(), StageError> {
        let step = report.step;
        let mut record = Record {
            step,
            loss: report.loss,
            lr: report.lr,
            grad_norm: report.grad_norm,
            label_tokens: report.label_tokens,
            loss_scale: report.loss_scale,
            ..Record::default()
        };
        let (every, mut best) = (self.settings.eval_every, false);
        if !self.heldout.is_empty() && every > 0 && (is_turn(step, every) || self.is_over()) {
            let (sum, tokens) = self.setup.trainer.evaluate(&self.heldout)?;
            let loss = sum / tokens as f64;
            record.eval_loss = Some(loss);
            best = self.watch.see(step, loss);
        }
        let over = self.is_over();
        let saved = over || due(self.settings, step) || (best && self.settings.keep_best);
        if self.setup.adapter.is_some() && (saved || is_turn(step, self.settings.movement_every)) {
            let moved = self.setup.trainer.movement()?;
            let mean = |pick: fn(&(String, f64, f64)) -> f64| {
                moved.iter().map(pick).sum::<f64>() / moved.len().max(1) as f64
            };
            record.delta_magnitude = Some(mean(|module| module.1));
            record.delta_direction = Some(mean(|module| module.2));
        }
        if saved {
            self.save(&ctx.work().join(step_dir(step)))?;
        }
        if let (Some(prompts), Some(samples)) = (&self.setup.prompts, &mut self.samples)
            && (over || is_turn(step, self.settings.generate_every))
        {
            prompts.ask(step, &mut self.setup.trainer, samples)?;
        }
        self.metrics.add(&record)
    }

    fn save(&self, folder: &Path) -> Result<(), StageError> {
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(at(folder))?;
        }
        let tensors = self.setup.trainer.tensors()?;
        match &self.setup.adapter {
            Some(config) => export::adapter(folder, config, tensors),
            None => export::model(folder, &self.setup.config, self.settings.save_dtype(), tensors),
        }
    }

    fn checkpoint(&mut self, ctx: &Context<'_>) -> Result<(), StageError> {
        let step = self.setup.trainer.steps();
        if step == self.start {
            return Ok(());
        }
        let manifest = Manifest {
            step,
            metrics_bytes: self.metrics.sync()?,
            samples_bytes: self.samples.as_ref().map_or(Ok(0), Lines::sync)?,
            fingerprint: self.fingerprint.clone(),
            device: self.setup.device.clone(),
            loss_scale: self.setup.trainer.loss_scale(),
            watch: self.watch,
        };
        State { manifest, slabs: self.setup.trainer.save()? }.save(ctx.work())?;
        let (kept, end) = (self.kept(), step);
        forget(ctx.work(), |step| step < end && !kept.contains(&step))
    }

    /// Says which checkpoint is there when a step failed.
    fn with_checkpoint(&self, mut error: StageError, ctx: &Context<'_>) -> StageError {
        if let Ok(Some(state)) = State::newest(ctx.work(), &self.fingerprint) {
            let kept =
                format!("the checkpoint after step {} is in `{}`", state.manifest.step, ctx.work().display());
            error.hint = Some(error.hint.map_or(kept.clone(), |hint| format!("{hint}; {kept}")));
        }
        error
    }

    /// Fills the result.
    pub fn finish(&mut self, ctx: &Context<'_>) -> Result<(), StageError> {
        self.metrics.sync()?;
        let steps = self.kept();
        for &step in &steps {
            let name = step_dir(step);
            export::publish(&ctx.work().join(&name), &ctx.out().join(&name))?;
        }
        let metrics = ctx.out().join(Lines::METRICS);
        fs::copy(ctx.work().join(Lines::METRICS), &metrics).map_err(at(&metrics))?;
        if self.samples.is_some() {
            let samples = ctx.out().join(Lines::SAMPLES);
            fs::copy(ctx.work().join(Lines::SAMPLES), &samples).map_err(at(&samples))?;
        }
        tensorboard::write(ctx.out(), &fs::read_to_string(&metrics).map_err(at(&metrics))?)?;
        if self.settings.save_state {
            let trainer = &mut self.setup.trainer;
            let (step, loss_scale, slabs) = (trainer.steps(), trainer.loss_scale(), trainer.save()?);
            Last { step, loss_scale, slabs }.write(ctx.out())?;
        }
        tuned::publish(ctx.out(), 0)?;
        self.magnitudes_moved(ctx)?;
        self.run_info(steps, ctx)?;
        ctx.summary(&self.table(ctx)?)
    }

    /// The run's own steps so far whose results are kept; the last of them among these.
    fn kept(&self) -> Vec<u64> {
        let end = self.setup.trainer.steps();
        let best = self.watch.best.filter(|_| self.settings.keep_best).map(|(step, _)| step);
        let kept = |step: &u64| *step == end || Some(*step) == best || due(self.settings, *step);
        (self.start + 1..=end).filter(kept).collect()
    }

    /// DoRA trains nothing but a LoRA if its magnitudes stand still (16-bit parameters do that).
    fn magnitudes_moved(&self, ctx: &Context<'_>) -> Result<(), StageError> {
        if self.settings.method() != Method::Dora {
            return Ok(());
        }
        let now = self.setup.trainer.tensors()?;
        let still: Vec<_> = now
            .iter()
            .filter(|(leaf, values)| self.magnitudes.get(&leaf.name) == Some(values))
            .map(|(leaf, _)| leaf.name.as_str())
            .collect();
        if let Some(first) = still.first() {
            ctx.warn(format!(
                "{} of {} magnitudes did not move, `{first}` first: DoRA trained no more than a LoRA there",
                still.len(),
                self.magnitudes.len()
            ));
        }
        Ok(())
    }

    fn run_info(&self, steps: Vec<u64>, ctx: &Context<'_>) -> Result<(), StageError> {
        let info = RunInfo {
            method: self.settings.method(),
            steps,
            total_steps: self.setup.trainer.steps(),
            adapter: self.setup.adapter.clone(),
            base_digest: self.setup.base_digest.clone(),
            seed: self.settings.seed,
            best_step: self.watch.best.map(|(step, _)| step),
        };
        Ok(info.write(ctx.out())?)
    }

    /// First and last loss, out of the metrics: a resumed run has not seen its first step.
    fn table(&self, ctx: &Context<'_>) -> Result<Table, StageError> {
        let path = ctx.out().join(Lines::METRICS);
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        let figure = |line: Option<&str>, key: &str| -> Option<f64> {
            serde_json::from_str::<serde_json::Value>(line?).ok()?.get(key)?.as_f64()
        };
        let shown = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
        let trained: usize = self.setup.trainer.layouts().iter().map(|layout| layout.len).sum();
        let mut table = Table {
            title: "training".into(),
            columns: ["method", "trained", "steps", "first loss", "last loss", "held-out loss"]
                .map(str::to_owned)
                .into(),
            rows: vec![vec![
                self.settings.method.clone(),
                trained.to_string(),
                self.setup.trainer.steps().to_string(),
                shown(figure(text.lines().next(), "loss")),
                shown(figure(text.lines().last(), "loss")),
                shown(figure(text.lines().last(), "eval_loss")),
            ]],
        };
        let asked = self.settings.keep_best || self.settings.early_stop_patience > 0;
        if let Some((step, loss)) = self.watch.best.filter(|_| asked) {
            table.columns.push("best held-out".into());
            table.rows.iter_mut().for_each(|row| row.push(format!("{loss:.4} at {step}")));
        }
        Ok(table)
    }
}

/// Whether the parameters ask to keep the result of a step.
fn due(settings: &Settings, step: u64) -> bool {
    is_turn(step, settings.save_every) || settings.save_steps.contains(&step)
}

/// Whether a step is an `every`-th one; 0 is never.
fn is_turn(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// What must be the same for a checkpoint to be taken up.
fn fingerprint(settings: &Settings, setup: &Setup, start: u64) -> Result<String, StageError> {
    let groups = setup.trainer.layouts().iter().map(|layout| format!("{}:{}", layout.name, layout.len));
    let facts = serde_json::json!({
        "version": VERSION,
        "settings": settings,
        "rows": setup.train.rows.len(),
        "start": start,
        "groups": groups.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string(&facts)?)
}

/// Drops saved results of some steps.
fn forget(work: &Path, which: impl Fn(u64) -> bool) -> Result<(), StageError> {
    for entry in fs::read_dir(work).map_err(at(work))? {
        let path = entry.map_err(at(work))?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("step-"))
            .and_then(|number| number.parse::<u64>().ok());
        if number.is_some_and(&which) {
            fs::remove_dir_all(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// Tells progress, not too often.
struct Meter {
    since: Instant,
    tokens: usize,
}

impl Meter {
    fn tell(&mut self, report: &Report, total: u64, ctx: &Context<'_>) {
        let passed = self.since.elapsed();
        if passed < TELL && report.step != total {
            return;
        }
        let speed = self.tokens as f64 / passed.as_secs_f64().max(1e-9);
        ctx.progress(
            report.step,
            total,
            "steps",
            &[("loss", report.loss), ("tokens/s", speed), ("lr", report.lr)],
        );
        *self = Self { since: Instant::now(), tokens: 0 };
    }
}
