use std::path::Path;

use burn::tensor::Device;
use formats::adapter::AdapterConfig;

use super::*;
use crate::model::Llama;
use crate::replicas::Replica;
use crate::schedule::Shape;

fn trainer(zero: bool) -> Trainer {
    let build = || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-llama");
        let mut llama = Llama::load(&folder, &Device::flex())?;
        let config = AdapterConfig {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            dora: true,
            rslora: false,
            target_modules: vec!["q_proj".into(), "v_proj".into()],
            base_model: String::new(),
        };
        let adapter = llama.fresh_adapter(&config, 1)?;
        llama.attach(&adapter)?;
        Ok(Replica::new(llama, false))
    };
    let builders = ["one", "two"].map(|name| (name.to_owned(), build)).to_vec();
    let options = Options {
        adam: AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
        max_grad_norm: 1.0,
        schedule: Schedule { shape: Shape::Constant, peak: 1e-2, warmup: 0, total: 4 },
        normalisation: Normalisation::Token,
        lora_plus: 1.0,
        loss_scale: LossScale::none(),
        zero,
        seed: 1,
    };
    Trainer::new(Team::new(builders).unwrap(), Ranks::alone().into(), options).unwrap()
}

fn batches(step: u32, broken: bool) -> Vec<Vec<Batch>> {
    let row = |first: u32| (first..first + 6).collect::<Vec<u32>>();
    let (one, two) = (row(10 + step), if broken { row(1 << 20) } else { row(100 + step) });
    [one, two].map(|ids| vec![Batch::ragged(std::iter::once((ids.as_slice(), 0)), 1)]).to_vec()
}

/// A token that no vocabulary holds ends the second replica's thread, as a lost device would.
#[test]
fn a_replica_that_dies_leaves_the_state_after_the_last_step() {
    let steps = |trainer: &mut Trainer, steps: std::ops::Range<u32>| {
        for step in steps {
            trainer.step(batches(step, false)).unwrap();
        }
    };
    let mut whole = trainer(false);
    steps(&mut whole, 0..4);
    let mut dies = trainer(false);
    steps(&mut dies, 0..2);
    let error = dies.step(batches(2, true)).unwrap_err();
    assert!(error.message.contains("`two` died"), "{error}");
    assert!(dies.survives() && dies.steps() == 2);
    let saved = dies.save().unwrap();
    let mut later = trainer(false);
    later.restore(2, LossScale::none(), &saved).unwrap();
    steps(&mut later, 2..4);
    assert_eq!(later.save().unwrap(), whole.save().unwrap());
}

#[test]
fn what_a_dead_replica_had_of_a_shared_state_cannot_be_saved() {
    let mut dies = trainer(true);
    dies.step(batches(0, false)).unwrap();
    dies.step(batches(1, true)).unwrap_err();
    assert!(dies.save().is_err());
}
