//! What can be written on the command line: one struct a command, documented where it is declared.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use contract::Pool;

use crate::exec::Role;

/// Declarative, cached, resumable machine-learning experiments.
#[derive(Debug, Parser)]
#[command(name = "pipe", version, max_term_width = 100)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Args, Clone, Debug)]
pub struct Globals {
    /// The folder that holds results
    #[arg(
        long,
        global = true,
        env = "PIPE_STORE",
        value_name = "DIR",
        default_value = ".pipe",
        hide_env_values = true
    )]
    pub store: PathBuf,
    /// Say less: errors and results only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// When to color
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

/// When to color output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The pipeline file and what is set in it.
#[derive(Args, Clone, Debug)]
pub struct File {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", value_hint = clap::ValueHint::FilePath)]
    pub pipeline: PathBuf,
    /// Set a variable (`rank=8`) or a stage's parameter (`stages.train.rank=8`)
    #[arg(short = 'S', long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
}

/// Which stages take part.
#[derive(Args, Clone, Debug, Default)]
pub struct Selection {
    /// Only these stages and what they need (`train`, or one instance: `train[lora]`)
    #[arg(long, value_name = "STAGE")]
    pub until: Vec<String>,
    /// Only these stages; what they need must be in the store
    #[arg(long, value_name = "STAGE", conflicts_with = "until")]
    pub only: Vec<String>,
}

/// How stored results are checked before they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// By size and times; re-hashed where these differ
    #[default]
    Stat,
    /// Every byte is hashed
    Full,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline: everything that is not stored yet
    Run(Run),
    /// Say what would run, and why
    Plan(Plan),
    /// Say what makes a stage's run the one it is, and what changed since the last
    Explain(Explain),
    /// Say where each stage stands
    Status(Status),
    /// Print what a stage said when it last ran
    Logs(Logs),
    /// Put a stage's output into a folder
    Export(Export),
    /// Ask a run to stop, as Ctrl-C does
    Cancel(Cancel),
    /// List what was run
    Runs(Runs),
    /// Describe one run
    Show(Show),
    /// Say what differs between two runs
    Diff(Diff),
    /// Send stored results to a store that machines share
    Push(Push),
    /// Fetch what such a store has of a pipeline
    Pull(Shared),
    /// Say what the stages of a run measured
    Metrics(Metrics),
    /// Write a run as one HTML file, or as a trace
    Report(Report),
    /// Free what the last runs did not use
    Gc(Gc),
    /// Hash every byte of the store
    Verify(Verify),
    /// List stage kinds, or describe one
    Stages(Stages),
    /// Draw what needs what
    Dag(Dag),
    /// List the adapters of this machine
    Devices(Devices),
    /// Ask a model something, to try a result
    Generate(Generate),
    /// Print the JSON Schema of pipeline files
    Schema,
    /// Write a commented pipeline file to start from
    Init(Init),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Lists adapters in a process of its own, since drivers may crash.
    #[command(hide = true)]
    ProbeDevices,
    /// Runs one stage: the child's side of `run`.
    #[command(hide = true)]
    ExecStage(ExecStage),
}

/// One `--jobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jobs {
    /// Stages side by side, whatever their pools.
    All(u16),
    /// Slots of a pool.
    Of(Pool, u16),
}

impl Jobs {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u16>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("`{text}` is no number from 1 to {}", u16::MAX)),
        };
        let Some((name, size)) = text.split_once('=') else { return number(text).map(Self::All) };
        let pools = [Pool::Gpu, Pool::Cpu, Pool::Network];
        match pools.into_iter().find(|pool| pool.name() == name) {
            Some(pool) => number(size).map(|size| Self::Of(pool, size)),
            None => Err(format!("there is no pool `{name}`; the pools are `gpu`, `cpu` and `network`")),
        }
    }
}

/// Where stages run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Where {
    /// On this machine
    #[default]
    Local,
    /// As batch jobs of a Slurm cluster that shares this folder and the store
    Slurm,
    /// As steps of the Slurm allocation that this command runs in
    Srun,
}

