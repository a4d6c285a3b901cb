//! `tokenize`: rows of a data set become token ids, split into a training and a held-out part.
//!
//! Instructions and completions as Hugging Face's Llama does it: the tokenizer's own leading tokens
//! (`<s>`), then prompt and answer encoded in one piece, cut on the right, then the end-of-sequence token
//! if it still fits. Chats go through a chat template, which spells its special tokens; nothing is added.
//! Text that spells a special token (`</s>`) becomes that token, also as in Hugging Face. The split
//! is that of `datasets.train_test_split` with the same seed, unless the data set brings
//! its own held-out part. What was made of the rows can be read in `samples.txt`.
//!
//! Version log: 1 first.

mod encoder;
mod samples;
mod split;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use contract::{
    Config, ConfigError, Context, Default, Input, Inputs, Job, Param, Pool, Ports, Stage, StageError, Type,
    at,
};
use formats::split::train_test_split;
use formats::template::Template;
use formats::tokens::{TokenMeta, TokenSet};
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Serializer as _};

use crate::dataset::{Dataset, HELDOUT, Rows};
use encoder::{Counts, Encoder};
use split::Split;

/// The kind `tokenize`.
pub struct Tokenize;

const INPUTS: &[Input] = &[
    Input::one(
        "dataset",
        "rows (instructions, chats, completions): a file, or a folder with `*.json`, `*.jsonl` or `*.parquet`, of which `heldout.json` is the held-out part",
    ),
    Input::one("tokenizer", "model folder with `tokenizer.json`"),
];

const PARAMS: &[Param] = &[
    Param::new(
        "template",
        Type::AnyOf(&[Type::Choice(Template::NAMES), Type::Text]),
        Default::Text("alpaca"),
        "how a row becomes text: `alpaca` (its prompt ends with a line break), `alpaca-stanford` (it does not), `plain`; for chats `chat` (the model's own), `chatml`, `llama2-chat`; or a file with a Jinja template that names `instruction` and `input`, or `messages`. Completions need none",
    )
    .local_path(),
    Param::new("date", Type::Text, Default::Absent, "what a chat template takes for today: `2024-07-26`; without it, it has no `strftime_now`"),
    Param::new("skip_broken", Type::Bool, Default::Bool(false), "whether rows that cannot be read are left out"),
    Param::new("cutoff", Type::Int { min: 2, max: 1 << 24 }, Default::Int(512), "longest row in tokens"),
    Param::new(
        "long_rows",
        Type::Choice(&["cut", "drop", "error"]),
        Default::Text("cut"),
        "what becomes of longer rows",
    ),
    Param::new("mask_prompt", Type::Bool, Default::Bool(false), "whether only answers count in the loss; of a chat, all turns of the assistant"),
    Param::new(
        "add_bos",
        Type::Choice(&["auto", "always", "never"]),
        Default::Text("auto"),
        "the token in front of a row; `auto`: as the tokenizer itself does",
    ),
    Param::new(
        "heldout",
        Type::at_least(0),
        Default::Int(0),
        "rows held out, if the data set does not bring `heldout.json`",
    ),
    Param::new("seed", Type::at_least(0), Default::Int(42), "of the split"),
];

#[derive(Deserialize)]
struct Settings {
    template: String,
    date: Option<String>,
    skip_broken: bool,
    cutoff: usize,
    long_rows: LongRows,
    mask_prompt: bool,
    add_bos: AddBos,
    heldout: usize,
    seed: u64,
}

/// What becomes of rows longer than the cut-off.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LongRows {
    Cut,
    Drop,
    Error,
}

/// Where the token in front of a row comes from.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AddBos {
    Auto,
    Always,
    Never,
}

impl Stage for Tokenize {
    fn kind(&self) -> &'static str {
        "tokenize"
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "turns rows into token ids, cut, masked and split into training and held-out rows"
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
        let mut errors = Vec::new();
        if !Template::NAMES.contains(&settings.template.as_str()) && !encoder::is_file(&settings.template) {
            let message = format!(
                "`{}` is no template: the names are {}; a file's path holds a `/` or a `.`",
                settings.template,
                Template::NAMES.join(", ")
            );
            errors.push(ConfigError::new("template", message));
        }
        if let Err(error) = settings.date() {
            errors.push(ConfigError::new("date", error));
        }
        if errors.is_empty() { Ok(Box::new(settings)) } else { Err(errors) }
    }
}

