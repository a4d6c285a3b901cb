//! Chat templates: a model's own `chat_template`, or one of two that everybody knows.
//!
//! What is learnt are the assistant's turns. Where the template marks them (`{% generation %}`), it is
//! what stands between the marks, as in Hugging Face's `return_assistant_tokens_mask`. Else it is what a
//! turn adds behind the prompt for it (`add_generation_prompt`); a template under which a conversation does
//! not begin as its own first turns do cannot be told apart so, and is refused.

use std::path::Path;

use minijinja::Environment;
use serde::Serialize;
use serde_json::Value;

use super::Rendered;
use super::jinja::{NAME, environment, explain};
use crate::Error;
use crate::error::at;
use crate::example::Message;
use crate::json::{object, text};

/// Stand before and after what is learnt while a template runs; no text holds them.
const MARKS: [char; 2] = ['\u{10FFFD}', '\u{10FFFC}'];

/// OpenAI's form, as many models have it.
const CHATML: &str = "\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

/// Llama 2's (arXiv 2307.09288, and `llama/generation.py` of its repository).
const LLAMA2: &str = "\
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant must take turns, the user first') -}}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + ((system if loop.index0 == 0 else '') + message['content']).strip() + ' [/INST]' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' ' + message['content'].strip() + ' ' + eos_token -}}
  {%- else -%}
    {{- raise_exception('only the first turn may be of another role, `system`') -}}
  {%- endif -%}
{%- endfor -%}";

/// Texts that templates put around turns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos_token: Option<String>,
    /// `eos_token`.
    pub eos_token: Option<String>,
    /// `pad_token`.
    pub pad_token: Option<String>,
    /// `unk_token`.
    pub unk_token: Option<String>,
}

/// A chat template that can be used.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: SpecialTokens,
    /// Whether it marks what is learnt.
    marks: bool,
}

/// What a template sees of a turn, in this order.
#[derive(Serialize)]
struct Turn<'a> {
    role: &'a str,
    content: &'a str,
}

impl ChatTemplate {
    /// Reads a template. `date` is what it may take for today.
    ///
    /// # Errors
    /// If it is no Jinja.
    pub fn new(source: &str, tokens: SpecialTokens, date: Option<jiff::civil::Date>) -> Result<Self, String> {
        let (source, marks) = with_marks(source);
        let mut environment = environment(&source, date)?;
        environment.add_filter("learnt", |text: String| {
            minijinja::value::Value::from_safe_string(format!("{}{text}{}", MARKS[0], MARKS[1]))
        });
        Ok(Self { environment, tokens, marks })
    }

