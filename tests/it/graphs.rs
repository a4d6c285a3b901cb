//! Random graphs, random edits, random crashes: what `plan` says is what `run` does.
//!
//! `PIPE_CASES=1000 PIPE_SEED=7 cargo test --release --no-default-features --test it graphs` makes it long.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::Value;

use super::place::{Place, set_mode, setting, until, within};

/// One stage as it is drawn; who its producers are is settled when it joins a pipeline.
#[derive(Clone, Debug)]
struct Draft {
    /// The local file that it copies, in place of running a program.
    file: Option<usize>,
    value: u8,
    /// Its output shows half of its value only, so that some edits change the key and not the bytes.
    coarse: bool,
    /// It reads an environment variable that is passed through.
    env: bool,
    /// How many instances its own matrix has; 0: none.
    rows: usize,
    /// Producers among the stages before it, and whether to pair up with their matrix.
    inputs: Vec<(Index, bool)>,
}

#[derive(Clone, Debug)]
struct Spec {
    name: usize,
    draft: Draft,
    inputs: BTreeMap<usize, bool>,
}

/// What a person, or bad luck, does between two runs.
#[derive(Clone, Debug)]
enum Edit {
    Value(Index, u8),
    Coarse(Index),
    File(usize, u8),
    Touch(usize),
    Env(u8),
    Comment,
    Reorder,
    Remove(Index),
    Add(Draft),
    Rewire(Index, Index),
    /// Back to the pipeline as it was in an earlier round.
    Revert(Index),
    DamageObject(Index, Damage),
    CutAction(Index),
    /// A run that is killed after so many microseconds.
    Crash(u64),
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Empty,
    Remove,
    Add,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Plain,
    Force,
    Until(Index),
}

#[derive(Clone, Debug, Default)]
struct Model {
    stages: Vec<Spec>,
    next: usize,
    comments: usize,
    reversed: bool,
}

impl Model {
    fn add(&mut self, draft: Draft) {
        let mut inputs = BTreeMap::new();
        if draft.file.is_none() && !self.stages.is_empty() {
            for (index, paired) in &draft.inputs {
                inputs.insert(index.get(&self.stages).name, *paired);
            }
        }
        self.stages.push(Spec { name: self.next, draft, inputs });
        self.next += 1;
    }

    /// Removes a stage; its consumers lose an input.
    fn remove(&mut self, index: Index) {
        if self.stages.len() > 1 {
            let gone = self.stages.remove(index.index(self.stages.len())).name;
            for stage in &mut self.stages {
                stage.inputs.remove(&gone);
            }
        }
    }

    /// Gives a stage one more producer, from before it.
    fn rewire(&mut self, consumer: Index, producer: Index) {
        let consumer = consumer.index(self.stages.len());
        if consumer > 0 && self.stages[consumer].draft.file.is_none() {
            let name = self.stages[producer.index(consumer)].name;
            self.stages[consumer].inputs.insert(name, true);
        }
    }

    /// The pipeline file. A stage has the matrix of its own, or of the first producer that it pairs up with.
    fn text(&self) -> String {
        let mut axes: BTreeMap<usize, Option<usize>> = BTreeMap::new();
        let mut tables = Vec::new();
        for stage in &self.stages {
            let own = (stage.draft.rows > 0 && stage.draft.file.is_none()).then_some(stage.name);
            let mut axis = own;
            let mut inputs = Vec::new();
            for (producer, paired) in &stage.inputs {
                let reference = match axes[producer] {
                    None => format!("s{producer}"),
                    Some(theirs) if *paired && own.is_none() && axis.is_none_or(|axis| axis == theirs) => {
                        axis = Some(theirs);
                        format!("s{producer}")
                    }
                    Some(_) => format!("s{producer}[*]"),
                };
                inputs.push(format!("i{producer} = \"{reference}\""));
            }
            axes.insert(stage.name, axis);
            tables.push(stage.table(own.is_some(), axis, &inputs));
        }
        if self.reversed {
            tables.reverse();
        }
        "# a remark\n".repeat(self.comments) + &tables.concat()
    }
}

