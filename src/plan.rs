//! What a run would do, and why.
//!
//! It plays the same [`Schedule`] as a run does, with the store's answers and without processes; so what
//! `plan` says is what `run` does. It opens no adapter and starts nothing.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::Error;
use crate::key::{KeyFields, StageKey, differences};
use crate::pipeline::{Instance, Pipeline, StageId};
use crate::runner::{Options, tasks};
use crate::schedule::{Action as Do, Ending, Schedule, Task};
use crate::store::{Action, Store};

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
    /// It will run, because of these differences to the last time.
    WillRun(Vec<String>),
    /// It runs if what these stages make differs from what they made before.
    MayRun(Vec<String>),
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
    let mut objects: HashMap<StageId, Digest> = HashMap::new();
    let mut planned: Vec<Option<Planned>> = vec![None; pipeline.instances.len()];
    let mut outside = store.stat_cache();
    while let Some(action) = schedule.next_action() {
        match action {
            Do::Check(task) => {
                let instance = &pipeline.instances[task];
                let forced = options.forced.get(task).copied().unwrap_or(false);
                let answer = judge(pipeline, instance, store, forced, &objects, &mut outside)?;
                if let Some(action) = &answer.action {
                    objects.insert(answer.id.clone(), action.object);
                }
                schedule.checked(task, answer.verdict == Verdict::Cached);
                planned[task] = Some(answer);
            }
            Do::Start(task, _) => schedule.ended(task, Ending::Done),
        }
    }
    Ok(planned.into_iter().map(|planned| planned.expect("a graph without cycles is planned whole")).collect())
}

fn judge(
    pipeline: &Pipeline,
    instance: &Instance,
    store: &Store,
    forced: bool,
    objects: &HashMap<StageId, Digest>,
    outside: &mut crate::store::StatCache,
) -> Result<Planned, Error> {
    let id = instance.id.clone();
    if let Some(moving) = instance.kind.moving(&instance.config) {
        let why = format!("its `{}` is not pinned yet: {}", moving.param, moving.name);
        return Ok(Planned {
            id,
            verdict: Verdict::WillRun(vec![why]),
            key: None,
            fields: None,
            action: None,
        });
    }
    let Some(fields) = KeyFields::of(instance, |id| objects.get(id).copied(), outside)? else {
        let unknown =
            instance.inputs.values().flatten().filter(|input| !objects.contains_key(&input.producer));
        let mut names: Vec<String> = unknown.map(|input| input.producer.0.clone()).collect();
        names.dedup();
        let verdict = Verdict::MayRun(names.iter().map(|name| format!("`{name}` is made anew")).collect());
        return Ok(Planned { id, verdict, key: None, fields: None, action: None });
    };
    let key = Some(fields.key());
    let why = if forced {
        vec!["asked for with `--force`".to_owned()]
    } else if let Some(action) = store.lookup(&fields.key())? {
        return Ok(Planned { id, verdict: Verdict::Cached, key, fields: Some(fields), action: Some(action) });
    } else {
        reasons(store, pipeline, instance, &fields)
    };
    Ok(Planned { id, verdict: Verdict::WillRun(why), key, fields: Some(fields), action: None })
}

/// Why a stage with these fields must run.
fn reasons(store: &Store, pipeline: &Pipeline, instance: &Instance, fields: &KeyFields) -> Vec<String> {
    let Some(last) = store.latest(&pipeline.name, &instance.id.0) else {
        return vec!["it never ran here".to_owned()];
    };
    let changed = differences(&last.explanation, &fields.explain());
    if changed.is_empty() { vec!["its stored result is gone or damaged".to_owned()] } else { changed }
}
