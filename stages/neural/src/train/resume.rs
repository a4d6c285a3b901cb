//! `inputs.resume`: a finished run as the start of a longer one: its parameters, moments and step.
//!
//! What the longer run's parameters say of learning rate, rows and batches holds from there on. With
//! the same as before and `schedule = "constant"` it ends where one long run would have.

use std::path::Path;

use contract::{Context, StageError};
use formats::adapter::AdapterConfig;
use formats::run::RunInfo;

use super::Settings;
use crate::groups::Layout;
use crate::state::Last;

/// What must fit.
pub struct Wanted<'a> {
    /// The model's adapter.
    pub adapter: Option<&'a AdapterConfig>,
    /// Digest of the base's weights.
    pub base_digest: &'a str,
    /// What is trained.
    pub layouts: &'a [Layout],
    /// Steps of the longer run.
    pub total: u64,
}

/// The state of the input `resume`, if it is given and fits.
pub fn read(settings: &Settings, wanted: &Wanted<'_>, ctx: &Context<'_>) -> Result<Option<Last>, StageError> {
    let Some(folder) = ctx.inputs.optional("resume") else { return Ok(None) };
    if ctx.inputs.optional("adapter").is_some() {
        return Err(StageError::new("the inputs `adapter` and `resume` both say where training starts")
            .hint("`resume` brings moments and step along; `adapter` starts afresh from saved weights"));
    }
    let run = RunInfo::read(folder)?;
    fits(folder, &run, settings, wanted)?;
    let last = Last::read(folder)?;
    if last.step >= wanted.total {
        return Err(StageError::new(format!(
            "`{}` has made {} steps, and this run has {}",
            folder.display(),
            last.step,
            wanted.total
        ))
        .hint("a larger `max_steps` (it counts from the very first step)"));
    }
    let has = |layout: &Layout| {
        last.slabs
            .iter()
            .any(|slab| slab.name == layout.name && slab.values.iter().all(|part| part.len() == layout.len))
    };
    if last.slabs.len() != wanted.layouts.len() || !wanted.layouts.iter().all(has) {
        return Err(stranger(folder, "its tensors have other sizes"));
    }
    ctx.note(format!("goes on after step {} of the given run", last.step));
    Ok(Some(last))
}

fn fits(folder: &Path, run: &RunInfo, settings: &Settings, wanted: &Wanted<'_>) -> Result<(), StageError> {
    if run.method != settings.method() {
        let why = format!("it was trained with `method = \"{}\"`", run.method.name());
        return Err(stranger(folder, &why));
    }
    if run.base_digest != wanted.base_digest {
        return Err(stranger(folder, "its base model has other weights"));
    }
    let (Some(before), Some(now)) = (&run.adapter, wanted.adapter) else { return Ok(()) };
    let facts = |adapter: &AdapterConfig| {
        let mut targets = adapter.target_modules.clone();
        targets.sort();
        [
            ("rank", adapter.rank.to_string()),
            ("alpha", adapter.alpha.to_string()),
            ("rslora", adapter.rslora.to_string()),
            ("target_modules", targets.join(", ")),
        ]
    };
    match facts(before).into_iter().zip(facts(now)).find(|(before, now)| before != now) {
        None => Ok(()),
        Some(((name, before), (_, now))) => {
            Err(stranger(folder, &format!("its `{name}` is {before}, here it is {now}")))
        }
    }
}

fn stranger(folder: &Path, why: &str) -> StageError {
    StageError::new(format!("`{}` is no run that this one can go on from: {why}", folder.display()))
        .hint("model, method and adapter must be those of the run given as `resume`")
}
