//! The feed-forward half of a block: SwiGLU (Shazeer, arXiv 2002.05202), as in `LlamaMLP`.

use burn::tensor::{Tensor, activation};

use super::Linear;
use crate::cpu;

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
        let mixed = if cpu::serves(&gate) { cpu::swiglu(gate, up) } else { activation::silu(gate) * up };
        self.down.forward(mixed)
    }
}
