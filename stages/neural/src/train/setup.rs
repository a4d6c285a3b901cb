//! From inputs to a trainer: data checked, devices opened, models loaded, adapters attached.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use burn::tensor::DType;
use contract::{Context, StageError};
use formats::adapter::{Adapter, AdapterConfig};
use formats::config::LlamaConfig;
use formats::run::Method;
use formats::tokens::TokenSet;
use formats::weights::Weights;

use super::Settings;
use super::memory;
use super::resume::{self, Wanted};
use super::samples::Prompts;
use crate::batch::{self, Deal};
use crate::device::{self, Opened};
use crate::groups::Layout;
use crate::model::Llama;
use crate::ranks::{self, Greeting, Ranks};
use crate::replicas::{Replica, Team};
use crate::state::Last;
use crate::trainer::Trainer;
use crate::tuned;

/// Everything a session needs.
pub struct Setup {
    /// The model in training, before its first step.
    pub trainer: Trainer,
    /// Configuration of the base.
    pub config: LlamaConfig,
    /// The adapter's, if one is trained.
    pub adapter: Option<AdapterConfig>,
    /// Rows to train on.
    pub train: TokenSet,
    /// Rows to evaluate on; perhaps none.
    pub heldout: TokenSet,
    /// Held-out prompts to answer while training.
    pub prompts: Option<Prompts>,
    /// How rows are dealt out.
    pub deal: Deal,
    /// Optimizer steps.
    pub total: u64,
    /// Where a finished run ended, if this one goes on from there.
    pub resumed: Option<Last>,
    /// Where it computes.
    pub device: String,
    /// Digest of the base's weights.
    pub base_digest: String,
    /// Whether the kernels are those that a checkpoint was computed with.
    pub same_kernels: bool,
}

/// Reads, checks, loads, and meets the ranks that follow.
pub fn prepare(settings: &Settings, ranks: Rc<Ranks>, ctx: &Context<'_>) -> Result<Setup, StageError> {
    let (model, data) = (ctx.input("model")?, ctx.input("data")?);
    let config = LlamaConfig::read(&model)?;
    let (train, heldout) = rows(&data, &config, ctx)?;
    let prompts = Prompts::read(&heldout, settings, (&model, config.max_position_embeddings), ctx)?;
    let heldout = evaluated(heldout, settings, ctx)?;
    let deal = Deal {
        rows: train.rows.len(),
        batch: settings.batch_size,
        accumulation: settings.accumulation,
        devices: settings.devices * settings.ranks,
        seed: settings.seed,
        by_length: settings.group_by_length,
    };
    let total = steps(settings, deal.epoch_steps());
    let start = start(settings, &config, ctx)?;
    let adapter = match &start {
        Start::Whole => None,
        Start::Fresh(config) => Some(config.clone()),
        Start::From(file) => Some(file.config.clone()),
    };
    let kept = kernels(&ranks, ctx)?;
    let opened = open(settings, &ranks, ctx)?;
    let same_kernels = kept || opened.iter().all(|opened| device::is_embedded(&opened.device));
    check_memory(settings, &opened, &ranks, ctx)?;
    let probe = batch::of_rows(&train, &[0], 1);
    let mut team = team(settings, &model, &start, &opened, Some(probe))?;
    let greeting = greeting(&mut team, &opened)?;
    let device = meet(&ranks, &greeting, ctx)?;
    let trainer = Trainer::new(team, ranks, settings.options(total))?;
    fits(trainer.layouts(), &opened)?;
    let base_digest = Weights::open(&model)?.digest()?;
    let wanted =
        Wanted { adapter: adapter.as_ref(), base_digest: &base_digest, layouts: trainer.layouts(), total };
    let resumed = resume::read(settings, &wanted, ctx)?;
    Ok(Setup {
        trainer,
        config,
        adapter,
        train,
        heldout,
        prompts,
        resumed,
        deal,
        total,
        device,
        base_digest,
        same_kernels,
    })
}

/// What a rank does in training that does not lead: opens its devices, loads the same, and follows.
pub fn follow(settings: &Settings, ranks: &Ranks, ctx: &Context<'_>) -> Result<(), StageError> {
    let model = ctx.input("model")?;
    let start = start(settings, &LlamaConfig::read(&model)?, ctx)?;
    kernels(ranks, ctx)?;
    let opened = open(settings, ranks, ctx)?;
    check_memory(settings, &opened, ranks, ctx)?;
    let mut team = team(settings, &model, &start, &opened, None)?;
    let greeting = greeting(&mut team, &opened)?;
    // The schedule is rank 0's to follow.
    let options = settings.options(0);
    ranks::follow(ranks, team, &greeting, options.zero.then(|| (options.adam, options.rates())))
}

