//! Rows to token ids with a model folder's tokenizer, on all cores.

use std::fs;
use std::ops::Range;
use std::path::Path;

use contract::{Context, StageError, at};
use formats::alpaca;
use formats::config::LlamaConfig;
use formats::example::Example;
use formats::template::chat::{self, ChatTemplate, SpecialTokens};
use formats::template::jinja::PromptTemplate;
use formats::template::{Rendered, Template};
use formats::tokens::TokenRow;
use rayon::prelude::*;
use serde_json::Value;
use tokenizers::{Encoding, Tokenizer};

use super::{AddBos, LongRows, Settings};

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
    /// A special token of the template that the tokenizer takes to pieces.
    split: Option<&'static str>,
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
    /// Of them, left out because nothing of an answer is left.
    pub answerless: usize,
    /// Of them, with a token that reaches over the end of a prompt or of a turn.
    pub unclean: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.long += other.long;
        self.answerless += other.answerless;
        self.unclean += other.unclean;
    }
}

/// Why a row cannot be encoded.
enum Refused {
    /// Its text cannot be made: the end of a sentence that begins with its place.
    Row(String),
    /// Its text can, its tokens do not do.
    Tokens(StageError),
}

impl From<StageError> for Refused {
    fn from(error: StageError) -> Self {
        Self::Tokens(error)
    }
}

impl Encoder {
    /// Reads `tokenizer.json` and, if they are there, `config.json` and `tokenizer_config.json`.
    pub fn open(folder: &Path, settings: &Settings) -> Result<Self, StageError> {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = formats::tokenizer::read(&path).map_err(|error| {
            StageError::new(format!("cannot read the tokenizer {error}"))
                .hint("the input `tokenizer` must be a model folder with a `tokenizer.json` in Hugging Face's format")
        })?;
        // A file may carry its own cutting and padding; here `cutoff` alone decides.
        tokenizer.with_truncation(None).map_err(failure)?;
        tokenizer.with_padding(None);
        let config =
            if folder.join("config.json").exists() { Some(LlamaConfig::read(folder)?) } else { None };
        let eos = special(folder, "eos_token", &tokenizer)
            .or_else(|| config.as_ref()?.eos_token_ids.first().copied())
            .ok_or_else(|| {
                StageError::new(format!("`{}` names no end-of-sequence token", folder.display()))
                    .hint("give `eos_token` in tokenizer_config.json or `eos_token_id` in config.json")
            })?;
        let template = template(folder, &tokenizer, config.as_ref(), eos, settings)?;
        let split = (settings.template == "chatml" && tokenizer.token_to_id("<|im_start|>").is_none())
            .then_some("<|im_start|>");
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
            split,
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
        if let Some(token) = self.split {
            ctx.warn(format!("the tokenizer does not know `{token}` as one token; a model that was not trained with it has to learn its pieces"));
        }
    }

    /// Encodes the next rows of a split, of which `counts` are known so far. `what` names a row in errors.
    pub fn encode(
        &self,
        rows: &[Example],
        what: &str,
        counts: &mut Counts,
    ) -> Result<Vec<TokenRow>, StageError> {
        let encode = |example: &Example| {
            let mut counts = Counts { rows: 1, ..Counts::default() };
            self.one(example, &mut counts).map(|row| (row, counts))
        };
        let encoded: Vec<Result<_, Refused>> = rows.par_iter().map(encode).collect();
        let mut kept = Vec::with_capacity(rows.len());
        for result in encoded {
            let number = counts.rows + 1;
            let (row, one) = result.map_err(|refused| match refused {
                Refused::Row(why) => StageError::new(format!("{what} {number} {why}")),
                Refused::Tokens(error) => {
                    StageError { message: format!("{what} {number}: {}", error.message), ..error }
                }
            })?;
            counts.add(&one);
            kept.extend(row);
        }
        Ok(kept)
    }

    /// A row, if it is not left out.
    fn one(&self, example: &Example, counts: &mut Counts) -> Result<Option<TokenRow>, Refused> {
        let text = self.template.render(example).map_err(Refused::Row)?;
        let row = if text.complete {
            // Where turns begin and end must be found again, so the places of tokens are kept.
            let encoding = self.tokenizer.encode(text.text.as_str(), false).map_err(failure)?;
            self.chat(&text, &encoding, counts)?
        } else {
            let prompt = &text.text[..text.learnt.first().map_or(0, |range| range.start)];
            let prompt = self.tokenizer.encode_fast(prompt, false).map_err(failure)?;
            let whole = self.tokenizer.encode_fast(text.text.as_str(), false).map_err(failure)?;
            self.row(prompt.get_ids(), whole.get_ids(), counts)?
        };
        Ok(row)
    }

    /// A conversation: all its tokens, of which those of the assistant's turns are learnt.
    fn chat(
        &self,
        text: &Rendered,
        encoding: &Encoding,
        counts: &mut Counts,
    ) -> Result<Option<TokenRow>, StageError> {
        let mut ids = encoding.get_ids().to_vec();
        self.check(&ids)?;
        let (learnt, clean) = learnt(encoding.get_offsets(), &text.learnt);
        counts.unclean += usize::from(!clean);
        if self.cut(&mut ids, 0, counts)? {
            return Ok(None);
        }
        let row = TokenRow::of_turns(ids, &learnt);
        Ok(self.answered(row, counts))
    }

