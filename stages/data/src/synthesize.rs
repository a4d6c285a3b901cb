//! `synthesize`: a made-up instruction data set with tasks that a tiny model can learn.
//!
//! Rows have Alpaca's form (`instruction`, `input`, `output`). Everything follows from the
//! parameters: the same rows on every machine. The tasks and sizes are those with which a model of
//! 0.25M parameters was seen to learn (see `pipelines/quickstart.toml`). Knows no tokenizer.
//!
//! Version log: 1 first.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;

use contract::{Config, ConfigError, Context, Default, Job, Param, Pool, Ports, Stage, StageError, Type, at};
use serde::{Deserialize, Serialize};

use crate::random::Random;

/// The kind `synthesize`.
pub struct Synthesize;

const TASKS: &[&str] = &[
    "copy",
    "first",
    "last",
    "rest",
    "twice",
    "sort",
    "reverse",
    "swap-ends",
    "second",
    "first-and-last",
    "add",
];

/// Short and frequent, letters only, none of them part of an instruction.
const WORDS: &[&str] = &[
    "apple", "bird", "cat", "dog", "egg", "fish", "goat", "hat", "ice", "jar", "king", "lamp", "moon",
    "nose", "owl", "pen", "queen", "rain", "sun", "tree", "van", "wind", "box", "yard", "zoo", "arm", "bell",
    "cup", "door", "ear", "frog", "gold", "horse", "ink", "jam", "kite", "leaf", "milk", "net", "oak",
    "park", "road", "ship", "toy", "wall", "book", "car", "desk", "eye", "farm", "game", "hand", "iron",
    "knee", "lake", "map", "nest", "oil", "pot", "ring", "salt", "tent", "wolf", "bag", "coat", "duck",
    "face", "gate", "hill", "key", "lion", "mouse", "night", "page", "rose", "snow", "town", "water",
    "bread", "chair",
];

/// Summands of `add` are 0 ≤ x < this.
const NUMBERS: usize = 100;

const PARAMS: &[Param] = &[
    Param::new("seed", Type::at_least(0), Default::Int(1), "every row follows from it"),
    Param::new(
        "tasks",
        Type::List(&Type::Choice(TASKS)),
        Default::Required,
        "what the rows ask for, in equal shares",
    ),
    Param::new("rows", Type::Int { min: 1, max: 10_000_000 }, Default::Int(12_000), "rows to train on"),
    Param::new(
        "heldout",
        Type::Int { min: 0, max: 1_000_000 },
        Default::Int(300),
        "rows held out; no training row equals one",
    ),
    Param::new(
        "words",
        Type::Int { min: 2, max: WORDS.len() as i64 },
        Default::Int(40),
        "how many different words there are",
    ),
    Param::new(
        "min_words",
        Type::Int { min: 1, max: 32 },
        Default::Int(2),
        "fewest words in an input; all words of an input differ",
    ),
    Param::new("max_words", Type::Int { min: 1, max: 32 }, Default::Int(4), "most words in an input"),
];

#[derive(Deserialize)]
struct Settings {
    seed: u64,
    tasks: Vec<Task>,
    rows: usize,
    heldout: usize,
    words: usize,
    min_words: usize,
    max_words: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Task {
    Copy,
    First,
    Last,
    Rest,
    Twice,
    Sort,
    Reverse,
    SwapEnds,
    Second,
    FirstAndLast,
    Add,
}

#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
struct Row {
    instruction: &'static str,
    input: String,
    output: String,
}

impl Task {
    /// The sentence that names the task.
    fn instruction(self) -> &'static str {
        match self {
            Self::Copy => "Repeat the words.",
            Self::First => "Give the first word.",
            Self::Last => "Give the last word.",
            Self::Rest => "Give all but the first word.",
            Self::Twice => "Repeat the words twice.",
            Self::Sort => "Sort the words.",
            Self::Reverse => "Reverse the words.",
            Self::SwapEnds => "Swap the first and last word.",
            Self::Second => "Give the second word.",
            Self::FirstAndLast => "Give the first and last word.",
            Self::Add => "Add the numbers.",
        }
    }

    /// Fewest words for which the task means something.
    fn fewest(self) -> usize {
        match self {
            Self::Rest | Self::SwapEnds | Self::Second | Self::FirstAndLast => 2,
            _ => 1,
        }
    }

    /// The answer for a list of words that is long enough.
    fn answer(self, words: &[&str]) -> String {
        let (first, last) = (words[0], words[words.len() - 1]);
        let mut words = words.to_vec();
        match self {
            Self::Copy => {}
            Self::First => words.truncate(1),
            Self::Last => words = vec![last],
            Self::Rest => drop(words.remove(0)),
            Self::Twice => words = words.repeat(2),
            Self::Sort => words.sort_unstable(),
            Self::Reverse => words.reverse(),
            Self::SwapEnds => {
                let end = words.len() - 1;
                words.swap(0, end);
            }
            Self::Second => words = vec![words[1]],
            Self::FirstAndLast => words = vec![first, last],
            Self::Add => {
                let sum: usize = words.iter().filter_map(|word| word.parse::<usize>().ok()).sum();
                return sum.to_string();
            }
        }
        words.join(" ")
    }

