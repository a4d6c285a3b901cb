//! A job of several processes: the stage's own process starts the ranks and stands in for them.
//!
//! In an allocation of Slurm `srun` starts them, where it knows PMIx, as Open MPI since version 3 wants
//! it; elsewhere `mpirun`. Where stages are steps of an allocation, the ranks are one, and whoever stands in
//! for them is not. Of what the ranks tell, the first failure counts, whoever has it. A request to
//! stop reaches them as USR1, which both launchers pass on; TERM would have them end the ranks instead.
//!
//! The launcher is in a process group of its own and holds the key's lock. Its standard input, which it
//! passes to rank 0, is their lifeline: when this process goes, however it goes, rank 0 ends, the launcher
//! ends the others, and then the lock is free. Other ranks also watch who started them.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use contract::{Event, Reporter, StageError};
use nix::sys::resource::UsageWho;
use rustix::process::{Pid, Signal, kill_process};

use crate::executor::node;

/// How often is looked whether the job is to stop.
const TICK: Duration = Duration::from_millis(50);

/// What tells a rank its number, of Open MPI, of PMIx, of other libraries, of Slurm.
const NUMBERS: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

/// Which rank this process is.
///
/// # Errors
/// If nobody says.
pub fn number() -> Result<usize, StageError> {
    let told = NUMBERS.iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
    told.ok_or_else(|| StageError::new("no rank's number: `--rank` is for `mpirun` and `srun`"))
}

/// A step to be: the lock that its ranks share, and options of `srun`.
type Step<'a> = (&'a Path, &'a [OsString]);

/// Starts `count` ranks on the job and passes on what they tell, to their end.
///
/// # Errors
/// The first failure of a rank, or that one was lost.
pub fn lead(
    job: &Path,
    count: usize,
    step: Option<Step<'_>>,
    stop: &AtomicBool,
    to: &dyn Reporter,
) -> Result<(), StageError> {
    let (mut launcher, name) = launch(job, count, step)?;
    let lines = read(&mut launcher);
    let (mut ended, mut asked) = (None, false);
    loop {
        match lines.recv_timeout(TICK) {
            Ok(Event::Finished) => ended = ended.or(Some(Ok(()))),
            Ok(Event::Failed { cancelled: true, .. }) => ended = ended.or(Some(Err(StageError::cancelled()))),
            Ok(Event::Failed { message, hint, .. }) => {
                let failure = StageError { hint, ..StageError::new(message) };
                ended = ended.or(Some(Err(failure)));
            }
            Ok(event) => to.report(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if stop.load(Ordering::Relaxed) && !asked {
            asked = true;
            if let Some(pid) = i32::try_from(launcher.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::USR1);
            }
        }
    }
    let status = launcher.wait()?;
    match ended {
        Some(ended) => ended,
        None if asked => Err(StageError::cancelled()),
        None => {
            let message = format!("a rank of {count} was lost: `{name}` ended with {status}");
            Err(StageError::new(message).hint(
                "the log says which; a run after this one, or `retries`, goes on from the last checkpoint",
            ))
        }
    }
}

fn launch(job: &Path, count: usize, step: Option<Step<'_>>) -> Result<(Child, &'static str), StageError> {
    let program = std::env::current_exe()?;
    let (name, options) = launcher(count, step);
    let mut command = Command::new(name);
    command.args(options).arg(program).arg("exec-stage").arg(job).arg("--rank");
    if let Some((lock, _)) = step {
        command.arg("--step").arg(lock);
    }
    if name == "mpirun" {
        // Open MPI's settings as variables: other libraries' `mpirun` does not stumble over them.
        for (setting, value) in [
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
            ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        ] {
            command.env(setting, value);
        }
    }
    if std::env::var_os("SLURM_JOB_ID").is_none() {
        let all = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok());
        let all = all.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        command.env("RAYON_NUM_THREADS", (all / count).max(1).to_string());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| {
        StageError::new(format!("cannot start `{name}`: {error}"))
            .hint("`ranks` above 1 needs an MPI: Debian's `openmpi-bin`")
    })?;
    Ok((child, name))
}

/// What starts ranks here, with its options.
fn launcher(count: usize, step: Option<Step<'_>>) -> (&'static str, Vec<OsString>) {
    let fixed = ["--mpi=pmix", "--kill-on-bad-exit=1", "--input=0"].map(OsString::from);
    if let Some((_, options)) = step {
        return ("srun", [&fixed, options].concat());
    }
    let slurm = std::env::var_os("SLURM_JOB_ID").is_some() && {
        let known = Command::new("srun").arg("--mpi=list").stdin(Stdio::null()).output();
        known.is_ok_and(|known| [known.stdout, known.stderr].concat().windows(4).any(|word| word == b"pmix"))
    };
    if !slurm {
        return ("mpirun", vec!["-n".into(), count.to_string().into()]);
    }
    let mut options = fixed.to_vec();
    options.extend(["--overlap".into(), format!("--ntasks={count}").into()]);
    // srun does not go by what sbatch was told.
    if let Ok(cpus) = std::env::var("SLURM_CPUS_PER_TASK") {
        options.push(format!("--cpus-per-task={cpus}").into());
    }
    ("srun", options)
}

/// Events on a channel that closes when the launcher's output does.
fn read(launcher: &mut Child) -> Receiver<Event> {
    let (sender, receiver) = channel();
    let stdout = launcher.stdout.take();
    std::thread::spawn(move || {
        for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines().map_while(Result::ok))
        {
            let event = serde_json::from_str(&line).unwrap_or(Event::Note { text: line });
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Ends this process when who started it is gone. A rank that does not lead has nothing on its standard
/// input to tell.
pub fn watch_parent() {
    let parent = rustix::process::getppid();
    std::thread::spawn(move || {
        while rustix::process::getppid() == parent {
            std::thread::sleep(TICK);
        }
        let _ = kill_process(rustix::process::getpid(), Signal::KILL);
    });
}

/// Tells how much memory a rank held. Its launcher may be no parent of it, so that nobody else can know.
pub fn tell_memory(rank: usize, to: &dyn Reporter) {
    let value = node::shown(node::held(UsageWho::RUSAGE_SELF));
    to.report(Event::Provenance { name: format!("rank.{rank}.{}", node::PEAK), value });
}

/// What a rank that does not lead tells: failures by name, the rest to nobody.
pub struct Follower<'a> {
    /// Its number.
    pub rank: usize,
    /// Who passes on what it tells.
    pub to: &'a dyn Reporter,
}

impl Reporter for Follower<'_> {
    fn report(&self, event: Event) {
        match event {
            Event::Failed { message, hint, .. } => {
                let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                let message = format!("rank {} on `{host}`: {message}", self.rank);
                self.to.report(Event::Failed { message, hint, cancelled: false });
            }
            Event::Warning { text } => eprintln!("rank {}: warning: {text}", self.rank),
            Event::Progress { .. } | Event::Note { .. } | Event::Provenance { .. } | Event::Finished => {}
        }
    }
}
