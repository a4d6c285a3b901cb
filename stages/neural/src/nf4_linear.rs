//! Products with NF4 weights on the device: QLoRA's x·dequant(W)ᵀ (arXiv 2305.14314, eq. 5 and 6),
//! as one custom operation with a hand-written backward.
//!
//! On the device a weight is u32 words of 8 codes (code k of a word = bits 4k…4k+3) and one f32
//! scale per 64 weights, counted over the flattened matrix: words and blocks may cross rows, and the
//! last word is padded. Forward dequantizes into a temporary; backward does so again and keeps
//! nothing but the packed weight. The weight itself gets no gradient. It is dequantized into the
//! type of the activations, after the product with its f32 scale.
//! It does not know files: `formats::nf4` reads and packs them, doubly quantized scales resolved.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Cube, Dispatch, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{DType, Device, FloatDType, Int, Shape, Tensor, TensorData};
use formats::nf4::{BLOCK, CODEBOOK, Nf4};
use rayon::prelude::*;

/// Weights from which the CPU backend dequantizes with all cores.
const PARALLEL: usize = 1 << 18;

/// An NF4 weight on a device.
#[derive(Clone, Debug)]
pub struct Nf4Weight {
    /// `[⌈out·in/8⌉]`, u32
    words: Tensor<1, Int>,
    /// `[⌈out·in/64⌉]`
    absmax: Tensor<1>,
    /// `[out, in]`
    shape: [usize; 2],
}

impl Nf4Weight {
    /// Puts a weight on a device.
    #[must_use]
    pub fn new(weight: &Nf4, device: &Device) -> Self {
        let (words, absmax) = (weight.words(), weight.absmax());
        let (word_count, block_count) = (words.len(), absmax.len());
        Self {
            words: Tensor::from_data(TensorData::new(words, [word_count]), (device, DType::U32)),
            absmax: Tensor::from_data(TensorData::new(absmax, [block_count]), device),
            shape: weight.shape,
        }
    }

    /// `[out, in]`
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// x·Wᵀ
    ///
    /// # Shapes
    /// x `[n, in]` → `[n, out]`
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [rows, columns] = self.shape;
        Tensor::from_dispatch(<Dispatch as Nf4Ops>::nf4_linear(
            x.into_dispatch(),
            self.words.clone().into_dispatch(),
            self.absmax.clone().into_dispatch(),
            rows,
            columns,
        ))
    }

    /// The weight as f32, `[out, in]`.
    #[must_use]
    pub fn dequantize(&self) -> Tensor<2> {
        let [rows, columns] = self.shape;
        Tensor::from_dispatch(<Dispatch as Nf4Ops>::nf4_dequantize(
            self.words.clone().into_dispatch(),
            self.absmax.clone().into_dispatch(),
            rows,
            columns,
            FloatDType::F32,
        ))
    }
}

/// The two operations on every backend.
#[backend_extension(Cube, Flex, Autodiff)]
pub trait Nf4Ops: Backend {
    /// words, absmax → `[rows, columns]`
    fn nf4_dequantize(
        words: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        rows: usize,
        columns: usize,
        dtype: FloatDType,
    ) -> FloatTensor<Self>;

    /// x `[n, columns]`, words, absmax → `[n, rows]`
    fn nf4_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        rows: usize,
        columns: usize,
    ) -> FloatTensor<Self> {
        let weight = Self::nf4_dequantize(words, absmax, rows, columns, x.dtype().into());
        Self::float_matmul(x, Self::float_transpose(weight))
    }
}

