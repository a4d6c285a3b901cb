//! `evaluate`: models side by side on held-out rows: loss and perplexity of the answers, exact
//! match of greedy generations, and samples that a person can read.
//!
//! An answer matches if its text equals the row's `output`, white space at the ends aside.
//! A batch is scored as in training (`loss`), generations come from `generate`.
//!
//! Version log: 1 first.

use std::fmt::Write;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use contract::{
    Config, ConfigError, Context, Default, Input, Job, Param, Pool, Ports, Stage, StageError, Table, Type, at,
};
use formats::alpaca::{self, Row};
use formats::tokens::TokenSet;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::batch::{self, Batch};
use crate::model::Llama;
use crate::sum::total;
use crate::{device, generate, loss};

/// The kind `evaluate`.
pub struct Evaluate;

const VERSION: u32 = 3;

/// Rows that are scored together.
const ROWS: usize = 32;

const INPUTS: &[Input] = &[
    Input::one("base", "the model before training"),
    Input::several("models", "models after training"),
    Input::one("data", "folder of a tokenize stage"),
];

const PARAMS: &[Param] = &[
    Param::new("rows", Type::at_least(0), Default::Int(200), "held-out rows, from the first; 0: all"),
    Param::new(
        "max_new_tokens",
        Type::Int { min: 1, max: 4096 },
        Default::Int(64),
        "an answer is cut off after so many",
    ),
    Param::new("samples", Type::at_least(0), Default::Int(8), "rows whose answers go to `samples.txt`"),
    Param::new("device", Type::Text, Default::Text("auto"), "auto | gpu | gpu:N | software | cpu"),
];

/// The parameters.
#[derive(Clone, Debug, Deserialize)]
struct Settings {
    rows: usize,
    max_new_tokens: usize,
    samples: usize,
    device: String,
}

impl Stage for Evaluate {
    fn kind(&self) -> &'static str {
        "evaluate"
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn doc(&self) -> &'static str {
        "held-out loss, exact match and sample answers of models side by side"
    }

    fn pool(&self) -> Pool {
        Pool::Gpu
    }

    fn inputs(&self) -> Ports {
        Ports::Listed(INPUTS)
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        device::check_request(&settings.device)
            .map_err(|error| vec![ConfigError::new("device", error.message)])?;
        Ok(Box::new(EvaluateJob { settings }))
    }
}

struct EvaluateJob {
    settings: Settings,
}

impl Job for EvaluateJob {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        crate::tuned::keep(ctx.work(), 0)?;
        let opened = device::open(&self.settings.device, ctx.devices().first().copied().unwrap_or(0))?;
        ctx.note(format!("computes on {}", opened.label));
        for (name, value) in &opened.provenance {
            ctx.provenance(name, value.clone());
        }
        let base = ctx.input("base")?;
        let exam = Exam::read(&ctx.input("data")?, &base, &self.settings)?;
        let mut models = vec![("base".to_owned(), base)];
        let after = ctx.inputs.all("models").iter();
        models.extend(after.map(|artifact| (artifact.label.clone(), artifact.path.clone())));
        let mut results = Vec::new();
        for (index, (label, path)) in models.iter().enumerate() {
            let told = |done: usize| {
                if ctx.stopping() {
                    return Err(StageError::cancelled());
                }
                let all = (exam.rows.len() * models.len()) as u64;
                ctx.progress((index * exam.rows.len() + done) as u64, all, "rows", &[]);
                Ok(())
            };
            results.push(exam.take(label, path, &opened.device, told)?);
        }
        exam.report(&results, self.settings.samples, ctx)
    }
}

/// What every model is asked.
struct Exam {
    rows: Vec<Row>,
    tokens: TokenSet,
    tokenizer: Tokenizer,
    max_new_tokens: usize,
}

/// One model's marks.
#[derive(Serialize)]
struct Marks {
    label: String,
    rows: usize,
    label_tokens: usize,
    loss: f64,
    perplexity: f64,
    /// Share of rows.
    exact_match: f64,
    #[serde(skip)]
    answers: Vec<String>,
}

impl Exam {
    fn read(data: &Path, model: &Path, settings: &Settings) -> Result<Self, StageError> {
        let path = data.join(TokenSet::HELDOUT);
        let mut tokens = TokenSet::read(&path)?;
        let mut rows = alpaca::read_rows(&data.join("heldout.json"))?;
        if rows.len() != tokens.rows.len() {
            return Err(StageError::new(format!(
                "`{}` holds {} held-out rows as tokens and {} as text",
                data.display(),
                tokens.rows.len(),
                rows.len()
            ))
            .hint("run `tokenize` again"));
        }
        if settings.rows > 0 {
            rows.truncate(settings.rows);
            tokens.rows.truncate(settings.rows);
        }
        let path = model.join("tokenizer.json");
        let tokenizer = formats::tokenizer::read(&path).map_err(|error| {
            StageError::new(error.to_string())
                .hint("the base model's folder needs the tokenizer that the rows were tokenized with")
        })?;
        Ok(Self { rows, tokens, tokenizer, max_new_tokens: settings.max_new_tokens })
    }