impl Spec {
    fn table(&self, own: bool, axis: Option<usize>, inputs: &[String]) -> String {
        let (name, draft) = (self.name, &self.draft);
        if let Some(file) = draft.file {
            return format!("[stages.s{name}]\nkind = \"download\"\nsource = \"@/file{file}\"\n");
        }
        let mut text =
            format!("[stages.s{name}]\nkind = \"command\"\ninputs = {{ {} }}\n", inputs.join(", "));
        if own {
            let rows: Vec<String> = (0..draft.rows).map(|row| row.to_string()).collect();
            let _ = writeln!(text, "matrix = {{ k{name} = [{}] }}", rows.join(", "));
        }
        if draft.env {
            text += "env = [\"EXTRA\"]\n";
        }
        let row = axis.map_or(String::new(), |axis| format!("${{matrix.k{axis}}}"));
        let folders: Vec<String> = self.inputs.keys().map(|producer| format!("$IN_I{producer}")).collect();
        let script = format!(
            "echo x >> @/ran; {{ echo $(({} / {})) {row} $EXTRA; for d in {}; do cat $d/*; done; }} | cksum > $OUT/x",
            draft.value,
            if draft.coarse { 2 } else { 1 },
            folders.join(" "),
        );
        let _ = writeln!(text, "argv = [\"sh\", \"-c\", {}]", Value::from(script));
        text
    }
}

/// A place with a pipeline that is edited.
struct Bench {
    place: Place,
    model: Model,
    past: Vec<Model>,
    env: u8,
}

impl Bench {
    fn new(drafts: &[Draft]) -> Self {
        let mut model = Model::default();
        drafts.iter().for_each(|draft| model.add(draft.clone()));
        let bench = Self { place: Place::new(""), model, past: Vec::new(), env: 0 };
        (0..3).for_each(|file| bench.place.write(&format!("file{file}"), "0"));
        bench
    }

    fn apply(&mut self, edit: &Edit) {
        let stages = self.model.stages.len();
        let model = &mut self.model;
        match edit {
            Edit::Value(stage, value) => model.stages[stage.index(stages)].draft.value = *value,
            Edit::Coarse(stage) => model.stages[stage.index(stages)].draft.coarse ^= true,
            Edit::File(file, value) => self.place.write(&format!("file{file}"), &value.to_string()),
            Edit::Touch(file) => {
                let file = self.place.path(&format!("file{file}"));
                let text = fs::read(&file).unwrap();
                fs::write(&file, text).unwrap();
            }
            Edit::Env(value) => self.env = *value,
            Edit::Comment => model.comments += 1,
            Edit::Reorder => model.reversed ^= true,
            Edit::Remove(stage) => model.remove(*stage),
            Edit::Add(draft) => model.add(draft.clone()),
            Edit::Rewire(consumer, producer) => model.rewire(*consumer, *producer),
            Edit::Revert(round) => {
                if !self.past.is_empty() {
                    let next = model.next;
                    *model = Model { next, ..round.get(&self.past).clone() };
                }
            }
            Edit::DamageObject(object, damage) => self.damage(*object, *damage),
            Edit::CutAction(action) => self.cut(*action),
            Edit::Crash(micros) => self.crash(*micros),
        }
    }

    fn damage(&self, object: Index, damage: Damage) {
        let mut files = self.place.stored("x");
        files.sort();
        let Some(file) = (!files.is_empty()).then(|| object.get(&files)) else { return };
        set_mode(file, 0o644);
        match damage {
            Damage::Flip => {
                let mut bytes = fs::read(file).unwrap();
                bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
                fs::write(file, bytes).unwrap();
            }
            Damage::Empty => fs::write(file, "").unwrap(),
            Damage::Remove => fs::remove_dir_all(file.parent().unwrap().parent().unwrap()).unwrap(),
            Damage::Add => fs::write(file.with_file_name("more"), "x").unwrap(),
        }
    }

    fn cut(&self, action: Index) {
        let Ok(entries) = fs::read_dir(self.place.path(".pipe/actions")) else { return };
        let mut actions: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        actions.sort();
        if !actions.is_empty() {
            let action = action.get(&actions);
            let bytes = fs::read(action).unwrap();
            fs::write(action, &bytes[..bytes.len() / 2]).unwrap();
        }
    }

    fn crash(&self, micros: u64) {
        self.place.pipeline(&self.model.text());
        let run = self.place.pipe("run p.toml").env("EXTRA", &self.env.to_string()).start();
        std::thread::sleep(Duration::from_micros(micros));
        run.signal("KILL");
        run.wait();
        until("no stage outlives its run", || !within(&self.place));
    }

    /// Plans, runs, compares, and plans again.
    fn check(&mut self, how: How) {
        self.place.pipeline(&self.model.text());
        let flags = match how {
            How::Plain => String::new(),
            How::Force => "--force".to_owned(),
            How::Until(stage) => format!("--until s{}", stage.get(&self.model.stages).name),
        };
        let planned = self.plan(&flags);
        let before = self.place.lines("ran");
        let states = self.run(&flags);
        let mut programs = 0;
        for (stage, (verdict, why)) in &planned {
            let state = states[stage].0.as_str();
            let right = match verdict.as_str() {
                "cached" => state == "cached",
                "will_run" => state == "done",
                "may_run" => state == "done" || state == "cached",
                other => panic!("verdict {other}"),
            };
            assert!(right, "{stage}: planned {verdict} ({why}), but {state}\n{}", self.model.text());
            programs += usize::from(state == "done" && !self.copies(stage));
        }
        assert_eq!(self.place.lines("ran") - before, programs, "programs that ran\n{}", self.model.text());
        let flags = flags.replace("--force", "");
        for (stage, (verdict, why)) in self.plan(&flags) {
            assert_eq!(verdict, "cached", "{stage} after a run: {why}\n{}", self.model.text());
        }
        self.past.push(self.model.clone());
    }

