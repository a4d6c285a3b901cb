//! What a rank does that does not lead: it obeys.

use contract::StageError;
use serde::{Deserialize, Serialize};

use super::{Order, Ranks};
use crate::replicas::Team;

/// How a rank introduces itself to rank 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The machine it runs on.
    pub host: String,
    /// What it computes on, one a device.
    pub devices: Vec<String>,
    /// Which of their kind on the machine these are.
    pub places: Vec<String>,
    /// Name and length of the vectors that it trains.
    pub groups: Vec<(String, usize)>,
}

/// Answers orders until the last.
///
/// # Errors
/// If a device fails.
pub fn follow(ranks: &Ranks, mut team: Team, greeting: &Greeting) -> Result<(), StageError> {
    ranks.send(0, greeting)?;
    let zeros = || greeting.groups.iter().map(|(_, length)| vec![0.0; *length]).collect::<Vec<_>>();
    loop {
        match ranks.receive(0)? {
            Order::Gradients(shares) => {
                let (losses, mut sums) = team.gradients(shares)?;
                let mine = !sums.is_empty();
                if !mine {
                    sums = zeros();
                }
                ranks.sum(&mut sums, mine);
                ranks.give(&losses)?;
            }
            Order::Take => {
                let mut values = zeros();
                ranks.share(&mut values);
                team.set(values)?;
            }
            Order::Losses(devices) => ranks.give(&team.losses(devices)?)?,
            Order::End => return Ok(()),
        }
    }
}

/// The name of this machine.
#[must_use]
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or("?".to_owned(), |name| name.trim().to_owned())
}