impl Nf4Ops for Flex {
    fn nf4_dequantize(
        words: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        rows: usize,
        columns: usize,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        let (words, absmax): (&[u32], &[f32]) = (words.storage(), absmax.storage());
        let mut out = vec![0.0f32; rows * columns];
        let one = |(block, values): (usize, &mut [f32])| {
            let scale = absmax[block];
            for (values, word) in values.chunks_mut(8).zip(&words[block * (BLOCK / 8)..]) {
                for (k, value) in values.iter_mut().enumerate() {
                    *value = CODEBOOK[((word >> (4 * k)) & 15) as usize] * scale;
                }
            }
        };
        if out.len() < PARALLEL {
            out.chunks_mut(BLOCK).enumerate().for_each(one);
        } else {
            out.par_chunks_mut(BLOCK).with_min_len(PARALLEL / BLOCK / 8).enumerate().for_each(one);
        }
        let weight = Self::float_from_data(TensorData::new(out, [rows, columns]), &Default::default());
        if dtype == FloatDType::F32 { weight } else { Self::float_cast(weight, dtype) }
    }
}

mod kernel {
    use cubecl::prelude::*;

    /// One thread a word.
    #[cube(launch_unchecked)]
    pub fn dequantize<F: Float>(
        words: &Tensor<u32>,
        absmax: &Tensor<f32>,
        codebook: &Tensor<f32>,
        out: &mut Tensor<F>,
        #[define(F)] _dtype: ElemType,
    ) {
        if ABSOLUTE_POS < words.len() {
            let word = words[ABSOLUTE_POS];
            let scale = absmax[ABSOLUTE_POS / 8];
            #[unroll]
            for k in 0..8u32 {
                let at = ABSOLUTE_POS * 8 + k as usize;
                if at < out.len() {
                    out[at] = F::cast_from(codebook[((word >> (4u32 * k)) & 15u32) as usize] * scale);
                }
            }
        }
    }
}

impl Nf4Ops for Cube {
    fn nf4_dequantize(
        words: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        rows: usize,
        columns: usize,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        use cubecl::ir::{ElemType, FloatKind};
        use cubecl::prelude::CubeDim;
        let (client, device) = (words.client.clone(), words.device.clone());
        let codebook = Self::float_from_data(TensorData::new(CODEBOOK.to_vec(), [CODEBOOK.len()]), &device);
        let out = Self::float_empty(Shape::new([rows, columns]), &device, dtype);
        let kind = match dtype {
            FloatDType::F16 => FloatKind::F16,
            FloatDType::BF16 => FloatKind::BF16,
            _ => FloatKind::F32,
        };
        let count = words.shape().num_elements();
        let dim = CubeDim::new(&client, count);
        let cubes = cubecl::calculate_cube_count_elemwise(&client, count, dim);
        // SAFETY: a thread reads its own word, that word's scale and 16 codes, and writes only
        // elements that its bound check admits; `Nf4Weight::new` makes words and scales of the
        // lengths that the shape asks for.
        unsafe {
            kernel::dequantize::launch_unchecked(
                &client,
                cubes,
                dim,
                words.into_tensor_arg(),
                absmax.into_tensor_arg(),
                codebook.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                ElemType::Float(kind),
            );
        }
        out
    }
}

impl<B: Nf4Ops, C: CheckpointStrategy> Nf4Ops for Autodiff<B, C> {
    fn nf4_dequantize(
        words: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        rows: usize,
        columns: usize,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        let weight = B::nf4_dequantize(words, absmax.into_primitive(), rows, columns, dtype);
        <Self as AutodiffBackend>::from_inner(weight)
    }

    fn nf4_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        rows: usize,
        columns: usize,
    ) -> FloatTensor<Self> {
        /// ∂L/∂x = ∂L/∂y · W
        #[derive(Debug)]
        struct Nf4Linear;

        impl<B: Nf4Ops> Backward<B, 1> for Nf4Linear {
            type State = (IntTensor<B>, FloatTensor<B>, usize, usize);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (words, absmax, rows, columns) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    let dtype = grad.dtype().into();
                    B::float_matmul(grad, B::nf4_dequantize(words, absmax, rows, columns, dtype))
                });
            }
        }

        let absmax = absmax.into_primitive();
        let (x, node) = x.into_parts();
        match Nf4Linear.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::nf4_linear(x, words.clone(), absmax.clone(), rows, columns);
                prep.finish((words, absmax, rows, columns), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::nf4_linear(x, words, absmax, rows, columns)),
        }
    }
}
