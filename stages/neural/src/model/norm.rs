//! Root mean square normalisation (Zhang & Sennrich, arXiv 1910.07467), as in `LlamaRMSNorm`.

use burn::tensor::{DType, Tensor};

use crate::fused;

/// y = x / √(mean(x²) + ε) · w
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[hidden]`
    pub weight: Tensor<1>,
    /// ε, from `rms_norm_eps`.
    pub epsilon: f64,
}

impl RmsNorm {
    /// Normalises every row.
    ///
    /// # Shapes
    /// x `[n, hidden]` → `[n, hidden]`
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        fused::rms_norm(x, self.weight.clone(), self.epsilon)
    }

    /// The same from plain operations, in f32.
    #[must_use]
    pub fn plain(&self, x: Tensor<2>) -> Tensor<2> {
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let mean_square = x.clone().square().mean_dim(1);
        let scale = (mean_square + self.epsilon).sqrt().recip();
        (x * scale * self.weight.clone().unsqueeze()).cast(dtype)
    }
}
