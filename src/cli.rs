//! The command line: reads it, calls the command, prints what went wrong. One file a command.
//!
//! Results go to standard output, everything else to standard error.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::error::{Error, Exit};
use crate::exec::{Role, exec_stage};
use crate::executor;
use crate::registry::Registry;

pub mod args;
mod cancel;
mod completions;
mod dag;
mod devices;
mod diff;
mod explain;
mod export;
mod gc;
mod generate;
mod init;
mod logs;
mod metrics;
mod plan;
mod pull;
mod push;
mod report;
mod run;
mod runs;
mod schema;
mod session;
mod show;
mod stages;
mod status;
mod table;
mod verify;

use args::{Cli, Color, Command};

/// Runs one command line (with the program's name in front) and says how it ended.
pub fn run(args: impl IntoIterator<Item = OsString>, registry: &Registry) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // A stage's own process: the reading of a command line would be a good part of its start.
    match &args[..] {
        [_, command, job] if command == "exec-stage" => {
            return ended(exec_stage(Path::new(job), Role::Stage, registry));
        }
        [_, command, job, flag, lock] if command == "exec-stage" && flag == "--step" => {
            return ended(exec_stage(Path::new(job), Role::Step(Path::new(lock)), registry));
        }
        _ => {}
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; if the reader is gone, nobody is left to tell.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    set_color(cli.globals.color);
    ended(dispatch(&cli, registry))
}

fn ended(result: Result<Exit, Error>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            tell(&error);
            error.exit.into()
        }
    }
}

fn dispatch(cli: &Cli, registry: &Registry) -> Result<Exit, Error> {
    let globals = &cli.globals;
    match &cli.command {
        Command::Run(args) => run::run(args, globals, registry),
        Command::Plan(args) => plan::run(args, globals, registry),
        Command::Push(args) => push::run(args, globals, registry),
        Command::Pull(args) => pull::run(args, globals, registry),
        Command::Explain(args) => explain::run(args, globals, registry),
        Command::Status(args) => status::run(args, globals, registry),
        Command::Dag(args) => dag::run(args, registry),
        Command::Logs(args) => logs::run(args, globals, registry),
        Command::Export(args) => export::run(args, globals, registry),
        Command::Cancel(args) => cancel::run(args, globals),
        Command::Runs(args) => runs::run(args, globals),
        Command::Show(args) => show::run(args, globals),
        Command::Diff(args) => diff::run(args, globals),
        Command::Metrics(args) => metrics::run(args, globals),
        Command::Report(args) => report::run(args, globals),
        Command::Gc(args) => gc::run(args, globals),
        Command::Verify(args) => verify::run(args, globals),
        Command::Stages(args) => stages::run(args, registry),
        Command::Devices(args) => devices::run(args, registry),
        Command::Generate(args) => generate::run(args, globals, registry),
        Command::Schema => schema::run(registry),
        Command::Init(args) => init::run(args, registry),
        Command::Completions(args) => completions::run(args),
        Command::ExecStage(args) => match &args.node {
            Some(folder) => executor::node::run(Path::new(&args.job), folder),
            None => exec_stage(Path::new(&args.job), args.role(), registry),
        },
        Command::ProbeDevices => devices::probe(registry),
    }
}

fn set_color(color: Color) {
    match color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
}

/// Prints an error: its sentence and the way out.
pub fn tell(error: &Error) {
    use anstyle::{AnsiColor, Style};
    if let Some(diagnostics) = &error.diagnostics {
        let count = diagnostics.len();
        anstream::eprintln!("{}", diagnostics.render(true));
        if count > 1 {
            anstream::eprintln!("\n{count} errors; nothing was run");
        }
        return;
    }
    let red = AnsiColor::BrightRed.on_default().bold();
    let bold = Style::new().bold();
    anstream::eprintln!("{red}error{red:#}{bold}:{bold:#} {}", error.message);
    if let Some(hint) = &error.hint {
        anstream::eprintln!("{bold}hint:{bold:#} {hint}");
    }
}

/// Prints to standard output; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<Exit, Error> {
    use std::io::Write;
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(Exit::Failed, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(Exit::Ok),
    }
}

/// Prints one JSON document.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<Exit, Error> {
    print(&format!("{value:#}\n"))
}

/// Whether a person reads standard error.
#[must_use]
pub fn interactive() -> bool {
    std::io::stderr().is_terminal()
}
