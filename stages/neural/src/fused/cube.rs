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

/// How a tensor is cut up for a kernel.
struct Cut {
    /// Rows of it.
    rows: u32,
    /// Vectors of a row.
    width: u32,
    /// Vectors in all.
    count: u32,
    /// Elements of a vector.
    vector: usize,
}

impl Cut {
    /// Into vectors as wide as WGSL has them, if rows and what else must be a multiple of them allow it.
    fn of(tensor: &Primitive, multiple: usize) -> Self {
        let shape = tensor.shape();
        let columns = shape[shape.num_dims() - 1];
        let vector = [4, 2].into_iter().find(|vector| multiple.is_multiple_of(*vector)).unwrap_or(1);
        let size = |size: usize| u32::try_from(size).expect("a buffer has fewer elements than 2³²");
        let (width, count) = (columns / vector, shape.num_elements() / vector);
        Self { rows: size(count / width.max(1)), width: size(width), count: size(count), vector }
    }

    fn rows(tensor: &Primitive) -> Self {
        let shape = tensor.shape();
        Self::of(tensor, shape[shape.num_dims() - 1])
    }

    /// A unit a vector.
    fn by_vector(&self, tensor: &Primitive) -> (CubeCount, CubeDim) {
        let count = self.count as usize;
        let dim = CubeDim::new(&tensor.client, count);
        (cubecl::calculate_cube_count_elemwise(&tensor.client, count, dim), dim)
    }

    /// A cube a row, with the units of one.
    fn by_row(&self) -> (CubeCount, CubeDim, usize) {
        /// What every API has in one dimension.
        const MOST: u32 = 32_768;
        let units = self.width.div_ceil(4).next_power_of_two().clamp(32, 256);
        let count = CubeCount::Static(self.rows.min(MOST), self.rows.div_ceil(MOST), 1);
        (count, CubeDim::new_1d(units), units as usize)
    }
}

/// Σ a∘b of each column, in f32, `[columns]`.
fn column_dots(a: &Primitive, b: &Primitive) -> Primitive {
    let Cut { rows, width, vector, .. } = Cut::rows(a);
    let pieces = (rows as usize).div_ceil(PIECE).max(1);
    let sums = empty(a, [pieces, width as usize * vector], FloatDType::F32);
    let cut = Cut::rows(&sums);
    let (count, dim) = cut.by_vector(&sums);
    let [a_arg, b_arg, to] = [a, b, &sums].map(|tensor| tensor.clone().into_buffer_arg());
    // SAFETY: reads rows of a and b below `rows`, and writes the `cut.count` vectors of `sums`.
    unsafe {
        kernels::column_dots::launch_unchecked(
            &a.client,
            count,
            dim,
            vector,
            a_arg,
            b_arg,
            to,
            cut.count,
            width,
            rows,
            PIECE,
            kind_of(a),
        );
    }
    let columns = sums.shape()[1];
    let sum = if pieces == 1 { sums } else { Cube::float_sum_dim(sums, 0) };
    Cube::float_reshape(sum, Shape::new([columns]))
}