    /// `chatml` or `llama2-chat`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static str> {
        match name {
            "chatml" => Some(CHATML),
            "llama2-chat" => Some(LLAMA2),
            _ => None,
        }
    }

    /// Whether a template is about `messages`.
    ///
    /// # Errors
    /// If it is no Jinja.
    pub fn names_messages(source: &str) -> Result<bool, String> {
        let mut environment = environment(&with_marks(source).0, None)?;
        environment.add_filter("learnt", |text: String| text);
        let template = environment.get_template(NAME).map_err(|error| explain(&error))?;
        Ok(template.undeclared_variables(false).contains("messages"))
    }

    /// A conversation as text.
    ///
    /// # Errors
    /// What does not fit the template, as the end of a sentence that begins with the row's place.
    pub fn render(&self, turns: &[Message]) -> Result<Rendered, String> {
        if turns.iter().any(|turn| turn.content.contains(MARKS)) {
            return Err("holds a character that no text has (U+10FFFC or U+10FFFD)".into());
        }
        let whole = self.marked(turns, false)?;
        if self.marks {
            let (text, learnt) = unmark(&whole);
            return Ok(Rendered { text, learnt, complete: true });
        }
        let mut learnt = Vec::new();
        for (number, _) in turns.iter().enumerate().filter(|(_, turn)| turn.is_answer()) {
            let (before, until) = (self.text(&turns[..number], true)?, self.text(&turns[..=number], false)?);
            // Templates without a prompt of their own for an answer end the question where the answer begins.
            if !until.starts_with(&before) || !whole.starts_with(&until) {
                return Err(format!(
                    "cannot be told apart by turns: under this template the conversation up to turn {} does not begin as its earlier turns do; use a template with `{{% generation %}}` marks, or `mask_prompt = false`",
                    number + 1
                ));
            }
            learnt.push(before.len()..until.len());
        }
        Ok(Rendered { text: whole, learnt, complete: true })
    }

    /// What the template makes of these turns, with its prompt for an answer behind them or without.
    ///
    /// # Errors
    /// What does not fit the template, as the end of a sentence that begins with the row's place.
    pub fn text(&self, turns: &[Message], prompt: bool) -> Result<String, String> {
        Ok(unmark(&self.marked(turns, prompt)?).0)
    }

    fn marked(&self, turns: &[Message], prompt: bool) -> Result<String, String> {
        let messages: Vec<Turn<'_>> =
            turns.iter().map(|turn| Turn { role: &turn.role, content: &turn.content }).collect();
        let SpecialTokens { bos_token, eos_token, pad_token, unk_token } = &self.tokens;
        let template = self.environment.get_template(NAME).map_err(|error| explain(&error))?;
        let context = minijinja::context! {
            messages, add_generation_prompt => prompt,
            bos_token => bos_token.as_deref(), eos_token => eos_token.as_deref(),
            pad_token => pad_token.as_deref(), unk_token => unk_token.as_deref(),
        };
        template
            .render(context)
            .map_err(|error| format!("does not fit the chat template: {}", explain(&error)))
    }
}

/// Turns `{% generation %}` into a filter around the same text, which leaves white space as it was.
fn with_marks(source: &str) -> (String, bool) {
    let mut text = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length + 2];
        text.push_str(&rest[..start]);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => {
                text.push_str(&tag.replace("generation", "filter learnt"));
                found = true;
            }
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endfilter")),
            _ => text.push_str(tag),
        }
        rest = &rest[start + tag.len()..];
    }
    text.push_str(rest);
    (text, found)
}

/// The text without marks, and what stood between them.
fn unmark(text: &str) -> (String, Vec<std::ops::Range<usize>>) {
    let (mut plain, mut learnt) = (String::with_capacity(text.len()), Vec::new());
    let mut start = 0;
    for c in text.chars() {
        if c == MARKS[0] {
            start = plain.len();
        } else if c == MARKS[1] {
            learnt.push(start..plain.len());
        } else {
            plain.push(c);
        }
    }
    (plain, learnt)
}

/// The model's own template in a model folder, with the special tokens that it names.
///
/// # Errors
/// If a file cannot be read, or there is no template.
pub fn of_model(folder: &Path) -> crate::Result<(String, SpecialTokens)> {
    let path = folder.join("tokenizer_config.json");
    let file = if path.exists() { object(&text(&path)?, &path)? } else { serde_json::Map::new() };
    let alone = folder.join("chat_template.jinja");
    if alone.exists() {
        let source = std::fs::read_to_string(&alone).map_err(at(&alone))?;
        return Ok((source, special_tokens(&file)));
    }
    let source = match file.get("chat_template") {
        Some(Value::String(source)) => Some(source.clone()),
        // Several with names; the one without tools is `default`.
        Some(Value::Array(list)) => list
            .iter()
            .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|one| one.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    };
    match source {
        Some(source) => Ok((source, special_tokens(&file))),
        None => Err(Error::new(folder, "the model has no chat template of its own")
            .hint("set `template` to \"chatml\", \"llama2-chat\" or a file; a model's own stands in `chat_template.jinja`, or as `chat_template` in tokenizer_config.json")),
    }
}

/// The special tokens that a model folder's `tokenizer_config.json` names.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn special_tokens_of(folder: &Path) -> crate::Result<SpecialTokens> {
    let path = folder.join("tokenizer_config.json");
    Ok(if path.exists() { special_tokens(&object(&text(&path)?, &path)?) } else { SpecialTokens::default() })
}

