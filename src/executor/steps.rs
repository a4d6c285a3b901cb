//! Stages as steps of the Slurm allocation that this command runs in: `salloc -N2 pipe run FILE --executor srun`.
//!
//! A step costs a twentieth of a second, a batch job a second and a place in the queue. Here `srun` stands
//! for the stage: its lifeline, events and log pass through it, so that what is said of [`local`] holds
//! for a step too. One thing does not: if `srun` is killed as well, its step lives on. So the key's lock is
//! shared with it ([`crate::exec`]), and until it is gone no run comes near its folders. Of a stage of
//! several ranks these are the step, and who stands in for them runs here.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use contract::{Event, Pool};

use super::local::{self, Launch, Local};
use super::{Ended, Executor, Order, Stop};
use crate::error::{Error, Exit};
use crate::pipeline::Resources;
use allocation::Allocation;

mod allocation;

/// Of a step's provenance: the first that it tells.
pub const STEP: &str = "slurm step";

/// How many seconds `srun` waits for room before it says that there is none.
const PATIENCE: u32 = 5;

/// What `srun` says where there will be room when other steps end.
const NO_ROOM: &str = "Requested nodes are busy";

/// Runs stages as steps.
pub struct Steps {
    program: PathBuf,
    allocation: Allocation,
}

impl Steps {
    /// The allocation that this process is in.
    ///
    /// # Errors
    /// If it is in none, or Slurm's programs are not on PATH.
    pub fn open() -> Result<Self, Error> {
        let Ok(job) = std::env::var("SLURM_JOB_ID") else {
            return Err(Error::usage("this is not inside an allocation of Slurm: SLURM_JOB_ID is not set")
                .hint("`salloc … pipe run … --executor srun`, or the same in a script for `sbatch`; `--executor slurm` needs none"));
        };
        let program = std::env::current_exe()
            .map_err(|error| Error::new(Exit::Failed, format!("cannot find this program: {error}")))?;
        Ok(Self { program, allocation: Allocation::of(&job)? })
    }

    /// The command line that becomes the stage, or starts its ranks.
    fn argv(&self, order: &Order<'_>) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let mut stage = vec![text(&self.program), "exec-stage".into(), text(order.launch.job)];
        stage.extend(["--step".into(), text(&order.lock)]);
        let mut step = vec![format!("--immediate={PATIENCE}"), format!("--job-name={}", order.stage)];
        step.extend(options(order.resources, order.ranks));
        if order.ranks > 1 {
            return [stage, vec!["--srun".into()], step].concat();
        }
        [vec!["srun".into()], step, stage].concat()
    }

    /// Makes the lock one that the step can hold as well. Who wants it for himself still waits, and is told
    /// in which job it may be held by now.
    fn share(&self, mut lock: &File, path: &Path) -> Result<(), Error> {
        match lock.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("another run took the lock `{}`", path.display());
                return Err(Error::new(Exit::Failed, message).hint("run again: it waits for the other run"));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(path, &error)),
        }
        let place = format!(" in job {} of Slurm", self.allocation.job);
        if !fs::read_to_string(path).is_ok_and(|who| who.ends_with(&place)) {
            // For people only.
            let _ = lock.write_all(place.as_bytes());
        }
        Ok(())
    }

    fn failed(&self, message: String) -> Ended {
        let hint = format!("job {}: {}", self.allocation.job, self.allocation);
        Ended::Failed { message, hint: Some(hint) }
    }
}

impl Executor for Steps {
    fn is_here(&self) -> bool {
        false
    }

    fn slots(&self, pool: Pool) -> Option<usize> {
        match pool {
            Pool::Cpu => Some(self.allocation.cpus()),
            Pool::Gpu => Some(self.allocation.gpus().max(1)),
            Pool::Network => None,
        }
    }

    fn goes_on(&self, elsewhere: &Path) -> Result<bool, Error> {
        Local.goes_on(elsewhere)
    }

    fn run(&self, order: &Order<'_>, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<Ended, Error> {
        if let Some(why) = self.allocation.refuses(order.resources, order.ranks) {
            return Ok(self.failed(why));
        }
        self.share(order.launch.lock, &order.lock)?;
        let surroundings = ["SLURM_CONF", "SLURM_JOB_ID"];
        let mut env = order.launch.env.clone();
        env.extend(surroundings.iter().filter_map(|name| Some(((*name).into(), std::env::var(name).ok()?))));
        let launch =
            Launch { env, instead: self.argv(order), lost: order.launch.lost.clone(), ..order.launch };
        let mut told = false;
        loop {
            let before = fs::metadata(launch.log).map_or(0, |meta| meta.len());
            let mut begun = false;
            let ended = local::run(&launch, stop, |event| {
                begun |= matches!(&event, Event::Provenance { name, .. } if name == STEP);
                tell(event);
            })?;
            if stop.asked() && !matches!(ended, Ended::Finished) {
                return Ok(Ended::Cancelled);
            }
            if begun {
                return Ok(match ended {
                    Ended::Cancelled => self.failed("its step was ended from outside".to_owned()),
                    ended => ended,
                });
            }
            let said = said(launch.log, before);
            if !said.contains(NO_ROOM) && order.ranks > 1 {
                return Ok(ended);
            }
            if !said.contains(NO_ROOM) {
                return Ok(self.failed(format!("its step did not begin: {}", said.trim())));
            }
            if !std::mem::replace(&mut told, true) {
                let text = format!("waits for room in job {}: {NO_ROOM}", self.allocation.job);
                tell(Event::Note { text });
            }
        }
    }
}

/// What a step is given, as options of `srun`. What a stage does not ask for is not taken from others:
/// without `--mem=0` and `--gres=none` a step would hold all of the job's memory and GPUs.
fn options(resources: &Resources, ranks: usize) -> Vec<String> {
    vec![
        "--exact".into(),
        format!("--nodes={}", resources.nodes.unwrap_or(1)),
        format!("--ntasks={ranks}"),
        format!("--cpus-per-task={}", resources.cpus.unwrap_or(1)),
        format!("--mem={}M", resources.memory.map_or(0, megabytes)),
        resources.gpus.map_or("--gres=none".into(), |count| format!("--gpus={count}")),
    ]
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// What was added to the log since it had `before` bytes.
fn said(log: &Path, before: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(before))?;
        file.read_to_end(&mut text)
    });
    // What cannot be read is told as nothing said.
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_gets_what_was_asked_for_and_nothing_else() {
        let line = |resources: &Resources| options(resources, 1).join(" ");
        let alone = "--exact --nodes=1 --ntasks=1";
        assert_eq!(line(&Resources::default()), format!("{alone} --cpus-per-task=1 --mem=0M --gres=none"));
        let all =
            Resources { cpus: Some(4), memory: Some(2_000_000_000), gpus: Some(2), ..Resources::default() };
        assert_eq!(line(&all), format!("{alone} --cpus-per-task=4 --mem=1908M --gpus=2"));
        let ranks = options(&Resources { nodes: Some(2), ..Resources::default() }, 4).join(" ");
        assert_eq!(ranks, "--exact --nodes=2 --ntasks=4 --cpus-per-task=1 --mem=0M --gres=none");
    }
}
