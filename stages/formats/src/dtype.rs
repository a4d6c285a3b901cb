//! The float types that models are stored in.

use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Values that one thread converts at a time.
pub(crate) const PIECE: usize = 1 << 16;

/// A float type, by the name that `config.json` gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE single precision.
    #[default]
    #[serde(rename = "float32")]
    F32,
    /// IEEE half precision.
    #[serde(rename = "float16")]
    F16,
    /// The upper half of single precision.
    #[serde(rename = "bfloat16")]
    Bf16,
}

impl Dtype {
    /// The names, as in `config.json`.
    pub const NAMES: &[&str] = &["float32", "float16", "bfloat16"];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The type of that name; `torch.` in front is taken as well.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of one value.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Its name in a safetensors header.
    #[must_use]
    pub const fn stored(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
            Self::Bf16 => safetensors::Dtype::BF16,
        }
    }

    /// The values in this type, little-endian; rounded to nearest, ties to even.
    #[must_use]
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => each(values, f32::to_le_bytes),
            Self::F16 => each(values, |value| f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => each(values, |value| bf16::from_f32(value).to_le_bytes()),
        }
    }
}

/// The bytes of all values, end to end.
fn each<const N: usize>(values: &[f32], write: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    let mut bytes = vec![0; N * values.len()];
    let places = bytes.as_chunks_mut::<N>().0.par_iter_mut().with_min_len(PIECE);
    places.zip(values).for_each(|(to, &value)| *to = write(value));
    bytes
}
