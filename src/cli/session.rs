//! What the commands over a pipeline have in common: the file, the chosen stages, the store, the pools.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;

use contract::Pool;

use super::args::{Check, File, Globals, Selection};
use crate::error::Error;
use crate::executor::{Executor, Stop};
use crate::graph::{Graph, select};
use crate::pins::{Moved, Pins};
use crate::pipeline::{Instance, Pipeline};
use crate::plan::{Verdict, plan};
use crate::registry::Registry;
use crate::remote::{Remote, sharing};
use crate::runner::Options;
use crate::store::{self, Store};

/// How many transfers run side by side where `[pools]` says nothing.
const NETWORK: usize = 4;

/// Slots of a pool on a cluster where `[pools]` says nothing: more than a queue takes.
const ELSEWHERE: usize = 100_000;

/// A pipeline cut down to the stages that take part, and the store they are in.
pub struct Session {
    /// The stages that take part.
    pub pipeline: Pipeline,
    /// The store.
    pub store: Store,
    /// Frozen and forced stages; pools without `gpu`.
    pub options: Options,
    /// Pins that were set or moved just now.
    pub moved: Vec<Moved>,
}

/// What becomes of references that move and are not pinned.
#[derive(Clone, Copy)]
pub enum Pinning<'a> {
    /// Nothing: nobody is asked.
    AsItIs,
    /// They are pinned, and those of these stages are asked for anew.
    Settle(&'a [String]),
}

impl Session {
    /// Reads the pipeline first, so that a file that is wrong leaves no store behind.
    pub fn open(
        file: &File,
        selection: &Selection,
        force: bool,
        check: Check,
        pinning: Pinning<'_>,
        globals: &Globals,
        registry: &Registry,
    ) -> Result<Self, Error> {
        let whole = Pipeline::load(&file.pipeline, &file.set, registry)?;
        let graph = Graph::new(&whole)?;
        let named = selection.until.iter().chain(&selection.only);
        let mut targets = Vec::new();
        for name in named {
            targets.extend(select(&whole, name)?);
        }
        let everything = targets.is_empty();
        let taking_part =
            if everything { vec![true; whole.instances.len()] } else { graph.needed_by(&targets) };
        let is_target = |index: usize| everything || targets.contains(&index);
        let chosen: Vec<usize> = (0..whole.instances.len()).filter(|&index| taking_part[index]).collect();
        let options = Options {
            frozen: chosen.iter().map(|&index| !selection.only.is_empty() && !is_target(index)).collect(),
            forced: chosen.iter().map(|&index| force && is_target(index)).collect(),
            pools: pools(&whole),
            ..Options::default()
        };
        let mut pins = Pins::beside(&file.pipeline)?;
        let moved = match pinning {
            Pinning::AsItIs => Vec::new(),
            Pinning::Settle(update) => settle(&mut pins, &whole, &chosen, update)?,
        };
        let mut pipeline = whole;
        let mut taking_part = taking_part.into_iter();
        pipeline.instances.retain(|_| taking_part.next() == Some(true));
        pins.apply(&mut pipeline);
        let check = match check {
            Check::Stat => store::Check::Stat,
            Check::Full => store::Check::Full,
        };
        let store = Store::open(&globals.store, check)?;
        Ok(Self { pipeline, store, options, moved })
    }

    /// The same for commands that ask about one stage: it and what it needs. The stage's instances are
    /// the last to be named in the answer.
    pub fn of_stage(
        file: &File,
        stage: &str,
        globals: &Globals,
        registry: &Registry,
    ) -> Result<(Self, Vec<usize>), Error> {
        let selection = Selection { until: vec![stage.to_owned()], only: Vec::new() };
        let session = Self::open(file, &selection, false, Check::Stat, Pinning::AsItIs, globals, registry)?;
        let found = select(&session.pipeline, stage)?;
        Ok((session, found))
    }

