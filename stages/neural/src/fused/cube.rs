//! On adapters driven through wgpu: what each kernel is launched with.

use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::{FloatDType, IntDType, Shape};
use burn_cubecl::kernel::into_contiguous;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::{CubeCount, CubeDim};

use super::{RowOps, kernels};

type Primitive = FloatTensor<Cube>;

/// Rows that one unit adds up in [`kernels::column_dots`].
const PIECE: usize = 64;

/// How CubeCL names an element type.
pub fn kind(dtype: FloatDType) -> ElemType {
    ElemType::Float(match dtype {
        FloatDType::F64 => FloatKind::F64,
        FloatDType::F16 => FloatKind::F16,
        FloatDType::BF16 => FloatKind::BF16,
        _ => FloatKind::F32,
    })
}

fn kind_of(tensor: &Primitive) -> ElemType {
    kind(tensor.dtype().into())
}

fn like(tensor: &Primitive) -> Primitive {
    empty(tensor, tensor.shape(), tensor.dtype().into())
}

fn empty(beside: &Primitive, shape: impl Into<Shape>, dtype: FloatDType) -> Primitive {
    Cube::float_empty(shape.into(), &beside.device, dtype)
}

/// A unit an element.
fn by_element(tensor: &Primitive) -> (CubeCount, CubeDim) {
    let count = tensor.shape().num_elements();
    let dim = CubeDim::new(&tensor.client, count);
    (cubecl::calculate_cube_count_elemwise(&tensor.client, count, dim), dim)
}

/// A cube a row, with the units of one; a few elements a unit.
fn by_row(rows: usize, columns: usize) -> (CubeCount, CubeDim, usize) {
    /// What every API has in one dimension.
    const MOST: u32 = 32_768;
    let rows = u32::try_from(rows).expect("fewer rows than 2³²");
    let units = columns.div_ceil(4).next_power_of_two().clamp(32, 256);
    let count = CubeCount::Static(rows.min(MOST), rows.div_ceil(MOST), 1);
    (count, CubeDim::new_1d(units as u32), units)
}

/// A size as a kernel takes it: no buffer has more elements.
fn size(size: usize) -> u32 {
    u32::try_from(size).expect("a size below 2³²")
}

fn rows_and_columns(tensor: &Primitive) -> (usize, usize) {
    let shape = tensor.shape();
    let columns = shape[shape.num_dims() - 1];
    (shape.num_elements() / columns.max(1), columns)
}

/// Σ a∘b of each column, in f32, `[columns]`.
fn column_dots(a: &Primitive, b: &Primitive) -> Primitive {
    let (rows, columns) = rows_and_columns(a);
    let pieces = rows.div_ceil(PIECE).max(1);
    let sums = empty(a, [pieces, columns], FloatDType::F32);
    let (count, dim) = by_element(&sums);
    let [a_arg, b_arg, to] = [a, b, &sums].map(|tensor| tensor.clone().into_buffer_arg());
    // SAFETY: reads rows below `rows` of `columns`, as many as a and b have, and writes below the length of `sums`.
    unsafe {
        let (columns, rows) = (size(columns), size(rows));
        kernels::column_dots::launch_unchecked(
            &a.client,
            count,
            dim,
            a_arg,
            b_arg,
            to,
            columns,
            rows,
            PIECE,
            kind_of(a),
        );
    }
    let sum = if pieces == 1 { sums } else { Cube::float_sum_dim(sums, 0) };
    Cube::float_reshape(sum, Shape::new([columns]))
}

impl RowOps for Cube {
    fn rms_norm(x: Primitive, weight: Primitive, epsilon: f64) -> Primitive {
        let (x, weight) = (into_contiguous(x), into_contiguous(weight));
        let y = like(&x);
        let (rows, columns) = rows_and_columns(&x);
        if rows * columns == 0 {
            return y;
        }
        let (count, dim, units) = by_row(rows, columns);
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let (x, weight, to) = (x.into_buffer_arg(), weight.into_buffer_arg(), y.clone().into_buffer_arg());
        // SAFETY: a cube reads and writes its row of `columns` = the length of the weight, and rows are clamped.
        unsafe {
            let epsilon = epsilon as f32;
            kernels::rms_norm::launch_unchecked(
                &client,
                count,
                dim,
                x,
                weight,
                to,
                size(rows),
                epsilon,
                units,
                kind,
            );
        }
        y
    }

