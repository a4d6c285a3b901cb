//! What can be written on the command line: the commands, and what several of them take. What one command
//! takes stands in its own file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::cancel::Cancel;
use super::completions::Completions;
use super::dag::Dag;
use super::devices::Devices;
use super::diff::Diff;
use super::explain::Explain;
use super::export::Export;
use super::gc::Gc;
use super::generate::Generate;
use super::init::Init;
use super::logs::Logs;
use super::metrics::Metrics;
use super::plan::Plan;
use super::pull::Shared;
use super::push::Push;
use super::report::Report;
use super::run::Run;
use super::runs::Runs;
use super::show::Show;
use super::stages::Stages;
use super::status::Status;
use super::verify::Verify;
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
