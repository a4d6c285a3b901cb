//! How often an attempt is made again, and after how long.

use std::time::Duration;

use super::failure::{Broken, Failure};
use crate::download::meter::Meter;

/// The longest pause that a server may ask for; the hub counts requests in windows of five minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(330);

/// Attempts and pauses.
pub struct Patience {
    /// Attempts in a row that bring no new byte.
    pub attempts: u32,
    /// The first pause between attempts; each is twice the last.
    pub pause: Duration,
}

impl Patience {
    /// Tries again and again, as long as `done` grows or attempts are left.
    pub fn persist<T>(
        &self,
        state: &mut T,
        done: impl Fn(&T) -> u64,
        mut attempt: impl FnMut(&mut T) -> Result<(), Broken>,
        meter: &Meter<'_>,
    ) -> Result<(), Failure> {
        let mut number = 1;
        loop {
            let before = done(state);
            let (error, asked) = match attempt(state) {
                Ok(()) => return Ok(()),
                Err(Broken::Fatal(failure)) => return Err(failure),
                Err(Broken::Retry(error, asked)) => (error, asked),
            };
            number = if done(state) > before { 1 } else { number + 1 };
            if number > self.attempts {
                return Err(error
                    .hint("run again: what has arrived is kept, and the transfer goes on from there")
                    .into());
            }
            let own = self.pause * 2_u32.pow(number.saturating_sub(2).min(16));
            let pause = own.max(asked.unwrap_or_default()).min(LONGEST_PAUSE.max(own));
            meter.warn(format!("{error}; trying again in {:.0} s", pause.as_secs_f64().ceil()));
            meter.wait(pause)?;
        }
    }
}
