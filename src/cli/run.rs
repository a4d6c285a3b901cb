//! `pipe run`: makes everything that is not there yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::args::Globals;
use super::pull::tell_moved;
use super::session::{Pinning, Session};
use super::table::align;
use super::{plan as plan_command, print, print_json};
use crate::error::{Error, Exit};
use crate::exec::JobFile;
use crate::executor::local::Local;
use crate::executor::slurm::Slurm;
use crate::executor::steps::Steps;
use crate::executor::{Executor, Stop};
use crate::graph::Graph;
use crate::key::KeyFields;
use crate::measured::summary;
use crate::pins::Moved;
use crate::pipeline::{InputRef, Instance, Pipeline};
use crate::plan::plan;
use crate::preview::preview;
use crate::progress::{Bars, JsonLines, Lines, Progress, Silent};
use crate::registry::Registry;
use crate::remote::Remote;
use crate::remote::sharing::pull;
use crate::runner::{self, Outcome, StageOutcome};
use crate::schedule::State;
use crate::store::{RunRecord, Running, StageRecord, Store};

pub use args::{Jobs, Run, Where};

mod args;

/// How many stages' outputs are offered for export at the end.
const EXPORTS: usize = 6;

/// Runs the command.
pub fn run(args: &Run, globals: &Globals, registry: &Registry) -> Result<Exit, Error> {
    let started = jiff::Timestamp::now();
    let pinning = if args.dry_run { Pinning::AsItIs } else { Pinning::Settle(&args.update) };
    let mut session =
        Session::open(&args.file, &args.selection, args.force, args.check, pinning, globals, registry)?;
    tell_pins(args, globals, &session.moved);
    if args.dry_run {
        session.look(args.remote.as_deref())?;
        let planned = plan(&session.pipeline, &session.store, &session.options)?;
        let told = preview(&session.pipeline, &session.store, &planned)?;
        return if args.json {
            print_json(&plan_command::document(&planned, &told))
        } else {
            print(&plan_command::text(&planned, &told))
        };
    }
    let executor: Box<dyn Executor> = match args.executor {
        Where::Local => Box::new(Local),
        Where::Slurm => Box::new(Slurm::open()?),
        Where::Srun => Box::new(Steps::open()?),
    };
    for jobs in &args.jobs {
        match *jobs {
            Jobs::All(most) => session.options.jobs = Some(usize::from(most)),
            Jobs::Of(pool, slots) => session.set_pool(pool, usize::from(slots)),
        }
    }
    if executor.is_here() {
        session.count_adapters(registry)?;
    } else {
        session.pools_elsewhere(executor.as_ref());
    }
    session.options.keep_going = args.keep_going;
    session.options.lock_wait = args.lock_wait;
    let stop = Arc::new(Stop::default());
    let remote = args.remote.as_deref().map(|url| Remote::open(url, &stop)).transpose()?.map(Arc::new);
    session.options.remote.clone_from(&remote);
    let _in_use = session.store.hold()?;
    let signal = listen(&stop, globals.quiet)?;
    // After the signals are listened to: from here on `pipe cancel` may ask.
    let _announced = session.store.announce(&Running {
        id: RunRecord::name(started),
        pid: std::process::id(),
        pipeline: session.pipeline.name.clone(),
        file: args.file.pipeline.display().to_string(),
        started: format!("{started:.0}"),
        host: None,
        domain: None,
    })?;
    if let Some(remote) = &remote {
        let Session { pipeline, store, options, .. } = &session;
        let moved = pull(pipeline, store, &options.forced, remote, &stop)?;
        tell_moved("fetched", &moved, started, globals.quiet);
    }
    let progress = progress(args, globals);
    let outcome = runner::run(
        &session.pipeline,
        &session.store,
        &session.options,
        executor.as_ref(),
        progress.as_ref(),
        &stop,
    );
    progress.finish();
    let outcome = outcome?;
    let exit = exit(&outcome, &stop, signal.load(Ordering::SeqCst));
    let record = record(args, &session.pipeline, started, &outcome, exit);
    if let Err(error) = session.store.note_run(&record) {
        anstream::eprintln!("warning: this run is not noted: {error}");
    }
    if args.json {
        return print_line(&record).map(|_| exit);
    }
    print(&tables(&session.store, &session.pipeline, &outcome))?;
    tell(args, globals, &session.pipeline, &outcome, exit)?;
    Ok(exit)
}

