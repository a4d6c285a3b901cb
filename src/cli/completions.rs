//! `pipe completions SHELL`: the script that completes commands and options.

use clap::{Args, CommandFactory};

use super::args::Cli;
use super::print;
use crate::error::{Error, Exit};

/// `pipe completions`
#[derive(Args, Clone, Debug)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

pub fn run(args: &Completions) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pipe", &mut script);
    print(&String::from_utf8_lossy(&script))
}