    /// What is there now is what a store of its own comes to: nothing old was served for something new.
    fn check_results(&self) {
        let here = self.run("");
        let afresh = self.run("--store afresh");
        for (stage, (_, object)) in here {
            assert_eq!(object, afresh[&stage].1, "the output of {stage}\n{}", self.model.text());
        }
    }

    fn copies(&self, stage: &str) -> bool {
        self.model.stages.iter().any(|spec| spec.draft.file.is_some() && format!("s{}", spec.name) == stage)
    }

    fn plan(&self, flags: &str) -> BTreeMap<String, (String, String)> {
        let call = self.place.pipe(&format!("plan p.toml --json {flags}"));
        let document: Value =
            serde_json::from_str(&call.env("EXTRA", &self.env.to_string()).ends(0).out).unwrap();
        let stages = document["stages"].as_array().unwrap().iter();
        stages
            .map(|stage| (text(&stage["stage"]), (text(&stage["verdict"]), stage["why"].to_string())))
            .collect()
    }

    /// Stage → how it ended and what it made.
    fn run(&self, flags: &str) -> BTreeMap<String, (String, String)> {
        let call = self.place.pipe(&format!("run p.toml --json {flags}"));
        let said = call.env("EXTRA", &self.env.to_string()).ends(0);
        let record: Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
        let stages = record["run"]["stages"].as_array().unwrap().iter();
        stages.map(|stage| (text(&stage["stage"]), (text(&stage["state"]), text(&stage["object"])))).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

fn drafts() -> impl Strategy<Value = Draft> {
    (
        prop_oneof![4 => Just(None), 1 => (0..3_usize).prop_map(Some)],
        0..4_u8,
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop_oneof![3 => Just(0), 1 => 2..4_usize],
        vec((any::<Index>(), any::<bool>()), 0..=3),
    )
        .prop_map(|(file, value, coarse, env, rows, inputs)| Draft {
            file,
            value,
            coarse,
            env,
            rows,
            inputs,
        })
}

fn edits() -> impl Strategy<Value = Edit> {
    let damage =
        prop_oneof![Just(Damage::Flip), Just(Damage::Empty), Just(Damage::Remove), Just(Damage::Add)];
    let index = any::<Index>;
    prop_oneof![
        4 => (index(), 0..4_u8).prop_map(|(stage, value)| Edit::Value(stage, value)),
        1 => index().prop_map(Edit::Coarse),
        2 => (0..3_usize, 0..3_u8).prop_map(|(file, value)| Edit::File(file, value)),
        1 => (0..3_usize).prop_map(Edit::Touch),
        1 => (0..3_u8).prop_map(Edit::Env),
        1 => Just(Edit::Comment),
        1 => Just(Edit::Reorder),
        1 => index().prop_map(Edit::Remove),
        1 => drafts().prop_map(Edit::Add),
        1 => (index(), index()).prop_map(|(consumer, producer)| Edit::Rewire(consumer, producer)),
        2 => index().prop_map(Edit::Revert),
        2 => (index(), damage).prop_map(|(object, damage)| Edit::DamageObject(object, damage)),
        1 => index().prop_map(Edit::CutAction),
        2 => (0..60_000_u64).prop_map(Edit::Crash),
    ]
}

fn hows() -> impl Strategy<Value = How> {
    prop_oneof![6 => Just(How::Plain), 1 => Just(How::Force), 1 => any::<Index>().prop_map(How::Until)]
}

#[test]
fn what_plan_says_is_what_run_does() {
    let cases = setting("PIPE_CASES", 20);
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&setting("PIPE_SEED", 1).to_le_bytes());
    let config = Config {
        cases: u32::try_from(cases).unwrap(),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let rounds = vec((vec(edits(), 1..=3), hows()), 2..=5);
    let result = runner.run(&(vec(drafts(), 1..=7), rounds), |(drafts, rounds)| {
        let mut bench = Bench::new(&drafts);
        bench.check(How::Plain);
        for (edits, how) in rounds {
            edits.iter().for_each(|edit| bench.apply(edit));
            bench.check(how);
        }
        bench.check(How::Plain);
        bench.check_results();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