    fn row(self, words: &[&str]) -> Row {
        let glue = if self == Self::Add { " + " } else { " " };
        Row { instruction: self.instruction(), input: words.join(glue), output: self.answer(words) }
    }
}

impl Stage for Synthesize {
    fn kind(&self) -> &'static str {
        "synthesize"
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "makes a seeded instruction data set (data.json, heldout.json in Alpaca's form) of learnable word tasks"
    }

    fn pool(&self) -> Pool {
        Pool::Cpu
    }

    fn inputs(&self) -> Ports {
        Ports::Listed(&[])
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        let errors = settings.errors();
        if errors.is_empty() { Ok(Box::new(settings)) } else { Err(errors) }
    }
}

impl Settings {
    fn errors(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.tasks.is_empty() {
            errors.push(ConfigError::new("tasks", "needs at least one task"));
        }
        if self.tasks.iter().collect::<HashSet<_>>().len() < self.tasks.len() {
            errors.push(ConfigError::new("tasks", "names a task twice"));
        }
        if self.min_words > self.max_words {
            let message =
                format!("`min_words` = {} is more than `max_words` = {}", self.min_words, self.max_words);
            errors.push(ConfigError::new("min_words", message));
        }
        if self.max_words > self.words {
            let message = format!(
                "an input of {} different words needs `words` ≥ {0}, not {}",
                self.max_words, self.words
            );
            errors.push(ConfigError::new("max_words", message));
        }
        let fewest = self.tasks.iter().map(|task| task.fewest()).max().unwrap_or(1);
        if self.min_words < fewest {
            errors.push(ConfigError::new(
                "min_words",
                format!("these tasks need inputs of at least {fewest} words"),
            ));
        }
        if errors.is_empty() {
            errors.extend(self.space_error());
        }
        errors
    }

    /// Held-out rows may take at most half of what there is of a task and a length, so that the
    /// other half can be trained on.
    fn space_error(&self) -> Option<ConfigError> {
        let per_task = self.heldout.div_ceil(self.tasks.len());
        let lengths = self.max_words - self.min_words + 1;
        self.tasks.iter().find_map(|&task| {
            let (wanted, space, what) = if task == Task::Add {
                (per_task, NUMBERS * NUMBERS, "pairs of numbers".to_owned())
            } else {
                let n = self.min_words;
                (per_task.div_ceil(lengths), arrangements(self.words, n), format!("inputs of {n} words"))
            };
            (wanted > space / 2).then(|| {
                let message = format!(
                    "there are {space} different {what} and at most half of them can be held out, not {wanted}: take fewer held-out rows, more `words`, or a larger `min_words`"
                );
                ConfigError::new("heldout", message)
            })
        })
    }

    /// The `number`th row: tasks take turns, then lengths; the words are random.
    fn draw(&self, number: usize, random: &mut Random) -> Row {
        let task = self.tasks[number % self.tasks.len()];
        if task == Task::Add {
            let summands: Vec<String> = (0..2).map(|_| random.below(NUMBERS).to_string()).collect();
            return task.row(&[&summands[0], &summands[1]]);
        }
        let lengths = self.max_words - self.min_words + 1;
        let length = self.min_words + number / self.tasks.len() % lengths;
        let mut words = WORDS[..self.words].to_vec();
        for place in 0..length {
            let other = place + random.below(words.len() - place);
            words.swap(place, other);
        }
        task.row(&words[..length])
    }
}

/// How many ordered choices of `k` out of `n` there are (saturating).
fn arrangements(n: usize, k: usize) -> usize {
    (0..k).map(|i| n - i).fold(1, usize::saturating_mul)
}

impl Job for Settings {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let mut random = Random::new(self.seed);
        let mut heldout = Vec::with_capacity(self.heldout);
        let mut held = HashSet::with_capacity(self.heldout);
        while heldout.len() < self.heldout {
            let row = self.draw(heldout.len(), &mut random);
            if held.insert(row.clone()) {
                heldout.push(row);
            }
        }
        let mut rows = Vec::with_capacity(self.rows);
        while rows.len() < self.rows {
            if rows.len() % 4096 == 0 && ctx.stopping() {
                return Err(StageError::cancelled());
            }
            let row = self.draw(rows.len(), &mut random);
            if !held.contains(&row) {
                rows.push(row);
            }
        }
        random.shuffle(&mut rows);
        random.shuffle(&mut heldout);
        write(ctx, "data.json", &rows)?;
        if !heldout.is_empty() {
            write(ctx, "heldout.json", &heldout)?;
        }
        ctx.progress(self.rows as u64, self.rows as u64, "rows", &[]);
        Ok(())
    }
}

