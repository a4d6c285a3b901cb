//! The JSON Schema of a pipeline file, from the registry: editors complete and check with it.
//!
//! It is as strict as a schema can be where a `"${var}"` may stand for any value: keys and kinds are
//! exact, every value may also be a text with a reference. `pipeline` has the last word.

use contract::{Default, Many, Ports, Stage, Type};
use serde_json::{Map, Value, json};

use crate::pipeline::default;
use crate::registry::Registry;

/// The schema (draft 7, which Taplo reads).
#[must_use]
pub fn schema(registry: &Registry) -> Value {
    let kinds: Vec<&str> = registry.stages.iter().map(|stage| stage.kind()).collect();
    let branches: Vec<Value> = registry
        .stages
        .iter()
        .map(|&stage| {
            json!({
                "if": { "properties": { "kind": { "const": stage.kind() } }, "required": ["kind"] },
                "then": { "$ref": format!("#/definitions/{}", stage.kind()) },
            })
        })
        .collect();
    let mut definitions: Map<String, Value> =
        registry.stages.iter().map(|&stage| (stage.kind().to_owned(), kind(stage))).collect();
    definitions.insert("reference".into(), reference());
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pipeline",
        "type": "object",
        "additionalProperties": false,
        "required": ["stages"],
        "properties": {
            "name": { "type": "string", "description": "the pipeline's name; the file's stem if absent" },
            "vars": { "type": "object", "description": "values for `${name}`, overridable with `--set name=value`" },
            "pools": {
                "type": "object",
                "description": "how many stages of a pool run side by side",
                "additionalProperties": false,
                "properties": {
                    "gpu": { "type": "integer", "minimum": 1 },
                    "cpu": { "type": "integer", "minimum": 1 },
                    "network": { "type": "integer", "minimum": 1 },
                },
            },
            "stages": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {
                    "type": "object",
                    "required": ["kind"],
                    "properties": { "kind": { "anyOf": [{ "enum": kinds }, { "$ref": "#/definitions/reference" }] } },
                    "allOf": branches,
                },
            },
        },
        "definitions": definitions,
    })
}

/// A text that holds a `${…}`.
fn reference() -> Value {
    json!({ "type": "string", "pattern": "\\$\\{" })
}

fn kind(stage: &dyn Stage) -> Value {
    let mut properties = runner_keys();
    properties.insert("kind".into(), json!({ "const": stage.kind(), "description": stage.doc() }));
    let inputs = inputs(stage.inputs());
    let needs_inputs =
        inputs.get("required").and_then(Value::as_array).is_some_and(|names| !names.is_empty());
    properties.insert("inputs".into(), inputs);
    let mut required: Vec<&str> = vec!["kind"];
    if needs_inputs {
        required.push("inputs");
    }
    for param in stage.params() {
        let mut value = json!({
            "description": param.doc,
            "anyOf": [ty(&param.ty), { "$ref": "#/definitions/reference" }],
        });
        if let Some(default) = default(&param.default) {
            value["default"] = default;
        }
        properties.insert(param.name.into(), value);
    }
    // A matrix axis may set a parameter, so that a missing one is an error of a stage without only.
    let params: Vec<&str> = stage
        .params()
        .iter()
        .filter(|param| matches!(param.default, Default::Required))
        .map(|param| param.name)
        .collect();
    json!({
        "type": "object",
        "description": stage.doc(),
        "additionalProperties": false,
        "properties": properties,
        "required": required,
        "anyOf": [{ "required": ["matrix"] }, { "required": params }],
    })
}

fn runner_keys() -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let row = json!({ "type": "array", "items": { "type": "object", "additionalProperties": scalar } });
    let keys = json!({
        "matrix": {
            "description": "one instance per combination of these values",
            "type": "object",
            "properties": { "include": row, "exclude": row },
            "additionalProperties": {
                "anyOf": [{ "type": "array", "minItems": 1, "items": scalar }, { "$ref": "#/definitions/reference" }],
            },
        },
        "timeout": { "description": "after how long an attempt is stopped: 90s, 10m, 12h, 3d", "type": "string" },
        "retries": {
            "description": "how many more attempts follow a failed one",
            "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 1000 }, { "$ref": "#/definitions/reference" }],
        },
        "resources": resources(),
        "env": {
            "description": "environment variables: names to pass through, or values; part of the key",
            "anyOf": [{ "type": "array", "items": text }, { "type": "object", "additionalProperties": text }],
        },
    });
    match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}

fn resources() -> Value {
    let text = json!({ "type": "string" });
    let count = |doc: &str| {
        json!({
            "description": doc,
            "anyOf": [{ "type": "integer", "minimum": 1 }, { "$ref": "#/definitions/reference" }],
        })
    };
    json!({
        "description": "what it asks of the machine that runs it; not part of the key",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "cpus": count("processor cores; on this machine slots of the pool `cpu`"),
            "gpus": count("GPUs; on this machine slots of the pool `gpu`, where the kind has no `devices`"),
            "nodes": count("machines"),
            "memory": { "description": "memory on each machine: 500MB, 16GB", "type": "string" },
            "time": { "description": "after how long the cluster may end it: 30m, 12h", "type": "string" },
            "slurm": {
                "description": "for Slurm alone",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "partition": text,
                    "account": text,
                    "extra": { "description": "further options of sbatch", "type": "array", "items": text },
                },
            },
        },
    })
}

fn inputs(ports: Ports) -> Value {
    let one = json!({ "type": "string" });
    let several = json!({ "anyOf": [one, { "type": "array", "minItems": 1, "items": one }] });
    match ports {
        Ports::Any => json!({ "type": "object", "additionalProperties": several }),
        Ports::Listed(ports) => {
            let properties: Map<String, Value> = ports
                .iter()
                .map(|port| {
                    let mut value = if port.many == Many::Several { several.clone() } else { one.clone() };
                    value["description"] = port.doc.into();
                    (port.name.to_owned(), value)
                })
                .collect();
            let required: Vec<&str> =
                ports.iter().filter(|port| port.many != Many::Optional).map(|port| port.name).collect();
            json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
        }
    }
}

fn ty(ty: &Type) -> Value {
    match *ty {
        Type::Bool => json!({ "type": "boolean" }),
        Type::Int { min, max } => {
            let mut value = json!({ "type": "integer" });
            if min > i64::MIN {
                value["minimum"] = min.into();
            }
            if max < i64::MAX {
                value["maximum"] = max.into();
            }
            value
        }
        Type::Float { min, max } => {
            let mut value = json!({ "type": "number" });
            if min > f64::MIN {
                value["minimum"] = min.into();
            }
            if max < f64::MAX {
                value["maximum"] = max.into();
            }
            value
        }
        Type::Text => json!({ "type": "string" }),
        Type::Choice(words) => json!({ "enum": words }),
        Type::List(item) => json!({ "type": "array", "items": self::item(item) }),
        Type::Table(item) => json!({ "type": "object", "additionalProperties": self::item(item) }),
        Type::AnyOf(types) => json!({ "anyOf": types.iter().map(self::ty).collect::<Vec<_>>() }),
    }
}

fn item(item: &Type) -> Value {
    json!({ "anyOf": [ty(item), { "$ref": "#/definitions/reference" }] })
}

#[cfg(test)]
mod tests;
