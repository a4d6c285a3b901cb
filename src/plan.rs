//! What a run would do, and why.
//!
//! It plays the same [`Schedule`] as a run does, with the store's answers and without processes; so what
//! `plan` says is what `run` does. It opens no adapter, starts nothing and asks no remote: what is there is
//! among the [`Options`].

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::Error;
use crate::key::{KeyFields, StageKey, differences};
use crate::pipeline::{Instance, Pipeline, StageId};
use crate::runner::{Options, tasks};
use crate::schedule::{Action as Do, Ending, Schedule, Task};
use crate::store::{Action, StatCache, Store};

/// What would become of one stage.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The instance.
    pub id: StageId,
    /// The answer.
    pub verdict: Verdict,
    /// Its key, if its inputs are known.
    pub key: Option<StageKey>,
    /// What its key is made of, if its inputs are known.
    pub fields: Option<KeyFields>,
    /// Its stored result, if it is cached.
    pub action: Option<Action>,
}

/// The answer for one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "snake_case")]
pub enum Verdict {
    /// Its result is in the store.
    Cached,
    /// A remote has it: this one.
    WillFetch(String),
    /// It will run, because of these differences to the last time.
    WillRun(Vec<String>),
    /// It runs if what these stages make differs from what they made before.
    MayRun(Vec<String>),
    /// It is needed, not in the store, and not among the stages to run.
    Missing(Vec<String>),
}

impl Verdict {
    /// Whether its result is had without running it.
    #[must_use]
    pub const fn needs_no_run(&self) -> bool {
        matches!(self, Self::Cached | Self::WillFetch(_))
    }
}

/// Plans every instance of `pipeline`, in its order.
///
/// # Errors
/// If the store, or a local file that a parameter names, cannot be read.
pub fn plan(pipeline: &Pipeline, store: &Store, options: &Options) -> Result<Vec<Planned>, Error> {
    // Pools decide when things run, not whether.
    let tasks =
        tasks(pipeline).into_iter().map(|task| Task { pool: String::new(), width: 1, ..task }).collect();
    let mut schedule = Schedule::new(tasks, &BTreeMap::new(), true);
    let mut planner = Planner { pipeline, store, options, objects: HashMap::new(), making: HashMap::new() };
    let mut planned: Vec<Option<Planned>> = vec![None; pipeline.instances.len()];
    let mut outside = store.stat_cache();
    while let Some(action) = schedule.next_action() {
        match action {
            Do::Check(task) => {
                let flag = |flags: &[bool]| flags.get(task).copied().unwrap_or(false);
                let (forced, frozen) = (flag(&options.forced), flag(&options.frozen));
                let answer = planner.judge(&pipeline.instances[task], forced, frozen, &mut outside)?;
                if let Verdict::Missing(_) = answer.verdict {
                    schedule.ended(task, Ending::Failed);
                } else {
                    schedule.checked(task, answer.verdict.needs_no_run());
                }
                planned[task] = Some(answer);
            }
            Do::Start(task, _) => schedule.ended(task, Ending::Done),
        }
    }
    let below = |instance: &Instance| {
        let why = "something it needs is not in the store".to_owned();
        Planned { verdict: Verdict::Missing(vec![why]), ..Planned::unknown(instance) }
    };
    let all = pipeline.instances.iter().zip(planned);
    Ok(all.map(|(instance, planned)| planned.unwrap_or_else(|| below(instance))).collect())
}

impl Planned {
    /// A stage whose inputs are not known yet.
    fn unknown(instance: &Instance) -> Self {
        let verdict = Verdict::MayRun(Vec::new());
        Self { id: instance.id.clone(), verdict, key: None, fields: None, action: None }
    }
}

struct Planner<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    options: &'a Options,
    /// What is stored already, by who makes it.
    objects: HashMap<StageId, Digest>,
    /// Keys that this run will make, by who comes first.
    making: HashMap<StageKey, StageId>,
}

impl Planner<'_> {
    fn judge(
        &mut self,
        instance: &Instance,
        forced: bool,
        frozen: bool,
        outside: &mut StatCache,
    ) -> Result<Planned, Error> {
        if let Some(moving) = instance.kind.moving(&instance.config) {
            let why = format!("its `{}` is not pinned yet: {}", moving.param, moving.name);
            return Ok(Planned { verdict: Verdict::WillRun(vec![why]), ..Planned::unknown(instance) });
        }
        let Some(fields) = KeyFields::of(instance, |id| self.objects.get(id).copied(), outside)? else {
            let verdict = if forced { asked_for() } else { self.waits_for(instance) };
            return Ok(Planned { verdict, ..Planned::unknown(instance) });
        };
        let key = fields.key();
        let action = if forced { None } else { self.store.lookup(&key)? };
        let away = self.options.away.get(&key).filter(|_| !forced && action.is_none()).copied();
        let verdict = match (&action, self.making.get(&key)) {
            (Some(_), _) => Verdict::Cached,
            _ if away.is_some() => Verdict::WillFetch(self.remote()),
            _ if frozen => Verdict::Missing(vec!["it is not among the stages to run".to_owned()]),
            _ if forced => asked_for(),
            (None, Some(twin)) => Verdict::MayRun(vec![format!("`{twin}` makes the same")]),
            (None, None) => Verdict::WillRun(reasons(self.store, self.pipeline, instance, &fields)),
        };
        match action.as_ref().map(|action| action.object).or(away) {
            Some(object) => drop(self.objects.insert(instance.id.clone(), object)),
            None => drop(self.making.entry(key).or_insert_with(|| instance.id.clone())),
        }
        let (key, fields) = (Some(key), Some(fields));
        Ok(Planned { id: instance.id.clone(), verdict, key, fields, action })
    }

    fn remote(&self) -> String {
        self.options.remote.as_ref().map_or_else(String::new, |remote| remote.url().to_owned())
    }

    fn waits_for(&self, instance: &Instance) -> Verdict {
        let inputs = instance.inputs.values().flatten();
        let unknown = inputs.filter(|input| !self.objects.contains_key(&input.producer));
        let mut names: Vec<String> = unknown.map(|input| input.producer.0.clone()).collect();
        names.dedup();
        Verdict::MayRun(names.iter().map(|name| format!("`{name}` is made anew")).collect())
    }
}

fn asked_for() -> Verdict {
    Verdict::WillRun(vec!["asked for with `--force`".to_owned()])
}

/// Why a stage with these fields must run.
fn reasons(store: &Store, pipeline: &Pipeline, instance: &Instance, fields: &KeyFields) -> Vec<String> {
    let Some(last) = store.latest(&pipeline.name, &instance.id.0) else {
        return vec!["it never ran here".to_owned()];
    };
    let changed = differences(&last.explanation, &fields.explain());
    if changed.is_empty() { vec!["its stored result is gone or damaged".to_owned()] } else { changed }
}