/// A replica on each device; the first tries `probe` with a fresh adapter.
fn team(
    settings: &Settings,
    model: &Path,
    start: &Start,
    opened: &[Opened],
    probe: Option<batch::Batch>,
) -> Result<Team, StageError> {
    let builders = opened.iter().enumerate().map(|(index, opened)| {
        let (model, opened, start) = (model.to_owned(), opened.clone(), start.clone());
        let (seed, checkpointing, compute) = (settings.seed, settings.checkpointing, settings.compute());
        let probe = probe.clone().filter(|_| index == 0);
        let build = move || build(&model, &opened, start, (seed, checkpointing, compute), probe);
        (format!("replica {index}"), build)
    });
    Team::new(builders.collect())
}

fn greeting(team: &mut Team, opened: &[Opened]) -> Result<Greeting, StageError> {
    let layouts = team.first(|replica| Ok(replica.layouts().to_vec()))?;
    let groups = layouts.into_iter().map(|layout| (layout.name, layout.len)).collect();
    let devices = opened.iter().map(|opened| opened.label.clone()).collect();
    let places = opened.iter().map(|opened| opened.place.clone()).collect();
    Ok(Greeting { host: ranks::host(), devices, places, groups })
}

/// Waits for the other ranks and tells who computes where. What they all compute on.
fn meet(ranks: &Ranks, own: &Greeting, ctx: &Context<'_>) -> Result<String, StageError> {
    let mut all = vec![own.clone()];
    for rank in ranks.followers() {
        let greeting: Greeting = ranks.receive(rank)?;
        if greeting.groups != own.groups {
            return Err(StageError::new(format!("rank {rank} on `{}` trains other tensors", greeting.host))
                .hint("all ranks must see the same model and adapter"));
        }
        all.push(greeting);
    }
    for (rank, greeting) in all.iter().enumerate().filter(|_| !ranks.is_alone()) {
        let devices = greeting.devices.iter().zip(&greeting.places).map(|(device, place)| {
            if place.is_empty() { device.clone() } else { format!("{place}, {device}") }
        });
        let text = format!("{}: {}", greeting.host, devices.collect::<Vec<_>>().join(" + "));
        ctx.note(format!("rank {rank} on {text}"));
        ctx.provenance(&format!("rank.{rank}"), text);
    }
    Ok(all.iter().map(|greeting| greeting.devices.join(" + ")).collect::<Vec<_>>().join(" + "))
}

/// Optimizer steps of the whole run.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of steps; too many saturate"
)]
fn steps(settings: &Settings, epoch_steps: u64) -> u64 {
    if settings.max_steps > 0 {
        settings.max_steps
    } else {
        ((epoch_steps as f64 * settings.epochs).ceil() as u64).max(1)
    }
}

/// Both splits, checked against the model. Rows without a label are left out.
fn rows(data: &Path, config: &LlamaConfig, ctx: &Context<'_>) -> Result<(TokenSet, TokenSet), StageError> {
    let path = data.join(TokenSet::TRAIN);
    let mut train = TokenSet::read(&path)?;
    let heldout = data.join(TokenSet::HELDOUT);
    let mut held = if heldout.exists() {
        TokenSet::read(&heldout)?
    } else {
        TokenSet { rows: Vec::new(), mask_prompt: train.mask_prompt }
    };
    if train.rows.is_empty() {
        return Err(StageError::new(format!("`{}` has no rows", path.display()))
            .hint("look at the dataset of the tokenize stage"));
    }
    for (set, what) in [(&mut train, "training"), (&mut held, "held-out")] {
        check_ids(set, what, config)?;
        let all = set.rows.len();
        let mask = set.mask_prompt;
        set.rows.retain(|row| row.ids.len() > if mask { row.prompt_len.max(1) } else { 1 });
        if set.rows.len() < all {
            ctx.warn(format!(
                "{} of {all} {what} rows have no token to predict (the answer was cut off) and are left out",
                all - set.rows.len()
            ));
        }
    }
    if train.rows.is_empty() {
        return Err(StageError::new(format!("no row of `{}` has a token to predict", path.display()))
            .hint("a larger `cutoff`, or `mask_prompt = false`, in the tokenize stage"));
    }
    Ok((train, held))
}

