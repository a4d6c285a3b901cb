//! One row of a data set, in any of the forms that people publish: an instruction (Alpaca), a chat
//! (`messages`, or ShareGPT's `conversations`), a completion (`prompt` and `completion`, or plain `text`).
//!
//! The form follows from the keys, row by row. It does not know files or templates.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::alpaca::{self, Row};
use crate::json::brief;

/// A row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Example {
    /// A task and its answer.
    Instruction(Row),
    /// Turns of a conversation; at least one is the assistant's.
    Chat(Vec<Message>),
    /// A text to go on with, which may be empty, and how it goes on.
    Completion {
        /// Not to be learnt where prompts are masked.
        prompt: String,
        /// To be learnt.
        text: String,
    },
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// The role whose turns are learnt.
    pub const ASSISTANT: &'static str = "assistant";

    /// Whether the turn is the assistant's.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.role == Self::ASSISTANT
    }
}

impl Example {
    /// What the form is called in messages.
    #[must_use]
    pub const fn form(&self) -> &'static str {
        match self {
            Self::Instruction(_) => "an instruction",
            Self::Chat(_) => "a chat",
            Self::Completion { .. } => "a completion",
        }
    }

    /// Reads a row.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that begins with its place.
    pub fn from_value(value: Value) -> Result<Self, String> {
        let Value::Object(mut map) = value else {
            return Err(format!("is {} and should be an object", brief(&value)));
        };
        let has = |map: &Map<String, Value>, key: &str| map.get(key).is_some_and(|value| !value.is_null());
        if has(&map, "instruction") {
            return alpaca::row_of(map).map(Self::Instruction);
        }
        if let Some(turns) = map.remove("messages").filter(|value| !value.is_null()) {
            return chat(messages(turns, "messages", "role", "content")?);
        }
        if let Some(turns) = map.remove("conversations").filter(|value| !value.is_null()) {
            return chat(sharegpt(turns, map.remove("system"))?);
        }
        if has(&map, "prompt") && has(&map, "completion") {
            let (prompt, completion) = (map.remove("prompt"), map.remove("completion"));
            return match (prompt, completion) {
                (Some(Value::String(prompt)), Some(Value::String(text))) => {
                    Ok(Self::Completion { prompt, text })
                }
                (Some(prompt @ Value::Array(_)), Some(completion @ Value::Array(_))) => {
                    let mut turns = messages(prompt, "prompt", "role", "content")?;
                    turns.extend(messages(completion, "completion", "role", "content")?);
                    chat(turns)
                }
                _ => Err("`prompt` and `completion` should be two texts, or two lists of messages".into()),
            };
        }
        match map.remove("text") {
            Some(Value::String(text)) => Ok(Self::Completion { prompt: String::new(), text }),
            Some(other) if !other.is_null() => {
                Err(format!("`text` is {} and should be a text", brief(&other)))
            }
            _ if map.contains_key("output") => Err("has no `instruction`".into()),
            _ => {
                let keys: Vec<String> = map.keys().take(8).map(|key| format!("`{key}`")).collect();
                Err(format!(
                    "has none of `instruction`, `messages`, `conversations`, `prompt` with `completion`, and `text`; it has {}",
                    if keys.is_empty() { "no key".to_owned() } else { keys.join(", ") }
                ))
            }
        }
    }

    /// The row as a question and its answer, for programs that compare answers.
    #[must_use]
    pub fn question(&self) -> Row {
        let row = |instruction: String, output: &str| Row {
            instruction,
            input: String::new(),
            output: output.to_owned(),
        };
        match self {
            Self::Instruction(row) => row.clone(),
            Self::Completion { prompt, text } => row(prompt.clone(), text),
            Self::Chat(turns) => {
                let before: Vec<&str> = turns
                    .iter()
                    .take_while(|turn| !turn.is_answer())
                    .map(|turn| turn.content.as_str())
                    .collect();
                let answer =
                    turns.iter().find(|turn| turn.is_answer()).map_or("", |turn| turn.content.as_str());
                row(before.join("\n\n"), answer)
            }
        }
    }

    /// The row as turns, if it can be seen so: an instruction is a user's turn, its input below it.
    #[must_use]
    pub fn turns(&self) -> Option<Vec<Message>> {
        let turn = |role: &str, content: String| Message { role: role.to_owned(), content };
        match self {
            Self::Chat(turns) => Some(turns.clone()),
            Self::Instruction(Row { instruction, input, output }) => {
                let question =
                    if input.is_empty() { instruction.clone() } else { format!("{instruction}\n\n{input}") };
                Some(vec![turn("user", question), turn(Message::ASSISTANT, output.clone())])
            }
            Self::Completion { .. } => None,
        }
    }
}

