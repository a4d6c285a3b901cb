//! The model of a folder: embedding, blocks, final norm, head; `modeling_llama.py` of transformers
//! in the configurations that `formats::config` understands.
//!
//! The parts are there one by one (`embed`, `block`, `finish`, `logits`), so that training can
//! re-run a single block and take the logits of chosen positions only.

use burn::tensor::{DType, Device, Int, Tensor, module};
use contract::StageError;
use formats::adapter::{Adapter as AdapterFile, AdapterConfig};
use formats::config::LlamaConfig;

use super::attention::{Attention, Cache};
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::{Linear, Mask, Visitor};
use crate::adapter::{self, Adapter};

/// A Llama on a device.
#[derive(Clone, Debug)]
pub struct Llama {
    /// What it was made from.
    pub config: LlamaConfig,
    /// `[vocab, hidden]`
    pub embed: Tensor<2>,
    /// In the order of computation.
    pub blocks: Vec<Block>,
    /// Final norm, `[hidden]`.
    pub norm: RmsNorm,
    /// `[vocab, hidden]`; `None` where the embedding serves as the head.
    pub head: Option<Tensor<2>>,
    /// Frequencies of the positions.
    pub rope: Rope,
    /// Element type of activations, and of weights that are not trained.
    pub compute: DType,
    /// Where it lies.
    pub device: Device,
}

/// x + attention(norm(x)), then + mlp(norm(·)).
#[derive(Clone, Debug)]
pub struct Block {
    /// Before attention.
    pub input_norm: RmsNorm,
    /// Attention.
    pub attention: Attention,
    /// Before the feed-forward half.
    pub post_norm: RmsNorm,
    /// Feed-forward half.
    pub mlp: Mlp,
}

impl Block {
    /// # Shapes
    /// x `[batch, time, hidden]` → `[batch, time, hidden]`
    #[must_use]
    pub fn forward(&self, x: Tensor<3>, mask: &Mask, cache: Option<&mut Cache>) -> Tensor<3> {
        let [batch, time, hidden] = x.dims();
        let x = x.reshape([batch * time, hidden]);
        let mixed = self.attention.forward(self.input_norm.forward(x.clone()), batch, mask, cache);
        let x = x + mixed;
        let y = self.mlp.forward(self.post_norm.forward(x.clone()));
        (x + y).reshape([batch, time, hidden])
    }

    /// Its linear layers, in HF's order.
    #[must_use]
    pub fn linears(&self) -> [&Linear; 7] {
        let (a, m) = (&self.attention, &self.mlp);
        [&a.q, &a.k, &a.v, &a.o, &m.gate, &m.up, &m.down]
    }

    /// Its linear layers, in HF's order.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        [&mut a.q, &mut a.k, &mut a.v, &mut a.o, &mut m.gate, &mut m.up, &mut m.down]
    }
}

