//! On the CPU backend: the slices' kernels of `cpu::rows`, in f32; other types are made f32 and back. What its
//! own operations replace (attention, the head) is here from plain ones, for types other than f32 and for
//! tests.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::ops::{ActivationOps, FloatTensorOps, IntTensorOps};
use burn::backend::tensor::IntTensor;
use burn::tensor::{FloatDType, IndexingUpdateOp, Shape, TensorData};
use rayon::prelude::*;

use super::RowOps;
use crate::cpu::{Primitive, floats, rows};

/// In f32, row after row.
fn plain(tensor: Primitive) -> Primitive {
    f32s(tensor).to_contiguous()
}

fn f32s(tensor: Primitive) -> Primitive {
    cast(tensor, FloatDType::F32)
}

fn cast(tensor: Primitive, dtype: FloatDType) -> Primitive {
    if FloatDType::from(tensor.dtype()) == dtype { tensor } else { Flex::float_cast(tensor, dtype) }
}

fn shaped(values: Vec<f32>, shape: Shape, dtype: FloatDType) -> Primitive {
    cast(Flex::float_from_data(TensorData::new(values, shape), &Default::default()), dtype)
}

impl RowOps for Flex {
    fn rms_norm(x: Primitive, weight: Primitive, epsilon: f64) -> Primitive {
        let (shape, dtype) = (x.shape(), x.dtype().into());
        let (x, weight) = (plain(x), plain(weight));
        shaped(rows::rms_norm(floats(&x), floats(&weight), epsilon as f32), shape, dtype)
    }

    fn rms_norm_backward(
        x: Primitive,
        weight: Primitive,
        epsilon: f64,
        dy: Primitive,
        weight_wanted: bool,
    ) -> (Primitive, Option<Primitive>) {
        let (shape, dtype) = (x.shape(), x.dtype().into());
        let (x, weight, dy) = (plain(x), plain(weight), plain(dy));
        let (dx, dw) =
            rows::rms_norm_backward(floats(&x), floats(&weight), epsilon as f32, floats(&dy), weight_wanted);
        let dw = dw.map(|dw| shaped(dw, weight.shape(), FloatDType::F32));
        (shaped(dx, shape, dtype), dw)
    }

    fn swiglu(gate: Primitive, up: Primitive) -> Primitive {
        let (shape, dtype) = (gate.shape(), gate.dtype().into());
        let (gate, up) = (plain(gate), plain(up));
        shaped(rows::swiglu(floats(&gate), floats(&up)), shape, dtype)
    }

    fn swiglu_backward(gate: Primitive, up: Primitive, dy: Primitive) -> [Primitive; 2] {
        let (shape, dtype) = (gate.shape(), gate.dtype().into());
        let (gate, up, dy) = (plain(gate), plain(up), plain(dy));
        let (dgate, dup) = rows::swiglu_backward(floats(&gate), floats(&up), floats(&dy));
        [dgate, dup].map(|values| shaped(values, shape.clone(), dtype))
    }

    fn scale_columns(x: Primitive, factor: Primitive) -> Primitive {
        let (shape, dtype) = (x.shape(), x.dtype().into());
        let (x, factor) = (plain(x), plain(factor));
        shaped(rows::scale_columns(floats(&x), floats(&factor)), shape, dtype)
    }

    fn scale_columns_backward(x: Primitive, factor: Primitive, dy: Primitive) -> [Primitive; 2] {
        let (shape, dtype) = (x.shape(), x.dtype().into());
        let (x, factor, dy) = (plain(x), plain(factor), plain(dy));
        let (dx, dfactor) = rows::scale_columns_backward(floats(&x), floats(&factor), floats(&dy));
        [shaped(dx, shape, dtype), shaped(dfactor, factor.shape(), FloatDType::F32)]
    }

    fn turn(x: Primitive, tables: [Primitive; 2], scale: f64, back: bool) -> Primitive {
        let dtype = x.dtype().into();
        let [batch, outer, inner, dim] = x.shape().dims();
        let (time, heads) = if back { (inner, outer) } else { (outer, inner) };
        let own = tables[0].shape()[0] > 1;
        let (x, tables) = (plain(x), tables.map(plain));
        let (x, [cos, sin]) = (floats(&x), tables.each_ref().map(floats));
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(dim.max(1)).enumerate().for_each(|(row, y)| {
            let (example, within) = (row / (time * heads), row % (time * heads));
            let (token, head) =
                if back { (within / heads, within % heads) } else { (within % time, within / time) };
            let from = if back { head * time + token } else { token * heads + head };
            let x = &x[(example * time * heads + from) * dim..][..dim];
            let at = (if own { example * time } else { 0 } + token) * dim;
            let (cos, sin) = (&cos[at..][..dim], &sin[at..][..dim]);
            for k in 0..dim {
                let other = (k + dim / 2) % dim;
                let sin = if back { sin[other] } else { sin[k] };
                y[k] = (x[k] * cos[k] + x[other] * sin) * scale as f32;
            }
        });
        let shape = if back { [batch, time, heads, dim] } else { [batch, heads, time, dim] };
        shaped(y, Shape::new(shape), dtype)
    }

    fn masked_softmax(scores: Primitive, bias: Primitive) -> Primitive {
        let dtype = scores.dtype().into();
        cast(Self::softmax(Self::float_add(f32s(scores), bias), 3), dtype)
    }

    fn softmax_backward(p: Primitive, dp: Primitive) -> Primitive {
        let dtype = p.dtype().into();
        let (p, dp) = (f32s(p), f32s(dp));
        let along = Self::float_sum_dim(Self::float_mul(p.clone(), dp.clone()), 3);
        cast(Self::float_mul(p, Self::float_sub(dp, along)), dtype)
    }

    fn cross_entropy(
        logits: Primitive,
        targets: IntTensor<Self>,
        factor: f64,
        dtype: FloatDType,
    ) -> (Primitive, Primitive) {
        let logits = f32s(logits);
        let rows = logits.shape()[0];
        let targets = Self::int_reshape(targets, Shape::new([rows, 1]));
        let shifted = Self::float_sub(logits.clone(), Self::float_max_dim(logits, 1));
        let picked = Self::float_gather(1, shifted.clone(), targets.clone());
        let exp = Self::float_exp(shifted);
        let norm = Self::float_sum_dim(exp.clone(), 1);
        let nll = Self::float_sub(Self::float_log(norm.clone()), picked);
        let factors = shaped(vec![factor as f32; rows], Shape::new([rows, 1]), FloatDType::F32);
        let minus = Self::float_neg(factors.clone());
        let softmax = Self::float_mul(exp, Self::float_div(factors, norm));
        let gradient = Self::float_scatter(1, softmax, targets, minus, IndexingUpdateOp::Add);
        (cast(gradient, dtype), Self::float_reshape(nll, Shape::new([rows])))
    }
}
