//! How far all transfers of a stage are together, told a few times a second, and whether they go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use contract::{Context, StageError};

/// How often it is told.
const EVERY: Duration = Duration::from_millis(100);

/// Counts bytes. Several threads may share one.
pub struct Meter<'a> {
    ctx: &'a Context<'a>,
    counts: Mutex<Counts>,
    given_up: AtomicBool,
}

#[derive(Default)]
struct Counts {
    done: u64,
    total: u64,
    told: Option<Instant>,
}

impl<'a> Meter<'a> {
    /// Of `total` bytes; 0 if that is not known.
    pub fn new(ctx: &'a Context<'a>, total: u64) -> Self {
        Self { ctx, counts: Mutex::new(Counts { total, ..Counts::default() }), given_up: false.into() }
    }

    /// Corrects the total.
    pub fn expect(&self, total: u64) {
        self.counts().total = total;
    }

    /// So many bytes more are there.
    pub fn advance(&self, bytes: u64) {
        let mut counts = self.counts();
        counts.done += bytes;
        let now = Instant::now();
        let due = counts.told.is_none_or(|told| now.duration_since(told) >= EVERY);
        if due || counts.done == counts.total {
            counts.told = Some(now);
            self.ctx.progress(counts.done, counts.total, "bytes", &[]);
        }
    }

    /// So many bytes turned out to be of no use.
    pub fn retreat(&self, bytes: u64) {
        let mut counts = self.counts();
        counts.done = counts.done.saturating_sub(bytes);
    }

    /// One transfer has failed for good: the others need not go on.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether to stop.
    pub fn stopping(&self) -> bool {
        self.ctx.stopping() || self.given_up.load(Ordering::Relaxed)
    }

    /// Sleeps, but not on when it is time to stop.
    pub fn wait(&self, pause: Duration) -> Result<(), StageError> {
        let end = Instant::now() + pause;
        while !self.stopping() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        Err(StageError::cancelled())
    }

    /// Tells something that may be wrong.
    pub fn warn(&self, text: String) {
        self.ctx.warn(text);
    }

    /// Tells something worth reading once.
    pub fn note(&self, text: String) {
        self.ctx.note(text);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
