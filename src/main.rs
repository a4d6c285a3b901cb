//! The `pipe` program: the house's stage kinds behind the command line.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pipe::cli::run(std::env::args_os(), &pipe::registry::all())
}