/// `pipe run`
#[derive(Args, Clone, Debug)]
pub struct Run {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// Say what would run and why, run nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// How many stages run side by side at most, or slots of one pool (`gpu=2`, in place of `[pools]`)
    #[arg(short, long, value_name = "N|POOL=N", value_parser = Jobs::parse)]
    pub jobs: Vec<Jobs>,
    /// When a stage fails, go on with what does not need it
    #[arg(short, long)]
    pub keep_going: bool,
    /// Run the selected stages even if their results are stored
    #[arg(short, long)]
    pub force: bool,
    /// Ask anew what the branch or tag of this stage means, and move its pin in `pipe.lock`
    #[arg(long, value_name = "STAGE", conflicts_with = "dry_run")]
    pub update: Vec<String>,
    /// Where stages run
    #[arg(long, value_enum, default_value_t, value_name = "WHERE")]
    pub executor: Where,
    /// A store that machines share: results are fetched from it and sent to it
    #[arg(long, env = "PIPE_REMOTE", value_name = "URL", hide_env_values = true)]
    pub remote: Option<String>,
    /// How stored results are checked
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub check: Check,
    /// How long to wait for another run that works on the same stage (`90s`, `10m`); for ever if absent
    #[arg(long, value_name = "TIME", value_parser = crate::pipeline::duration)]
    pub lock_wait: Option<std::time::Duration>,
    /// Tell what happens as one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// A pipeline, and the store through which machines share its results: `pipe pull`
#[derive(Args, Clone, Debug)]
pub struct Shared {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// The shared store: `s3://BUCKET/PREFIX` or `file:///FOLDER`
    #[arg(long, env = "PIPE_REMOTE", value_name = "URL", hide_env_values = true)]
    pub remote: String,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe push`
#[derive(Args, Clone, Debug)]
pub struct Push {
    /// What, and where to.
    #[command(flatten)]
    pub shared: Shared,
    /// Send also what is there: it may be damaged
    #[arg(short, long)]
    pub force: bool,
}

/// `pipe plan`
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// Plan as if the selected stages had no stored results
    #[arg(short, long)]
    pub force: bool,
    /// How stored results are checked
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub check: Check,
    /// A store that machines share: what it has would be fetched
    #[arg(long, env = "PIPE_REMOTE", value_name = "URL", hide_env_values = true)]
    pub remote: Option<String>,
    /// End with code 3 if there is work
    #[arg(long)]
    pub exit_code: bool,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe explain`
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// The stage: `train`, or one instance: `train[lora]`
    #[arg(value_name = "STAGE")]
    pub stage: String,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe status`
#[derive(Args, Clone, Debug)]
pub struct Status {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe logs`
#[derive(Args, Clone, Debug)]
pub struct Logs {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// The stage: `train`, or one instance: `train[lora]`
    #[arg(value_name = "STAGE")]
    pub stage: String,
    /// Print where the log lies, not what it says
    #[arg(long)]
    pub path: bool,
    /// Go on printing until the stage ends
    #[arg(short, long, conflicts_with = "path")]
    pub follow: bool,
}

/// `pipe export`
#[derive(Args, Clone, Debug)]
pub struct Export {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// The stage: `merged`, or one instance: `merged[dora]`
    #[arg(value_name = "STAGE")]
    pub stage: String,
    /// Where its result shall lie
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Replace DIR if it exists
    #[arg(short, long)]
    pub force: bool,
}

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

/// `pipe runs`
#[derive(Args, Clone, Debug)]
pub struct Runs {
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe show`
#[derive(Args, Clone, Debug)]
pub struct Show {
    /// The run's name or its first letters; the last run if absent
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe diff`
#[derive(Args, Clone, Debug)]
pub struct Diff {
    /// A run, by its name or its first letters
    #[arg(value_name = "RUN")]
    pub before: String,
    /// The run to compare it with; the last run if absent
    #[arg(value_name = "RUN")]
    pub after: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe metrics`
#[derive(Args, Clone, Debug)]
pub struct Metrics {
    /// The pipeline, by file or name: its last run is meant; the last run at all if absent
    #[arg(value_name = "PIPELINE", value_hint = clap::ValueHint::FilePath)]
    pub pipeline: Option<String>,
    /// Stages (`train`, or one instance: `train[lora]`); all if absent
    #[arg(value_name = "STAGE")]
    pub stages: Vec<String>,
    /// Another run, by its name or its first letters; only stages follow then
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe report`
#[derive(Args, Clone, Debug)]
pub struct Report {
    /// The pipeline, by file or name: its last run is meant; the last run at all if absent
    #[arg(value_name = "PIPELINE", value_hint = clap::ValueHint::FilePath, conflicts_with = "run")]
    pub pipeline: Option<String>,
    /// Another run, by its name or its first letters
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// The HTML file to write (`-`: standard output); `report.html` if absent
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Write a trace for Perfetto or chrome://tracing; HTML then only with `--output`
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
}

/// `pipe gc`
#[derive(Args, Clone, Debug)]
pub struct Gc {
    /// Keep the results of this many last runs
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub keep: usize,
    /// Free the least recently used until the store holds at most this much (`20GB`)
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<String>,
    /// Say what would go, remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe verify`
#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe exec-stage`
#[derive(Args, Clone, Debug)]
pub struct ExecStage {
    /// The job file
    #[arg(value_name = "JOB")]
    pub job: OsString,
    /// Watch over it on a cluster's node: what happens goes into this folder
    #[arg(long, value_name = "FOLDER")]
    pub node: Option<PathBuf>,
    /// Run it as a step of a job: this lock is shared with the runner
    #[arg(long, value_name = "LOCK", conflicts_with = "node")]
    pub step: Option<PathBuf>,
    /// As one of the processes that `mpirun` or `srun` has started on it
    #[arg(long, conflicts_with = "node")]
    pub rank: bool,
    /// Start its ranks as such a step, with these options of `srun`
    #[arg(long, value_name = "OPTION", requires = "step", conflicts_with = "rank", num_args = 1.., allow_hyphen_values = true)]
    pub srun: Vec<OsString>,
}

impl ExecStage {
    /// What the process is to the job.
    #[must_use]
    pub fn role(&self) -> Role<'_> {
        match &self.step {
            lock if self.rank => Role::Rank(lock.as_deref()),
            Some(lock) if self.srun.is_empty() => Role::Step(lock),
            Some(lock) => Role::Ranks(lock, &self.srun),
            None => Role::Stage,
        }
    }
}

/// `pipe stages`
#[derive(Args, Clone, Debug)]
pub struct Stages {
    /// A kind to describe
    #[arg(value_name = "KIND")]
    pub kind: Option<String>,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe dag`
#[derive(Args, Clone, Debug)]
pub struct Dag {
    /// The pipeline.
    #[command(flatten)]
    pub file: File,
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// How to draw
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: DagFormat,
}

/// How `pipe dag` draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DagFormat {
    /// Lines for a person
    #[default]
    Text,
    /// For Markdown
    Mermaid,
    /// For Graphviz
    Dot,
}

/// `pipe devices`
#[derive(Args, Clone, Debug)]
pub struct Devices {
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `pipe generate`
#[derive(Args, Clone, Debug)]
pub struct Generate {
    /// The model's folder, with its tokenizer.json
    #[arg(value_name = "MODEL", value_hint = clap::ValueHint::DirPath)]
    pub model: PathBuf,
    /// What it shall go on from
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
    /// An adapter for it: a PEFT folder, or what `train` wrote (its last step)
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub adapter: Option<PathBuf>,
    /// Length of the answer at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Where to compute: auto, gpu, gpu:N, software, cpu
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Put the prompt into a template as its instruction; without, it is taken as written
    #[arg(long, value_name = "NAME",
        value_parser = clap::builder::PossibleValuesParser::new(formats::alpaca::Template::NAMES))]
    pub template: Option<String>,
    /// The template's input
    #[arg(long, value_name = "TEXT", requires = "template")]
    pub input: Option<String>,
}

/// `pipe init`
#[derive(Args, Clone, Debug)]
pub struct Init {
    /// The file to write; it must not exist
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,
}

/// `pipe completions`
#[derive(Args, Clone, Debug)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use insta::assert_snapshot;

    use super::Cli;

    #[test]
    fn the_declarations_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_what_can_be_done() {
        let help = Cli::command().term_width(100).render_help().to_string();
        assert_snapshot!(help, @r#"
        Declarative, cached, resumable machine-learning experiments

        Usage: pipe [OPTIONS] <COMMAND>

        Commands:
          run          Run a pipeline: everything that is not stored yet
          plan         Say what would run, and why
          explain      Say what makes a stage's run the one it is, and what changed since the last
          status       Say where each stage stands
          logs         Print what a stage said when it last ran
          export       Put a stage's output into a folder
          cancel       Ask a run to stop, as Ctrl-C does
          runs         List what was run
          show         Describe one run
          diff         Say what differs between two runs
          push         Send stored results to a store that machines share
          pull         Fetch what such a store has of a pipeline
          metrics      Say what the stages of a run measured
          report       Write a run as one HTML file, or as a trace
          gc           Free what the last runs did not use
          verify       Hash every byte of the store
          stages       List stage kinds, or describe one
          dag          Draw what needs what
          devices      List the adapters of this machine
          generate     Ask a model something, to try a result
          schema       Print the JSON Schema of pipeline files
          init         Write a commented pipeline file to start from
          completions  Print a completion script for a shell
          help         Print this message or the help of the given subcommand(s)

        Options:
              --store <DIR>   The folder that holds results [env: PIPE_STORE] [default: .pipe]
          -q, --quiet         Say less: errors and results only
          -v, --verbose...    Say more; twice: everything
              --color <WHEN>  When to color [default: auto] [possible values: auto, always, never]
          -h, --help          Print help (see more with '--help')
          -V, --version       Print version
        "#);
    }
}