impl Llama {
    /// # Shapes
    /// ids `[batch, time]` → `[batch, time, hidden]`
    #[must_use]
    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        module::embedding(self.embed.clone(), ids).cast(self.compute)
    }

    /// # Shapes
    /// x `[batch, time, hidden]` → `[batch, time, hidden]`
    #[must_use]
    pub fn block(&self, index: usize, x: Tensor<3>, mask: &Mask) -> Tensor<3> {
        self.blocks[index].forward(x, mask, None)
    }

    /// The final norm.
    ///
    /// # Shapes
    /// x `[batch, time, hidden]` → `[batch, time, hidden]`
    #[must_use]
    pub fn finish(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, time, hidden] = x.dims();
        self.norm.forward(x.reshape([batch * time, hidden])).reshape([batch, time, hidden])
    }

    /// # Shapes
    /// h `[n, hidden]` → `[n, vocab]`
    #[must_use]
    pub fn logits(&self, h: Tensor<2>) -> Tensor<2> {
        h.matmul(self.head_weight().transpose())
    }

    /// The head in the compute type, `[vocab, hidden]`.
    #[must_use]
    pub fn head_weight(&self) -> Tensor<2> {
        self.head.as_ref().unwrap_or(&self.embed).clone().cast(self.compute)
    }

    /// Everything, without a cache.
    ///
    /// # Shapes
    /// ids `[batch, time]` → logits `[batch, time, vocab]`
    #[must_use]
    pub fn forward(&self, ids: Tensor<2, Int>, mask: &Mask) -> Tensor<3> {
        let [batch, time] = ids.dims();
        let x = self.blocks.iter().fold(self.embed(ids), |x, block| block.forward(x, mask, None));
        let [_, _, hidden] = x.dims();
        let h = self.norm.forward(x.reshape([batch * time, hidden]));
        self.logits(h).reshape([batch, time, self.config.vocab_size])
    }

    /// The mask of `time` tokens padded on the right, if at all.
    ///
    /// # Errors
    /// If the model was not made for so many positions.
    pub fn mask(&self, time: usize) -> Result<Mask, StageError> {
        self.check_length(time)?;
        Ok(Mask::causal(&self.rope, time, self.config.sliding_window, &self.device))
    }

    /// The mask of rows of `time` tokens that hold several examples, which begin at `starts`,
    /// `[rows, time]`.
    ///
    /// # Errors
    /// If the model was not made for so many positions.
    pub fn packed_mask(&self, time: usize, starts: &[u32]) -> Result<Mask, StageError> {
        self.check_length(time)?;
        Ok(Mask::packed(&self.rope, time, starts, self.config.sliding_window, &self.device))
    }

    /// # Errors
    /// If the model was not made for so many positions.
    pub fn check_length(&self, time: usize) -> Result<(), StageError> {
        let limit = self.config.max_position_embeddings;
        if time > limit {
            return Err(StageError::new(format!(
                "a row of {time} tokens is longer than the model's `max_position_embeddings` of {limit}"
            ))
            .hint("a smaller `cutoff` in the tokenize stage"));
        }
        Ok(())
    }

    /// Puts an adapter onto its modules, ready for use. One that is there already is replaced.
    ///
    /// # Errors
    /// If it does not fit the model.
    pub fn attach(&mut self, file: &AdapterFile) -> Result<(), StageError> {
        file.check(&self.config)?;
        let device = self.device.clone();
        for linear in self.linears_mut() {
            linear.adapter = file.modules.get(&linear.path).map(|tensors| {
                let stream = adapter::stream(&linear.path);
                Adapter::from_base(&linear.base_norm, &file.config, tensors, stream, &device)
            });
        }
        self.refresh();
        Ok(())
    }

    /// A fresh adapter for this model: the same values on every device, from a seed.
    ///
    /// # Errors
    /// If no module of the model has a name in `target_modules`.
    pub fn fresh_adapter(&self, config: &AdapterConfig, seed: u64) -> Result<AdapterFile, StageError> {
        let modules: adapter::Modules = self
            .linears()
            .filter(|linear| config.target_modules.iter().any(|target| target == linear.projection()))
            .map(|linear| {
                let tensors =
                    adapter::fresh_module(config, &linear.path, linear.shape, &linear.base_norm, seed);
                (linear.path.clone(), tensors)
            })
            .collect();
        if modules.is_empty() {
            let targets = config.target_modules.join("`, `");
            return Err(StageError::new(format!("no module of the model is named `{targets}`")).hint(
                "`target_modules` takes q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
            ));
        }
        Ok(AdapterFile { config: config.clone(), modules })
    }

    /// Whether adapters are trained, and not the model itself.
    #[must_use]
    pub fn has_adapters(&self) -> bool {
        self.linears().any(|linear| linear.adapter.is_some())
    }

    /// Recomputes what adapters derive from A and B (DoRA's norm): once after an optimizer step.
    pub fn refresh(&mut self) {
        self.linears_mut().for_each(Linear::refresh);
    }

    /// Switches dropout on under a key (same key, same masks) or off. Off after loading.
    pub fn dropout(&mut self, key: Option<u64>) {
        self.linears_mut()
            .filter_map(|linear| linear.adapter.as_mut())
            .for_each(|adapter| adapter.dropout(key));
    }

    /// Groups of trainable tensors: the embedding, one group a block, the final norm and head.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.blocks.len() + 2
    }

    /// Shows the trainable tensors of a group in a fixed order: adapters where there are any
    /// (first and last group then are empty), else everything.
    pub fn visit_group(&mut self, group: usize, visitor: &mut dyn Visitor) {
        let adapters = self.has_adapters();
        if (1..=self.blocks.len()).contains(&group) {
            let block = &mut self.blocks[group - 1];
            if adapters {
                block.linears_mut().into_iter().for_each(|linear| linear.visit_adapter(visitor));
            } else {
                let prefix = format!("model.layers.{}", group - 1);
                visitor.vector(&format!("{prefix}.input_layernorm.weight"), &mut block.input_norm.weight);
                visitor.vector(
                    &format!("{prefix}.post_attention_layernorm.weight"),
                    &mut block.post_norm.weight,
                );
                block.linears_mut().into_iter().for_each(|linear| linear.visit_base(visitor));
            }
        } else if !adapters && group == 0 {
            visitor.matrix("model.embed_tokens.weight", &mut self.embed);
        } else if !adapters {
            visitor.vector("model.norm.weight", &mut self.norm.weight);
            if let Some(head) = &mut self.head {
                visitor.matrix("lm_head.weight", head);
            }
        }
    }

    /// Shows every trainable tensor, group after group.
    pub fn visit(&mut self, visitor: &mut dyn Visitor) {
        (0..self.groups()).for_each(|group| self.visit_group(group, visitor));
    }

    /// ΔM and ΔD of every adapted module as they stand now: `(module, ΔM, ΔD)`.
    ///
    /// # Errors
    /// If the device failed.
    pub fn movement(&self) -> Result<Vec<(String, f64, f64)>, StageError> {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for linear in self.linears() {
            if let Some(adapter) = &linear.adapter {
                names.push(linear.path.clone());
                values.extend(adapter.movement(&linear.base));
            }
        }
        let values = crate::device::read_all(values)?;
        let first = |values: &Vec<f32>| values.first().copied().map_or(f64::NAN, f64::from);
        Ok(names
            .into_iter()
            .zip(values.chunks(2))
            .map(|(name, v)| (name, first(&v[0]), first(&v[1])))
            .collect())
    }

    /// Every linear layer, block by block.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// Every linear layer, block by block.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut)
    }
}
