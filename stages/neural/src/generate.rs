//! Greedy generation with a key-value cache.
//!
//! Prompts of different lengths share a batch: shorter ones are padded on the left and never look
//! at the padding. Positions count from the padded start, which changes nothing, because rotary
//! scores depend on distances only. It does not know tokenizers: ids in, ids out.

use burn::tensor::{Int, Tensor, TensorData};
use contract::StageError;

use crate::device;
use crate::model::attention::{Cache, Mask};
use crate::model::{Block, Llama};

/// Rows that are generated together.
const ROWS: usize = 64;

/// The most likely continuation of every prompt: up to `most` tokens each, up to and without the
/// first token of `stop`. `seen` is told how many prompts are done.
///
/// # Errors
/// If a prompt is empty, leaves no room in the model's positions, or the device fails.
pub fn greedy(
    model: &Llama,
    prompts: &[Vec<u32>],
    most: usize,
    stop: &[u32],
    mut seen: impl FnMut(usize) -> Result<(), StageError>,
) -> Result<Vec<Vec<u32>>, StageError> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&row| prompts[row].len());
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut done = 0;
    for rows in order.chunks(ROWS) {
        let batch: Vec<&[u32]> = rows.iter().map(|&row| prompts[row].as_slice()).collect();
        for (&row, answer) in rows.iter().zip(together(model, &batch, most, stop, |_, _| Ok(()))?) {
            answers[row] = answer;
        }
        done += rows.len();
        seen(done)?;
    }
    Ok(answers)
}

/// The most likely continuation of one prompt; `said` gets each token as soon as it is known.
///
/// # Errors
/// As for [`greedy`], and if `said` fails.
pub fn stream(
    model: &Llama,
    prompt: &[u32],
    most: usize,
    stop: &[u32],
    mut said: impl FnMut(u32) -> Result<(), StageError>,
) -> Result<(), StageError> {
    together(model, &[prompt], most, stop, |_, id| said(id)).map(drop)
}

/// One batch of prompts, the longest last; `said` gets row and token.
fn together(
    model: &Llama,
    prompts: &[&[u32]],
    most: usize,
    stop: &[u32],
    mut said: impl FnMut(usize, u32) -> Result<(), StageError>,
) -> Result<Vec<Vec<u32>>, StageError> {
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    if prompts.iter().any(|prompt| prompt.is_empty()) {
        return Err(StageError::new("a prompt has no token to start from"));
    }
    model.check_length(longest + 1)?;
    let most = most.min(model.config.max_position_embeddings - longest);
    let first: Vec<usize> = prompts.iter().map(|prompt| longest - prompt.len()).collect();
    let mut input: Vec<i32> = Vec::with_capacity(prompts.len() * longest);
    for (prompt, &first) in prompts.iter().zip(&first) {
        input.extend(std::iter::repeat_n(0, first));
        input.extend(prompt.iter().map(|&id| id as i32));
    }
    let mut caches = vec![Cache::default(); model.blocks.len()];
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut open = vec![true; prompts.len()];
    let (mut start, mut time) = (0, longest);
    for _ in 0..most {
        let window = model.config.sliding_window;
        let mask = Mask::new(&model.rope, start, time, &first, window, &model.device);
        let ids = Tensor::from_data(TensorData::new(input, [prompts.len(), time]), &model.device);
        input = next(model, ids, &mask, &mut caches)?;
        for (row, ((answer, open), &id)) in answers.iter_mut().zip(&mut open).zip(&input).enumerate() {
            *open &= !stop.contains(&(id as u32));
            if *open {
                answer.push(id as u32);
                said(row, id as u32)?;
            }
        }
        if !open.contains(&true) {
            break;
        }
        (start, time) = (start + time, 1);
    }
    Ok(answers)
}

/// The most likely token after the last of each row; the caches grow by the given tokens.
fn next(
    model: &Llama,
    ids: Tensor<2, Int>,
    mask: &Mask,
    caches: &mut [Cache],
) -> Result<Vec<i32>, StageError> {
    let [rows, time] = ids.dims();
    let step = |x, (block, cache): (&Block, &mut Cache)| block.forward(x, mask, Some(cache));
    let x = model.blocks.iter().zip(caches).fold(model.embed(ids), step);
    let [_, _, hidden] = x.dims();
    let last = x.slice_dim(1, time - 1..time).reshape([rows, hidden]);
    let best = model.logits(model.norm.forward(last)).argmax(1);
    best.inner().try_into_vec_as::<i32>().map_err(|error| device::failed(&error))
}