impl Job for Settings {
    fn foresee(&self, _: &Inputs) -> Vec<(String, Vec<u8>)> {
        let known = serde_json::json!({ "cutoff": self.cutoff });
        vec![(TokenMeta::FILE.to_owned(), known.to_string().into_bytes())]
    }

    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let set = Dataset::read(&ctx.input("dataset")?, self.skip_broken, ctx)?;
        for error in &set.broken.first {
            ctx.warn(format!("left out: {error}"));
        }
        if set.broken.rows > 0 {
            ctx.warn(format!("{} rows could not be read and were left out", set.broken.rows));
        }
        let (train_rows, heldout_rows) = self.split(set, ctx)?;
        let encoder = Encoder::open(&ctx.input("tokenizer")?, self)?;
        let total = train_rows.len() + heldout_rows.len();
        let split = |file, what| Split::create(&ctx.out().join(file), what, self.mask_prompt);
        let mut train = split(TokenSet::TRAIN, "row")?;
        train.fill(&train_rows, &encoder, 0, total, ctx)?;
        let mut heldout = split(TokenSet::HELDOUT, "held-out row")?;
        heldout.fill(&heldout_rows, &encoder, train_rows.len(), total, ctx)?;
        if train.writer.rows() == 0 {
            let message = format!("none of {} rows is left to train on", train_rows.len());
            return Err(StageError::new(message).hint("raise `cutoff`, or set `mask_prompt = false`"));
        }
        encoder.warnings(ctx);
        self.tell(&train.counts, "", ctx);
        self.tell(&heldout.counts, "held-out ", ctx);

        let samples = samples::texts(&train.first, self.mask_prompt, encoder.tokenizer())?;
        ctx.log(&format!("{}{}", samples::HEAD, samples[0]));
        let path = ctx.out().join("samples.txt");
        fs::write(&path, format!("{}{}", samples::HEAD, samples.concat())).map_err(at(&path))?;
        write_rows(&ctx.out().join(HELDOUT), &heldout_rows)?;
        self.meta(&encoder, &train, &heldout).write(ctx.out())?;
        train.writer.finish()?;
        heldout.writer.finish()?;
        Ok(())
    }
}

impl Settings {
    /// The date that stands for today.
    fn date(&self) -> Result<Option<jiff::civil::Date>, String> {
        let parse =
            |text: &String| text.parse().map_err(|_| format!("`{text}` is not of the form `2024-07-26`"));
        self.date.as_ref().map(parse).transpose()
    }

    /// Training and held-out rows.
    fn split(&self, set: Dataset, ctx: &Context<'_>) -> Result<(Rows, Rows), StageError> {
        if let Some(heldout) = set.heldout {
            if self.heldout > 0 {
                ctx.note(format!(
                    "the data set brings {} held-out rows of its own; `heldout = {}` is not used",
                    heldout.len(),
                    self.heldout
                ));
            }
            return Ok((set.rows, heldout));
        }
        if self.heldout == 0 {
            let none = set.rows.none();
            return Ok((set.rows, none));
        }
        let rows = set.rows.len();
        if self.heldout >= rows {
            let message = format!("cannot hold out {} of {rows} rows", self.heldout);
            return Err(StageError::new(message).hint("make `heldout` smaller than the data set"));
        }
        let (train, heldout) = train_test_split(rows, self.heldout, self.seed);
        Ok((set.rows.pick(train), set.rows.pick(heldout)))
    }

    /// Notes what happened to the rows.
    fn tell(&self, counts: &Counts, which: &str, ctx: &Context<'_>) {
        if counts.long > 0 {
            let what = if self.long_rows == LongRows::Drop { "left out" } else { "cut" };
            ctx.note(format!(
                "{} of {} {which}rows are longer than {} tokens and were {what}",
                counts.long, counts.rows, self.cutoff
            ));
        }
        if counts.answerless > 0 {
            ctx.note(format!(
                "{} {which}rows were left out because their answer lies beyond the cut-off and only answers count in the loss",
                counts.answerless
            ));
        }
        if self.mask_prompt && counts.unclean > 0 {
            ctx.note(format!(
                "in {} {which}rows a token reaches over the end of the prompt; it counts as answer or prompt as the prompt's own length says",
                counts.unclean
            ));
        }
    }

    fn meta(&self, encoder: &Encoder, train: &Split, heldout: &Split) -> TokenMeta {
        TokenMeta {
            template: self.template.clone(),
            cutoff: self.cutoff,
            mask_prompt: self.mask_prompt,
            vocab_size: encoder.vocab_size(),
            bos_token_id: encoder.bos(),
            eos_token_id: Some(encoder.eos()),
            train_rows: train.writer.rows(),
            heldout_rows: heldout.writer.rows(),
            truncated: train.counts.long + heldout.counts.long,
        }
    }
}

/// As questions and answers, which is what answers are compared with later.
fn write_rows(path: &Path, rows: &Rows) -> Result<(), StageError> {
    let mut file = BufWriter::new(File::create(path).map_err(at(path))?);
    let mut json = serde_json::Serializer::pretty(&mut file);
    let failed = |error: serde_json::Error| at(path)(error.into());
    let mut list = json.serialize_seq(Some(rows.len())).map_err(failed)?;
    for section in rows.sections() {
        let mut rows = section?.into_iter().map(|row| row.question());
        rows.try_for_each(|row| list.serialize_element(&row)).map_err(failed)?;
    }
    list.end().map_err(failed)?;
    file.write_all(b"\n").and_then(|()| file.flush()).map_err(at(path))
}
