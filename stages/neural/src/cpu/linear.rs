//! A linear layer with a frozen weight, bare or with an adapter, forward and backward on slices: all
//! products write or add in place, so that nothing is filled, copied, added or scaled besides.
//!
//! LoRA: y = x·Wᵀ + h·Bᵀ, h = s·x·Aᵀ. DoRA: y = g∘(x·Wᵀ + h·Bᵀ), one gain g a column.

use std::borrow::Cow;

use super::packed::Packed;
use super::product::{Cores, Part, product, product_into};
use super::rows;

/// A frozen weight, `[out, in]`.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// As it is.
    Floats(&'a [f32]),
    /// Made floats piece by piece where it is needed.
    Packed(Packed<'a>),
}

/// A frozen weight and what stands beside it.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// W, `[out, in]`
    pub weight: Weight<'a>,
    /// in
    pub inner: usize,
    /// LoRA's part.
    pub low: Option<Low<'a>>,
    /// DoRA's gain, `[out]`
    pub gain: Option<&'a [f32]>,
}

/// LoRA's matrices.
#[derive(Clone, Copy)]
pub struct Low<'a> {
    /// A, `[r, in]`
    pub a: &'a [f32],
    /// B, `[out, r]`
    pub b: &'a [f32],
    /// s
    pub scale: f32,
}

/// Gradients; of what no one asked for, or is not there, empty.
#[derive(Default)]
pub struct Gradients {
    /// `[n, in]`
    pub x: Vec<f32>,
    /// `[r, in]`
    pub a: Vec<f32>,
    /// `[out, r]`
    pub b: Vec<f32>,
    /// `[out]`
    pub gain: Vec<f32>,
}

impl Weight<'_> {
    /// Its rows of `width`.
    fn rows(&self, width: usize) -> usize {
        match self {
            Self::Floats(weight) => weight.len() / width.max(1),
            Self::Packed(weight) => weight.layout.rows,
        }
    }

    /// Row `row` of `width`.
    fn row(&self, row: usize, width: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Floats(weight) => Cow::Borrowed(&weight[row * width..][..width]),
            Self::Packed(weight) => Cow::Owned(weight.row(row)),
        }
    }

    /// x·Wᵀ
    ///
    /// # Shapes
    /// x `[n, inner]` → `[n, out]`
    fn product(&self, x: &[f32], [n, inner, out]: [usize; 3]) -> Vec<f32> {
        let rows = Part::rows(x, inner);
        let weight = match self {
            Self::Floats(weight) => {
                return product(
                    [n, inner, out],
                    1.0,
                    rows,
                    Part::rows(weight, inner).transposed(),
                    Cores::All,
                );
            }
            Self::Packed(weight) => weight,
        };
        weight.narrow_product(x).unwrap_or_else(|| {
            let mut y = vec![0.0; n * out];
            weight.in_pieces(|first, piece| {
                let (size, piece) = ([n, inner, piece.len() / inner], Part::rows(piece, inner).transposed());
                product_into(&mut y[first..], out, false, size, rows, piece, Cores::All);
            });
            y
        })
    }

    /// ∂y·W
    ///
    /// # Shapes
    /// dy `[n, out]` → `[n, inner]`
    fn product_back(&self, dy: &[f32], [n, inner, out]: [usize; 3]) -> Vec<f32> {
        let weight = match self {
            Self::Floats(weight) => {
                let (dy, weight) = (Part::rows(dy, out), Part::rows(weight, inner));
                return product([n, out, inner], 1.0, dy, weight, Cores::All);
            }
            Self::Packed(weight) => weight,
        };
        let mut dx = vec![0.0; n * inner];
        weight.in_pieces(|first, piece| {
            let size = [n, piece.len() / inner, inner];
            let (dy, piece) = (Part::rows(&dy[first..], out), Part::rows(piece, inner));
            product_into(&mut dx, inner, first > 0, size, dy, piece, Cores::All);
        });
        dx
    }
}