    /// A prompt and its answer; none if it is left out.
    fn row(&self, prompt: &[u32], text: &[u32], counts: &mut Counts) -> Result<Option<TokenRow>, StageError> {
        self.check(text)?;
        counts.unclean += usize::from(!text.starts_with(prompt));
        let mut ids = [self.prefix.as_slice(), text].concat();
        if self.cut(&mut ids, 1, counts)? {
            return Ok(None);
        }
        if ids.len() < self.cutoff {
            ids.push(self.eos);
        }
        let prompt_len = (self.prefix.len() + prompt.len()).min(ids.len());
        Ok(self.answered(TokenRow { ids, prompt_len, turns: Vec::new() }, counts))
    }

    fn check(&self, ids: &[u32]) -> Result<(), StageError> {
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(id) => Err(too_large(*id, &self.tokenizer, self.vocab_size)),
            None => Ok(()),
        }
    }

    /// Cuts a row that is too long with the `more` tokens to come; true if it is left out.
    fn cut(&self, ids: &mut Vec<u32>, more: usize, counts: &mut Counts) -> Result<bool, StageError> {
        let full = ids.len() + more;
        if full <= self.cutoff {
            return Ok(false);
        }
        counts.long += 1;
        match self.long_rows {
            LongRows::Cut => ids.truncate(self.cutoff),
            LongRows::Drop => return Ok(true),
            LongRows::Error => {
                let message = format!("{full} tokens are more than `cutoff` = {}", self.cutoff);
                return Err(StageError::new(message)
                    .hint("raise `cutoff`, or set `long_rows` to \"cut\" or \"drop\""));
            }
        }
        Ok(false)
    }

    /// The row, unless only answers count and it has none.
    fn answered(&self, row: TokenRow, counts: &mut Counts) -> Option<TokenRow> {
        if self.mask_prompt && row.prompt_len >= row.ids.len() {
            counts.answerless += 1;
            return None;
        }
        Some(row)
    }
}

/// Which tokens, given by their places in the text, are of one of the turns; and whether none reaches over
/// the beginning or end of one. As in Hugging Face's `return_assistant_tokens_mask`, a turn goes from the
/// first token that holds its first letter to the first that holds its last; but of a letter that was taken to
/// bytes, all bytes are of the turn.
pub fn learnt(places: &[(usize, usize)], turns: &[Range<usize>]) -> (Vec<bool>, bool) {
    let (mut learnt, mut clean) = (vec![false; places.len()], true);
    for turn in turns.iter().filter(|turn| !turn.is_empty()) {
        let first = places.iter().position(|&(start, end)| start <= turn.start && turn.start < end);
        let last = places.iter().position(|&(start, end)| start < turn.end && turn.end <= end);
        let (Some(first), Some(mut last)) = (first, last) else { continue };
        clean &= places[first].0 == turn.start && places[last].1 == turn.end;
        let bytes = places[last].1 - places[last].0 > 1;
        while bytes && places.get(last + 1) == Some(&places[last]) {
            last += 1;
        }
        learnt[first..=last.max(first)].fill(true);
    }
    (learnt, clean)
}

/// Whether a template's name is a file's.
pub fn is_file(name: &str) -> bool {
    name.contains(['/', '.'])
}

/// The template that `settings` name.
fn template(
    folder: &Path,
    tokenizer: &Tokenizer,
    config: Option<&LlamaConfig>,
    eos: u32,
    settings: &Settings,
) -> Result<Template, StageError> {
    let name = settings.template.as_str();
    if let Some(template) = alpaca::Template::by_name(name) {
        return Ok(Template::Prompt(template));
    }
    let complete = |mut tokens: SpecialTokens| {
        let text = |id: u32| tokenizer.id_to_token(id);
        tokens.bos_token = tokens.bos_token.or_else(|| text(config?.bos_token_id?));
        tokens.eos_token = tokens.eos_token.or_else(|| text(eos));
        tokens
    };
    let (place, source, tokens) = if name == "chat" {
        let (source, tokens) = chat::of_model(folder)?;
        ("the model's chat template".to_owned(), source, tokens)
    } else if let Some(source) = ChatTemplate::by_name(name) {
        (format!("template `{name}`"), source.to_owned(), chat::special_tokens_of(folder)?)
    } else {
        let path = Path::new(name);
        let source = fs::read_to_string(path).map_err(|error| {
            at(path)(error).hint("a template's path is looked up from the folder in which `pipe` was started")
        })?;
        (format!("template `{name}`"), source, chat::special_tokens_of(folder)?)
    };
    let broken = |why: String| StageError::new(format!("{place}: {why}"));
    if is_file(name) && !ChatTemplate::names_messages(&source).map_err(broken)? {
        return PromptTemplate::new(&source).map(Template::Custom).map_err(broken);
    }
    let date = settings.date().map_err(StageError::new)?;
    ChatTemplate::new(&source, complete(tokens), date).map(Template::Chat).map_err(broken)
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