/// A JSON array with one row a line.
fn write(ctx: &Context<'_>, name: &str, rows: &[Row]) -> Result<(), StageError> {
    let mut text = String::from("[");
    for (index, row) in rows.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(text, "{comma}\n{}", serde_json::to_string(row)?)?;
    }
    text.push_str("\n]\n");
    let path = ctx.out().join(name);
    fs::write(&path, text).map_err(at(&path))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Bench, plan_errors};

    fn rows(bench: &Bench, name: &str) -> Vec<HashMap<String, String>> {
        serde_json::from_str(&bench.read(name)).unwrap()
    }

    fn every_task(rows: usize, heldout: usize) -> Value {
        json!({ "tasks": TASKS, "rows": rows, "heldout": heldout })
    }

    #[test]
    fn every_task_gives_its_answer() {
        let answers: Vec<String> = ["copy", "first", "last", "rest", "twice", "sort", "reverse", "swap-ends"]
            .into_iter()
            .chain(["second", "first-and-last"])
            .map(|name| serde_json::from_value::<Task>(json!(name)).unwrap().answer(&["dog", "cat", "ant"]))
            .collect();
        let expected = [
            "dog cat ant",
            "dog",
            "ant",
            "cat ant",
            "dog cat ant dog cat ant",
            "ant cat dog",
            "ant cat dog",
            "ant cat dog",
            "cat",
            "dog ant",
        ];
        assert_eq!(answers, expected);
        assert_eq!(Task::Add.row(&["12", "30"]).input, "12 + 30");
        assert_eq!(Task::Add.row(&["12", "30"]).output, "42");
        assert_eq!(Task::SwapEnds.answer(&["a", "b", "c", "d"]), "d b c a");
    }

    #[test]
    fn no_training_row_equals_a_held_out_row_and_tasks_are_balanced() {
        let bench = Bench::new();
        bench.run(&Synthesize, every_task(11_000, 1_100)).unwrap();
        let (train, heldout) = (rows(&bench, "data.json"), rows(&bench, "heldout.json"));
        assert_eq!((train.len(), heldout.len()), (11_000, 1_100));
        assert!(heldout.iter().all(|row| !train.contains(row)));
        let mut counts = HashMap::new();
        train.iter().for_each(|row| *counts.entry(&row["instruction"]).or_insert(0) += 1);
        assert_eq!(counts.len(), TASKS.len());
        assert!(counts.values().all(|&count| count == 1_000), "{counts:?}");
    }

    #[test]
    fn held_out_rows_differ_from_each_other_even_in_a_small_space() {
        let bench = Bench::new();
        let params = json!({ "tasks": ["copy"], "rows": 200, "heldout": 6, "words": 4, "min_words": 2, "max_words": 2 });
        bench.run(&Synthesize, params).unwrap();
        let heldout = rows(&bench, "heldout.json");
        let inputs: HashSet<_> = heldout.iter().map(|row| row["input"].clone()).collect();
        assert_eq!(inputs.len(), 6);
        assert!(rows(&bench, "data.json").iter().all(|row| !inputs.contains(&row["input"])));
    }

    #[test]
    fn the_seed_decides_every_byte() {
        let run = |seed| {
            let bench = Bench::new();
            bench
                .run(
                    &Synthesize,
                    json!({ "tasks": ["copy", "add"], "rows": 50, "heldout": 10, "seed": seed }),
                )
                .unwrap();
            bench.read("data.json") + &bench.read("heldout.json")
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn a_space_too_small_for_the_held_out_rows_is_refused_with_its_size() {
        let errors = plan_errors(
            &Synthesize,
            json!({ "tasks": ["copy"], "heldout": 7, "words": 4, "min_words": 2, "max_words": 2 }),
        );
        assert_eq!(errors[0].key, "heldout");
        assert!(errors[0].message.contains("12 different inputs of 2 words"), "{}", errors[0].message);
    }

    #[test]
    fn all_contradictions_are_told_at_once() {
        let errors = plan_errors(
            &Synthesize,
            json!({ "tasks": ["rest", "rest"], "min_words": 1, "max_words": 9, "words": 8 }),
        );
        let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
        assert_eq!(keys, ["tasks", "max_words", "min_words"]);
    }

    #[test]
    fn every_listed_task_is_one_that_can_be_read() {
        assert!(TASKS.iter().all(|name| serde_json::from_value::<Task>(json!(name)).is_ok()));
        assert_eq!(WORDS.iter().collect::<HashSet<_>>().len(), WORDS.len());
    }
}
