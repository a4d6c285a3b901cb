//! Fused operations against the same formulas from burn's plain operations, forward and every gradient. The
//! row-wise ones on the CPU backend and through wgpu, in f32 and in float16.

use burn::tensor::activation::{self, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use formats::int8::Int8;
use formats::nf4::Nf4;
use formats::packed::Packed;
use neural::chunked_attention::in_chunks;
use neural::cpu::{self, attention::Heads};
use neural::fused;
use neural::model::attention::Mask;
use neural::model::linear::Base;
use neural::model::norm::RmsNorm;
use neural::packed_linear::PackedWeight;

use super::common::{self, read, relative, tensor};
use super::{llama, random};

/// Where the fused operation runs and in which type, or where the plain one does: in f32 on the CPU backend,
/// from inputs as that type has them.
#[derive(Clone)]
struct Place {
    device: Device,
    dtype: DType,
    fused: bool,
}

impl Place {
    fn leaf<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Tensor<D> {
        self.constant(values, shape).autodiff().require_grad()
    }

    fn constant<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Tensor<D> {
        let rounded = tensor(values, shape, &self.device).cast(self.dtype);
        if self.fused { rounded } else { rounded.cast(DType::F32) }
    }
}

/// What `of` gives fused, in every type that the device has, and plain.
fn check<const N: usize>(what: &str, device: &Device, of: impl Fn(&Place) -> [Vec<f32>; N]) {
    for (dtype, most) in [(DType::F32, 5e-6), (DType::F16, 2e-3)] {
        assert!(device.supports_dtype(dtype), "float16 is what software Vulkan and the CPU have as well");
        let fused = of(&Place { device: device.clone(), dtype, fused: true });
        let plain = of(&Place { device: Device::flex(), dtype, fused: false });
        for (at, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
            let far = relative(fused, plain);
            assert!(far <= most, "{what} in {dtype:?}, result {at}: {far}");
        }
    }
}

/// Of one shape that vectors fit and of some that they do not; more rows than one dimension of a grid has.
const SHAPES: [[usize; 2]; 4] = [[300, 52], [70, 301], [5, 1026], [33_000, 2]];

fn norm(device: &Device) {
    for [n, hidden] in SHAPES {
        check(&format!("norm of {n} × {hidden}"), device, |place| {
            let x = place.leaf(&random(1, n * hidden, 2.0), [n, hidden]);
            let weight = tensor(&random(3, hidden, 1.0), [hidden], &place.device).autodiff().require_grad();
            let norm = RmsNorm { weight: weight.clone(), epsilon: 1e-5 };
            let y = if place.fused { norm.forward(x.clone()) } else { norm.plain(x.clone()) };
            let g = place.constant(&random(2, n * hidden, 1.0), [n, hidden]);
            let grads = (y.clone() * g).sum().backward();
            [read(y), read(x.grad(&grads).unwrap()), read(weight.grad(&grads).unwrap())]
        });
    }
}

fn swiglu(device: &Device) {
    for [n, width] in SHAPES {
        check(&format!("SwiGLU of {n} × {width}"), device, |place| {
            let [gate, up] = [1, 2].map(|seed| place.leaf(&random(seed, n * width, 6.0), [n, width]));
            let y = match place.fused {
                true => fused::swiglu(gate.clone(), up.clone()),
                false => activation::silu(gate.clone()) * up.clone(),
            };
            let g = place.constant(&random(3, n * width, 1.0), [n, width]);
            let grads = (y.clone() * g).sum().backward();
            [read(y), read(gate.grad(&grads).unwrap()), read(up.grad(&grads).unwrap())]
        });
    }
}

fn gain(device: &Device) {
    for [n, width] in SHAPES {
        check(&format!("gain of {n} × {width}"), device, |place| {
            let x = place.leaf(&random(1, n * width, 2.0), [n, width]);
            let factor = tensor(&random(2, width, 2.0), [width], &place.device).autodiff().require_grad();
            let y = match place.fused {
                true => fused::scale_columns(x.clone(), factor.clone()),
                false => x.clone() * factor.clone().unsqueeze_dim(0),
            };
            let g = place.constant(&random(3, n * width, 1.0), [n, width]);
            let grads = (y.clone() * g).sum().backward();
            [read(y), read(x.grad(&grads).unwrap()), read(factor.grad(&grads).unwrap())]
        });
    }
}

fn turn(device: &Device) {
    let (batch, time, heads) = (3, 5, 4);
    // halves that four go into, two, and one
    for (dim, own) in [8, 12, 6].into_iter().flat_map(|dim| [(dim, false), (dim, true)]) {
        check(&format!("turn of heads of {dim}, tables of their own: {own}"), device, |place| {
            let x = place.leaf(&random(1, batch * time * heads * dim, 1.0), [batch, time, heads, dim]);
            let rows = if own { batch } else { 1 };
            let tables = [2, 3].map(|seed| -> Tensor<4> {
                tensor(&random(seed, rows * time * dim, 1.0), [rows, time, 1, dim], &place.device)
            });
            let y = if place.fused {
                fused::turn(x.clone(), tables, 0.3)
            } else {
                let [cos, sin] = tables.map(Tensor::autodiff);
                let half = |range| x.clone().slice_dim(3, range);
                let swapped = Tensor::cat(vec![half(dim / 2..dim), half(0..dim / 2)], 3);
                ((x.clone() * cos + swapped * sin) * 0.3).swap_dims(1, 2)
            };
            let g = place.constant(&random(4, batch * time * heads * dim, 1.0), [batch, heads, time, dim]);
            let grads = (y.clone() * g).sum().backward();
            [read(y), read(x.grad(&grads).unwrap())]
        });
    }
}

fn cross_entropy(device: &Device) {
    for [n, vocab] in [[7, 32], [6, 1001], [3, 5002], [33_000, 3]] {
        check(&format!("cross entropy of {n} × {vocab}"), device, |place| {
            let logits = place.leaf(&random(1, n * vocab, 8.0), [n, vocab]);
            // the first and the last are among them
            let targets: Vec<i32> = (0..n).map(|row| (row * (vocab - 1) / (n - 1)) as i32).collect();
            let targets: Tensor<1, Int> = Tensor::from_data(TensorData::new(targets, [n]), &place.device);
            if place.fused {
                let dtype = place.dtype.into();
                let (gradient, nll) = fused::cross_entropy(logits.inner(), targets, 0.25, dtype);
                return [read(nll), read(gradient)];
            }
            let nll = -activation::log_softmax(logits.clone(), 1).gather(1, targets.unsqueeze_dim(1));
            let grads = (nll.clone() * 0.25).sum().backward();
            [read(nll), read(logits.grad(&grads).unwrap())]
        });
    }
}

crate::on_both! {
    norm => the_norm_on_the_cpu, the_norm_through_wgpu;
    swiglu => swiglu_on_the_cpu, swiglu_through_wgpu;
    gain => the_gain_on_the_cpu, the_gain_through_wgpu;
    turn => the_turn_on_the_cpu, the_turn_through_wgpu;
    cross_entropy => cross_entropy_on_the_cpu, cross_entropy_through_wgpu;
    chunks_are_the_whole => attention_in_chunks_equals_the_whole_on_the_cpu, attention_in_chunks_equals_the_whole_through_wgpu;
}

#[test]
fn the_fused_layer_equals_the_plain_one_with_every_gradient() {
    let device = Device::flex();
    let (inner, out, rank, scale) = (40, 90, 4, 1.5);
    let values = random(1, out * inner, 0.3);
    let weight = tensor(&values, [out, inner], &device);
    // words and blocks cross rows
    let packed = [
        Packed::Nf4(Nf4::quantize(&values, [out, inner], false)),
        Packed::Int8(Int8::quantize(&values, [out, inner])),
    ];
    let bases = packed.map(|weight| PackedWeight::new(&weight, &device)).map(|weight| {
        let floats = weight.dequantize();
        (Base::Packed(weight), floats)
    });
    let mut gain = random(5, out, 2.0);
    gain[3] = 0.0; // what it gives says nothing of this column
    let kinds = [("bare", true), ("lora", true), ("lora", false), ("dora", true), ("dora", false)];
    for (base, weight) in bases.into_iter().chain([(Base::Float(weight.clone()), weight)]) {
        // few rows and many go different ways
        for ((kind, tracked), n) in kinds.into_iter().flat_map(|kind| [(kind, 3), (kind, 70)]) {
            let g = tensor(&random(6, n * out, 1.0), [n, out], &device);
            let result = |fused: bool| {
                let x = tensor(&random(2, n * inner, 1.0), [n, inner], &device);
                let x = if tracked { x.autodiff().require_grad() } else { x };
                let leaf = |seed, shape: [usize; 2]| {
                    tensor(&random(seed, shape[0] * shape[1], 0.5), shape, &device).autodiff().require_grad()
                };
                let (a, b) = (leaf(3, [rank, inner]), leaf(4, [out, rank]));
                let m: Tensor<1> = tensor(&gain, [out], &device).autodiff().require_grad();
                let adapted =
                    |gain| base.adapted(&x, [&a, &b], gain, scale).expect("the CPU's own operation");
                let product = x.clone().matmul(weight.clone().transpose());
                let branch =
                    || (x.clone().matmul(a.clone().transpose()) * scale).matmul(b.clone().transpose());
                let y = match (kind, fused) {
                    ("bare", true) => base.product(x.clone()),
                    ("bare", false) => product,
                    ("lora", true) => adapted(None),
                    ("lora", false) => product + branch(),
                    (_, true) => adapted(Some(m.clone())),
                    (_, false) => (product + branch()) * m.clone().unsqueeze_dim(0),
                };
                let grads = (y.clone() * g.clone()).sum().backward();
                let of = |x: &Tensor<2>| x.grad(&grads).map_or_else(Vec::new, read);
                let of_gain = m.grad(&grads).map_or_else(Vec::new, read);
                [read(y), of(&x), of(&a), of(&b), of_gain]
            };
            for (at, (fused, plain)) in result(true).iter().zip(result(false)).enumerate() {
                let far = relative(fused, &plain);
                assert!(far <= 2e-6, "{kind} on {base:?}, {n} rows, x tracked {tracked}, {at}: {far}");
            }
        }
    }
}

#[test]
fn the_fused_attention_equals_the_plain_one() {
    let device = Device::flex();
    let model = llama(&device);
    let attention = &model.blocks[0].attention;
    let (heads, kv_heads, dim) = (attention.heads, attention.kv_heads, attention.head_dim);
    let batch = 3;
    // within one block of queries, and over several; rows of one example, and of several
    let all = [(11, None), (11, Some(4)), (150, None), (150, Some(4)), (150, Some(100))];
    for ((time, window), packed) in all.into_iter().flat_map(|each| [(each, false), (each, true)]) {
        let ends = [[3u32, 4, 9], [11, 60, 70], [1, 5, 149]];
        let start =
            |row: &[u32; 3], token| row.iter().copied().filter(|&end| end <= token).max().unwrap_or(0);
        let starts: Vec<u32> =
            ends.iter().flat_map(|row| (0..time as u32).map(move |token| start(row, token))).collect();
        let starts = if packed { starts } else { Vec::new() };
        let mask = match packed {
            true => Mask::packed(&model.rope, time, &starts, window, &device),
            false => Mask::causal(&model.rope, time, window, &device),
        };
        let starts: std::sync::Arc<[u32]> = starts.into();
        let tables = model.rope.part(0, time, &device).tables();
        let width = [heads * dim, kv_heads * dim, kv_heads * dim];
        let g = random(9, batch * time * heads * dim, 1.0);
        let result = |fused: bool| {
            let [q, k, v] = [0, 1, 2].map(|which| {
                let values = random(which as u64 + 1, batch * time * width[which], 1.0);
                tensor(&values, [batch * time, width[which]], &device).autodiff().require_grad()
            });
            let y = if fused {
                let window = window.unwrap_or(usize::MAX);
                let heads = Heads { time, heads, kv_heads, dim, window, starts: starts.clone() };
                cpu::attention(q.clone(), [k.clone(), v.clone()], tables.clone(), heads)
            } else {
                attention.plain(q.clone(), [k.clone(), v.clone()], batch, &mask, None)
            };
            let grads = (y.clone() * tensor(&g, [batch * time, heads * dim], &device)).sum().backward();
            let of = |x: &Tensor<2>| read(x.grad(&grads).unwrap());
            [read(y), of(&q), of(&k), of(&v)]
        };
        for (fused, plain) in result(true).iter().zip(result(false)) {
            assert!(
                relative(fused, &plain) <= 1e-5,
                "{time}, window {window:?}, packed {packed}: {}",
                relative(fused, &plain)
            );
        }
    }
}

/// softmax(q·kᵀ + bias)·v and gradients, from plain operations with all weights at once.
fn chunks_are_the_whole(device: &Device) {
    let (batch, heads, kv_heads, dim) = (2, 6, 2, 8);
    // all keys are of these tokens; some came before (a cache)
    for (time, keys) in [(13, 13), (5, 9)] {
        let before = keys - time;
        let rows = if before == 0 { 1 } else { batch };
        let bias: Vec<f32> = (0..rows * time * keys)
            .map(|at| {
                let (row, token, key) = (at / (time * keys), at / keys % time, at % keys);
                // the second row begins later; only the three last keys are seen
                if key <= before + token && key + 3 > before + token && key >= row { 0.0 } else { -1e9 }
            })
            .collect();
        let bias: Tensor<4> = tensor(&bias, [rows, 1, time, keys], device);
        let leaf = |seed, shape: [usize; 4]| -> Tensor<4> {
            tensor(&random(seed, shape.iter().product(), 1.0), shape, device).autodiff().require_grad()
        };
        let g: Tensor<4> =
            tensor(&random(4, batch * heads * time * dim, 1.0), [batch, heads, time, dim], device);
        let result = |tokens: Option<usize>| {
            let q = leaf(1, [batch, heads, time, dim]);
            let [k, v] = [2, 3].map(|seed| leaf(seed, [batch, kv_heads, keys, dim]));
            let y = match tokens {
                Some(tokens) => in_chunks(q.clone(), [k.clone(), v.clone()], bias.clone(), tokens),
                None => {
                    let repeated = |x: &Tensor<4>| {
                        let parts = (0..heads).map(|head| head / (heads / kv_heads));
                        Tensor::cat(parts.map(|head| x.clone().narrow(1, head, 1)).collect(), 1)
                    };
                    let scores = q.clone().matmul(repeated(&k).swap_dims(2, 3)) + bias.clone();
                    softmax(scores, 3).matmul(repeated(&v))
                }
            };
            let grads = (y.clone() * g.clone()).sum().backward();
            let of = |x: &Tensor<4>| read(x.grad(&grads).unwrap());
            [read(y), of(&q), of(&k), of(&v)]
        };
        let whole = result(None);
        for tokens in [1, 3, 4, time, time + 1] {
            for (at, (chunked, whole)) in result(Some(tokens)).iter().zip(&whole).enumerate() {
                let far = relative(chunked, whole);
                assert!(far <= 2e-6, "{time} tokens of {keys}, {tokens} at a time, {at}: {far}");
            }
        }
    }
}
