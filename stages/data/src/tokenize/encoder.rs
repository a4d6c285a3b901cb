//! Rows to token ids with a model folder's tokenizer, on all cores.

use std::fs;
use std::path::Path;

use contract::{Context, StageError};
use formats::alpaca::{Row, Template};
use formats::config::LlamaConfig;
use formats::tokens::TokenRow;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::{AddBos, LongRows, Settings};

/// Rows encoded between two looks at whether to stop.
const BATCH: usize = 2048;

/// A tokenizer and what is done with it.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Template,
    /// In front of every row.
    prefix: Vec<u32>,
    eos: u32,
    /// Ids are smaller than this.
    vocab_size: usize,
    /// Ids that the tokenizer has beyond the model's.
    surplus: usize,
    cutoff: usize,
    long_rows: LongRows,
    mask_prompt: bool,
}

/// What happened to a set of rows.
#[derive(Default)]
pub struct Counts {
    /// Rows that went in.
    pub rows: usize,
    /// Of them, longer than the cut-off.
    pub long: usize,
    /// Of them, left out because nothing of the answer is left.
    pub answerless: usize,
    /// Of them, with a token that reaches over the end of the prompt.
    pub unclean: usize,
}

impl Encoder {
    /// Reads `tokenizer.json` and, if they are there, `config.json` and `tokenizer_config.json`.
    pub fn open(folder: &Path, settings: &Settings) -> Result<Self, StageError> {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| {
            StageError::new(format!("cannot read the tokenizer `{}`: {error}", path.display()))
                .hint("the input `tokenizer` must be a model folder with a `tokenizer.json` in Hugging Face's format")
        })?;
        // A file may carry its own cutting and padding; here `cutoff` alone decides.
        tokenizer.with_truncation(None).map_err(failure)?;
        tokenizer.with_padding(None);
        let template = Template::by_name(&settings.template)
            .ok_or_else(|| StageError::new(format!("unknown template `{}`", settings.template)))?;
        let config =
            if folder.join("config.json").exists() { Some(LlamaConfig::read(folder)?) } else { None };
        let eos = special(folder, "eos_token", &tokenizer)
            .or_else(|| config.as_ref()?.eos_token_ids.first().copied())
            .ok_or_else(|| {
                StageError::new(format!("`{}` names no end-of-sequence token", folder.display()))
                    .hint("give `eos_token` in tokenizer_config.json or `eos_token_id` in config.json")
            })?;
        let prefix = prefix(folder, &tokenizer, config.as_ref(), eos, settings.add_bos)?;
        let (vocab_size, surplus) = fit(&tokenizer, config.as_ref(), folder)?;
        if let Some(id) = prefix.iter().chain([&eos]).find(|&&id| id as usize >= vocab_size) {
            return Err(too_large(*id, &tokenizer, vocab_size));
        }
        Ok(Self {
            tokenizer,
            template,
            prefix,
            eos,
            vocab_size,
            surplus,
            cutoff: settings.cutoff,
            long_rows: settings.long_rows,
            mask_prompt: settings.mask_prompt,
        })
    }

    /// The tokenizer itself.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// All ids are smaller than this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token behind every row.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The token in front of every row, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.prefix.first().copied()
    }

    /// Warns of what does not fit but does no harm.
    pub fn warnings(&self, ctx: &Context<'_>) {
        if self.surplus > 0 {
            ctx.warn(format!(
                "the tokenizer has {} added tokens beyond the model's {}; no row uses them",
                self.surplus, self.vocab_size
            ));
        }
    }

    /// Encodes `rows`; progress counts from `before` to `total`. `what` names a row in errors.
    pub fn encode(
        &self,
        rows: &[Row],
        before: usize,
        total: usize,
        what: &str,
        ctx: &Context<'_>,
    ) -> Result<(Vec<TokenRow>, Counts), StageError> {
        let mut encoded = Vec::with_capacity(rows.len());
        let mut counts = Counts::default();
        for batch in rows.chunks(BATCH) {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            let prompts: Vec<String> = batch.iter().map(|row| self.template.prompt(row)).collect();
            let texts: Vec<String> =
                prompts.iter().zip(batch).map(|(prompt, row)| prompt.clone() + &row.output).collect();
            let prompts = self.tokenizer.encode_batch_fast(prompts, false).map_err(failure)?;
            let texts = self.tokenizer.encode_batch_fast(texts, false).map_err(failure)?;
            for (prompt, text) in prompts.iter().zip(&texts) {
                counts.rows += 1;
                let number = counts.rows;
                counts.unclean += usize::from(!text.get_ids().starts_with(prompt.get_ids()));
                let row = self.row(prompt.get_ids().len(), text.get_ids(), &mut counts);
                encoded.extend(row.map_err(|error| StageError {
                    message: format!("{what} {number}: {}", error.message),
                    ..error
                })?);
            }
            ctx.progress((before + counts.rows) as u64, total as u64, "rows", &[]);
        }
        Ok((encoded, counts))
    }

    /// One row; none if it is left out.
    fn row(&self, prompt: usize, text: &[u32], counts: &mut Counts) -> Result<Option<TokenRow>, StageError> {
        if let Some(id) = text.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(too_large(*id, &self.tokenizer, self.vocab_size));
        }
        let mut ids = [self.prefix.as_slice(), text].concat();
        let full = ids.len() + 1;
        if full > self.cutoff {
            counts.long += 1;
            match self.long_rows {
                LongRows::Cut => ids.truncate(self.cutoff),
                LongRows::Drop => return Ok(None),
                LongRows::Error => {
                    let message = format!("{full} tokens are more than `cutoff` = {}", self.cutoff);
                    return Err(StageError::new(message)
                        .hint("raise `cutoff`, or set `long_rows` to \"cut\" or \"drop\""));
                }
            }
        }
        if ids.len() < self.cutoff {
            ids.push(self.eos);
        }
        let prompt_len = self.prefix.len() + prompt;
        if self.mask_prompt && prompt_len >= ids.len() {
            counts.answerless += 1;
            return Ok(None);
        }
        Ok(Some(TokenRow { prompt_len: prompt_len.min(ids.len()), ids }))
    }
}

