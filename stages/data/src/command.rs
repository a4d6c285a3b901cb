//! `command`: any program as a stage.
//!
//! The program finds in its environment:
//!
//! * `OUT`: the empty folder to fill; `WORK`: a folder that survives crashes;
//! * `IN_<NAME>`: the path of the input `name`, upper-cased, every character that is not a letter or
//!   a digit turned into `_`. Behind an input with several artifacts their paths stand one a line,
//!   and `IN_<NAME>_1`, `IN_<NAME>_2`, … hold them singly;
//! * `DEVICES`: the adapters that are its own while it runs, as `0,2`, where it asks for them with
//!   `resources = { gpus = 2 }`; for CUDA write `CUDA_VISIBLE_DEVICES=$DEVICES`.
//!
//! No shell is involved: write `argv = ["sh", "-c", "…"]` for one. What it prints goes to the
//! stage's log. Which other variables are set is the runner's affair.
//!
//! Version log: 1 first.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, stderr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command as Program, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use contract::{
    Config, ConfigError, Context, Default, Inputs, Job, Param, Pool, Ports, Stage, StageError, Type, at,
};
use serde::Deserialize;

/// The kind `command`.
pub struct Command;

const PARAMS: &[Param] = &[
    Param::new(
        "argv",
        Type::List(&Type::Text),
        Default::Required,
        "program and arguments; it fills the folder $OUT, inputs are in $IN_<NAME>",
    ),
    Param::new("allow_empty", Type::Bool, Default::Bool(false), "whether the program may leave $OUT empty"),
];

#[derive(Deserialize)]
struct Settings {
    argv: Vec<String>,
    allow_empty: bool,
}

impl Stage for Command {
    fn kind(&self) -> &'static str {
        "command"
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "runs a program that reads $IN_<NAME> and fills $OUT"
    }

    fn pool(&self) -> Pool {
        Pool::Cpu
    }

    fn inputs(&self) -> Ports {
        Ports::Any
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        match settings.argv.first() {
            Some(program) if !program.is_empty() => Ok(Box::new(settings)),
            _ => Err(vec![ConfigError::new("argv", "needs the name of a program")]),
        }
    }
}

impl Job for Settings {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let child = Program::new(&self.argv[0])
            .args(&self.argv[1..])
            .envs(variables(&ctx.inputs)?)
            .env("OUT", ctx.out())
            .env("WORK", ctx.work())
            .envs(devices(ctx.devices()))
            .stdin(Stdio::null())
            // Standard output carries the stage's own events.
            .stdout(stderr())
            .spawn()
            .map_err(|error| cannot_start(&self.argv[0], &error))?;
        let status = wait(child, ctx)?;
        if !status.success() {
            return Err(failure(&self.argv[0], status));
        }
        let empty = fs::read_dir(ctx.out()).map_err(at(ctx.out()))?.next().is_none();
        if empty && !self.allow_empty {
            let message = format!("`{}` succeeded but wrote nothing to $OUT", self.argv[0]);
            return Err(StageError::new(message)
                .hint("write at least one file into the folder $OUT, or set `allow_empty = true`"));
        }
        Ok(())
    }
}

/// `IN_<NAME>` for every input.
fn variables(inputs: &Inputs) -> Result<BTreeMap<String, OsString>, StageError> {
    let mut variables = BTreeMap::new();
    for (name, artifacts) in &inputs.0 {
        let variable = variable(name);
        let paths: Vec<OsString> =
            artifacts.iter().map(|artifact| artifact.path.clone().into_os_string()).collect();
        let mut all = vec![(variable.clone(), paths.join("\n".as_ref()))];
        if paths.len() > 1 {
            all.extend((1..).zip(paths).map(|(number, path)| (format!("{variable}_{number}"), path)));
        }
        for (variable, value) in all {
            if variables.insert(variable.clone(), value).is_some() {
                let message = format!("two inputs want the variable `{variable}`, one of them `{name}`");
                return Err(StageError::new(message).hint("rename one of the inputs"));
            }
        }
    }
    Ok(variables)
}

/// `DEVICES`, where there are any.
fn devices(devices: &[usize]) -> Option<(&'static str, String)> {
    let list = devices.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    (!devices.is_empty()).then_some(("DEVICES", list))
}

fn variable(input: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("IN_{}", input.chars().map(upper).collect::<String>())
}

