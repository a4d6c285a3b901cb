//! What must hold whatever the weights are: a fresh adapter changes nothing, fusing equals the
//! forward, the factored norm equals the dense one, gradients equal finite differences, a cache
//! changes nothing, counts follow the formulas. On the CPU backend and through wgpu.

#[path = "../common/mod.rs"]
mod common;
mod fused;

use burn::tensor::{Device, Tensor};
use common::{Batch, Track, far, fixtures, read, relative, tensor};
use formats::adapter::{Adapter as File, AdapterConfig};
use formats::int8::Int8;
use formats::nf4::Nf4;
use formats::packed::Packed;
use formats::tokens::{TokenRow, TokenSet};
use formats::weights::{Weights, linear_f32};
use neural::adapter::{Adapter, Terms, fuse, row_norms};
use neural::batch::{self, SplitMix64};
use neural::generate;
use neural::model::linear::Base;
use neural::model::rope::Rope;
use neural::model::{Llama, Visitor};
use neural::packed_linear::PackedWeight;
use neural::replicas::{Replica, Share};
use neural::sum::total;

on_both! {
    fresh_changes_nothing => a_fresh_adapter_changes_no_bit_on_flex, a_fresh_adapter_changes_no_bit_on_wgpu;
    fuse_is_forward => fusing_equals_the_forward_on_flex, fusing_equals_the_forward_on_wgpu;
    factored_is_dense => factored_norm_and_movement_equal_dense_ones_on_flex, factored_norm_and_movement_equal_dense_ones_on_wgpu;
    cache_changes_nothing => generation_with_a_cache_equals_recomputation_on_flex, generation_with_a_cache_equals_recomputation_on_wgpu;
    packed_gradient => gradient_through_packed_weights_equals_finite_differences_on_flex, gradient_through_packed_weights_equals_finite_differences_on_wgpu;
    dora_gradient => gradients_of_dora_equal_finite_differences_on_flex, gradients_of_dora_equal_finite_differences_on_wgpu;
    rope_is_the_formula => rope_equals_the_formula_at_any_position_on_flex, rope_equals_the_formula_at_any_position_on_wgpu;
    sums_keep_their_order => a_sum_is_right_and_the_same_every_time_on_flex, a_sum_is_right_and_the_same_every_time_on_wgpu;
    packing_changes_nothing => examples_that_share_a_row_give_the_step_of_padded_ones_on_flex, examples_that_share_a_row_give_the_step_of_padded_ones_on_wgpu;
    dropout_is_keyed => dropout_follows_its_key_and_share_on_flex, dropout_follows_its_key_and_share_on_wgpu;
}

const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn config(dora: bool) -> AdapterConfig {
    AdapterConfig {
        rank: 4,
        alpha: 6.0,
        dropout: 0.0,
        dora,
        rslora: false,
        target_modules: ALL.map(String::from).to_vec(),
        base_model: "tiny-llama".into(),
    }
}

