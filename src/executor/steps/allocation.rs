//! What an allocation has, as `scontrol show job --details` tells it.

use std::fmt;
use std::process::Command;

use super::super::slurm::ask;
use super::megabytes;
use crate::error::{Error, Exit};
use crate::pipeline::Resources;

/// The machines of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The job's number.
    pub job: String,
    shares: Vec<Share>,
}

/// What a job has of each of some machines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Share {
    /// Their names as Slurm writes them: `n[0-3]`.
    hosts: String,
    cpus: usize,
    /// Megabytes; 0 where Slurm does not count it.
    memory: u64,
    gpus: usize,
}

impl Allocation {
    /// The machines of job `job`.
    ///
    /// # Errors
    /// If Slurm does not answer, or the job has none.
    pub fn of(job: &str) -> Result<Self, Error> {
        let text = ask(Command::new("scontrol").args(["show", "job", "--details", "--oneliner", job]))?;
        let shares = read(&text);
        if shares.is_empty() {
            return Err(Error::new(Exit::Failed, format!("job {job} of Slurm has no machines"))
                .hint("its time may be over: see `squeue --me`"));
        }
        Ok(Self { job: job.to_owned(), shares })
    }

    /// Its cores.
    pub fn cpus(&self) -> usize {
        self.shares.iter().map(|share| share.cpus * share.count()).sum()
    }

    /// Its GPUs.
    pub fn gpus(&self) -> usize {
        self.shares.iter().map(|share| share.gpus * share.count()).sum()
    }

    /// Why a step of `ranks` processes with `resources` would never begin.
    pub fn refuses(&self, resources: &Resources, ranks: usize) -> Option<String> {
        let nodes = resources.nodes.unwrap_or(1) as usize;
        if nodes > ranks {
            return Some(format!(
                "it asks for {nodes} nodes, and a step of one process gets one: `--executor slurm` makes it a job of its own"
            ));
        }
        // What each of the machines must have.
        let tasks = ranks.div_ceil(nodes);
        let cpus = resources.cpus.unwrap_or(1) as usize * tasks;
        let gpus = resources.gpus.map_or(0, |gpus| (gpus as usize).div_ceil(nodes));
        let fit = self.shares.iter().filter(|share| share.holds(cpus, gpus, resources.memory));
        let found: usize = fit.map(Share::count).sum();
        (found < nodes).then(|| {
            let mut asked = vec![format!("{cpus} cpus")];
            asked.extend(resources.memory.map(|bytes| format!("{} MiB of memory", megabytes(bytes))));
            asked.extend(resources.gpus.map(|_| format!("{gpus} gpus")));
            let asked = asked.join(", ");
            match nodes {
                1 => format!("no machine of the allocation has the {asked} that it asks for"),
                _ => format!(
                    "{found} of {nodes} machines of the allocation have the {asked} that it asks of each"
                ),
            }
        })
    }
}

impl Share {
    /// How many machines it speaks of.
    fn count(&self) -> usize {
        let Some((_, list)) = self.hosts.split_once('[') else { return self.hosts.split(',').count() };
        count(list.split(']').next().unwrap_or_default())
    }

    fn holds(&self, cpus: usize, gpus: usize, memory: Option<u64>) -> bool {
        let memory = memory.is_none_or(|bytes| self.memory == 0 || megabytes(bytes) <= self.memory);
        cpus <= self.cpus && gpus <= self.gpus && memory
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, share) in self.shares.iter().enumerate() {
            let comma = if index > 0 { "; " } else { "" };
            write!(f, "{comma}{} has {} cpus", share.hosts, share.cpus)?;
            if share.memory > 0 {
                write!(f, ", {} MiB", share.memory)?;
            }
            write!(f, ", {} gpus", share.gpus)?;
        }
        Ok(())
    }
}

/// `… Nodes=n[0-1] CPU_IDs=0-3 Mem=400 GRES=gpu:1(IDX:0) Nodes=n2 …`
fn read(text: &str) -> Vec<Share> {
    let mut shares = Vec::<Share>::new();
    for word in text.split_whitespace() {
        let Some((name, value)) = word.split_once('=') else { continue };
        match (name, shares.last_mut()) {
            ("Nodes", _) => {
                shares.push(Share { hosts: value.to_owned(), cpus: 0, memory: 0, gpus: 0 });
            }
            ("CPU_IDs", Some(share)) => share.cpus = count(value),
            ("Mem", Some(share)) => share.memory = value.parse().unwrap_or(0),
            ("GRES", Some(share)) => share.gpus = value.split(',').map(gpus).sum(),
            _ => {}
        }
    }
    shares
}

/// How many numbers `0-3,7` names.
fn count(ranges: &str) -> usize {
    let one = |range: &str| match range.split_once('-') {
        Some((first, last)) => match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (last + 1).saturating_sub(first),
            _ => 0,
        },
        None => 1,
    };
    ranges.split(',').map(one).sum()
}

/// `gpu:2(IDX:0-1)`, `gpu:a100:2(IDX:0-1)`
fn gpus(gres: &str) -> usize {
    let named = gres.split('(').next().unwrap_or_default();
    let number = named.strip_prefix("gpu:").and_then(|rest| rest.rsplit(':').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "JobId=2 NumNodes=2 NumCPUs=3 ReqNodeList=(null) TRES=cpu=3,mem=600M,node=2 JOB_GRES=gpu:3   \
         Nodes=n[0-1,7] CPU_IDs=0-1,4 Mem=400 GRES=gpu:a100:2(IDX:0-1)   Nodes=n9 CPU_IDs=0 Mem=200 GRES= \
         MinCPUsNode=1 MinMemoryCPU=200M";

    fn told() -> Allocation {
        Allocation { job: "2".into(), shares: read(TOLD) }
    }

    #[test]
    fn machines_are_counted() {
        let told = told();
        assert_eq!((told.cpus(), told.gpus()), (3 * 3 + 1, 3 * 2));
        assert_eq!(told.to_string(), "n[0-1,7] has 3 cpus, 400 MiB, 2 gpus; n9 has 1 cpus, 200 MiB, 0 gpus");
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        let asks = |cpus, mib: u64, gpus| Resources {
            cpus: Some(cpus),
            memory: Some(mib << 20),
            gpus: Some(gpus),
            ..Resources::default()
        };
        assert_eq!(told().refuses(&asks(3, 400, 2), 1), None);
        assert_eq!(told().refuses(&Resources::default(), 1), None);
        for refused in [asks(4, 1, 0), asks(1, 401, 0), asks(1, 1, 3)] {
            assert!(told().refuses(&refused, 1).unwrap().contains("no machine of the allocation"));
        }
        let two = Resources { nodes: Some(2), ..Resources::default() };
        assert!(told().refuses(&two, 1).unwrap().contains("--executor slurm"));
        // Six ranks on three machines of 3 cpus, or on two of them, or on one; four of one cpu on four.
        let ranks =
            |ranks, nodes| told().refuses(&Resources { nodes: Some(nodes), ..Resources::default() }, ranks);
        assert_eq!((ranks(6, 3), ranks(6, 2), ranks(4, 4)), (None, None, None));
        assert!(ranks(6, 1).unwrap().contains("no machine of the allocation has the 6 cpus"));
        assert!(ranks(8, 4).unwrap().contains("3 of 4 machines"));
    }
}
