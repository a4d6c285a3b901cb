//! The schema against real files, with as much of JSON Schema as it uses.

use std::path::Path;

use super::*;
use crate::registry::all;

/// Why `value` does not conform; empty if it does.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (word, rule) in schema.as_object().expect("a schema is a table") {
        let good = match word.as_str() {
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/definitions/").unwrap();
                wrong.extend(check(root, &root["definitions"][name], value, at));
                true
            }
            "type" => match rule {
                Value::Array(names) => names.iter().any(|name| is_type(name.as_str().unwrap(), value)),
                name => is_type(name.as_str().unwrap(), value),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "pattern" => {
                assert_eq!(rule, "\\$\\{", "the one pattern that this check knows");
                value.as_str().is_none_or(|text| text.contains("${"))
            }
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
            "minProperties" => {
                value.as_object().is_none_or(|keys| keys.len() as u64 >= rule.as_u64().unwrap())
            }
            "required" => {
                let names = rule.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                value.as_object().is_none_or(|keys| names.into_iter().all(|name| keys.contains_key(name)))
            }
            "anyOf" => rule.as_array().unwrap().iter().any(|one| check(root, one, value, at).is_empty()),
            "allOf" => {
                wrong.extend(rule.as_array().unwrap().iter().flat_map(|one| check(root, one, value, at)));
                true
            }
            "if" => {
                if check(root, rule, value, at).is_empty() {
                    wrong.extend(check(root, &schema["then"], value, at));
                }
                true
            }
            "items" => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                wrong.extend(items.iter().flat_map(|item| check(root, rule, item, at)));
                true
            }
            "properties" => {
                for (key, rule) in rule.as_object().unwrap() {
                    let inner = value.get(key).map(|value| check(root, rule, value, &format!("{at}.{key}")));
                    wrong.extend(inner.unwrap_or_default());
                }
                true
            }
            "additionalProperties" => {
                let known =
                    |key: &String| schema.get("properties").is_some_and(|known| known.get(key).is_some());
                for (key, value) in value.as_object().into_iter().flatten().filter(|(key, _)| !known(key)) {
                    match rule {
                        Value::Bool(true) => {}
                        Value::Bool(false) => wrong.push(format!("{at}.{key} is unknown")),
                        rule => wrong.extend(check(root, rule, value, &format!("{at}.{key}"))),
                    }
                }
                true
            }
            "then" | "title" | "description" | "default" | "definitions" | "$schema" => true,
            other => panic!("this check does not know `{other}`"),
        };
        if !good {
            wrong.push(format!("{at}: {value} breaks `{word}`: {rule}"));
        }
    }
    wrong
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("`{other}` is no type"),
    }
}

/// The file as an editor sees it; stages whose kind this build lacks are left out.
fn document(text: &str) -> Value {
    let mut document: Value = toml::from_str(text).unwrap();
    let registry = all();
    if registry.missing.is_some() {
        let stages = document["stages"].as_object_mut().unwrap();
        stages.retain(|_, stage| registry.get(stage["kind"].as_str().unwrap()).is_some());
    }
    document
}

fn errors(text: &str) -> Vec<String> {
    let schema = schema(&all());
    check(&schema, &schema, &document(text), "")
}

#[test]
fn every_pipeline_of_the_house_conforms() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            assert_eq!(errors(&std::fs::read_to_string(&path).unwrap()), [""; 0], "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 3, "only {count} pipelines were checked");
}

#[test]
fn a_file_that_uses_everything_conforms() {
    let text = r#"
        name = "x"
        [vars]
        n = 3
        [pools]
        gpu = 2
        [stages.a]
        kind = "command"
        argv = ["x", "${n}"]
        timeout = "5m"
        retries = 1
        env = ["HOME"]
        [stages.b]
        kind = "command"
        inputs = { x = "a", y = ["a", "c[*]"] }
        matrix = { m = [1, "b", true], include = [{ m = 3 }], exclude = [{ m = 1 }] }
        argv = "${list}"
        env = { A = "b" }
        [stages.b.resources]
        cpus = 4
        gpus = "${n}"
        nodes = 1
        memory = "16GB"
        time = "12h"
        slurm = { partition = "p", account = "x", extra = ["--qos=long"] }
    "#;
    assert_eq!(errors(text), [""; 0]);
}

#[test]
fn what_is_wrong_does_not_conform() {
    let stage = |line: &str| format!("[stages.a]\nkind = \"command\"\n{line}\n");
    for text in [
        stage("arg = 3"),
        stage("argv = 3"),
        stage("argv = [3]"),
        stage(""),
        stage("argv = [\"x\"]\nretries = -1"),
        stage("argv = [\"x\"]\ninputs = { a = 3 }"),
        stage("argv = [\"x\"]\nmatrix = { a = [] }"),
        format!("nam = 3\n{}", stage("argv = [\"x\"]")),
        format!("[pools]\ngpus = 1\n{}", stage("argv = [\"x\"]")),
    ] {
        assert!(!errors(&text).is_empty(), "{text}");
    }
}
