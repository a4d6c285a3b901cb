//! `pipe cancel`: asks runs on this store to stop, as Ctrl-C does, and waits until they have.

use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use super::args::Globals;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::store::{Check, Running, Store};

/// How often it looks whether a run is gone.
const PAUSE: Duration = Duration::from_millis(20);

/// `pipe cancel`
#[derive(Args, Clone, Debug)]
pub struct Cancel {
    /// The run, by its name or its first letters; the only one if absent
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// Every run on this store
    #[arg(long, conflicts_with = "run")]
    pub all: bool,
    /// How long to wait until it is gone (`90s`, `10m`); for ever if absent
    #[arg(long, value_name = "TIME", value_parser = crate::pipeline::duration)]
    pub wait: Option<std::time::Duration>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Cancel, globals: &Globals) -> Result<Exit, Error> {
    let store = Store::open(&globals.store, Check::Stat)?;
    let chosen = choose(store.running(), args)?;
    if let Some(run) = chosen.iter().find(|run| store.is_elsewhere(run)) {
        let host = run.host.as_deref().unwrap_or_default();
        let message = format!("run {} goes on at `{host}`", run.id);
        return Err(Error::new(Exit::Failed, message)
            .hint("`pipe cancel` reaches runs of its own machine: stop it there"));
    }
    for run in &chosen {
        ask(run)?;
        if !globals.quiet {
            anstream::eprintln!("asked run {} of `{}` to stop (process {})", run.id, run.file, run.pid);
        }
    }
    let since = Instant::now();
    while let Some(left) = chosen.iter().find(|run| store.goes_on(run)) {
        if args.wait.is_some_and(|patience| since.elapsed() >= patience) {
            let message = format!("run {} has not stopped yet", left.id);
            return Err(Error::new(Exit::LockTimeout, message)
                .hint("its stages still save; `pipe cancel` once more ends them at once"));
        }
        std::thread::sleep(PAUSE);
    }
    if args.json {
        return print_json(&serde_json::json!({"version": 1, "stopped": chosen}));
    }
    if chosen.is_empty() {
        return print("nothing is running\n");
    }
    let lines =
        chosen.iter().map(|run| format!("stopped run {}; go on with `pipe run {}`\n", run.id, run.file));
    print(&lines.collect::<String>())
}

/// The run that was named; else the only one, or all where that was asked for.
fn choose(mut running: Vec<Running>, args: &Cancel) -> Result<Vec<Running>, Error> {
    if let Some(name) = &args.run {
        let all = running.len();
        running.retain(|run| run.id.starts_with(name));
        return match running.len() {
            1 => Ok(running),
            0 => Err(Error::usage(format!("no run `{name}` goes on"))
                .hint(format!("{all} go on now; `pipe cancel --all` stops every one"))),
            many => Err(Error::usage(format!("{many} runs that go on begin with `{name}`"))
                .hint("write more of its name, or stop all with `--all`")),
        };
    }
    if running.len() > 1 && !args.all {
        let names: Vec<String> = running.iter().map(|run| format!("`{}` ({})", run.id, run.file)).collect();
        return Err(Error::usage(format!("{} runs go on", running.len()))
            .hint(format!("name one of {}, or stop all with `--all`", names.join(", "))));
    }
    Ok(running)
}

/// Sends the signal. Its file was locked a moment ago, so the process is the run's.
fn ask(run: &Running) -> Result<(), Error> {
    let Some(pid) = i32::try_from(run.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    match kill_process(pid, Signal::TERM) {
        // It ended by itself in between.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => {
            let message = format!("cannot stop run {} (process {pid}): {error}", run.id, pid = run.pid);
            Err(Error::new(Exit::Failed, message)
                .hint("it belongs to another user or another machine: stop it there"))
        }
    }
}
