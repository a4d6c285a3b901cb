//! Products of matrices that lie in slices, by `gemm`.
//!
//! burn's own product fills its result with zeros on one core, copies it, and only then computes; these
//! write into memory that nobody has touched, or add to what is there.

use gemm::Parallelism;

/// Multiplications from which a product is shared out over the cores.
const PARALLEL: usize = 1 << 18;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    values: &'a [f32],
    /// Elements from one row to the next.
    row: usize,
    /// Elements from one column to the next.
    column: usize,
}

impl<'a> Part<'a> {
    /// Rows one behind the other, `width` elements from one to the next.
    #[must_use]
    pub fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, row: width, column: 1 }
    }

    /// Rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    /// Whether it holds so many rows and columns.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// The calling thread.
    One,
    /// All, if there is enough to do.
    All,
}

/// factor·a·b, `[m, n]`; `size` is `[m, k, n]`.
#[must_use]
pub fn product(size: [usize; 3], factor: f32, a: Part<'_>, b: Part<'_>, cores: Cores) -> Vec<f32> {
    let [m, _, n] = size;
    let mut to = Vec::with_capacity(m * n);
    // SAFETY: `to` has room for m rows of n elements; all of them are written before they count.
    unsafe {
        call(to.as_mut_ptr(), n, false, size, factor, a, b, cores);
        to.set_len(m * n);
    }
    to
}

/// to = a·b, or to += a·b; `to` is `[m, n]` with rows of `width`.
pub fn product_into(
    to: &mut [f32],
    width: usize,
    add: bool,
    size: [usize; 3],
    a: Part<'_>,
    b: Part<'_>,
    cores: Cores,
) {
    let [m, _, n] = size;
    assert!(Part::rows(to, width).holds(m, n), "{m}×{n} is out of bounds");
    // SAFETY: `to` holds m rows of n elements, as was just asked, and is borrowed alone.
    unsafe { call(to.as_mut_ptr(), width, add, size, 1.0, a, b, cores) };
}

/// # Safety
/// `to` must have room for m rows of n elements, `width` from one to the next, and hold numbers if
/// `add` is true.
#[expect(clippy::too_many_arguments, reason = "as many as a product has")]
unsafe fn call(
    to: *mut f32,
    width: usize,
    add: bool,
    [m, k, n]: [usize; 3],
    factor: f32,
    a: Part<'_>,
    b: Part<'_>,
    cores: Cores,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "{m}×{k}×{n} is out of bounds");
    let stride = |elements: usize| isize::try_from(elements).expect("strides are far below 2^63");
    let shared = cores == Cores::All && m.saturating_mul(k).saturating_mul(n) >= PARALLEL;
    // SAFETY: a and b lie within their slices, as was just asked; the caller vouches for `to`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to,
            1,
            stride(width),
            add,
            a.values.as_ptr(),
            stride(a.column),
            stride(a.row),
            b.values.as_ptr(),
            stride(b.column),
            stride(b.row),
            1.0,
            factor,
            false,
            false,
            false,
            if shared { Parallelism::Rayon(0) } else { Parallelism::None },
        );
    }
}