    /// Examines one model.
    fn take(
        &self,
        label: &str,
        path: &Path,
        device: &Device,
        told: impl FnMut(usize) -> Result<(), StageError>,
    ) -> Result<Marks, StageError> {
        let model = Llama::load(path, device)?;
        self.fits(&model, path)?;
        let (sum, label_tokens) = self.loss(&model)?;
        let prompts: Vec<Vec<u32>> =
            self.tokens.rows.iter().map(|row| row.ids[..row.prompt_len].to_vec()).collect();
        let stop = &model.config.eos_token_ids;
        let ids = generate::greedy(&model, &prompts, self.max_new_tokens, stop, told)?;
        let answers = ids
            .iter()
            .map(|ids| self.tokenizer.decode(ids, true))
            .collect::<Result<Vec<String>, _>>()
            .map_err(|error| StageError::new(format!("cannot decode an answer: {error}")))?;
        let right = self.rows.iter().zip(&answers).filter(|(row, answer)| row.output.trim() == answer.trim());
        let exact_match = right.count() as f64 / self.rows.len() as f64;
        let loss = sum / label_tokens.max(1) as f64;
        let rows = self.rows.len();
        Ok(Marks {
            label: label.to_owned(),
            rows,
            label_tokens,
            loss,
            perplexity: loss.exp(),
            exact_match,
            answers,
        })
    }

    fn fits(&self, model: &Llama, path: &Path) -> Result<(), StageError> {
        let largest = self.tokens.rows.iter().flat_map(|row| &row.ids).max().copied().unwrap_or(0);
        if largest as usize >= model.config.vocab_size {
            return Err(StageError::new(format!(
                "the rows hold token {largest}, and the vocabulary of `{}` has {}",
                path.display(),
                model.config.vocab_size
            ))
            .hint("tokenize with the model's own tokenizer"));
        }
        Ok(())
    }

    /// Σ of the negative log likelihoods of the labels, and how many they are.
    fn loss(&self, model: &Llama) -> Result<(f64, usize), StageError> {
        let all: Vec<usize> = (0..self.tokens.rows.len()).collect();
        let (mut sums, mut count) = (Vec::new(), 0);
        for rows in all.chunks(ROWS) {
            let batch = batch::of_rows(&self.tokens, rows, 1);
            if !batch.targets.is_empty() {
                count += batch.targets.len();
                sums.push(total(nll(model, &batch)?));
            }
        }
        let sums = device::read_all(sums)?;
        Ok((sums.iter().flatten().map(|&sum| f64::from(sum)).sum(), count))
    }

    fn report(&self, results: &[Marks], samples: usize, ctx: &Context<'_>) -> Result<(), StageError> {
        let path = ctx.out().join("evaluation.json");
        std::fs::write(&path, serde_json::to_string_pretty(results)? + "\n").map_err(at(&path))?;
        let path = ctx.out().join("samples.txt");
        std::fs::write(&path, self.samples(results, samples)?).map_err(at(&path))?;
        ctx.summary(&Table {
            title: format!("{} held-out rows", self.rows.len()),
            columns: ["model", "held-out loss", "perplexity", "exact match"].map(String::from).to_vec(),
            rows: results
                .iter()
                .map(|marks| {
                    vec![
                        marks.label.clone(),
                        format!("{:.4}", marks.loss),
                        format!("{:.3}", marks.perplexity),
                        format!("{:.1} %", 100.0 * marks.exact_match),
                    ]
                })
                .collect(),
        })
    }

    fn samples(&self, results: &[Marks], samples: usize) -> Result<String, StageError> {
        let width = results.iter().map(|marks| marks.label.len()).max().unwrap_or(0).max("expected".len());
        let mut text = String::new();
        for (index, row) in self.rows.iter().take(samples).enumerate() {
            writeln!(text, "── {} ──\n{}", index + 1, row.instruction)?;
            if !row.input.is_empty() {
                writeln!(text, "{}", row.input)?;
            }
            writeln!(text, "  {:width$}  {}", "expected", row.output)?;
            for marks in results {
                writeln!(text, "  {:width$}  {}", marks.label, marks.answers[index].trim())?;
            }
            text.push('\n');
        }
        Ok(text)
    }
}

/// The negative log likelihood of each label of a batch, `[labels]`.
fn nll(model: &Llama, batch: &Batch) -> Result<Tensor<1>, StageError> {
    let shape = [batch.rows, batch.length];
    let ids = Tensor::<2, Int>::from_data(TensorData::new(batch.ids.clone(), shape), &model.device);
    let ints = |values: &[i32]| {
        Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [values.len()]), &model.device)
    };
    let mask = model.mask(batch.length)?;
    let x = model.blocks.iter().fold(model.embed(ids), |x, block| block.forward(x, &mask, None));
    let h = x.reshape([batch.rows * batch.length, model.config.hidden_size]);
    let h = model.norm.forward(h.select(0, ints(&batch.positions)));
    Ok(loss::nll(&h, &model.head_weight(), &ints(&batch.targets)))
}
