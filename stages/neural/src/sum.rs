//! The sum of all elements of a tensor, in an order that is the same every time.
//!
//! `Tensor::sum` of burn 0.22 on wgpu has four workgroups add their parts to one float atomically
//! (`burn-cubecl/src/kernel/reduce/base.rs`, `SumStrategy::OneShot(4)`): the last bit then depends
//! on which comes first, and with it every later step of a training. Sums along a dimension have a
//! fixed order.

use burn::tensor::Tensor;

/// Elements that one invocation of a kernel adds up: with 2²⁰ elements two passes do.
pub const WIDTH: usize = 1024;

/// The sum of all elements, as `[1]`; 0 of none.
#[must_use]
pub fn total<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let length = tensor.dims().iter().product::<usize>();
    let mut left = tensor.reshape([length]);
    while left.dims()[0] > WIDTH {
        left = runs(left);
    }
    left.sum_dim(0)
}

/// The sums of each [`WIDTH`] elements, the last of fewer. [`total`] of them is that of the vector, and on
/// the CPU backend to the last bit, so that those of its pieces, cut at multiples of the width, do as well.
#[must_use]
pub fn runs(vector: Tensor<1>) -> Tensor<1> {
    let [length] = vector.dims();
    let whole = length - length % WIDTH;
    let rest = (whole < length)
        .then(|| vector.clone().slice_dim(0, whole..length).reshape([1, length - whole]).sum_dim(1));
    if whole == 0 {
        return rest.map_or(vector, |rest| rest.reshape([1]));
    }
    let parts = vector.slice_dim(0, 0..whole).reshape([whole / WIDTH, WIDTH]).sum_dim(1);
    let parts = rest.map_or(parts.clone(), |rest| Tensor::cat(vec![parts, rest], 0));
    parts.reshape([length.div_ceil(WIDTH)])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::device::read;

    #[test]
    fn the_sum_of_pieces_is_that_of_the_whole_to_the_last_bit() {
        let whole = |values: &[f32]| {
            Tensor::<1>::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
        };
        for length in [1, 7, WIDTH, WIDTH + 1, 5 * WIDTH, 1100 * WIDTH + 3] {
            let values: Vec<f32> = (0..length).map(|i| ((i * 7919) % 1013) as f32 * 0.37 - 5.0).collect();
            let expected = read(total(whole(&values))).unwrap();
            for cut in [0, WIDTH, 3 * WIDTH, 700 * WIDTH].into_iter().filter(|&cut| cut < length) {
                let (before, after) = values.split_at(cut);
                let pieces = [before, after].into_iter().filter(|piece| !piece.is_empty());
                let sums: Vec<Tensor<1>> = pieces.map(|piece| runs(whole(piece))).collect();
                assert_eq!(read(total(Tensor::cat(sums, 0))).unwrap(), expected, "{length} cut at {cut}");
            }
        }
    }
}
