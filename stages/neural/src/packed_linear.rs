//! Products with quantized weights on the device: QLoRA's x·dequant(W)ᵀ (arXiv 2305.14314, eq. 5 and 6),
//! as one custom operation with a hand-written backward.
//!
//! On the device a weight is u32 words of codes, counted over the flattened matrix, and f32 scales. NF4:
//! 8 codes a word (code k = bits 4k…4k+3), a scale per 64 weights. 8-bit: 4 codes a word, each with 128
//! added, a scale per row. Words and blocks may cross rows, and the last word is padded. Forward
//! dequantizes into a temporary; backward does so again and keeps nothing but the packed weight. The weight
//! itself gets no gradient. It is dequantized into the type of the activations, after the product with its
//! f32 scale.
//! It does not know files: `formats::packed` reads and packs them, doubly quantized scales resolved.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Cube, Dispatch, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{DType, Device, FloatDType, Int, Shape, Tensor, TensorData};
use formats::int8::STEP;
use formats::nf4::CODEBOOK;
use formats::packed::Packed;

use crate::{cpu, fused};

/// What the words hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Eight codes a word, a scale per 64 weights.
    Nf4,
    /// Four codes a word, a scale per row.
    Int8,
}

/// Form and size of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What the words hold.
    pub codes: Codes,
    /// out
    pub rows: usize,
    /// in
    pub columns: usize,
}

/// A quantized weight on a device.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    /// `[⌈out·in/8⌉]` or `[⌈out·in/4⌉]`, u32
    words: Tensor<1, Int>,
    /// `[⌈out·in/64⌉]` or `[out]`
    scales: Tensor<1>,
    layout: Layout,
}

impl PackedWeight {
    /// Puts a weight on a device.
    #[must_use]
    pub fn new(weight: &Packed, device: &Device) -> Self {
        let [rows, columns] = weight.shape();
        let (codes, words, scales) = match weight {
            Packed::Nf4(weight) => (Codes::Nf4, weight.words(), weight.absmax()),
            Packed::Int8(weight) => (Codes::Int8, weight.words(), weight.scales.clone()),
        };
        let (word_count, scale_count) = (words.len(), scales.len());
        Self {
            words: Tensor::from_data(TensorData::new(words, [word_count]), (device, DType::U32)),
            scales: Tensor::from_data(TensorData::new(scales, [scale_count]), device),
            layout: Layout { codes, rows, columns },
        }
    }

    /// `[out, in]`
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.layout.rows, self.layout.columns]
    }

    /// As an operation takes it.
    #[must_use]
    pub fn dispatched(&self) -> cpu::Weight<Dispatch> {
        cpu::Weight::Packed {
            words: self.words.clone().into_dispatch(),
            scales: self.scales.clone().into_dispatch(),
            layout: self.layout,
        }
    }

    /// Whether the CPU backend's own operations serve it.
    #[must_use]
    pub fn is_on_cpu(&self) -> bool {
        cpu::serves(&self.scales)
    }

    /// x·Wᵀ
    ///
    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(<Dispatch as PackedOps>::packed_linear(
            x.into_dispatch(),
            self.words.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.layout,
        ))
    }

    /// The weight as f32, `[out, in]`.
    #[must_use]
    pub fn dequantize(&self) -> Tensor<2> {
        Tensor::from_dispatch(<Dispatch as PackedOps>::packed_dequantize(
            self.words.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.layout,
            FloatDType::F32,
        ))
    }
}

/// The two operations on every backend.
#[backend_extension(Cube, Flex, Autodiff)]
pub trait PackedOps: Backend {
    /// words, scales → `[rows, columns]`
    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: Layout,
        dtype: FloatDType,
    ) -> FloatTensor<Self>;

    /// x `[n, columns]`, words, scales → `[n, rows]`
    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: Layout,
    ) -> FloatTensor<Self> {
        let weight = Self::packed_dequantize(words, scales, layout, x.dtype().into());
        Self::float_matmul(x, Self::float_transpose(weight))
    }
}

impl PackedOps for Flex {
    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: Layout,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        let packed = cpu::packed::Packed { words: words.storage(), scales: scales.storage(), layout };
        let shape = [layout.rows, layout.columns];
        let weight = Self::float_from_data(TensorData::new(packed.floats(), shape), &Default::default());
        if dtype == FloatDType::F32 { weight } else { Self::float_cast(weight, dtype) }
    }
}

