//! LoRA (Hu et al., arXiv 2106.09685): y = Wx + s·B(Ax).

use burn::tensor::{Device, Tensor, TensorData};
use formats::adapter::{AdapterConfig, AdapterTensors};
use rayon::prelude::*;

use super::{Dropout, Terms};
use crate::model::linear::Base;

/// y = Wx + s·B(A·dropout(x))
#[derive(Clone, Debug)]
pub struct Lora {
    /// A, `[r, in]`
    pub a: Tensor<2>,
    /// B, `[out, r]`
    pub b: Tensor<2>,
    /// s = α/r, or α/√r with rsLoRA
    pub scale: f64,
    /// In front of A.
    pub dropout: Dropout,
    /// n₀ = ‖W‖ by row, `[out]`
    pub base_norm: Tensor<1>,
}

impl Lora {
    /// Puts the given values on a device.
    #[must_use]
    pub fn from_base(
        base_norm: &[f32],
        config: &AdapterConfig,
        tensors: &AdapterTensors,
        stream: u64,
        device: &Device,
    ) -> Self {
        let matrix = |values: &[f32], shape: [usize; 2]| {
            Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        Self {
            a: matrix(&tensors.a, [config.rank, tensors.in_features]),
            b: matrix(&tensors.b, [tensors.out_features, config.rank]),
            scale: config.scale(),
            dropout: Dropout { probability: config.dropout, stream, key: None },
            base_norm: Tensor::from_data(TensorData::new(base_norm.to_vec(), [base_norm.len()]), device),
        }
    }

    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn forward(&self, base: &Base, x: Tensor<2>) -> Tensor<2> {
        let fused = if self.dropout.active() { None } else { self.fused(base, &x, None) };
        fused.unwrap_or_else(|| base.product(x.clone()) + self.branch(self.dropout.apply(x)))
    }

    /// Without dropout, in one operation where there is one.
    pub(super) fn fused(&self, base: &Base, x: &Tensor<2>, gain: Option<Tensor<1>>) -> Option<Tensor<2>> {
        base.adapted(x, [&self.a, &self.b], gain, self.scale)
    }

    /// s·B(Ax): scaled where it is narrowest.
    ///
    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn branch(&self, x: Tensor<2>) -> Tensor<2> {
        let (a, b) = (self.a.clone().cast(x.dtype()), self.b.clone().cast(x.dtype()));
        let ax = x.matmul(a.transpose());
        (ax * self.scale).matmul(b.transpose())
    }

    /// The terms behind ‖W + sBA‖ for the present A and B.
    #[must_use]
    pub fn terms(&self, base: &Base) -> Terms {
        Terms::new(base, &self.a, &self.b)
    }
}

/// W += s·BA on the host, row by row.
pub fn fuse(weight: &mut [f32], config: &AdapterConfig, tensors: &AdapterTensors) {
    let (columns, rank, scale) = (tensors.in_features, config.rank, config.scale() as f32);
    weight.par_chunks_mut(columns).zip(tensors.b.par_chunks(rank)).for_each(|(row, b)| {
        let mut change = vec![0.0f32; columns];
        for (&b, a) in b.iter().zip(tensors.a.chunks(columns)) {
            change.iter_mut().zip(a).for_each(|(change, &a)| *change += b * a);
        }
        row.iter_mut().zip(&change).for_each(|(w, &change)| *w += scale * change);
    });
}
