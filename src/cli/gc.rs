//! `pipe gc`: frees what the last runs did not use.

use clap::Args;

use super::args::Globals;
use super::table::size;
use super::{print, print_json};
use crate::error::{Error, Exit};
use crate::store::gc::{GRACE, Keep, parse_size};
use crate::store::{Check, Store};

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

/// Runs the command.
pub fn run(args: &Gc, globals: &Globals) -> Result<Exit, Error> {
    let bytes = args.max_size.as_deref().map(parse_size).transpose()?;
    let store = Store::open(&globals.store, Check::Stat)?;
    let keep = Keep { runs: args.keep, bytes, grace: GRACE };
    let collected = store.collect(keep, args.dry_run, || {
        anstream::eprintln!("waiting for the runs that use `{}`", store.root().display());
    })?;
    if args.json {
        return print_json(
            &serde_json::json!({"version": 1, "dry_run": args.dry_run, "collected": collected}),
        );
    }
    let (freed, kept) = (size(collected.bytes), size(collected.kept_bytes));
    let verb = if args.dry_run { "would remove" } else { "removed" };
    print(&format!(
        "{verb} {} results and {} work folders: {freed}; {kept} stay\n",
        collected.results, collected.work_folders
    ))
}
