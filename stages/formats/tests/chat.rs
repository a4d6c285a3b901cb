//! Chat templates against what transformers makes of them; see `tests/fixtures/chat`.

use std::path::{Path, PathBuf};

use formats::example::Message;
use formats::template::chat::{ChatTemplate, SpecialTokens};
use serde_json::Value;

fn folder() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    std::env::var_os("PIPE_FIXTURES").map_or_else(own, PathBuf::from).join("chat")
}

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join("chat.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn template(source: &str) -> ChatTemplate {
    let tokens = SpecialTokens {
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        unk_token: Some("<unk>".into()),
        pad_token: None,
    };
    ChatTemplate::new(source, tokens, None).unwrap()
}

fn messages(case: &Value) -> Vec<Message> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let turns = case["messages"].as_array().unwrap().iter();
    turns.map(|turn| Message { role: text(&turn["role"]), content: text(&turn["content"]) }).collect()
}

#[test]
fn parity_texts_and_prompts_equal_those_of_transformers() {
    let mut compared = 0;
    for case in cases() {
        let name = case["template"].as_str().unwrap();
        let template = template(&std::fs::read_to_string(folder().join("templates").join(name)).unwrap());
        let turns = messages(&case);
        let what = format!("{name}, {}", case["chat"]);
        assert_eq!(template.text(&turns, false).as_deref(), Ok(case["text"].as_str().unwrap()), "{what}");
        let prompt = template.text(&turns[..turns.len() - 1], true);
        assert_eq!(prompt.as_deref(), Ok(case["prompt"].as_str().unwrap()), "{what}");
        compared += 1;
    }
    assert_eq!(compared, 15);
}

#[test]
fn parity_the_named_templates_are_those_that_everybody_knows() {
    for case in cases() {
        let name = match case["template"].as_str().unwrap() {
            "chatml.jinja" => "chatml",
            "llama2.jinja" => "llama2-chat",
            _ => continue,
        };
        let rendered = template(ChatTemplate::by_name(name).unwrap()).render(&messages(&case)).unwrap();
        assert_eq!(rendered.text, case["text"].as_str().unwrap(), "{name}, {}", case["chat"]);
        // The last turn is the assistant's: it is what the whole has beyond the prompt for it.
        let last = rendered.learnt.last().unwrap();
        assert_eq!(&rendered.text[..last.start], case["prompt"].as_str().unwrap());
        assert_eq!(last.end, rendered.text.len());
    }
}