/// Waits for the end of `child`; kills it when asked to stop.
fn wait(mut child: Child, ctx: &Context<'_>) -> Result<ExitStatus, StageError> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if ctx.stopping() {
            // It may have ended by itself just now: then there is nothing left to kill.
            let _ = child.kill();
            child.wait()?;
            return Err(StageError::cancelled());
        }
        // Looks the more often the younger it is: a program of 2 ms is not held up by one more.
        sleep((start.elapsed() / 8).clamp(Duration::from_micros(200), Duration::from_millis(50)));
    }
}

fn cannot_start(program: &str, error: &std::io::Error) -> StageError {
    let failure = StageError::new(format!("cannot start `{program}`: {error}"));
    match error.kind() {
        ErrorKind::NotFound => failure.hint("install it, or give its path; programs are looked up in $PATH"),
        ErrorKind::PermissionDenied => failure.hint(format!("make it executable: `chmod +x {program}`")),
        _ => failure,
    }
}

fn failure(program: &str, status: ExitStatus) -> StageError {
    if let Some(signal) = status.signal() {
        let failure =
            StageError::new(format!("`{program}` was killed by signal {signal}{}", signal_name(signal)));
        return if signal == 9 {
            failure.hint("a kill by 9 often means that memory ran out")
        } else {
            failure
        };
    }
    let code = status.code().map_or("unknown".to_owned(), |code| code.to_string());
    StageError::new(format!("`{program}` failed with exit code {code}"))
        .hint("what it printed is in the stage's log: `pipe logs STAGE`")
}

/// The usual names, the same numbers on Linux and macOS but for SIGBUS.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use contract::ErrorKind;
    use serde_json::json;

    use super::*;
    use crate::testing::{Bench, plan_errors};

    fn shell(bench: &Bench, script: &str) -> Result<(), StageError> {
        bench.run(&Command, json!({ "argv": ["sh", "-c", script] }))
    }

    #[test]
    fn a_program_reads_its_inputs_and_fills_out() {
        let bench = Bench::new();
        let (one, two) = (bench.write("one", "1"), bench.write("two", "2"));
        let bench = bench.input("my-data", "a", &one).input("runs", "x", &one).input("runs", "y", &two);
        shell(&bench, r#"cat "$IN_MY_DATA" > "$OUT/a"; cat "$IN_RUNS_1" "$IN_RUNS_2" > "$OUT/b"; echo "$IN_RUNS" | wc -l > "$OUT/n""#)
            .unwrap();
        assert_eq!(
            (bench.read("a"), bench.read("b"), bench.read("n").trim()),
            ("1".into(), "12".into(), "2")
        );
    }

    #[test]
    fn a_failing_program_is_named_with_its_exit_code() {
        let error = shell(&Bench::new(), "exit 3").unwrap_err();
        assert_eq!(error.message, "`sh` failed with exit code 3");
    }

    #[test]
    fn a_program_that_dies_by_signal_is_named_with_the_signal() {
        let error = shell(&Bench::new(), "kill -SEGV $$").unwrap_err();
        assert_eq!(error.message, "`sh` was killed by signal 11 (SIGSEGV)");
    }

    #[test]
    fn an_empty_out_folder_is_an_error_unless_allowed() {
        let bench = Bench::new();
        assert!(shell(&bench, "true").unwrap_err().message.contains("wrote nothing"));
        bench.run(&Command, json!({ "argv": ["true"], "allow_empty": true })).unwrap();
    }

    #[test]
    fn a_missing_program_says_so() {
        let error = Bench::new().run(&Command, json!({ "argv": ["no-such-program-here"] })).unwrap_err();
        assert!(error.message.starts_with("cannot start `no-such-program-here`"), "{error}");
        assert!(error.hint.is_some());
    }

    #[test]
    fn a_stop_kills_the_program() {
        let bench = Bench::new();
        let start = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(Duration::from_millis(100));
                bench.stop.store(true, Ordering::Relaxed);
            });
            bench.run(&Command, json!({ "argv": ["sleep", "30"] })).unwrap_err()
        });
        assert_eq!(error.kind, ErrorKind::Cancelled);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn inputs_that_want_the_same_variable_are_refused() {
        let bench = Bench::new();
        let file = bench.write("one", "1");
        let bench = bench.input("a-b", "a", &file).input("a_b", "b", &file);
        assert!(shell(&bench, "true").unwrap_err().message.contains("`IN_A_B`"));
    }

    #[test]
    fn an_empty_argv_is_refused() {
        assert_eq!(plan_errors(&Command, json!({ "argv": [] }))[0].key, "argv");
    }
}
