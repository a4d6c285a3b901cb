//! Jinja as Hugging Face sets it up for chat templates: blocks take the white space around them, Python's
//! methods on texts and lists, `raise_exception`, `strftime_now`, and a `tojson` that writes as Python does.
//!
//! Source: `transformers/utils/chat_template_utils.py`, `_compile_jinja_template`. As there, a line break
//! at the end of a template is not part of it. The date is given, not the clock's: a stage's output must not
//! depend on when it ran.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};

use crate::alpaca::Row;

/// Text that stands in the one name under which each environment holds its template.
pub(super) const NAME: &str = "template";

/// An environment with `source` in it, called [`NAME`]. `date` is what `strftime_now` formats.
pub(super) fn environment(
    source: &str,
    date: Option<jiff::civil::Date>,
) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    if let Some(date) = date {
        environment.add_function("strftime_now", move |format: String| -> Result<String, Error> {
            let moment = date.at(0, 0, 0, 0);
            jiff::fmt::strtime::format(&format, moment)
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
    }
    environment.add_template_owned(NAME, source.to_owned()).map_err(|error| explain(&error))?;
    Ok(environment)
}

/// The error with its line, in one line.
pub(super) fn explain(error: &Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        let _ = write!(text, " (line {line} of the template)");
    }
    text
}

/// A template whose text goes before the answer. It sees `instruction` and `input`.
pub struct PromptTemplate(Environment<'static>);

impl PromptTemplate {
    /// What it may name.
    const FIELDS: &'static [&'static str] = &["instruction", "input"];

    /// Reads a template.
    ///
    /// # Errors
    /// If it is no Jinja, or names a field that a row does not have.
    pub fn new(source: &str) -> Result<Self, String> {
        let environment = environment(source, None)?;
        let template = environment.get_template(NAME).map_err(|error| explain(&error))?;
        let named = template.undeclared_variables(false);
        let known = |name: &&String| !Self::FIELDS.contains(&name.as_str()) && *name != "raise_exception";
        let mut unknown: Vec<&String> = named.iter().filter(known).collect();
        unknown.sort();
        if let Some(field) = unknown.first() {
            return Err(if *field == "output" {
                "names `output`, which follows the prompt by itself".into()
            } else {
                format!(
                    "names the field `{field}`; it may name `instruction` and `input`, or `messages` for chats"
                )
            });
        }
        if !named.contains("instruction") {
            return Err("does not name `instruction`, so every prompt would be the same".into());
        }
        Ok(Self(environment))
    }

    /// What goes before the row's answer.
    ///
    /// # Errors
    /// What the template says.
    pub fn prompt(&self, row: &Row) -> Result<String, String> {
        let Row { instruction, input, .. } = row;
        let template = self.0.get_template(NAME).map_err(|error| explain(&error))?;
        template
            .render(minijinja::context! { instruction, input })
            .map_err(|error| format!("does not fit the template: {}", explain(&error)))
    }
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`, with what Hugging Face lets one pass.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut text = String::new();
    write_json(value, indent, 0, ascii.unwrap_or(false), &mut text)?;
    Ok(Value::from_safe_string(text))
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    ascii: bool,
    out: &mut String,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Map => {
            out.push('{');
            for (number, key) in value.try_iter()?.enumerate() {
                out.push_str(if number > 0 { comma } else { "" });
                line(out, depth + 1);
                quote(&key.to_string(), ascii, out);
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, ascii, out)?;
            }
            if value.len() != Some(0) {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                any = true;
                line(out, depth + 1);
                write_json(&item, indent, depth + 1, ascii, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push(']');
        }
        ValueKind::String => quote(value.as_str().unwrap_or_default(), ascii, out),
        ValueKind::None | ValueKind::Undefined => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A text as Python's `json` writes it.
fn quote(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row { instruction: "Say a.".into(), input: String::new(), output: "a".into() }
    }

    #[test]
    fn a_prompt_template_sees_the_row() {
        let source =
            "### {{ instruction }}\n{% if input %}\nInput: {{ input }}\n{% endif %}\n### Response:\n";
        let template = PromptTemplate::new(source).unwrap();
        assert_eq!(template.prompt(&row()).unwrap(), "### Say a.\n### Response:");
        let row = Row { input: "x <&> \"y\"".into(), ..row() };
        assert_eq!(template.prompt(&row).unwrap(), "### Say a.\nInput: x <&> \"y\"\n### Response:");
    }

    #[test]
    fn what_a_row_does_not_have_is_refused() {
        let refused = |source: &str| PromptTemplate::new(source).err().unwrap();
        assert!(refused("{{ instruction }} {{ context }}").contains("names the field `context`"));
        assert!(refused("{{ instruction }} {{ output }}").contains("`output`, which follows"));
        assert!(refused("Hello").contains("does not name `instruction`"));
        assert!(refused("{{ instruction }}\n{% if %}").contains("line 2"), "{}", refused("a\n{% if %}"));
        let template = PromptTemplate::new(
            "{{ instruction }}{% if not input %}{{ raise_exception('no input') }}{% endif %}",
        );
        assert!(template.unwrap().prompt(&row()).unwrap_err().contains("no input (line 1"));
    }
}