fn check_ids(set: &TokenSet, what: &str, config: &LlamaConfig) -> Result<(), StageError> {
    let vocab = config.vocab_size;
    for (number, row) in set.rows.iter().enumerate() {
        if let Some(id) = row.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(StageError::new(format!(
                "{what} row {number} holds token {id}, and the model's vocabulary has {vocab}"
            ))
            .hint("tokenize with the model's own tokenizer: the `tokenizer` input of the tokenize stage"));
        }
        if row.ids.len() > config.max_position_embeddings {
            return Err(StageError::new(format!(
                "{what} row {number} has {} tokens, and the model takes {}",
                row.ids.len(),
                config.max_position_embeddings
            ))
            .hint("a smaller `cutoff` in the tokenize stage"));
        }
    }
    Ok(())
}

/// The held-out rows that the run will look at.
fn evaluated(mut heldout: TokenSet, settings: &Settings, ctx: &Context<'_>) -> Result<TokenSet, StageError> {
    if settings.eval_every == 0 {
        heldout.rows.clear();
    } else if heldout.rows.is_empty() && (settings.early_stop_patience > 0 || settings.keep_best) {
        return Err(StageError::new(
            "`early_stop_patience` and `keep_best` go by the held-out loss, and there are no held-out rows",
        )
        .hint("hold rows out in the tokenize stage, or leave both out"));
    } else if heldout.rows.is_empty() {
        ctx.warn("there are no held-out rows: no evaluation while training");
    } else if settings.eval_rows > 0 {
        heldout.rows.truncate(settings.eval_rows);
    }
    Ok(heldout)
}

/// Where training begins.
#[derive(Clone)]
enum Start {
    Whole,
    Fresh(AdapterConfig),
    From(Adapter),
}

fn start(settings: &Settings, config: &LlamaConfig, ctx: &Context<'_>) -> Result<Start, StageError> {
    let given: Option<PathBuf> = ctx.inputs.optional("adapter").map(Path::to_owned);
    match (settings.method(), given) {
        (Method::Full, None) => Ok(Start::Whole),
        (Method::Full, Some(_)) => Err(StageError::new("`method = \"full\"` cannot start from an adapter")
            .hint("merge it first, or train with the adapter's own method")),
        (_, None) => Ok(Start::Fresh(settings.adapter())),
        (method, Some(path)) => {
            let adapter = Adapter::read(&path)?;
            adapter.check(config)?;
            if adapter.config.dora != (method == Method::Dora) {
                let found = if adapter.config.dora { "dora" } else { "lora" };
                return Err(StageError::new(format!(
                    "`{}` is a {found} adapter, and `method` is `{}`",
                    path.display(),
                    settings.method
                ))
                .hint(format!("`method = \"{found}\"`")));
            }
            ctx.note(format!("starts from the given adapter: rank {}, alpha {}; `rank`, `alpha` and `target_modules` are its own", adapter.config.rank, adapter.config.alpha));
            Ok(Start::From(adapter))
        }
    }
}

/// Keeps the choice of kernels beside the checkpoint, and begins with that of a given run. Whether a
/// checkpoint's is there.
fn kernels(ranks: &Ranks, ctx: &Context<'_>) -> Result<bool, StageError> {
    let rank = ranks.place().rank;
    let same = tuned::keep(ctx.work(), rank)?;
    if let Some(run) = ctx.inputs.optional("kernels")
        && !tuned::take(run, rank)?
    {
        let (path, ours) = (run.display(), if cfg!(feature = "autotune") { "it" } else { "this program" });
        return Err(StageError::new(format!("the kernels of `{path}` cannot be taken: {ours} was built without timing kernels"))
            .hint("`--features autotune` for both, on a device other than the CPU backend; or leave the input `kernels` out"));
    }
    if let Some(run) = ctx.inputs.optional("resume") {
        tuned::take(run, rank)?;
    }
    Ok(same)
}

