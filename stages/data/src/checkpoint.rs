//! `checkpoint`: some of the steps that a training run saved, each a folder that PEFT (adapters) or
//! transformers (full fine-tuning) loads.
//!
//! Every chosen step is read and checked before it counts as copied. Training itself happens in
//! `train`; nothing is computed here.
//!
//! Version log: 1 first.

use std::fs;
use std::path::Path;

use contract::{
    Config, ConfigError, Context, Default, Input, Job, Param, Pool, Ports, Stage, StageError, Type, at,
};
use formats::adapter::Adapter;
use formats::config::LlamaConfig;
use formats::run::{Method, RunInfo, step_dir};
use formats::weights::Weights;
use serde::Deserialize;

use crate::folder::{copy_files, copy_tokenizer};

/// The kind `checkpoint`.
pub struct Checkpoint;

const INPUTS: &[Input] = &[
    Input::one("run", "what `train` wrote"),
    Input::optional("model", "model folder whose tokenizer goes beside each fully fine-tuned model"),
];

const PARAMS: &[Param] = &[Param::new(
    "steps",
    Type::List(&Type::at_least(0)),
    Default::Ints(&[]),
    "which saved steps; none named: all of them",
)];

#[derive(Deserialize)]
struct Settings {
    steps: Vec<u64>,
}

impl Stage for Checkpoint {
    fn kind(&self) -> &'static str {
        "checkpoint"
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "picks saved steps of a training run: PEFT adapter folders, or model folders"
    }

    fn pool(&self) -> Pool {
        Pool::Cpu
    }

    fn inputs(&self) -> Ports {
        Ports::Listed(INPUTS)
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        Ok(Box::new(config.to::<Settings>()?))
    }
}

impl Job for Settings {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let run = ctx.input("run")?;
        let mut info = RunInfo::read(&run)?;
        info.steps = self.chosen(&info.steps)?;
        let total = info.steps.len() as u64;
        for (done, &step) in (0..).zip(&info.steps) {
            if ctx.stopping() {
                return Err(StageError::cancelled());
            }
            let (from, to) = (run.join(step_dir(step)), ctx.out().join(step_dir(step)));
            check(&from, info.method)?;
            fs::create_dir(&to).map_err(at(&to))?;
            copy_files(&from, &to, |_| true)?;
            if let (Method::Full, Some(model)) = (info.method, ctx.inputs.optional("model")) {
                copy_tokenizer(model, &to)?;
            }
            ctx.progress(done + 1, total, "checkpoints", &[]);
        }
        info.write(ctx.out())?;
        Ok(())
    }
}

impl Settings {
    /// The chosen steps in order, each once.
    fn chosen(&self, saved: &[u64]) -> Result<Vec<u64>, StageError> {
        let list = |steps: &[u64]| steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        if saved.is_empty() {
            return Err(StageError::new("the training run saved no step"));
        }
        let mut steps = if self.steps.is_empty() { saved.to_vec() } else { self.steps.clone() };
        steps.sort_unstable();
        steps.dedup();
        let missing: Vec<u64> = steps.iter().copied().filter(|step| !saved.contains(step)).collect();
        if missing.is_empty() {
            return Ok(steps);
        }
        Err(StageError::new(format!("steps {} were not saved; saved were {}", list(&missing), list(saved)))
            .hint("name saved steps in `steps`, or change `save_every` of the training stage"))
    }
}

/// Whether the folder of a step can be loaded.
fn check(folder: &Path, method: Method) -> Result<(), StageError> {
    match method {
        Method::Full => Weights::open(folder)?.check(&LlamaConfig::read(folder)?)?,
        Method::Lora | Method::Dora => drop(Adapter::read(folder)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Bench, fixtures, write_run};

    /// A LoRA run with the steps 5 and 10 of the fixtures, and its folder.
    fn lora() -> Bench {
        let bench = Bench::new();
        let run = bench.path("run");
        for step in [5, 10] {
            let to = run.join(step_dir(step));
            fs::create_dir_all(&to).unwrap();
            copy_files(&fixtures().join(format!("lora-train/wd0.01/step-{step:02}")), &to, |_| true).unwrap();
        }
        write_run(&run, "lora", &[5, 10]);
        bench.input("run", "train", &run)
    }

    #[test]
    fn without_a_choice_every_step_is_taken() {
        let bench = lora();
        bench.run(&Checkpoint, json!({})).unwrap();
        assert_eq!(RunInfo::read(&bench.path("out")).unwrap().steps, [5, 10]);
        let (from, to) = (bench.path("run").join(step_dir(10)), bench.out(&step_dir(10)));
        let read = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
        assert!(read(&from) == read(&to) && Adapter::read(&to).is_ok());
    }

    #[test]
    fn chosen_steps_come_in_order_and_once() {
        let bench = lora();
        bench.run(&Checkpoint, json!({ "steps": [10, 10] })).unwrap();
        assert_eq!(RunInfo::read(&bench.path("out")).unwrap().steps, [10]);
        assert!(!bench.out(&step_dir(5)).exists());
    }

    #[test]
    fn steps_that_were_not_saved_are_named_with_those_that_were() {
        let error = lora().run(&Checkpoint, json!({ "steps": [7, 5, 300] })).unwrap_err();
        assert_eq!(error.message, "steps 7, 300 were not saved; saved were 5, 10");
    }

    #[test]
    fn a_cut_off_step_is_refused() {
        let bench = lora();
        let file = bench.path("run").join(step_dir(5)).join("adapter_model.safetensors");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        let error = bench.run(&Checkpoint, json!({})).unwrap_err();
        assert!(error.message.contains("adapter_model.safetensors"), "{error}");
    }

    #[test]
    fn a_fully_fine_tuned_step_gets_the_tokenizer_of_its_model() {
        let bench = Bench::new();
        let (run, model) = (bench.path("run"), bench.path("model"));
        let to = run.join(step_dir(3));
        fs::create_dir_all(&to).unwrap();
        copy_files(&fixtures().join("tiny-llama"), &to, |_| true).unwrap();
        write_run(&run, "full", &[3]);
        bench.write("model/tokenizer.json", "{}");
        bench.write("model/other.bin", "");
        let bench = bench.input("run", "train", &run).input("model", "base", &model);
        bench.run(&Checkpoint, json!({})).unwrap();
        let folder = bench.out(&step_dir(3));
        assert!(folder.join("tokenizer.json").exists() && folder.join("model.safetensors").exists());
        assert!(!folder.join("other.bin").exists());
    }
}
