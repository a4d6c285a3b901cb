//! `pipe completions SHELL`: the script that completes commands and options.

use clap::CommandFactory;

use super::args::{Cli, Completions};
use super::print;
use crate::error::{Error, Exit};

pub fn run(args: &Completions) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pipe", &mut script);
    print(&String::from_utf8_lossy(&script))
}
