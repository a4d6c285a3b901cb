//! How a row becomes text, and which part of the text is learnt.
//!
//! Instructions go through a prompt template, chats through a chat template, completions are text already.
//! Templates of one's own are Jinja, as Hugging Face's are. It does not know tokens.

use std::ops::Range;

use crate::alpaca;
use crate::example::Example;
use chat::ChatTemplate;
use jinja::PromptTemplate;

pub mod chat;
pub mod jinja;

/// A template.
pub enum Template {
    /// One of [`alpaca::Template`].
    Prompt(alpaca::Template),
    /// A prompt template of one's own.
    Custom(PromptTemplate),
    /// For conversations.
    Chat(ChatTemplate),
}

/// A row as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// Which bytes of it are learnt where prompts are masked; in order, apart from each other.
    pub learnt: Vec<Range<usize>>,
    /// Whether it spells the special tokens around it, so that none are to be added.
    pub complete: bool,
}

impl Template {
    /// Names of what needs no file: [`alpaca::Template::NAMES`], and for conversations `chatml`,
    /// `llama2-chat` and `chat`, the model's own.
    pub const NAMES: &'static [&'static str] =
        &["alpaca", "alpaca-stanford", "plain", "llama2-chat", "chatml", "chat"];

    /// The row as text.
    ///
    /// # Errors
    /// What does not fit, as the end of a sentence that begins with the row's place.
    pub fn render(&self, example: &Example) -> Result<Rendered, String> {
        let after = |prompt: String, answer: &str| {
            let start = prompt.len();
            let text = prompt + answer;
            Rendered { learnt: std::iter::once(start..text.len()).collect(), text, complete: false }
        };
        match (self, example) {
            (_, Example::Completion { prompt, text }) => Ok(after(prompt.clone(), text)),
            (Self::Prompt(template), Example::Instruction(row)) => Ok(after(template.prompt(row), &row.output)),
            (Self::Custom(template), Example::Instruction(row)) => Ok(after(template.prompt(row)?, &row.output)),
            (Self::Chat(template), example) => {
                let turns = example.turns().ok_or_else(|| "is no conversation".to_owned())?;
                template.render(&turns)
            }
            (Self::Prompt(_) | Self::Custom(_), Example::Chat(_)) => Err(
                "is a chat, and the template is one for instructions: set `template` to \"chat\" (the model's own), \"chatml\" or \"llama2-chat\""
                    .into(),
            ),
        }
    }
}
