//! A kill on demand, to try what the store promises: `PIPE_FAULT=17 pipe run …` ends the runner with
//! SIGKILL at its 17th durable step, after its name was written to standard error.
//!
//! Steps stand before and after whatever changes the store: a write, a flush, a rename, a removal, the
//! start and the end of a stage's process. Without the variable, which is read once, a step costs a load.
//! A kill leaves what the kernel has; that a flush reaches the disk is the disk's word.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static LEFT: OnceLock<Option<AtomicU64>> = OnceLock::new();

/// One step. Does not return from the one that was asked for.
pub fn point(name: &str) {
    let asked = || std::env::var("PIPE_FAULT").ok()?.parse().ok().map(AtomicU64::new);
    let Some(left) = LEFT.get_or_init(asked) else { return };
    if left.fetch_sub(1, Ordering::SeqCst) == 1 {
        eprintln!("fault: {name}");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal may take a moment; nothing more must happen in it.
        loop {
            std::thread::park();
        }
    }
}
