//! What a model in training answered, prompt by prompt: how the answer changes from step to step.

use super::html::{escape, table};
use crate::measured::{Answer, answers};
use crate::recorded::{Recorded, Stage};

/// At most this many prompts of one stage, and steps of one prompt.
const PROMPTS: usize = 8;
const STEPS: usize = 12;

/// Of a longer text the beginning is shown.
const LETTERS: usize = 1500;

/// The answers of all stages.
#[must_use]
pub fn html(recorded: &Recorded) -> String {
    recorded.stages.iter().map(of_stage).collect()
}

fn of_stage(stage: &Stage) -> String {
    let answers = stage.output.as_ref().map(|output| answers(output)).unwrap_or_default();
    let mut prompts: Vec<Vec<&Answer>> = Vec::new();
    for answer in &answers {
        match prompts.iter_mut().find(|others| is_of_one_prompt(others[0], answer)) {
            Some(others) => others.push(answer),
            None => prompts.push(vec![answer]),
        }
    }
    if prompts.is_empty() {
        return String::new();
    }
    let more = match prompts.len().saturating_sub(PROMPTS) {
        0 => String::new(),
        more => format!("<p>Answers to {more} more prompts are in its output.</p>\n"),
    };
    let shown: String = prompts.iter().take(PROMPTS).map(|answers| of_prompt(answers)).collect();
    let name = escape(&stage.record.stage);
    format!(
        "<details><summary>{name} <small>answers while training</small></summary>\n{shown}{more}</details>\n"
    )
}

fn is_of_one_prompt(left: &Answer, right: &Answer) -> bool {
    (left.row, &left.prompt) == (right.row, &right.prompt)
}

/// A prompt, what was expected, and the answers; of many steps some, evenly, and the last.
fn of_prompt(answers: &[&Answer]) -> String {
    let stride = answers.len().div_ceil(STEPS);
    let (first, last) = (answers[0], answers.len() - 1);
    let shown = answers.iter().enumerate().filter(|(at, _)| (last - at) % stride == 0);
    let mut rows: Vec<Vec<String>> =
        shown.map(|(_, answer)| vec![answer.step.to_string(), beginning(&answer.answer)]).collect();
    if let Some(expected) = &first.expected {
        rows.push(vec!["expected".to_owned(), beginning(expected)]);
    }
    let columns = ["step", "answer"].map(str::to_owned);
    format!("<pre>{}</pre>\n{}", escape(&beginning(&first.prompt)), table(&columns, &rows))
}

fn beginning(text: &str) -> String {
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_steps_some_are_shown_and_the_last() {
        let answer = |step: u64| Answer {
            step,
            row: 0,
            prompt: "2 + 2".into(),
            expected: Some("4".into()),
            answer: format!("<{step}>"),
        };
        let answers: Vec<Answer> = (1..=100).map(answer).collect();
        let html = of_prompt(&answers.iter().collect::<Vec<_>>());
        assert_eq!(html.matches("<tr>").count(), 1 + 12 + 1, "{html}");
        assert!(html.contains("<td>&lt;100&gt;</td>") && html.contains("<td>&lt;10&gt;</td>"), "{html}");
        assert!(html.contains("<td>expected</td><td>4</td>"), "{html}");
    }

    #[test]
    fn a_long_text_is_cut_between_letters() {
        assert_eq!(beginning(&"é".repeat(LETTERS + 1)), "é".repeat(LETTERS) + "…");
        assert_eq!(beginning("é"), "é");
    }
}
