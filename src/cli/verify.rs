//! `pipe verify`: hashes every byte of the store.

use clap::Args;

use super::args::Globals;
use super::table::size;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::store::{Check, Store};

/// `pipe verify`
#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Verify, globals: &Globals) -> Result<Exit, Error> {
    let store = Store::open(&globals.store, Check::Full)?;
    let bar = indicatif::ProgressBar::no_length();
    if !super::interactive() || globals.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let verified = store.verify(|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let exit = if verified.damaged.is_empty() { Exit::Ok } else { Exit::DamagedStore };
    if args.json {
        print_json(&serde_json::json!({"version": 1, "verified": verified}))?;
        return Ok(exit);
    }
    for damage in &verified.damaged {
        print(&format!("damaged: {damage}\n"))?;
    }
    let (results, size) = (verified.results, size(verified.bytes));
    if verified.damaged.is_empty() {
        print(&format!("{results} results are sound ({size} hashed)\n"))?;
    } else {
        let damaged = verified.damaged.len();
        print(&format!("{damaged} of {results} results are damaged\n"))?;
        anstream::eprintln!("hint: nothing damaged is used; `pipe run` makes it again");
    }
    Ok(exit)
}