fn random(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut random = SplitMix64(seed);
    (0..count).map(|_| ((random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size).collect()
}

fn llama(device: &Device) -> Llama {
    Llama::load(&fixtures().join("tiny-llama"), device).unwrap()
}

fn batch() -> Batch {
    Batch::read(&fixtures().join("tiny-llama/inputs.safetensors"))
}

/// An adapter as training might leave it: B and m moved.
fn moved(model: &Llama, dora: bool) -> File {
    let mut file = model.fresh_adapter(&config(dora), 5).unwrap();
    for (seed, tensors) in file.modules.values_mut().enumerate() {
        tensors.b = random(seed as u64 + 1, tensors.b.len(), 0.1);
        if let Some(magnitude) = &mut tensors.magnitude {
            let change = random(seed as u64 + 100, magnitude.len(), 0.2);
            magnitude.iter_mut().zip(change).for_each(|(m, change)| *m *= 1.0 + change);
        }
    }
    file
}

fn fresh_changes_nothing(device: &Device) {
    let (mut model, batch) = (llama(device), batch());
    let before = read(batch.logits(&model));
    for dora in [false, true] {
        let file = model.fresh_adapter(&config(dora), 9).unwrap();
        model.attach(&file).unwrap();
        assert!(read(batch.logits(&model)) == before, "dora {dora}: some logit changed");
        for (module, dm, dd) in model.movement().unwrap() {
            assert!(dm == 0.0 && dd == 0.0, "{module} moved by {dm}, {dd}");
        }
    }
}

fn fuse_is_forward(device: &Device) {
    let (mut model, batch) = (llama(device), batch());
    let base = Weights::open(&fixtures().join("tiny-llama")).unwrap();
    for dora in [false, true] {
        let file = moved(&model, dora);
        model.attach(&file).unwrap();
        let forward = read(batch.logits(&model));
        let mut fused = llama(device);
        for linear in fused.linears_mut() {
            let (mut weight, shape) = linear_f32(&base, &format!("{}.weight", linear.path)).unwrap();
            fuse(&mut weight, &file.config, &file.modules[&linear.path]);
            linear.base = Base::Float(tensor(&weight, shape, device));
        }
        let off = far(&read(batch.logits(&fused)), &forward);
        let changed = far(&read(batch.logits(&llama(device))), &forward);
        assert!(off <= 2e-5, "dora {dora}: {off}");
        assert!(changed > 100.0 * off, "dora {dora}: the adapter does something: {changed} against {off}");
    }
}

fn factored_is_dense(device: &Device) {
    let mut model = llama(device);
    let file = moved(&model, true);
    model.attach(&file).unwrap();
    let live = model.movement().unwrap();
    let base = Weights::open(&fixtures().join("tiny-llama")).unwrap();
    let bare = AdapterConfig { dora: false, ..file.config.clone() };
    for (linear, (module, dm, dd)) in model.linears().zip(live) {
        assert_eq!(linear.path, module);
        let Some(Adapter::Dora(dora)) = &linear.adapter else { panic!("every linear has a DoRA") };
        let (weight, [_, columns]) = linear_f32(&base, &format!("{module}.weight")).unwrap();
        let mut moved = weight.clone();
        let mut tensors = file.modules[&module].clone();
        let magnitude = tensors.magnitude.take().unwrap();
        fuse(&mut moved, &bare, &tensors);
        let dense = row_norms(&moved, columns);
        assert!(relative(&read(dora.norm.clone()), &dense) <= 1e-5, "{module}: norm");
        let n0 = row_norms(&weight, columns);
        let rows = magnitude.len() as f64;
        let dense_dm = magnitude.iter().zip(&n0).map(|(m, n)| f64::from((m - n).abs())).sum::<f64>() / rows;
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |x: &[f32], y: &[f32]| {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let turned = moved.chunks(columns).zip(weight.chunks(columns)).map(|(a, b)| 1.0 - cosine(a, b));
        let dense_dd = turned.sum::<f64>() / rows;
        assert!((dm - dense_dm).abs() <= 1e-4 * dense_dm, "{module}: ΔM {dm} against {dense_dm}");
        assert!((dd - dense_dd).abs() <= 1e-4 * dense_dd, "{module}: ΔD {dd} against {dense_dd}");
    }
}

/// Whatever shares a row, losses and gradients are those of one example a row.
fn packing_changes_nothing(device: &Device) {
    let mut random = SplitMix64(3);
    let lengths = [9usize, 30, 4, 17, 12, 2, 8];
    let row = |length: &usize| {
        let ids = (0..*length).map(|_| u32::try_from(random.below(100)).unwrap()).collect();
        TokenRow { ids, prompt_len: length / 3, turns: Vec::new() }
    };
    let set = TokenSet { rows: lengths.iter().map(row).collect(), mask_prompt: true };
    let rows: Vec<usize> = (0..lengths.len()).collect();
    let [padded, packed] = [batch::of_rows(&set, &rows, 4), batch::packed(&set, &rows, 4)];
    assert_eq!((padded.rows, packed.rows), (7, 3));
    for checkpointing in [false, true] {
        let step = |batch: &batch::Batch| {
            let mut model = llama(device);
            let file = moved(&model, true);
            model.attach(&file).unwrap();
            let mut replica = Replica::new(model, checkpointing);
            let share = Share { batches: vec![batch.clone()], factors: vec![1.0], keys: vec![0] };
            let outcome = replica.gradients(&share).unwrap();
            let told = read(replica.losses(std::slice::from_ref(batch)).unwrap().remove(0));
            let losses = outcome.losses.into_iter().map(read).collect::<Vec<_>>().concat();
            (told, losses, outcome.grads.into_iter().map(read).collect::<Vec<_>>())
        };
        let (padded, packed) = (step(&padded), step(&packed));
        assert!(relative(&padded.0, &packed.0) <= 1e-6, "{:?} and {:?}", padded.0, packed.0);
        assert!(relative(&padded.1, &packed.1) <= 1e-6, "{:?} and {:?}", padded.1, packed.1);
        for (group, (padded, packed)) in padded.2.iter().zip(&packed.2).enumerate() {
            assert!(relative(packed, padded) <= 2e-5, "group {group}: {}", relative(packed, padded));
        }
    }
}

/// What stands beside an example in its row is not seen: not in the last bit of any score.
#[test]
fn examples_that_share_a_row_do_not_see_each_other() {
    let model = llama(&Device::flex());
    let (time, starts) = (12, [0u32, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5]);
    let mask = model.packed_mask(time, &starts).unwrap();
    let logits = |first: i64| {
        let ids: Vec<i64> = (0..12).map(|at| if at < 5 { first + at } else { 40 + at }).collect();
        read(model.forward(common::ids(&ids, [1, time], &Device::flex()), &mask))
    };
    let (a, b) = (logits(1), logits(20));
    let (own, other) = (5 * model.config.vocab_size, 12 * model.config.vocab_size);
    assert_ne!(a[..own], b[..own]);
    assert_eq!(a[own..other], b[own..other]);
    let alone: Vec<i64> = (5..12).map(|at| 40 + at).collect();
    let alone = read(model.forward(common::ids(&alone, [1, 7], &Device::flex()), &model.mask(7).unwrap()));
    assert!(far(&a[own..], &alone) <= 1e-5, "positions count from 0: {}", far(&a[own..], &alone));
}

fn cache_changes_nothing(device: &Device) {
    let model = llama(device);
    let mut numbers = SplitMix64(3);
    let prompts: Vec<Vec<u32>> = [3usize, 9, 1, 6]
        .iter()
        .map(|&length| (0..length).map(|_| numbers.below(model.config.vocab_size as u64) as u32).collect())
        .collect();
    let cached = generate::greedy(&model, &prompts, 8, &[], |_| Ok(())).unwrap();
    for (prompt, cached) in prompts.iter().zip(&cached) {
        assert_eq!(cached.len(), 8);
        // All at once and without a cache: every generated token is the best one at its place.
        let row: Vec<i64> = prompt.iter().chain(cached).map(|&id| i64::from(id)).collect();
        let logits =
            read(model.forward(common::ids(&row, [1, row.len()], device), &model.mask(row.len()).unwrap()));
        let rows = logits.chunks(model.config.vocab_size).skip(prompt.len() - 1);
        for (logits, expected) in rows.zip(cached) {
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            assert_eq!(best as u32, *expected, "after a prompt of {}", prompt.len());
        }
    }
    let stop = cached[0][3];
    let stopped = generate::greedy(&model, &prompts[..1], 8, &[stop], |_| Ok(())).unwrap();
    let until = cached[0].iter().position(|&id| id == stop).unwrap();
    assert_eq!(stopped[0], cached[0][..until], "generation ends before the stop token");
}

/// Σ g∘f(x) as a function of x, in f64 by central differences.
fn differences(x: &[f32], mut f: impl FnMut(&[f32]) -> f64) -> Vec<f32> {
    let h = 1e-2f32;
    (0..x.len())
        .map(|k| {
            let mut at = x.to_vec();
            at[k] = x[k] + h;
            let up = f(&at);
            at[k] = x[k] - h;
            ((up - f(&at)) / (2.0 * f64::from(h))) as f32
        })
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn packed_gradient(device: &Device) {
    // Odd shapes: words and blocks cross rows and the last ones are padded.
    let shapes = [[5usize, 13], [7, 64], [3, 100]];
    for ([rows, columns], eight) in shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let values = random(1, rows * columns, 1.0);
        let host = match eight {
            true => Packed::Int8(Int8::quantize(&values, [rows, columns])),
            false => Packed::Nf4(Nf4::quantize(&values, [rows, columns], false)),
        };
        let weight = PackedWeight::new(&host, device);
        // of the two products of an 8-bit weight a device may exchange the order
        let (found, bound) = (read(weight.dequantize()), if eight { 1e-7 } else { 0.0 });
        let far = relative(&found, &host.dequantize());
        assert!(far <= bound, "{rows}×{columns}, 8 bit {eight}: {far}");
        let (x, g) = (random(2, 2 * columns, 1.0), random(3, 2 * rows, 1.0));
        let leaf = tensor(&x, [2, columns], device).autodiff().require_grad();
        let y = weight.forward(leaf.clone());
        let grads = (y * tensor(&g, [2, rows], device).autodiff()).sum().backward();
        let ours = read(leaf.grad(&grads).unwrap());
        let dense = host.dequantize();
        let exact: Vec<f32> = g
            .chunks(rows)
            .flat_map(|g| {
                let column = |at: usize| (0..rows).map(|row| g[row] * dense[row * columns + at]).sum();
                (0..columns).map(column).collect::<Vec<f32>>()
            })
            .collect();
        assert!(relative(&ours, &exact) <= 1e-6, "{rows}×{columns}: {}", relative(&ours, &exact));
        if columns < 20 {
            let value = |x: &[f32]| dot(&read(weight.forward(tensor(x, [2, columns], device))), &g);
            let numeric = differences(&x, value);
            assert!(relative(&ours, &numeric) <= 1e-3, "{rows}×{columns}: {}", relative(&ours, &numeric));
        }
    }
}

fn dora_gradient(device: &Device) {
    let (rows, columns, rank) = (6, 8, 2);
    let weight = random(1, rows * columns, 1.0);
    let base = Base::Float(tensor(&weight, [rows, columns], device));
    let config = AdapterConfig { rank, ..config(true) };
    let mut tensors =
        neural::adapter::fresh_module(&config, "m", [rows, columns], &row_norms(&weight, columns), 1);
    tensors.b = random(2, rows * rank, 0.5);
    tensors.magnitude = Some(random(3, rows, 1.0));
    let build = |tensors: &formats::adapter::AdapterTensors| {
        let mut adapter = Adapter::from_base(&row_norms(&weight, columns), &config, tensors, 0, device);
        adapter.refresh(&base);
        adapter
    };
    let (x, g) = (random(4, 3 * columns, 1.0), random(5, 3 * rows, 1.0));
    let mut adapter = build(&tensors);
    let Adapter::Dora(fixed) = adapter.clone() else { panic!("a DoRA") };
    adapter.visit("m", &mut Track);
    let y = adapter.forward(&base, tensor(&x, [3, columns], device));
    let grads = (y * tensor(&g, [3, rows], device)).sum().backward();
    let mut seen = common::Gradients { grads, all: Vec::new() };
    adapter.visit("m", &mut seen);
    // The norm is a constant to the gradient (paper, section 4.3): it stays as it is here too.
    let value = |changed: &formats::adapter::AdapterTensors| {
        let Adapter::Dora(mut dora) = build(changed) else { panic!("a DoRA") };
        dora.norm = fixed.norm.clone();
        dot(&read(dora.forward(&base, tensor(&x, [3, columns], device))), &g)
    };
    let numeric = [
        differences(&tensors.a.clone(), |a| {
            value(&formats::adapter::AdapterTensors { a: a.to_vec(), ..tensors.clone() })
        }),
        differences(&tensors.b.clone(), |b| {
            value(&formats::adapter::AdapterTensors { b: b.to_vec(), ..tensors.clone() })
        }),
        differences(&tensors.magnitude.clone().unwrap(), |m| {
            value(&formats::adapter::AdapterTensors { magnitude: Some(m.to_vec()), ..tensors.clone() })
        }),
    ];
    assert_eq!(seen.all.len(), 3);
    for ((name, ours), numeric) in seen.all.iter().zip(&numeric) {
        assert!(relative(ours, numeric) <= 1e-3, "{name}: {}", relative(ours, numeric));
    }
}

fn rope_is_the_formula(device: &Device) {
    let config = llama(&Device::flex()).config;
    let (rope, dim) = (Rope::new(&config), config.head_dim);
    let mut numbers = SplitMix64(8);
    for _ in 0..6 {
        let start = numbers.below(5000) as usize;
        let x = random(numbers.next(), 2 * dim, 1.0);
        let turned = read(rope.part(start, 1, device).turn(tensor(&x, [1, 1, 2, dim], device), 1.0));
        for (head, turned) in x.chunks(dim).zip(turned.chunks(dim)) {
            for k in 0..dim / 2 {
                let angle = start as f64 * config.rope_theta.powf(-2.0 * k as f64 / dim as f64);
                let (low, high) = (f64::from(head[k]), f64::from(head[k + dim / 2]));
                let expected =
                    [low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()];
                for (ours, expected) in [turned[k], turned[k + dim / 2]].iter().zip(expected) {
                    assert!((f64::from(*ours) - expected).abs() <= 1e-6, "position {start}, channel {k}");
                }
            }
        }
    }
}

fn sums_keep_their_order(device: &Device) {
    for length in [1usize, 1023, 1024, 1025, 2049, 300_000, (1 << 20) + 3] {
        let values = random(length as u64, length, 1.0);
        let sum = || read(total(tensor(&values, [length], device)))[0];
        let (first, exact) = (sum(), values.iter().map(|&x| f64::from(x)).sum::<f64>());
        assert!((f64::from(first) - exact).abs() <= 1e-6 * length as f64, "{length}: {first}, not {exact}");
        for _ in 0..20 {
            assert_eq!(sum().to_bits(), first.to_bits(), "of {length} elements");
        }
    }
}

fn dropout_is_keyed(device: &Device) {
    let mut model = llama(device);
    let file = File { config: AdapterConfig { dropout: 0.25, ..config(true) }, ..moved(&model, true) };
    model.attach(&file).unwrap();
    let batch = batch();
    let off = read(batch.logits(&model));
    model.dropout(Some(1));
    let first = read(batch.logits(&model));
    assert!(read(batch.logits(&model)) == first, "the same key gives the same masks");
    model.dropout(Some(2));
    assert!(read(batch.logits(&model)) != first, "another key gives other masks");
    model.dropout(None);
    assert!(read(batch.logits(&model)) == off, "without a key there is no dropout");

    let dropout = neural::adapter::Dropout { probability: 0.25, stream: 3, key: Some(4) };
    let ones = read(dropout.apply(Tensor::<2>::ones([100, 200], device)));
    let zeros = ones.iter().filter(|x| **x == 0.0).count() as f64 / ones.len() as f64;
    assert!((zeros - 0.25).abs() < 0.02, "share of zeros {zeros}");
    assert!(ones.iter().all(|x| *x == 0.0 || (*x - 4.0 / 3.0).abs() < 1e-6), "the rest is scaled up");
}

#[test]
fn parameter_counts_follow_the_formulas() {
    struct Count(u64);
    impl Visitor for Count {
        fn matrix(&mut self, _: &str, tensor: &mut Tensor<2>) {
            self.0 += tensor.shape().num_elements() as u64;
        }
        fn vector(&mut self, _: &str, tensor: &mut Tensor<1>) {
            self.0 += tensor.shape().num_elements() as u64;
        }
    }
    let mut model = llama(&Device::flex());
    let mut all = Count(0);
    model.visit(&mut all);
    assert_eq!(all.0, model.config.parameters());
    for dora in [false, true] {
        for targets in [&["q_proj", "v_proj"][..], &ALL[..]] {
            let targets: Vec<String> = targets.iter().map(|name| (*name).to_owned()).collect();
            let config = AdapterConfig { target_modules: targets.clone(), ..config(dora) };
            let file = model.fresh_adapter(&config, 1).unwrap();
            model.attach(&file).unwrap();
            let mut count = Count(0);
            model.visit(&mut count);
            let (mut linears, c) = (0, &model.config);
            for name in &targets {
                let [out, inner] = c.linear_shape(name).unwrap();
                linears += c.num_hidden_layers * (4 * (out + inner) + if dora { out } else { 0 });
            }
            assert_eq!(count.0, linears as u64);
            assert_eq!(count.0, c.adapter_parameters(4, &targets, dora));
        }
    }
}

#[test]
fn a_fresh_adapter_follows_its_seed_and_bounds() {
    let model = llama(&Device::flex());
    let [one, same, other] = [7, 7, 8].map(|seed| model.fresh_adapter(&config(false), seed).unwrap());
    for (module, tensors) in &one.modules {
        assert!(tensors.a == same.modules[module].a && tensors.a != other.modules[module].a);
        assert!(tensors.b.iter().all(|b| *b == 0.0));
        let bound = (tensors.in_features as f32).powf(-0.5);
        let largest = tensors.a.iter().fold(0.0f32, |all, a| all.max(a.abs()));
        assert!(largest <= bound && largest > 0.9 * bound, "{module}: {largest} of {bound}");
    }
    let few = AdapterConfig { target_modules: vec!["v_proj".into()], ..config(false) };
    let few = model.fresh_adapter(&few, 7).unwrap();
    for (module, tensors) in &few.modules {
        assert!(tensors.a == one.modules[module].a, "a module's values do not depend on its neighbours");
    }
}

#[test]
fn an_unknown_target_is_refused_by_name() {
    let model = llama(&Device::flex());
    let config = AdapterConfig { target_modules: vec!["query_key_value".into()], ..config(false) };
    let error = model.fresh_adapter(&config, 1).unwrap_err();
    assert!(error.message.contains("`query_key_value`"), "{error}");
}

#[test]
fn a_row_beyond_the_positions_is_refused() {
    let model = llama(&Device::flex());
    let limit = model.config.max_position_embeddings;
    assert!(model.mask(limit).is_ok());
    let error = model.mask(limit + 1).unwrap_err();
    assert!(error.message.contains(&limit.to_string()) && error.hint.is_some());
}

#[test]
fn terms_are_zero_where_nothing_was_learnt() {
    let device = Device::flex();
    let base = Base::Float(tensor(&random(1, 12, 1.0), [3, 4], &device));
    let terms =
        Terms::new(&base, &tensor(&random(2, 8, 1.0), [2, 4], &device), &Tensor::zeros([3, 2], &device));
    let norm = tensor(&[0.5, 0.0, 3.0], [3], &device);
    assert_eq!(read(terms.norm(&norm, 2.0)), vec![0.5, 0.0, 3.0]);
}

#[test]
fn every_gradient_through_wgpu_equals_the_cpu_backends() {
    let Some(device) = common::wgpu() else { return };
    let batch = batch();
    let [flex, wgpu] = [Device::flex(), device].map(|device| common::step(&mut llama(&device), &batch));
    assert!(far(&batch.real(&flex.0), &batch.real(&wgpu.0)) <= 2e-5, "logits");
    assert!((flex.1 - wgpu.1).abs() <= 1e-5, "loss {} and {}", flex.1, wgpu.1);
    assert_eq!(flex.2.len(), wgpu.2.len());
    for ((name, flex), (_, wgpu)) in flex.2.iter().zip(&wgpu.2) {
        assert!(relative(wgpu, flex) <= 1e-4, "`{name}`: {}", relative(wgpu, flex));
    }
}
