//! What a training step is made of, each by itself on the CPU backend, beside the two rates that
//! bound it: this machine's product of matrices (an item is a floating point operation) and its
//! reading from memory. Shapes of the 24M model of `benches/peers`: 4 rows of 256 tokens.
//!
//! `cargo bench --workspace --bench hot_paths`; with `-p neural` burn would be compiled again with other features.

use burn::tensor::{Device, Distribution, Int, Tensor};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use formats::adapter::AdapterConfig;
use formats::config::LlamaConfig;
use formats::nf4::Nf4;
use formats::packed::Packed;
use neural::adapter::{Adapter, fresh_module, row_norms};
use neural::cpu::{self, attention::Heads};
use neural::loss;
use neural::model::linear::Base;
use neural::model::rope::Rope;
use neural::optimizer::{AdamW, Slab};
use neural::packed_linear::PackedWeight;
use rayon::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: usize = 4;
const TIME: usize = 256;
const TOKENS: usize = ROWS * TIME;
const HIDDEN: usize = 288;
const INTERMEDIATE: usize = 768;
const VOCAB: usize = 32_000;
const HEADS: usize = 6;

fn main() {
    divan::main();
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-0.1, 0.1), &Device::flex())
}

fn host(count: usize) -> Vec<f32> {
    random([count]).into_data().try_to_vec().expect("f32 was asked for")
}

fn leaf(x: &Tensor<2>) -> Tensor<2> {
    x.clone().autodiff().require_grad()
}

/// `∂Σ(y·g)` by whatever in `y` requires a gradient.
fn back(y: Tensor<2>, g: &Tensor<2>) {
    black_box((y * g.clone().autodiff()).sum().backward());
}

#[divan::bench]
fn rate_of_matmul(bencher: Bencher) {
    let n = 1024;
    let (a, b) = (random([n, n]), random([n, n]));
    bencher.counter(ItemsCount::new(2 * n * n * n)).bench_local(|| a.clone().matmul(b.clone()));
}

#[divan::bench]
fn rate_of_reading(bencher: Bencher) {
    let values = host(64 << 20);
    let sum = |part: &[f32]| {
        let mut sums = [0.0f32; 32];
        for part in part.chunks_exact(32) {
            sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        sums.iter().sum::<f32>()
    };
    bencher
        .counter(BytesCount::of_slice(&values))
        .bench_local(|| values.par_chunks(1 << 20).map(sum).sum::<f32>());
}

#[divan::bench]
fn nf4_encode(bencher: Bencher) {
    let weight = host(2048 * 4096);
    bencher.counter(BytesCount::of_slice(&weight)).bench_local(|| Nf4::quantize(&weight, [2048, 4096], true));
}

#[divan::bench]
fn nf4_decode(bencher: Bencher) {
    let weight = host(2048 * 4096);
    let packed = Nf4::quantize(&weight, [2048, 4096], true);
    bencher.counter(BytesCount::of_slice(&weight)).bench_local(|| packed.dequantize());
}

fn up_projection() -> (PackedWeight, Tensor<2>, Tensor<2>) {
    let shape = [INTERMEDIATE, HIDDEN];
    let packed = Packed::Nf4(Nf4::quantize(&host(INTERMEDIATE * HIDDEN), shape, true));
    (PackedWeight::new(&packed, &Device::flex()), random([TOKENS, HIDDEN]), random([TOKENS, INTERMEDIATE]))
}

#[divan::bench]
fn nf4_linear_forward(bencher: Bencher) {
    let (weight, x, _) = up_projection();
    let product = ItemsCount::new(2 * TOKENS * INTERMEDIATE * HIDDEN);
    bencher.counter(product).bench_local(|| weight.forward(x.clone()));
}

#[divan::bench]
fn nf4_linear_forward_and_backward(bencher: Bencher) {
    let (weight, x, g) = up_projection();
    let products = ItemsCount::new(4 * TOKENS * INTERMEDIATE * HIDDEN);
    bencher.counter(products).bench_local(|| back(weight.forward(leaf(&x)), &g));
}

/// An adapter of rank 8 on the up projection.
fn adapter(dora: bool) -> (Adapter, Base) {
    let weight = host(INTERMEDIATE * HIDDEN);
    let norms = row_norms(&weight, HIDDEN);
    let config = AdapterConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        dora,
        rslora: false,
        target_modules: vec!["up_proj".into()],
        base_model: String::new(),
    };
    let tensors = fresh_module(&config, "up_proj", [INTERMEDIATE, HIDDEN], &norms, 1);
    let mut adapter = Adapter::from_base(&norms, &config, &tensors, 0, &Device::flex());
    let base = Base::Float(
        Tensor::<1>::from_floats(weight.as_slice(), &Device::flex()).reshape([INTERMEDIATE, HIDDEN]),
    );
    adapter.refresh(&base);
    (adapter, base)
}

#[divan::bench(args = [false, true])]
fn adapter_forward_and_backward(bencher: Bencher, dora: bool) {
    let (adapter, base) = adapter(dora);
    let (x, g) = (random([TOKENS, HIDDEN]), random([TOKENS, INTERMEDIATE]));
    bencher.bench_local(|| back(adapter.forward(&base, leaf(&x)), &g));
}

#[divan::bench]
fn dora_norm(bencher: Bencher) {
    let (mut adapter, base) = adapter(true);
    bencher.bench_local(|| adapter.refresh(&base));
}

#[divan::bench(args = [false, true])]
fn attention(bencher: Bencher, backward: bool) {
    let text = format!(
        r#"{{ "model_type": "llama", "vocab_size": {VOCAB}, "hidden_size": {HIDDEN}, "intermediate_size": {INTERMEDIATE},
        "num_hidden_layers": 6, "num_attention_heads": {HEADS} }}"#
    );
    let config = LlamaConfig::parse(&text, std::path::Path::new("config.json")).expect("a Llama's config");
    let tables = Rope::new(&config).part(0, TIME, &Device::flex()).tables();
    let heads = Heads {
        time: TIME,
        heads: HEADS,
        kv_heads: HEADS,
        dim: HIDDEN / HEADS,
        window: usize::MAX,
        starts: std::sync::Arc::default(),
    };
    let [q, k, v, g] = [(); 4].map(|()| random([TOKENS, HIDDEN]));
    if backward {
        bencher.bench_local(|| {
            back(cpu::attention(leaf(&q), [leaf(&k), leaf(&v)], tables.clone(), heads.clone()), &g);
        });
    } else {
        bencher
            .bench_local(|| cpu::attention(q.clone(), [k.clone(), v.clone()], tables.clone(), heads.clone()));
    }
}

#[divan::bench]
fn cross_entropy_and_gradient(bencher: Bencher) {
    let (hidden, weight) = (random([TOKENS, HIDDEN]), random([VOCAB, HIDDEN]));
    let targets = Tensor::<1, Int>::arange(0..TOKENS as i64, &Device::flex());
    bencher
        .counter(ItemsCount::new(4 * TOKENS * VOCAB * HIDDEN))
        .bench_local(|| loss::cross_entropy(&hidden, &weight, &targets, 1.0, false).hidden);
}

#[divan::bench]
fn adamw_a_million_parameters(bencher: Bencher) {
    let adam = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let (mut slab, grad) = (Slab::new(random([1 << 20])), random([1 << 20]));
    let mut step = 0;
    bencher.counter(ItemsCount::new(1usize << 20)).bench_local(|| {
        step += 1;
        adam.update(&mut slab, grad.clone(), 1e-4, step);
    });
}
