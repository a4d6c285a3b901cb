//! A `pipe` with one more stage kind: `cargo run --release --example custom_stage -- stages greet`.
//!
//! A kind is one unit struct: what it is called, what it takes, and a job that fills a folder. Validation,
//! `pipe stages`, `pipe schema`, caching and resuming come with it.

use std::process::ExitCode;

use contract::{Config, ConfigError, Context, Default, Job, Param, Pool, Ports, Stage, StageError, Type, at};
use serde::Deserialize;

struct Greet;

#[derive(Deserialize)]
struct Settings {
    name: String,
    times: u64,
}

impl Stage for Greet {
    fn kind(&self) -> &'static str {
        "greet"
    }
    fn version(&self) -> u32 {
        1
    }
    fn doc(&self) -> &'static str {
        "writes a greeting"
    }
    fn pool(&self) -> Pool {
        Pool::Cpu
    }
    fn inputs(&self) -> Ports {
        Ports::Listed(&[])
    }
    fn params(&self) -> &'static [Param] {
        const PARAMS: &[Param] = &[
            Param::new("name", Type::Text, Default::Required, "who is greeted"),
            Param::new("times", Type::Int { min: 1, max: 1000 }, Default::Int(1), "how often"),
        ];
        PARAMS
    }
    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        Ok(Box::new(config.to::<Settings>()?))
    }
}

impl Job for Settings {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let mut text = String::new();
        for done in 0..self.times {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            text += &format!("hello, {}\n", self.name);
            ctx.progress(done + 1, self.times, "greetings", &[]);
        }
        let path = ctx.out().join("greeting.txt");
        std::fs::write(&path, text).map_err(at(&path))
    }
}

fn main() -> ExitCode {
    pipe::cli::run(std::env::args_os(), &pipe::registry::all().with(&Greet))
}
