//! `pipe generate`: asks a model something, to try a result.
//!
//! What answers is the registry's business; here words go in and come out.

use std::path::PathBuf;

use clap::Args;
use contract::StageError;
use formats::alpaca::{Row, Template};

use super::args::Globals;
use super::print;
use crate::error::{Error, Exit};
use crate::registry::{Question, Registry};

/// `pipe generate`
#[derive(Args, Clone, Debug)]
pub struct Generate {
    /// The model's folder, with its tokenizer.json
    #[arg(value_name = "MODEL", value_hint = clap::ValueHint::DirPath)]
    pub model: PathBuf,
    /// What it shall go on from
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
    /// An adapter for it: a PEFT folder, or what `train` wrote (its last step)
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub adapter: Option<PathBuf>,
    /// Length of the answer at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Where to compute: auto, gpu, gpu:N, software, cpu
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Put the prompt into a template as its instruction; without, it is taken as written
    #[arg(long, value_name = "NAME",
        value_parser = clap::builder::PossibleValuesParser::new(formats::alpaca::Template::NAMES))]
    pub template: Option<String>,
    /// The template's input
    #[arg(long, value_name = "TEXT", requires = "template")]
    pub input: Option<String>,
}

/// Runs the command.
pub fn run(args: &Generate, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let Some(answer) = registry.generate else {
        return Err(Error::usage("this binary was built without a tensor backend and cannot run a model")
            .hint("build it with `cargo build --release`, without `--no-default-features`"));
    };
    let question = Question {
        model: args.model.clone(),
        adapter: args.adapter.clone(),
        device: args.device.clone(),
        max_new_tokens: args.max_new_tokens,
        prompt: prompt(args),
    };
    let mut say = |piece: &str| print(piece).map(drop).map_err(|error| StageError::new(error.message));
    let device = answer(&question, &mut say)
        .map_err(|error| Error { hint: error.hint, ..Error::new(Exit::Failed, error.message) })?;
    print("\n")?;
    if globals.verbose > 0 {
        anstream::eprintln!("computed on {device}");
    }
    Ok(Exit::Ok)
}

/// The prompt as it was written, or as the instruction of a template.
fn prompt(args: &Generate) -> String {
    match args.template.as_deref().and_then(Template::by_name) {
        None => args.prompt.clone(),
        Some(template) => template.prompt(&Row {
            instruction: args.prompt.clone(),
            input: args.input.clone().unwrap_or_default(),
            output: String::new(),
        }),
    }
}
