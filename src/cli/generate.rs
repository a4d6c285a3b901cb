//! `pipe generate`: asks a model something, to try a result.
//!
//! What answers is the registry's business; here words go in and come out.

use contract::StageError;
use formats::alpaca::{Row, Template};

use super::args::{Generate, Globals};
use super::print;
use crate::error::{Error, Exit};
use crate::registry::{Question, Registry};

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
