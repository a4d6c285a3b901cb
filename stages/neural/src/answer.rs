//! A model, with or without an adapter, asked one thing: `pipe generate`.
//!
//! The most likely token each time, told as text as soon as it is known.

use std::path::{Path, PathBuf};

use contract::StageError;
use formats::adapter::Adapter;
use formats::run::{Method, RunInfo, step_dir};
use tokenizers::Tokenizer;

use crate::model::Llama;
use crate::{device, generate};

/// Continues `prompt` by up to `most` tokens; `said` gets the text piece by piece. Returns where it
/// was computed. `adapter` is a PEFT folder, or the output of `train` or `checkpoint`, whose last
/// step is taken.
///
/// # Errors
/// If model, tokenizer or adapter cannot be read or do not fit each other, the prompt has no token or
/// too many, the device fails, or `said` does.
pub fn answer(
    model: &Path,
    adapter: Option<&Path>,
    device: &str,
    most: usize,
    prompt: &str,
    said: &mut dyn FnMut(&str) -> Result<(), StageError>,
) -> Result<String, StageError> {
    let mut tokenizer = tokenizer(model)?;
    // A file may carry its own cutting and padding.
    tokenizer.with_truncation(None).map_err(failure)?;
    tokenizer.with_padding(None);
    let adapter = adapter.map(|folder| read_adapter(folder, model)).transpose()?;
    let opened = device::open(device, 0)?;
    let mut llama = Llama::load(model, &opened.device)?;
    if let Some(adapter) = &adapter {
        llama.attach(adapter)?;
    }
    let stop = &llama.config.eos_token_ids;
    let mut ids = tokenizer.encode(prompt, true).map_err(failure)?.get_ids().to_vec();
    // Some tokenizers end every text; this one is to go on.
    while ids.last().is_some_and(|id| stop.contains(id)) {
        ids.pop();
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= llama.config.vocab_size) {
        let vocabulary = llama.config.vocab_size;
        return Err(StageError::new(format!(
            "the prompt holds token {id}, and the model's vocabulary has {vocabulary}"
        ))
        .hint("take tokenizer.json and config.json from the same model"));
    }
    let (mut text, mut answer, mut told) = (tokenizer.decode_stream(true), Vec::new(), String::new());
    generate::stream(&llama, &ids, most, stop, |id| {
        answer.push(id);
        let piece = text.step(id).map_err(failure)?.unwrap_or_default();
        told.push_str(&piece);
        said(&piece)
    })?;
    // What ends within a character was held back.
    let whole = tokenizer.decode(&answer, true).map_err(failure)?;
    whole.strip_prefix(&told).map_or(Ok(()), said)?;
    Ok(opened.label)
}

fn tokenizer(model: &Path) -> Result<Tokenizer, StageError> {
    let path = model.join("tokenizer.json");
    if !path.exists() {
        return Err(StageError::new(format!("`{}` has no tokenizer.json", model.display())).hint(
            "copy the base model's beside it; a `checkpoint` stage does that for its input `model`, and `merge` always",
        ));
    }
    Ok(formats::tokenizer::read(&path)?)
}

/// The adapter of a folder. Where a run is known to it, the model must be what that run was trained on.
fn read_adapter(folder: &Path, model: &Path) -> Result<Adapter, StageError> {
    let has_run = |folder: &&Path| folder.join(RunInfo::FILE).exists();
    let Some(run_folder) = [Some(folder), folder.parent()].into_iter().flatten().find(has_run) else {
        return Ok(Adapter::read(folder)?);
    };
    let run = RunInfo::read(run_folder)?;
    if run.method == Method::Full {
        return Err(StageError::new(format!("`{}` holds whole models, no adapter", run_folder.display()))
            .hint("give one of its steps as the model"));
    }
    run.check_base(model)?;
    let last = || run.steps.iter().max().map(|&step| run_folder.join(step_dir(step)));
    let chosen: Option<PathBuf> = if run_folder == folder { last() } else { None };
    Ok(Adapter::read(chosen.as_deref().unwrap_or(folder))?)
}

fn failure(error: tokenizers::Error) -> StageError {
    StageError::new(format!("tokenizer: {error}"))
}