mod kernel {
    use cubecl::prelude::*;

    use super::STEP;

    /// One thread a word of eight codes.
    #[cube(launch_unchecked)]
    pub fn nf4<F: Float>(
        words: &Tensor<u32>,
        scales: &Tensor<f32>,
        codebook: &Tensor<f32>,
        out: &mut Tensor<F>,
        #[define(F)] _dtype: ElemType,
    ) {
        if ABSOLUTE_POS < words.len() {
            let word = words[ABSOLUTE_POS];
            let scale = scales[ABSOLUTE_POS / 8];
            #[unroll]
            for k in 0..8u32 {
                let at = ABSOLUTE_POS * 8 + k as usize;
                if at < out.len() {
                    out[at] = F::cast_from(codebook[((word >> (4u32 * k)) & 15u32) as usize] * scale);
                }
            }
        }
    }

    /// One thread a word of four codes.
    #[cube(launch_unchecked)]
    pub fn int8<F: Float>(
        words: &Tensor<u32>,
        scales: &Tensor<f32>,
        out: &mut Tensor<F>,
        #[comptime] columns: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        if ABSOLUTE_POS < words.len() {
            let word = words[ABSOLUTE_POS];
            #[unroll]
            for k in 0..4u32 {
                let at = ABSOLUTE_POS * 4 + k as usize;
                if at < out.len() {
                    let code = f32::cast_from((word >> (8u32 * k)) & 255u32) - 128.0f32;
                    out[at] = F::cast_from(code * scales[at / columns] * STEP);
                }
            }
        }
    }
}

impl PackedOps for Cube {
    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: Layout,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        use cubecl::prelude::CubeDim;
        let (client, device) = (words.client.clone(), words.device.clone());
        let out = Self::float_empty(Shape::new([layout.rows, layout.columns]), &device, dtype);
        let kind = fused::kind(dtype);
        let count = words.shape().num_elements();
        let dim = CubeDim::new(&client, count);
        let cubes = cubecl::calculate_cube_count_elemwise(&client, count, dim);
        let (words, scales, to) =
            (words.into_tensor_arg(), scales.into_tensor_arg(), out.clone().into_tensor_arg());
        // SAFETY: a thread reads its own word, scales of the weights in it, and 16 codes, and writes only
        // elements that its bound check admits; `PackedWeight::new` makes words and scales of the
        // lengths that the shape asks for.
        unsafe {
            match layout.codes {
                Codes::Nf4 => {
                    let codebook = TensorData::new(CODEBOOK.to_vec(), [CODEBOOK.len()]);
                    let codebook = Self::float_from_data(codebook, &device).into_tensor_arg();
                    kernel::nf4::launch_unchecked(&client, cubes, dim, words, scales, codebook, to, kind);
                }
                Codes::Int8 => {
                    let columns = layout.columns.max(1);
                    kernel::int8::launch_unchecked(&client, cubes, dim, words, scales, to, columns, kind);
                }
            }
        }
        out
    }
}

impl<B: PackedOps, C: CheckpointStrategy> PackedOps for Autodiff<B, C> {
    fn packed_dequantize(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: Layout,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        let weight = B::packed_dequantize(words, scales.into_primitive(), layout, dtype);
        <Self as AutodiffBackend>::from_inner(weight)
    }

    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        layout: Layout,
    ) -> FloatTensor<Self> {
        /// ∂L/∂x = ∂L/∂y · W
        #[derive(Debug)]
        struct PackedLinear;

        impl<B: PackedOps> Backward<B, 1> for PackedLinear {
            type State = (IntTensor<B>, FloatTensor<B>, Layout);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (words, scales, layout) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    let dtype = grad.dtype().into();
                    B::float_matmul(grad, B::packed_dequantize(words, scales, layout, dtype))
                });
            }
        }

        let scales = scales.into_primitive();
        let (x, node) = x.into_parts();
        match PackedLinear.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::packed_linear(x, words.clone(), scales.clone(), layout);
                prep.finish((words, scales, layout), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::packed_linear(x, words, scales, layout)),
        }
    }
}
