//! What can be written behind `pipe run`.

use clap::{Args, ValueEnum};
use contract::Pool;

use super::super::args::{Check, File, Selection};

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