    /// Looks at what `url` has of the pipeline, for a plan.
    pub fn look(&mut self, url: Option<&str>) -> Result<(), Error> {
        let Some(url) = url else { return Ok(()) };
        let stop = Arc::new(Stop::default());
        let remote = Remote::open(url, &stop)?;
        let (away, troubles) =
            sharing::look(&self.pipeline, &self.store, &self.options.forced, &remote, &stop)?;
        for (stage, trouble) in &troubles {
            anstream::eprintln!("warning: {stage}: {}", trouble.text);
        }
        self.options.away = away;
        self.options.remote = Some(Arc::new(remote));
        Ok(())
    }

    /// Sets the size of a pool, whatever the file says.
    pub fn set_pool(&mut self, pool: Pool, slots: usize) {
        self.pipeline.pools.insert(pool.name().to_owned(), slots);
        self.options.pools.insert(pool.name().to_owned(), slots);
    }

    /// Lets an executor elsewhere say what runs side by side, but for pools that the file sets.
    pub fn pools_elsewhere(&mut self, executor: &dyn Executor) {
        for pool in [Pool::Gpu, Pool::Cpu, Pool::Network] {
            let set = self.pipeline.pools.get(pool.name()).copied();
            let slots = set.or_else(|| executor.slots(pool)).unwrap_or(ELSEWHERE);
            self.options.pools.insert(pool.name().to_owned(), slots);
        }
    }

    /// Sets the size of the `gpu` pool: as the file says, else the number of hardware adapters. These are
    /// looked for only where a stage that may run could use one; it takes a process and a moment.
    pub fn count_adapters(&mut self, registry: &Registry) -> Result<(), Error> {
        let gpu = Pool::Gpu.name();
        if self.options.pools.contains_key(gpu) {
            return Ok(());
        }
        let wants = |index: usize| {
            let instance = &self.pipeline.instances[index];
            let device = instance.config.get("device").and_then(|value| value.as_str()).unwrap_or("auto");
            instance.pool() == Pool::Gpu && !device.starts_with("cpu") && !device.starts_with("software")
        };
        let candidates: Vec<usize> =
            (0..self.pipeline.instances.len()).filter(|&index| wants(index)).collect();
        let mut slots = 1;
        if registry.devices.is_some() && !candidates.is_empty() {
            let planned = plan(&self.pipeline, &self.store, &self.options)?;
            if candidates.iter().any(|&index| planned[index].verdict != Verdict::Cached) {
                slots = hardware().max(1);
            }
        }
        self.options.pools.insert(gpu.to_owned(), slots);
        Ok(())
    }
}

/// Pins what moves in the chosen stages, and moves the pins of those that `update` names.
fn settle(
    pins: &mut Pins,
    whole: &Pipeline,
    chosen: &[usize],
    update: &[String],
) -> Result<Vec<Moved>, Error> {
    let mut named = Vec::new();
    for name in update {
        let found = select(whole, name)?;
        let moves = |&index: &usize| {
            let Instance { kind, config, .. } = &whole.instances[index];
            kind.moving(config).is_some()
        };
        if !found.iter().any(moves) {
            return Err(Error::usage(format!("stage `{name}` has nothing that moves"))
                .hint("`--update` is for stages that fetch a branch or tag"));
        }
        named.extend(found);
    }
    let instances = (0..whole.instances.len())
        .filter(|index| chosen.contains(index) || named.contains(index))
        .map(|index| (&whole.instances[index], named.contains(&index)));
    pins.settle(instances, &|instance, text| anstream::eprintln!("{}: {text}", instance.id))
}

/// How many hardware adapters there are, asked in a process of its own since drivers may crash.
fn hardware() -> usize {
    let probe = || {
        let output = Command::new(std::env::current_exe().ok()?)
            .arg("probe-devices")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let adapters: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).ok()?;
        Some(
            adapters
                .iter()
                .filter(|one| one["request"].as_str().is_some_and(|name| name.starts_with("gpu")))
                .count(),
        )
    };
    // A probe that fails is told by the stage that opens the adapter, in better words.
    probe().unwrap_or(0)
}

fn pools(pipeline: &Pipeline) -> BTreeMap<String, usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut pools =
        BTreeMap::from([(Pool::Cpu.name().to_owned(), cores), (Pool::Network.name().to_owned(), NETWORK)]);
    pools.extend(pipeline.pools.iter().map(|(name, slots)| (name.clone(), *slots)));
    pools
}