/// Says which pins are new, and that an update found nothing new.
fn tell_pins(args: &Run, globals: &Globals, moved: &[Moved]) {
    if globals.quiet {
        return;
    }
    for Moved { name, before, now } in moved {
        match before {
            Some(before) => anstream::eprintln!("pipe.lock: {name} is now {now}, it was {before}"),
            None => anstream::eprintln!("pipe.lock: {name} is {now}"),
        }
    }
    if moved.is_empty() && !args.update.is_empty() {
        anstream::eprintln!("pipe.lock: nothing has moved");
    }
}

fn progress(args: &Run, globals: &Globals) -> Box<dyn Progress> {
    if args.json {
        Box::new(JsonLines)
    } else if globals.quiet {
        Box::new(Silent)
    } else if super::interactive() {
        Box::new(Bars::default())
    } else {
        Box::new(Lines::new(globals.verbose > 0))
    }
}

/// Turns signals into requests to stop; USR1 is how Slurm says that the time is nearly up. Gives the last signal's number.
fn listen(stop: &Arc<Stop>, quiet: bool) -> Result<Arc<AtomicU8>, Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])
        .map_err(|error| Error::new(Exit::Failed, format!("cannot listen to signals: {error}")))?;
    let last = Arc::new(AtomicU8::new(0));
    let (stop, noted) = (Arc::clone(stop), Arc::clone(&last));
    std::thread::spawn(move || {
        for signal in signals.forever() {
            noted.store(u8::try_from(signal).unwrap_or_default(), Ordering::SeqCst);
            if !stop.asked() && !quiet {
                anstream::eprintln!("stopping: stages save and end; once more ends them at once");
            }
            if signal == SIGUSR1 { stop.ask_to_save() } else { stop.ask() }
        }
    });
    Ok(last)
}

fn exit(outcome: &Outcome, stop: &Stop, signal: u8) -> Exit {
    let failed = outcome.stages.iter().find_map(|stage| stage.failure.as_ref());
    let unfinished = outcome.stages.iter().any(|stage| !stage.state.is_success());
    match failed {
        Some(failure) => failure.exit,
        None if !unfinished => Exit::Ok,
        None if stop.urgent() && signal != 0 => Exit::Signal(signal),
        None if stop.asked() => Exit::Stopped,
        None => Exit::Failed,
    }
}

fn record(
    args: &Run,
    pipeline: &Pipeline,
    started: jiff::Timestamp,
    outcome: &Outcome,
    exit: Exit,
) -> RunRecord {
    let stages = pipeline.instances.iter().zip(&outcome.stages);
    RunRecord {
        id: RunRecord::name(started),
        pipeline: pipeline.name.clone(),
        file: args.file.pipeline.display().to_string(),
        set: args.file.set.clone(),
        started: format!("{started:.0}"),
        seconds: outcome.elapsed.as_secs_f64(),
        exit: exit.code(),
        program: JobFile::PROGRAM.to_owned(),
        stages: stages.map(|(instance, stage)| stage_record(instance, stage)).collect(),
    }
}

fn stage_record(instance: &Instance, stage: &StageOutcome) -> StageRecord {
    let (ran, waited) = (stage.state == State::Done, stage.state == State::Cached);
    let took = stage.span.map_or(0.0, |(begun, ended)| ended.saturating_sub(begun).as_secs_f64());
    let fields = stage.fields.as_deref().map(KeyFields::explain);
    let producers = |(name, refs): (&String, &Vec<InputRef>)| {
        (name.clone(), refs.iter().map(|one| one.producer.0.clone()).collect())
    };
    StageRecord {
        stage: stage.id.0.clone(),
        state: format!("{:?}", stage.state).to_lowercase(),
        key: stage.key.map(|key| key.0),
        object: stage.made.map(|made| made.object),
        seconds: match stage.made {
            Some(made) if ran => made.seconds,
            _ if waited => 0.0,
            _ => took,
        },
        kind: instance.kind.kind().to_owned(),
        table: instance.stage.clone(),
        axes: instance.axes.clone(),
        inputs: instance.inputs.iter().map(producers).collect(),
        pool: instance.pool().name().to_owned(),
        slots: stage.slots.clone(),
        begun: stage.span.map(|(begun, _)| begun.as_secs_f64()),
        ended: stage.span.map(|(_, ended)| ended.as_secs_f64()),
        failure: stage.failure.as_ref().map(|failure| failure.message.clone()),
        fields: fields.unwrap_or_default(),
    }
}

