//! The feed-forward half of a block: SwiGLU (Shazeer, arXiv 2002.05202), as in `LlamaMLP`.

use burn::tensor::Tensor;

use super::Linear;
use crate::fused;

/// y = down( silu(gate(x)) ∘ up(x) )
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `[intermediate, hidden]`
    pub gate: Linear,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
}

impl Mlp {
    /// # Shapes
    /// x `[n, hidden]` → `[n, hidden]`
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (gate, up) = (self.gate.forward(x.clone()), self.up.forward(x));
        self.down.forward(fused::swiglu(gate, up))
    }
}