    fn rms_norm_backward(
        x: Primitive,
        weight: Primitive,
        epsilon: f64,
        dy: Primitive,
        weight_wanted: bool,
    ) -> (Primitive, Option<Primitive>) {
        let (x, weight, dy) = (into_contiguous(x), into_contiguous(weight), into_contiguous(dy));
        let dx = like(&x);
        let (rows, columns) = rows_and_columns(&x);
        let dw = weight_wanted.then(|| {
            let ones = Self::float_ones(weight.shape(), &x.device, FloatDType::F32);
            column_dots(&dy, &Self::rms_norm(x.clone(), ones, epsilon))
        });
        if rows * columns == 0 {
            return (dx, dw);
        }
        let (count, dim, units) = by_row(rows, columns);
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let [x, weight, dy, to] = [x, weight, dy, dx.clone()].map(|tensor| tensor.into_buffer_arg());
        // SAFETY: as in the forward; dy is shaped like x.
        unsafe {
            let epsilon = epsilon as f32;
            kernels::rms_norm_backward::launch_unchecked(
                &client,
                count,
                dim,
                x,
                weight,
                dy,
                to,
                size(rows),
                epsilon,
                units,
                kind,
            );
        }
        (dx, dw)
    }

    fn swiglu(gate: Primitive, up: Primitive) -> Primitive {
        let (gate, up) = (into_contiguous(gate), into_contiguous(up));
        let y = like(&gate);
        let (count, dim) = by_element(&y);
        let (client, kind) = (gate.client.clone(), kind_of(&gate));
        let [gate, up, to] = [gate, up, y.clone()].map(|tensor| tensor.into_buffer_arg());
        // SAFETY: all three have as many elements, and units beyond do nothing.
        unsafe { kernels::swiglu::launch_unchecked(&client, count, dim, gate, up, to, kind) };
        y
    }

    fn swiglu_backward(gate: Primitive, up: Primitive, dy: Primitive) -> [Primitive; 2] {
        let (gate, up, dy) = (into_contiguous(gate), into_contiguous(up), into_contiguous(dy));
        let found = [like(&gate), like(&gate)];
        let (count, dim) = by_element(&gate);
        let (client, kind) = (gate.client.clone(), kind_of(&gate));
        let [gate, up, dy] = [gate, up, dy].map(|tensor| tensor.into_buffer_arg());
        let [dgate, dup] = found.clone().map(|tensor| tensor.into_buffer_arg());
        // SAFETY: all five have as many elements, and units beyond do nothing.
        unsafe {
            kernels::swiglu_backward::launch_unchecked(&client, count, dim, gate, up, dy, dgate, dup, kind);
        }
        found
    }

    fn scale_columns(x: Primitive, factor: Primitive) -> Primitive {
        let (x, factor) = (into_contiguous(x), into_contiguous(factor));
        let y = like(&x);
        let (count, dim) = by_element(&y);
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let [x, factor, to] = [x, factor, y.clone()].map(|tensor| tensor.into_buffer_arg());
        // SAFETY: x and y have as many elements, units beyond do nothing, and the factor is read modulo its length.
        unsafe { kernels::scale_columns::launch_unchecked(&client, count, dim, x, factor, to, kind) };
        y
    }

    fn scale_columns_backward(x: Primitive, factor: Primitive, dy: Primitive) -> [Primitive; 2] {
        let (x, dy) = (into_contiguous(x), into_contiguous(dy));
        let dfactor = column_dots(&dy, &x);
        [Self::scale_columns(dy, factor), dfactor]
    }

