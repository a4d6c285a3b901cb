//! The sum of all elements of a tensor, in an order that is the same every time.
//!
//! `Tensor::sum` of burn 0.22 on wgpu has four workgroups add their parts to one float atomically
//! (`burn-cubecl/src/kernel/reduce/base.rs`, `SumStrategy::OneShot(4)`): the last bit then depends
//! on which comes first, and with it every later step of a training. Sums along a dimension have a
//! fixed order.

use burn::tensor::Tensor;

/// Elements that one invocation of a kernel adds up: with 2²⁰ elements two passes do.
const WIDTH: usize = 1024;

/// The sum of all elements, as `[1]`; 0 of none.
#[must_use]
pub fn total<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let mut length = tensor.dims().iter().product::<usize>();
    let mut left = tensor.reshape([length]);
    while length > WIDTH {
        let whole = length - length % WIDTH;
        let mut parts = left.clone().slice_dim(0, 0..whole).reshape([whole / WIDTH, WIDTH]).sum_dim(1);
        if whole < length {
            let rest = left.slice_dim(0, whole..length).reshape([1, length - whole]).sum_dim(1);
            parts = Tensor::cat(vec![parts, rest], 0);
        }
        length = length.div_ceil(WIDTH);
        left = parts.reshape([length]);
    }
    left.sum_dim(0)
}