/// What stands in front of every row.
fn prefix(
    folder: &Path,
    tokenizer: &Tokenizer,
    config: Option<&LlamaConfig>,
    eos: u32,
    add: AddBos,
) -> Result<Vec<u32>, StageError> {
    // What the tokenizer puts around nothing; a token that it puts behind is left to `eos`.
    let own = || -> Result<Vec<u32>, StageError> {
        let mut ids = tokenizer.encode("", true).map_err(failure)?.get_ids().to_vec();
        if ids.last() == Some(&eos) {
            ids.pop();
        }
        Ok(ids)
    };
    match add {
        AddBos::Never => Ok(Vec::new()),
        AddBos::Auto => own(),
        AddBos::Always => {
            let ids = own()?;
            if !ids.is_empty() {
                return Ok(ids);
            }
            let bos = special(folder, "bos_token", tokenizer).or_else(|| config?.bos_token_id);
            bos.map(|id| vec![id]).ok_or_else(|| {
                StageError::new(format!("`{}` names no token for `add_bos = \"always\"`", folder.display()))
                    .hint("give `bos_token` in tokenizer_config.json, or set `add_bos = \"never\"`")
            })
        }
    }
}

/// The id of a token that `tokenizer_config.json` names: a text, or a table with `content`.
fn special(folder: &Path, name: &str, tokenizer: &Tokenizer) -> Option<u32> {
    let text = fs::read_to_string(folder.join("tokenizer_config.json")).ok()?;
    let file: Value = serde_json::from_str(&text).ok()?;
    let token = file.get(name)?;
    tokenizer.token_to_id(token.as_str().or_else(|| token.get("content")?.as_str())?)
}

/// The model's vocabulary size, and how many added tokens lie beyond it.
fn fit(
    tokenizer: &Tokenizer,
    config: Option<&LlamaConfig>,
    folder: &Path,
) -> Result<(usize, usize), StageError> {
    let all = tokenizer.get_vocab(true);
    let Some(config) = config else {
        return Ok((all.values().max().map_or(0, |&id| id as usize + 1), 0));
    };
    let vocab_size = config.vocab_size;
    if let Some((token, id)) = tokenizer.get_vocab(false).iter().max_by_key(|(_, id)| **id)
        && *id as usize >= vocab_size
    {
        let message = format!(
            "the tokenizer of `{}` does not fit the model: token `{token}` has id {id}, but `vocab_size` is {vocab_size}",
            folder.display()
        );
        return Err(StageError::new(message).hint("take tokenizer.json and config.json from the same model"));
    }
    Ok((vocab_size, all.values().filter(|&&id| id as usize >= vocab_size).count()))
}

fn too_large(id: u32, tokenizer: &Tokenizer, vocab_size: usize) -> StageError {
    let token = tokenizer.id_to_token(id).unwrap_or_default();
    StageError::new(format!("token `{token}` has id {id}, but the model's `vocab_size` is {vocab_size}"))
        .hint("take tokenizer.json and config.json from the same model")
}

fn failure(error: tokenizers::Error) -> StageError {
    StageError::new(format!("tokenizer: {error}"))
}