    fn turn(x: Primitive, tables: [Primitive; 2], scale: f64, back: bool) -> Primitive {
        let (x, tables) = (into_contiguous(x), tables.map(into_contiguous));
        let [batch, outer, inner, width] = x.shape().dims();
        let y = empty(&x, [batch, inner, outer, width], x.dtype().into());
        let own = tables[0].shape()[0] > 1;
        let (count, dim) = by_element(&y);
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let (x, to) = (x.into_buffer_arg(), y.clone().into_buffer_arg());
        let [cos, sin] = tables.map(|table| table.into_buffer_arg());
        let (outer, inner, scale) = (size(outer), size(inner), scale as f32);
        // SAFETY: an element of y comes from one of the row of x with its example, token and head; the tables
        // have a row of `width` for each token, and where `own`, of each example.
        unsafe {
            kernels::turn::launch_unchecked(
                &client, count, dim, x, cos, sin, to, outer, inner, scale, width, own, back, kind,
            );
        }
        y
    }

    fn masked_softmax(scores: Primitive, bias: Primitive) -> Primitive {
        let (scores, bias) = (into_contiguous(scores), into_contiguous(bias));
        let p = like(&scores);
        let [_, heads, time, keys] = scores.shape().dims();
        let (rows, _) = rows_and_columns(&scores);
        if rows * keys == 0 {
            return p;
        }
        let own = bias.shape()[0] > 1;
        let (count, dim, units) = by_row(rows, keys);
        let (client, kind) = (scores.client.clone(), kind_of(&scores));
        let [scores, bias, to] = [scores, bias, p.clone()].map(|tensor| tensor.into_buffer_arg());
        let [rows, keys, time, heads] = [rows, keys, time, heads].map(size);
        // SAFETY: a cube reads and writes its row of `keys`, rows are clamped, and the bias has a row for each
        // token, and where `own`, of each example.
        unsafe {
            kernels::masked_softmax::launch_unchecked(
                &client, count, dim, scores, bias, to, rows, keys, time, heads, own, units, kind,
            );
        }
        p
    }

    fn softmax_backward(p: Primitive, dp: Primitive) -> Primitive {
        let (p, dp) = (into_contiguous(p), into_contiguous(dp));
        let ds = like(&p);
        let (rows, keys) = rows_and_columns(&p);
        if rows * keys == 0 {
            return ds;
        }
        let (count, dim, units) = by_row(rows, keys);
        let (client, kind) = (p.client.clone(), kind_of(&p));
        let [p, dp, to] = [p, dp, ds.clone()].map(|tensor| tensor.into_buffer_arg());
        let [rows, keys] = [rows, keys].map(size);
        // SAFETY: a cube reads and writes its row of `keys`, and rows are clamped.
        unsafe {
            kernels::softmax_backward::launch_unchecked(
                &client, count, dim, p, dp, to, rows, keys, units, kind,
            );
        }
        ds
    }

    fn cross_entropy(
        logits: Primitive,
        targets: IntTensor<Self>,
        factor: f64,
        dtype: FloatDType,
    ) -> (Primitive, Primitive) {
        let logits = into_contiguous(logits);
        let targets = into_contiguous(Self::int_cast(targets, IntDType::I32));
        let (rows, vocab) = rows_and_columns(&logits);
        let (gradient, nll) = (empty(&logits, logits.shape(), dtype), empty(&logits, [rows], FloatDType::F32));
        if rows * vocab == 0 {
            return (gradient, nll);
        }
        let (count, dim, units) = by_row(rows, vocab);
        let (client, kinds) = (logits.client.clone(), [kind_of(&logits), kind(dtype)]);
        let (logits, targets) = (logits.into_buffer_arg(), targets.into_buffer_arg());
        let [to, nll_to] = [&gradient, &nll].map(|tensor| tensor.clone().into_buffer_arg());
        let (vocab, factor) = (size(vocab), factor as f32);
        // SAFETY: a cube reads and writes its row of `vocab`, rows are clamped, and targets lie below `vocab`.
        unsafe {
            kernels::cross_entropy::launch_unchecked(
                &client, count, dim, logits, targets, to, nll_to, vocab, factor, units, kinds[0], kinds[1],
            );
        }
        (gradient, nll)
    }
}