impl Layer<'_> {
    /// out
    pub(super) fn out(&self) -> usize {
        self.weight.rows(self.inner)
    }

    fn rank(&self, low: &Low<'_>) -> usize {
        low.a.len() / self.inner.max(1)
    }

    /// y and, with LoRA, h.
    ///
    /// # Shapes
    /// x `[n, in]` → `[n, out]`, `[n, r]`
    #[must_use]
    pub fn forward(&self, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (out, inner) = (self.out(), self.inner);
        let n = x.len() / inner.max(1);
        let rows = Part::rows(x, inner);
        let mut y = self.weight.product(x, [n, inner, out]);
        let mut h = Vec::new();
        if let Some(low) = &self.low {
            let rank = self.rank(low);
            let (a, b) = (Part::rows(low.a, inner).transposed(), Part::rows(low.b, rank).transposed());
            h = product([n, inner, rank], low.scale, rows, a, Cores::All);
            product_into(&mut y, out, true, [n, rank, out], Part::rows(&h, rank), b, Cores::All);
        }
        if let Some(gain) = self.gain {
            rows::scale_columns_in_place(&mut y, gain);
        }
        (y, h)
    }

    /// Gradients from that of y; that of x only where it is asked for. With DoRA y itself is needed.
    ///
    /// # Shapes
    /// x `[n, in]`, h `[n, r]`, y and dy `[n, out]`
    #[must_use]
    pub fn backward(&self, x: &[f32], h: &[f32], y: &[f32], dy: &[f32], with_x: bool) -> Gradients {
        let (out, inner) = (self.out(), self.inner);
        let n = x.len() / inner.max(1);
        let mut gradients = Gradients::default();
        let scaled;
        let dz = match self.gain {
            None => dy,
            Some(gain) => {
                (scaled, gradients.gain) = rows::scale_columns_backward(y, gain, dy);
                self.unscale(&mut gradients.gain, x, h, dy);
                &scaled[..]
            }
        };
        if with_x {
            gradients.x = self.weight.product_back(dz, [n, inner, out]);
        }
        let (rows, dz) = (Part::rows(x, inner), Part::rows(dz, out));
        if let Some(low) = &self.low {
            let rank = self.rank(low);
            let dh = product([n, out, rank], low.scale, dz, Part::rows(low.b, rank), Cores::All);
            let (dh, h) = (Part::rows(&dh, rank), Part::rows(h, rank));
            if with_x {
                let a = Part::rows(low.a, inner);
                product_into(&mut gradients.x, inner, true, [n, rank, inner], dh, a, Cores::All);
            }
            gradients.a = product([rank, n, inner], 1.0, dh.transposed(), rows, Cores::All);
            gradients.b = product([out, n, rank], 1.0, dz.transposed(), h, Cores::All);
        }
        gradients
    }

    /// Σ ∂y∘y by column → Σ ∂y∘z, where y = g∘z. Where g is 0, y has forgotten z, and it is made again.
    fn unscale(&self, sums: &mut [f32], x: &[f32], h: &[f32], dy: &[f32]) {
        let (out, inner) = (self.out(), self.inner);
        for (column, (sum, &gain)) in sums.iter_mut().zip(self.gain.unwrap_or_default()).enumerate() {
            if gain != 0.0 {
                *sum /= gain;
                continue;
            }
            let weight = self.weight.row(column, inner);
            let low = self.low.map(|low| {
                let rank = self.rank(&low);
                (rank, &low.b[column * rank..][..rank])
            });
            let z = |row: usize| {
                let base = rows::dot(&x[row * inner..][..inner], &weight);
                base + low.map_or(0.0, |(rank, b)| rows::dot(&h[row * rank..][..rank], b))
            };
            *sum = (0..dy.len() / out).map(|row| dy[row * out + column] * z(row)).sum();
        }
    }
}
