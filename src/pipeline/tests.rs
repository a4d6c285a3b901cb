//! What a pipeline file means, and what a person sees when it means nothing.

use contract::{
    Config, ConfigError, Context, Default, Input, Job, Param, Pool, Ports, Stage, StageError, Type,
};

use super::{Diagnostics, Pipeline};
use crate::registry::Registry;

mod conflicts;
mod errors;
mod meaning;
mod random;
mod settings;

/// A kind that takes what it is told to take and makes nothing.
struct Fake {
    kind: &'static str,
    inputs: Ports,
    params: &'static [Param],
}

struct Nothing;

impl Job for Nothing {
    fn run(&self, _: &mut Context<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

impl Stage for Fake {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "a fake"
    }

    fn pool(&self) -> Pool {
        Pool::Cpu
    }

    fn inputs(&self) -> Ports {
        self.inputs
    }

    fn params(&self) -> &'static [Param] {
        self.params
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        match config.get("rank").and_then(serde_json::Value::as_i64) {
            Some(13) => Err(vec![ConfigError::new("rank", "brings bad luck")]),
            _ => Ok(Box::new(Nothing)),
        }
    }
}

const MAKE: Fake = Fake {
    kind: "make",
    inputs: Ports::Listed(&[]),
    params: &[
        Param::new("seed", Type::at_least(0), Default::Int(0), "the seed"),
        Param::new("share", Type::fraction(), Default::Absent, "a share"),
    ],
};

const TUNE: Fake = Fake {
    kind: "tune",
    inputs: Ports::Listed(&[
        Input::one("model", "what is tuned"),
        Input::optional("data", "what it learns from"),
    ]),
    params: &[
        Param::new("method", Type::Choice(&["full", "lora", "dora"]), Default::Text("lora"), "how"),
        Param::new("rank", Type::Int { min: 1, max: 64 }, Default::Int(8), "the rank"),
        Param::new("lr", Type::float_from(0.0), Default::Float(1e-3), "the rate"),
        Param::new("targets", Type::List(&Type::Text), Default::Texts(&["q", "v"]), "which"),
        Param::new(
            "steps",
            Type::AnyOf(&[Type::Choice(&["all"]), Type::List(&Type::at_least(1))]),
            Default::Text("all"),
            "when",
        ),
    ],
};

const JOIN: Fake = Fake {
    kind: "join",
    inputs: Ports::Listed(&[Input::several("runs", "what is joined")]),
    params: &[Param::new("title", Type::Text, Default::Required, "a line above")],
};

const ANY: Fake = Fake {
    kind: "any",
    inputs: Ports::Any,
    params: &[Param::new("args", Type::List(&Type::Text), Default::Texts(&[]), "what is passed on")],
};

fn registry() -> Registry {
    Registry::new([&MAKE as &dyn Stage, &TUNE, &JOIN, &ANY])
}

fn parse(text: &str, sets: &[&str]) -> Result<Pipeline, Diagnostics> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    Pipeline::parse("p.toml", text, &sets, &registry())
}

/// The pipeline of a text that is right.
fn good(text: &str, sets: &[&str]) -> Pipeline {
    parse(text, sets).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What a person sees of a text that is wrong.
fn seen(text: &str, sets: &[&str]) -> String {
    match parse(text, sets) {
        Ok(pipeline) => panic!("nothing is wrong with {pipeline:?}"),
        Err(errors) => errors.to_string(),
    }
}

/// `id < producers` for each instance, one a line.
fn edges(pipeline: &Pipeline) -> String {
    let line = |instance: &super::Instance| {
        let inputs = instance.inputs.iter().map(|(name, refs)| {
            let refs: Vec<String> =
                refs.iter().map(|input| format!("{}:{}", input.label, input.producer)).collect();
            format!("{name}={}", refs.join("+"))
        });
        let inputs: Vec<String> = inputs.collect();
        format!("{} {}", instance.id, inputs.join(" ")).trim_end().to_owned()
    };
    pipeline.instances.iter().map(line).collect::<Vec<_>>().join("\n")
}