/// The last line of `--json`: the run's record as an event.
fn print_line(record: &RunRecord) -> Result<Exit, Error> {
    let line = serde_json::json!({"version": 1, "event": "run_ended", "run": record});
    print(&format!("{line}\n"))
}

/// What stages want shown, cached or not.
fn tables(store: &Store, pipeline: &Pipeline, outcome: &Outcome) -> String {
    let mut text = String::new();
    for (instance, stage) in pipeline.instances.iter().zip(&outcome.stages) {
        let Some(made) = stage.made else { continue };
        let Some(table) = summary(&store.objects.files(&made.object)) else { continue };
        let rows: Vec<Vec<String>> = std::iter::once(table.columns).chain(table.rows).collect();
        text += &format!("{}: {}\n{}\n", instance.id, table.title, align(&rows, "  "));
    }
    text
}

/// The closing lines on standard error.
fn tell(
    args: &Run,
    globals: &Globals,
    pipeline: &Pipeline,
    outcome: &Outcome,
    exit: Exit,
) -> Result<(), Error> {
    if globals.quiet {
        for stage in &outcome.stages {
            for line in stage.failure.iter().flat_map(|failure| failure.lines(&stage.id)) {
                anstream::eprintln!("{line}");
            }
        }
        return Ok(());
    }
    anstream::eprintln!("{}", closing(outcome));
    let mut again = format!("pipe run {}", command_tail(args, globals, ""));
    again += match args.executor {
        Where::Local => "",
        Where::Slurm => " --executor slurm",
        Where::Srun => " --executor srun",
    };
    match exit {
        Exit::Ok => {
            let leaves = Graph::new(pipeline)?.leaves();
            for leaf in leaves.iter().take(EXPORTS).map(|&leaf| &pipeline.instances[leaf].id) {
                let dir = leaf.0.replace('[', "-").replace(']', "").replace(',', "-");
                let words = command_tail(args, globals, &format!("{} {}", quoted(&leaf.0), quoted(&dir)));
                anstream::eprintln!("  pipe export {words}");
            }
        }
        Exit::Stopped | Exit::Signal(_) => anstream::eprintln!("stopped; go on with: {again}"),
        _ => {}
    }
    Ok(())
}

/// What follows the command's name: the file, `stage`, and what else this run was told.
fn command_tail(args: &Run, globals: &Globals, stage: &str) -> String {
    let mut words = vec![quoted(&args.file.pipeline.display().to_string())];
    if std::env::var_os("PIPE_STORE").is_none() && globals.store.as_os_str() != ".pipe" {
        words.push(format!("--store {}", quoted(&globals.store.display().to_string())));
    }
    if !stage.is_empty() {
        words.push(stage.to_owned());
    }
    words.extend(args.file.set.iter().map(|set| format!("--set {}", quoted(set))));
    words.join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `9 stages: 7 cached, 2 ran, 0 failed in 12.3 s`
fn closing(outcome: &Outcome) -> String {
    let count = |state: State| outcome.stages.iter().filter(|stage| stage.state == state).count();
    let all = outcome.stages.len();
    let mut line = format!(
        "{all} {}: {} cached, {} ran, {} failed",
        if all == 1 { "stage" } else { "stages" },
        count(State::Cached),
        count(State::Done),
        count(State::Failed)
    );
    for (state, word) in [(State::Skipped, "skipped"), (State::Cancelled, "stopped")] {
        if count(state) > 0 {
            line += &format!(", {} {word}", count(state));
        }
    }
    let seconds = outcome.elapsed.as_secs_f64();
    line + &if seconds < 1.0 { format!(" in {seconds:.3} s") } else { format!(" in {seconds:.1} s") }
}