impl RowOps for Cube {
    fn rms_norm(x: Primitive, weight: Primitive, epsilon: f64) -> Primitive {
        let (x, weight) = (into_contiguous(x), into_contiguous(weight));
        let y = like(&x);
        let cut = Cut::rows(&x);
        if cut.count == 0 {
            return y;
        }
        let (count, dim, units) = cut.by_row();
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let (x, weight, to) = (x.into_buffer_arg(), weight.into_buffer_arg(), y.clone().into_buffer_arg());
        // SAFETY: a cube reads and writes its row, as wide as the weight, and rows are clamped.
        unsafe {
            let epsilon = epsilon as f32;
            kernels::rms_norm::launch_unchecked(
                &client, count, dim, cut.vector, x, weight, to, cut.rows, cut.width, epsilon, units, kind,
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
        let cut = Cut::rows(&x);
        let dw = weight_wanted.then(|| {
            let ones = Self::float_ones(weight.shape(), &x.device, FloatDType::F32);
            column_dots(&dy, &Self::rms_norm(x.clone(), ones, epsilon))
        });
        if cut.count == 0 {
            return (dx, dw);
        }
        let (count, dim, units) = cut.by_row();
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let [x, weight, dy, to] = [x, weight, dy, dx.clone()].map(|tensor| tensor.into_buffer_arg());
        // SAFETY: as in the forward; dy is shaped like x.
        unsafe {
            let epsilon = epsilon as f32;
            kernels::rms_norm_backward::launch_unchecked(
                &client, count, dim, cut.vector, x, weight, dy, to, cut.rows, cut.width, epsilon, units, kind,
            );
        }
        (dx, dw)
    }

    fn swiglu(gate: Primitive, up: Primitive) -> Primitive {
        let (gate, up) = (into_contiguous(gate), into_contiguous(up));
        let y = like(&gate);
        let cut = Cut::of(&y, y.shape().num_elements());
        let (count, dim) = cut.by_vector(&y);
        let (client, kind) = (gate.client.clone(), kind_of(&gate));
        let [gate, up, to] = [gate, up, y.clone()].map(|tensor| tensor.into_buffer_arg());
        // SAFETY: all three have as many elements, and units beyond do nothing.
        unsafe {
            kernels::swiglu::launch_unchecked(&client, count, dim, cut.vector, gate, up, to, cut.count, kind);
        }
        y
    }

    fn swiglu_backward(gate: Primitive, up: Primitive, dy: Primitive) -> [Primitive; 2] {
        let (gate, up, dy) = (into_contiguous(gate), into_contiguous(up), into_contiguous(dy));
        let found = [like(&gate), like(&gate)];
        let cut = Cut::of(&gate, gate.shape().num_elements());
        let (count, dim) = cut.by_vector(&gate);
        let (client, kind) = (gate.client.clone(), kind_of(&gate));
        let [gate, up, dy] = [gate, up, dy].map(|tensor| tensor.into_buffer_arg());
        let [dgate, dup] = found.clone().map(|tensor| tensor.into_buffer_arg());
        // SAFETY: all five have as many elements, and units beyond do nothing.
        unsafe {
            kernels::swiglu_backward::launch_unchecked(
                &client, count, dim, cut.vector, gate, up, dy, dgate, dup, cut.count, kind,
            );
        }
        found
    }

    fn scale_columns(x: Primitive, factor: Primitive) -> Primitive {
        let (x, factor) = (into_contiguous(x), into_contiguous(factor));
        let y = like(&x);
        let cut = Cut::rows(&y);
        let (count, dim) = cut.by_vector(&y);
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let [x, factor, to] = [x, factor, y.clone()].map(|tensor| tensor.into_buffer_arg());
        // SAFETY: x and y have as many elements, units beyond do nothing, and the factor is read modulo its length.
        unsafe {
            kernels::scale_columns::launch_unchecked(
                &client, count, dim, cut.vector, x, factor, to, cut.count, cut.width, kind,
            );
        }
        y
    }

    fn scale_columns_backward(x: Primitive, factor: Primitive, dy: Primitive) -> [Primitive; 2] {
        let (x, dy) = (into_contiguous(x), into_contiguous(dy));
        let dfactor = column_dots(&dy, &x);
        [Self::scale_columns(dy, factor), dfactor]
    }

    fn turn(x: Primitive, tables: [Primitive; 2], scale: f64, back: bool) -> Primitive {
        let (x, tables) = (into_contiguous(x), tables.map(into_contiguous));
        let [batch, outer, inner, head] = x.shape().dims();
        let y = empty(&x, [batch, inner, outer, head], x.dtype().into());
        let own = tables[0].shape()[0] > 1;
        let cut = Cut::of(&y, head / 2);
        let (count, dim) = cut.by_vector(&y);
        let (client, kind) = (x.client.clone(), kind_of(&x));
        let (x, to) = (x.into_buffer_arg(), y.clone().into_buffer_arg());
        let [cos, sin] = tables.map(|table| table.into_buffer_arg());
        let (outer, inner, scale, width) = (outer as u32, inner as u32, scale as f32, cut.width as usize);
        // SAFETY: an element of y comes from one of the row of x with its example, token and head; the tables
        // have a row of `width` for each token, and where `own`, of each example.
        unsafe {
            kernels::turn::launch_unchecked(
                &client, count, dim, cut.vector, x, cos, sin, to, cut.count, outer, inner, scale, width, own,
                back, kind,
            );
        }
        y
    }

    fn masked_softmax(scores: Primitive, bias: Primitive) -> Primitive {
        let (scores, bias) = (into_contiguous(scores), into_contiguous(bias));
        let p = like(&scores);
        let [_, heads, time, _] = scores.shape().dims();
        let cut = Cut::rows(&scores);
        if cut.count == 0 {
            return p;
        }
        let own = bias.shape()[0] > 1;
        let (count, dim, units) = cut.by_row();
        let (client, kind) = (scores.client.clone(), kind_of(&scores));
        let [scores, bias, to] = [scores, bias, p.clone()].map(|tensor| tensor.into_buffer_arg());
        let [heads, time] = [heads, time].map(|size| size as u32);
        // SAFETY: a cube reads and writes its row, rows are clamped, and the bias has a row for each
        // token, and where `own`, of each example.
        unsafe {
            kernels::masked_softmax::launch_unchecked(
                &client, count, dim, cut.vector, scores, bias, to, cut.rows, cut.width, time, heads, own,
                units, kind,
            );
        }
        p
    }

    fn softmax_backward(p: Primitive, dp: Primitive) -> Primitive {
        let (p, dp) = (into_contiguous(p), into_contiguous(dp));
        let ds = like(&p);
        let cut = Cut::rows(&p);
        if cut.count == 0 {
            return ds;
        }
        let (count, dim, units) = cut.by_row();
        let (client, kind) = (p.client.clone(), kind_of(&p));
        let [p, dp, to] = [p, dp, ds.clone()].map(|tensor| tensor.into_buffer_arg());
        // SAFETY: a cube reads and writes its row, and rows are clamped.
        unsafe {
            kernels::softmax_backward::launch_unchecked(
                &client, count, dim, cut.vector, p, dp, to, cut.rows, cut.width, units, kind,
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
        let cut = Cut::rows(&logits);
        let nll = empty(&logits, [cut.rows as usize], FloatDType::F32);
        let gradient = empty(&logits, logits.shape(), dtype);
        if cut.count == 0 {
            return (gradient, nll);
        }
        let (count, dim, units) = cut.by_row();
        let (client, kinds) = (logits.client.clone(), [kind_of(&logits), kind(dtype)]);
        let (logits, targets) = (logits.into_buffer_arg(), targets.into_buffer_arg());
        let [to, nll_to] = [&gradient, &nll].map(|tensor| tensor.clone().into_buffer_arg());
        let factor = factor as f32;
        // SAFETY: a cube reads and writes its row, rows are clamped, and targets lie below `vocab`.
        unsafe {
            kernels::cross_entropy::launch_unchecked(
                &client, count, dim, cut.vector, logits, targets, to, nll_to, cut.rows, cut.width, factor,
                units, kinds[0], kinds[1],
            );
        }
        (gradient, nll)
    }
}