fn special_tokens(file: &serde_json::Map<String, Value>) -> SpecialTokens {
    // A text, or a table with `content`.
    let token = |name: &str| {
        let token = file.get(name)?;
        Some(token.as_str().or_else(|| token.get("content")?.as_str())?.to_owned())
    };
    SpecialTokens {
        bos_token: token("bos_token"),
        eos_token: token("eos_token"),
        pad_token: token("pad_token"),
        unk_token: token("unk_token"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(turns: &[(&str, &str)]) -> Vec<Message> {
        turns
            .iter()
            .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
            .collect()
    }

    fn tokens() -> SpecialTokens {
        SpecialTokens {
            bos_token: Some("<s>".into()),
            eos_token: Some("</s>".into()),
            ..SpecialTokens::default()
        }
    }

    fn named(name: &str) -> ChatTemplate {
        ChatTemplate::new(ChatTemplate::by_name(name).unwrap(), tokens(), None).unwrap()
    }

    fn learnt(rendered: &Rendered) -> Vec<&str> {
        rendered.learnt.iter().map(|range| &rendered.text[range.clone()]).collect()
    }

    #[test]
    fn every_turn_of_the_assistant_is_learnt() {
        let chat = turns(&[
            ("system", "Be kind."),
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ]);
        let rendered = named("chatml").render(&chat).unwrap();
        assert_eq!(learnt(&rendered), ["b<|im_end|>\n", "d<|im_end|>\n"]);
        let rendered = named("llama2-chat").render(&chat).unwrap();
        assert_eq!(
            rendered.text,
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST] d </s>"
        );
        assert_eq!(learnt(&rendered), [" b </s>", " d </s>"]);
    }

    #[test]
    fn marks_of_a_template_say_what_is_learnt() {
        let source = "{% for m in messages %}\n{% if m.role == 'assistant' %}\nA: {% generation %}{{ m.content }}{% endgeneration %}!\n{% else %}\nU: {{ m.content }}\n{% endif %}\n{% endfor %}";
        let template = ChatTemplate::new(source, tokens(), None).unwrap();
        let rendered = template.render(&turns(&[("user", "a"), ("assistant", "b")])).unwrap();
        assert_eq!((rendered.text.as_str(), learnt(&rendered)), ("U: a\nA: b!\n", vec!["b"]));
    }

    #[test]
    fn a_template_says_what_does_not_fit() {
        let error = named("llama2-chat").render(&turns(&[("assistant", "a")])).unwrap_err();
        assert!(error.contains("must take turns"), "{error}");
        let changing = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(changing, tokens(), None).unwrap();
        let error = template.render(&turns(&[("user", "a"), ("assistant", "b")])).unwrap_err();
        assert!(error.contains("generation"), "{error}");
    }

    #[test]
    fn the_date_is_given_and_not_the_clocks() {
        let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{{ messages[0].content }}";
        let said =
            |date| ChatTemplate::new(source, tokens(), date).unwrap().text(&turns(&[("user", "a")]), false);
        assert_eq!(said(Some(jiff::civil::date(2024, 7, 26))).unwrap(), "26 Jul 2024a");
        assert_eq!(said(None).unwrap(), "a");
    }

    #[test]
    fn a_model_brings_its_template_in_one_of_three_ways() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let write = |name: &str, text: &str| std::fs::write(at.join(name), text).unwrap();
        assert!(of_model(at).unwrap_err().message.contains("no chat template of its own"));
        write(
            "tokenizer_config.json",
            r#"{"chat_template": "one", "bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#,
        );
        assert_eq!(of_model(at).unwrap(), ("one".to_owned(), tokens()));
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "two"}]}"#,
        );
        assert_eq!(of_model(at).unwrap().0, "two");
        write("chat_template.jinja", "three");
        assert_eq!(of_model(at).unwrap().0, "three");
    }
}
