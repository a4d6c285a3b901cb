//! Devices, fixtures and comparisons for the tests of the model side.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use formats::weights::Weights;
use neural::device;
use neural::model::{Llama, Visitor};

/// Where the golden figures lie: `PIPE_FIXTURES`, or the copies in the repository.
pub fn fixtures() -> PathBuf {
    std::env::var_os("PIPE_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"), PathBuf::from)
}

/// An adapter driven through wgpu: a hardware one, or a software one. Without any, a test is
/// skipped out loud, or fails where `PIPE_REQUIRE_WGPU=1`.
pub fn wgpu() -> Option<Device> {
    match device::open("gpu", 0).or_else(|_| device::open("software", 0)) {
        Ok(opened) => Some(opened.device),
        Err(error) if std::env::var("PIPE_REQUIRE_WGPU").is_ok_and(|value| value == "1") => {
            panic!("PIPE_REQUIRE_WGPU=1, and {error}: {:?}", error.hint)
        }
        Err(error) => {
            eprintln!("SKIPPED: not tested through wgpu: {error}");
            None
        }
    }
}

/// One test on the CPU backend and the same through wgpu.
#[macro_export]
macro_rules! on_both {
    ($($name:ident => $flex:ident, $wgpu:ident;)*) => {$(
        #[test]
        fn $flex() {
            $name(&burn::tensor::Device::flex());
        }

        #[test]
        fn $wgpu() {
            if let Some(device) = common::wgpu() {
                $name(&device);
            }
        }
    )*};
}

pub fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    device::read(tensor).unwrap()
}

pub fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn ids(values: &[i64], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i32> = values.iter().map(|&id| i32::try_from(id).unwrap()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Largest absolute difference.
pub fn far(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max)
}

/// ‖a − b‖/‖b‖
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    if all == 0.0 { difference.sqrt() } else { (difference / all).sqrt() }
}

/// `inputs.safetensors`: rows padded on the right.
pub struct Batch {
    pub ids: Vec<i64>,
    pub attention: Vec<i64>,
    pub labels: Vec<i64>,
    pub shape: [usize; 2],
}

impl Batch {
    pub fn read(path: &Path) -> Self {
        let file = Weights::open(path).unwrap();
        let shape = file.shape("input_ids").unwrap();
        Self {
            shape: [shape[0], shape[1]],
            ids: file.ints("input_ids").unwrap(),
            attention: file.ints("attention_mask").unwrap(),
            labels: file.ints("labels").unwrap(),
        }
    }

    pub fn logits(&self, model: &Llama) -> Tensor<3> {
        let ids = ids(&self.ids, self.shape, &model.device);
        model.forward(ids, &model.mask(self.shape[1]).unwrap())
    }

    /// Values of the positions that hold a token.
    pub fn real(&self, logits: &[f32]) -> Vec<f32> {
        let width = logits.len() / self.attention.len();
        let rows = logits.chunks(width).zip(&self.attention).filter(|(_, real)| **real == 1);
        rows.flat_map(|(row, _)| row.to_vec()).collect()
    }

    /// Mean over positions t with a label at t + 1 of −log softmax(logits[t])[label].
    pub fn loss(&self, logits: Tensor<3>) -> Tensor<1> {
        let [rows, time, vocab] = logits.dims();
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for at in 0..rows * time {
            if at % time + 1 < time && self.labels[at + 1] != -100 {
                positions.push(i32::try_from(at).unwrap());
                targets.push(i32::try_from(self.labels[at + 1]).unwrap());
            }
        }
        let device = logits.device().inner();
        let count = positions.len();
        let positions = Tensor::<1, Int>::from_data(TensorData::new(positions, [count]), &device);
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &device);
        let chosen = logits.reshape([rows * time, vocab]).select(0, positions);
        -activation::log_softmax(chosen, 1).gather(1, targets).mean()
    }
}

/// Makes every trainable tensor a leaf of a new graph.
pub struct Track;

impl Visitor for Track {
    fn matrix(&mut self, _: &str, tensor: &mut Tensor<2>) {
        *tensor = tensor.clone().inner().autodiff().require_grad();
    }

    fn vector(&mut self, _: &str, tensor: &mut Tensor<1>) {
        *tensor = tensor.clone().inner().autodiff().require_grad();
    }
}

/// Collects the gradient of every trainable tensor.
pub struct Gradients {
    pub grads: burn::tensor::Gradients,
    pub all: Named,
}

impl Visitor for Gradients {
    fn matrix(&mut self, name: &str, tensor: &mut Tensor<2>) {
        let grad = tensor.grad(&self.grads).unwrap_or_else(|| panic!("`{name}` has no gradient"));
        self.all.push((name.to_owned(), read(grad)));
    }

    fn vector(&mut self, name: &str, tensor: &mut Tensor<1>) {
        let grad = tensor.grad(&self.grads).unwrap_or_else(|| panic!("`{name}` has no gradient"));
        self.all.push((name.to_owned(), read(grad)));
    }
}

/// Values by the tensor's name.
pub type Named = Vec<(String, Vec<f32>)>;

/// Logits, loss and all gradients of a batch.
pub fn step(model: &mut Llama, batch: &Batch) -> (Vec<f32>, f32, Named) {
    model.visit(&mut Track);
    let logits = batch.logits(model);
    let loss = batch.loss(logits.clone());
    let mut visitor = Gradients { grads: loss.backward(), all: Vec::new() };
    model.visit(&mut visitor);
    (read(logits), read(loss)[0], visitor.all)
}
