//! The scales of the blocks, plain or quantized themselves (QLoRA, section 3, "double quantization").
//!
//! Source: bitsandbytes `functional.py`: `quantize_4bit` with `compress_statistics`,
//! `create_dynamic_map` (Dettmers, arXiv 1511.04561).

use std::sync::LazyLock;

use super::NESTED_BLOCK;
use super::mean::mean;

/// One scale a block.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// In single precision.
    Plain(Vec<f32>),
    /// scale = map[code]·scales[block / 256] + offset
    Nested {
        /// One code a block, into [`dynamic_map`].
        codes: Vec<u8>,
        /// One a run of 256 blocks.
        scales: Vec<f32>,
        /// The mean of the scales.
        offset: f32,
    },
}

impl Absmax {
    /// Quantizes scales.
    #[must_use]
    pub fn nest(absmax: &[f32]) -> Self {
        let offset = mean(absmax);
        let (mut codes, mut scales) = (Vec::with_capacity(absmax.len()), Vec::new());
        for block in absmax.chunks(NESTED_BLOCK) {
            let centred: Vec<f32> = block.iter().map(|x| x - offset).collect();
            let scale = centred.iter().fold(0f32, |most, z| most.max(z.abs()));
            let inverse = 1.0 / scale;
            codes.extend(centred.iter().map(|z| code(z * inverse)));
            scales.push(scale);
        }
        Self::Nested { codes, scales, offset }
    }

    /// The scales in single precision.
    #[must_use]
    pub fn resolve(&self) -> Vec<f32> {
        match self {
            Self::Plain(absmax) => absmax.clone(),
            Self::Nested { codes, scales, offset } => {
                let map = dynamic_map();
                let blocks = codes.chunks(NESTED_BLOCK).zip(scales);
                blocks
                    .flat_map(|(codes, scale)| {
                        codes.iter().map(move |&code| map[usize::from(code)] * scale + offset)
                    })
                    .collect()
            }
        }
    }

    /// How many scales there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(absmax) => absmax.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(absmax) => 4 * absmax.len(),
            Self::Nested { codes, scales, .. } => codes.len() + 4 * scales.len() + 4,
        }
    }
}

/// The entry nearest to a number; halfway, the lower one. Not a number (0/0 in a run of equal
/// scales) is 0.
fn code(scaled: f32) -> u8 {
    static MIDPOINTS: LazyLock<[f64; 255]> = LazyLock::new(|| {
        let map = dynamic_map();
        std::array::from_fn(|at| (f64::from(map[at]) + f64::from(map[at + 1])) / 2.0)
    });
    MIDPOINTS.partition_point(|&midpoint| midpoint < f64::from(scaled)) as u8
}

/// The 256 entries of the 8-bit code: 7 decades of values, denser towards 0, sorted.
#[must_use]
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let mut map = vec![0.0, 1.0];
        for decade in 0..7 {
            let parts = 1usize << decade;
            let scale = 10f64.powi(decade - 6) as f32;
            let bounds: Vec<f32> = (0..=parts).map(|at| bound(at, parts)).collect();
            for pair in bounds.windows(2) {
                let value = scale * ((pair[0] + pair[1]) / 2.0);
                map.extend([value, -value]);
            }
        }
        map.sort_by(f32::total_cmp);
        map.try_into().expect("2 + 2·(1 + 2 + … + 64) entries")
    });
    &MAP
}

/// torch's `linspace(0.1, 1, parts + 1)[at]`: counted from the nearer end, product and sum rounded at
/// once.
fn bound(at: usize, parts: usize) -> f32 {
    let step = (1.0 - 0.1f32) / parts as f32;
    if at < parts.div_ceil(2) {
        step.mul_add(at as f32, 0.1)
    } else {
        (-step).mul_add((parts - at) as f32, 1.0)
    }
}