/// This rank's devices: the ranks of a machine take its slots in turn.
fn open(settings: &Settings, ranks: &Ranks, ctx: &Context<'_>) -> Result<Vec<Opened>, StageError> {
    let mut all = Vec::new();
    for index in 0..settings.devices {
        let place = ranks.place().local * settings.devices + index;
        let slot = ctx.devices().get(place).copied().unwrap_or(place);
        let opened = device::open(&settings.device, slot)?;
        ctx.note(format!("computes on {}", opened.label));
        for (name, value) in &opened.provenance {
            let name = if settings.devices > 1 { format!("{name}.{index}") } else { name.clone() };
            ctx.provenance(&name, value);
        }
        let shared = |other: &Opened| other.device == opened.device && !device::is_embedded(&opened.device);
        if cfg!(feature = "autotune") && all.iter().any(shared) {
            ctx.warn("replicas share an adapter, and one does not wait while another times kernels: the result may differ in its last bits from run to run");
        }
        all.push(opened);
    }
    Ok(all)
}

/// Replicas on the CPU backend share what the machine has left; of other devices nothing is known.
fn check_memory(
    settings: &Settings,
    opened: &[Opened],
    ranks: &Ranks,
    ctx: &Context<'_>,
) -> Result<(), StageError> {
    let fused = opened.iter().all(|opened| device::is_embedded(&opened.device));
    let Some(plan) = memory::Plan::read(settings, &ctx.inputs, fused)? else { return Ok(()) };
    if fused && settings.device != "cpu" {
        plan.told().into_iter().skip(1).for_each(|line| ctx.note(line));
    }
    match (settings.memory_limit(), memory::available()) {
        (Some(limit), _) => plan.fits(limit, "`memory_limit` is"),
        (None, Some(left)) if fused => {
            let replicas = opened.len().max(1) * ranks.place().neighbours.max(1);
            plan.fits(left / replicas as u64, "of this machine's memory there are for each replica")
        }
        _ => Ok(()),
    }
}

fn build(
    model: &Path,
    opened: &Opened,
    start: Start,
    (seed, checkpointing, compute): (u64, bool, DType),
    probe: Option<batch::Batch>,
) -> Result<Replica, StageError> {
    let mut llama = match start {
        Start::Whole => Llama::load_trained(model, &opened.device, compute)?,
        _ => Llama::load_frozen(model, &opened.device, compute)?,
    };
    match start {
        Start::Whole => {}
        Start::From(file) => llama.attach(&file)?,
        Start::Fresh(config) => {
            let file = llama.fresh_adapter(&config, seed)?;
            let before = probe.as_ref().map(|probe| logits(&llama, probe)).transpose()?;
            llama.attach(&file)?;
            if let (Some(before), Some(probe)) = (before, &probe) {
                changes_nothing(&before, &logits(&llama, probe)?)?;
            }
        }
    }
    Ok(Replica::new(llama, checkpointing))
}

fn logits(llama: &Llama, batch: &batch::Batch) -> Result<Vec<f32>, StageError> {
    use burn::tensor::{Int, Tensor, TensorData};
    let ids = Tensor::<2, Int>::from_data(
        TensorData::new(batch.ids.clone(), [batch.rows, batch.length]),
        &llama.device,
    );
    device::read(llama.forward(ids, &llama.mask(batch.length)?))
}

/// A fresh adapter has B = 0 (and m = ‖W‖): the model must be what it was.
fn changes_nothing(before: &[f32], after: &[f32]) -> Result<(), StageError> {
    let largest = before.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let change = before.iter().zip(after).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    if change <= 1e-5 * largest.max(1.0) {
        return Ok(());
    }
    Err(StageError::new(format!(
        "a fresh adapter changes the model's logits by {change:e} (the largest is {largest:e})"
    ))
    .hint("the device computes wrongly, or the model's weights are not finite; try `device = \"cpu\"`"))
}

/// A group's vector must fit into one tensor.
fn fits(layouts: &[Layout], opened: &[Opened]) -> Result<(), StageError> {
    let limit = opened.iter().map(|opened| device::binding_bytes(&opened.device)).min().unwrap_or(u64::MAX);
    match layouts.iter().find(|layout| layout.len as u64 * 4 > limit) {
        None => Ok(()),
        Some(layout) => Err(StageError::new(format!(
            "the trained tensors of `{}` take {} bytes, and the device's largest tensor may have {limit}",
            layout.name,
            layout.len * 4
        ))
        .hint(
            "train an adapter instead of the whole model, with a smaller `rank`, or take `device = \"cpu\"`",
        )),
    }
}