fn chat(turns: Vec<Message>) -> Result<Example, String> {
    if turns.iter().any(Message::is_answer) {
        Ok(Example::Chat(turns))
    } else {
        Err("has no turn of the assistant, so there is nothing to learn".into())
    }
}

fn messages(value: Value, key: &str, role: &str, content: &str) -> Result<Vec<Message>, String> {
    let Value::Array(turns) = value else {
        return Err(format!("`{key}` is {} and should be a list of messages", brief(&value)));
    };
    let message = |(number, turn): (usize, Value)| {
        let place = format!("`{key}[{number}]`");
        let Value::Object(mut turn) = turn else {
            return Err(format!("{place} is {} and should be an object", brief(&turn)));
        };
        let mut text = |name: &str| match turn.remove(name) {
            Some(Value::String(text)) => Ok(text),
            None | Some(Value::Null) => Err(format!("{place} has no `{name}`")),
            Some(other) => Err(format!("{place}: `{name}` is {} and should be a text", brief(&other))),
        };
        Ok(Message { role: text(role)?, content: text(content)? })
    };
    turns.into_iter().enumerate().map(message).collect()
}

/// ShareGPT: `from` and `value`, with names of its own for the roles.
fn sharegpt(value: Value, system: Option<Value>) -> Result<Vec<Message>, String> {
    // The key is also used for lists in the other form.
    let other_form = value.get(0).is_some_and(|turn| turn.get("role").is_some());
    let (role, content) = if other_form { ("role", "content") } else { ("from", "value") };
    let mut turns = messages(value, "conversations", role, content)?;
    for turn in &mut turns {
        let known = match turn.role.as_str() {
            "human" => "user",
            "gpt" | "chatgpt" | "bard" | "bing" | "model" | "bot" => Message::ASSISTANT,
            _ => continue,
        };
        turn.role = known.to_owned();
    }
    if let Some(Value::String(content)) = system
        && !content.is_empty()
        && turns.first().is_none_or(|turn| turn.role != "system")
    {
        turns.insert(0, Message { role: "system".into(), content });
    }
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turns(value: Value) -> Vec<(String, String)> {
        match Example::from_value(value).unwrap() {
            Example::Chat(turns) => turns.into_iter().map(|turn| (turn.role, turn.content)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_form_follows_from_the_keys() {
        let form = |value| Example::from_value(value).map(|example| example.form());
        assert_eq!(form(json!({"instruction": "a", "output": "b", "text": "all"})), Ok("an instruction"));
        assert_eq!(form(json!({"messages": [{"role": "assistant", "content": "b"}]})), Ok("a chat"));
        assert_eq!(form(json!({"prompt": "a", "completion": "b"})), Ok("a completion"));
        assert_eq!(form(json!({"text": "a", "instruction": null})), Ok("a completion"));
    }

    #[test]
    fn sharegpt_is_a_chat_with_other_names() {
        let said = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        let value = json!({"system": "be kind", "conversations": [
            {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]});
        assert_eq!(turns(value), [said("system", "be kind"), said("user", "hi"), said("assistant", "hello")]);
        let value = json!({"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]});
        assert_eq!(turns(value), [said("user", "hi"), said("assistant", "yo")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |value| Example::from_value(value).unwrap_err();
        assert!(error(json!({"question": "a"})).contains("it has `question`"));
        assert!(error(json!([1])).contains("should be an object"));
        assert!(
            error(json!({"messages": [{"role": "user", "content": "a"}]}))
                .contains("no turn of the assistant")
        );
        assert!(
            error(json!({"messages": [{"role": "user", "content": ["a"]}]}))
                .contains("`messages[0]`: `content` is a list")
        );
        assert!(
            error(json!({"conversations": [{"from": "gpt"}]})).contains("`conversations[0]` has no `value`")
        );
        assert!(error(json!({"prompt": "a", "completion": []})).contains("two texts"));
    }

    #[test]
    fn any_row_is_a_question_and_an_instruction_is_a_chat() {
        let row = json!({"instruction": "add", "input": "1 2", "output": "3"});
        let example = Example::from_value(row).unwrap();
        let turns = example.turns().unwrap();
        assert_eq!((turns[0].content.as_str(), turns[1].content.as_str()), ("add\n\n1 2", "3"));
        let chat = Example::Chat(turns).question();
        assert_eq!((chat.instruction.as_str(), chat.output.as_str()), ("add\n\n1 2", "3"));
    }
}
