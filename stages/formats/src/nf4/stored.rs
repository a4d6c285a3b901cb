//! bitsandbytes' serialized layout, which transformers loads: `weight` as bytes `[n/2, 1]` and beside
//! it `weight.absmax`, `weight.quant_map`, `weight.nested_absmax`, `weight.nested_quant_map` and
//! `weight.quant_state.bitsandbytes__nf4`, a JSON text as bytes.

use serde_json::{Value, json};

use super::{Absmax, BLOCK, CODEBOOK, NESTED_BLOCK, Nf4, dynamic_map};
use crate::json::Fields;
use crate::weights::{Stored, Tensor, Weights};
use crate::{Dtype, Error, Result};

const STATE: &str = ".quant_state.bitsandbytes__nf4";
const COMPANIONS: [&str; 5] = [STATE, ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];

/// The weight that a tensor of the layout belongs to, if it stands beside one.
pub(crate) fn owner(name: &str) -> Option<&str> {
    COMPANIONS.iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// What the layout says about a weight besides its codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// What the weight was stored in before. bitsandbytes rounds the weights to it; here they stay in
    /// single precision.
    pub dtype: Dtype,
    /// The mean of the scales, with double quantization.
    pub offset: Option<f32>,
}

impl Nf4 {
    /// Whether `name` is quantized by bitsandbytes (in a way that may yet be refused by
    /// [`Nf4::read`]).
    #[must_use]
    pub fn is_quantized(weights: &Weights, name: &str) -> bool {
        weights.contains(&format!("{name}.absmax")) || weights.contains(&format!("{name}{STATE}"))
    }

    /// The shape of a quantized weight, once everything about it fits together.
    ///
    /// # Errors
    /// If a part is missing, has a wrong size, or is not understood.
    pub fn check(weights: &Weights, name: &str) -> Result<[usize; 2]> {
        Ok(Self::state(weights, name)?.shape)
    }

    /// What the layout says about a weight, once everything about it fits together.
    ///
    /// # Errors
    /// If a part is missing, has a wrong size, or is not understood.
    pub fn state(weights: &Weights, name: &str) -> Result<Quantized> {
        let state = state(weights, name)?;
        let elements = state.shape[0].checked_mul(state.shape[1]);
        let elements = elements.ok_or_else(|| refuse(weights, name, "has an impossible `shape`"))?;
        let blocks = elements.div_ceil(BLOCK);
        let part = |suffix: &str, dtype: Stored, length: usize| {
            expect(weights, &format!("{name}{suffix}"), dtype, length)
        };
        part("", Stored::U8, elements.div_ceil(2))?;
        part(".quant_map", Stored::F32, CODEBOOK.len())?;
        same(weights, &format!("{name}.quant_map"), &CODEBOOK)?;
        if state.offset.is_some() {
            part(".absmax", Stored::U8, blocks)?;
            part(".nested_absmax", Stored::F32, blocks.div_ceil(NESTED_BLOCK))?;
            part(".nested_quant_map", Stored::F32, dynamic_map().len())?;
            same(weights, &format!("{name}.nested_quant_map"), dynamic_map())?;
        } else {
            part(".absmax", Stored::F32, blocks)?;
        }
        Ok(state)
    }

    /// Reads a quantized weight.
    ///
    /// # Errors
    /// If a part is missing, has a wrong size, or is not understood.
    pub fn read(weights: &Weights, name: &str) -> Result<Self> {
        let state = Self::state(weights, name)?;
        let part = |suffix: &str| format!("{name}.{suffix}");
        let absmax = match state.offset {
            None => Absmax::Plain(weights.f32(&part("absmax"))?),
            Some(offset) => Absmax::Nested {
                codes: weights.bytes(&part("absmax"))?.to_vec(),
                scales: weights.f32(&part("nested_absmax"))?,
                offset,
            },
        };
        Ok(Self { shape: state.shape, packed: weights.bytes(name)?.to_vec(), absmax })
    }

    /// The layout's tensors for a weight of this name. The state says `float32`, so that bitsandbytes
    /// does not round the weights.
    #[must_use]
    pub fn tensors(&self, name: &str) -> Vec<Tensor<'_>> {
        let part = |suffix: &str| format!("{name}.{suffix}");
        let mut state = json!({
            "quant_type": "nf4",
            "blocksize": BLOCK,
            "dtype": Dtype::F32.name(),
            "shape": self.shape,
        });
        let mut tensors = vec![
            Tensor {
                name: name.to_owned(),
                dtype: Stored::U8,
                shape: vec![self.packed.len(), 1],
                data: self.packed.as_slice().into(),
            },
            Tensor::f32(part("quant_map"), [CODEBOOK.len()], CODEBOOK.to_vec()),
        ];
        match &self.absmax {
            Absmax::Plain(absmax) => {
                tensors.push(Tensor::f32(part("absmax"), [absmax.len()], absmax.clone()));
            }
            Absmax::Nested { codes, scales, offset } => {
                state["nested_blocksize"] = json!(NESTED_BLOCK);
                state["nested_dtype"] = json!(Dtype::F32.name());
                state["nested_offset"] = json!(f64::from(*offset));
                tensors.push(Tensor::u8(part("absmax"), [codes.len()], codes.clone()));
                tensors.push(Tensor::f32(part("nested_absmax"), [scales.len()], scales.clone()));
                let map = dynamic_map();
                tensors.push(Tensor::f32(part("nested_quant_map"), [map.len()], map.to_vec()));
            }
        }
        let text = state.to_string().into_bytes();
        tensors.push(Tensor::u8(format!("{name}{STATE}"), [text.len()], text));
        tensors
    }
}

fn refuse(weights: &Weights, name: &str, message: impl std::fmt::Display) -> Error {
    Error::new(weights.path(), format!("the quantized weight `{name}` {message}"))
}

fn state(weights: &Weights, name: &str) -> Result<Quantized> {
    let key = format!("{name}{STATE}");
    if !weights.contains(&key) {
        return Err(
            refuse(weights, name, format!("has no `{key}`")).hint("only NF4 of bitsandbytes is understood")
        );
    }
    let Ok(Value::Object(map)) = serde_json::from_slice(weights.bytes(&key)?) else {
        return Err(refuse(weights, name, format!("has a damaged `{key}`")));
    };
    let prefix = format!("{key}: ");
    let fields = Fields::new(&map, weights.path(), &prefix);
    let fixed = |field: &str, wanted: &Value| match fields.get(field) {
        Some(found) if found == wanted => Ok(()),
        found => {
            let found = found.map_or("missing".to_owned(), |found| format!("`{found}`"));
            Err(fields.error(field, format!("is {found}; only `{wanted}` is understood")))
        }
    };
    fixed("quant_type", &json!("nf4"))?;
    fixed("blocksize", &json!(BLOCK))?;
    let dtype = fields.need("dtype", fields.text("dtype")?)?;
    let dtype = Dtype::by_name(dtype).ok_or_else(|| fields.error("dtype", format!("is `{dtype}`")))?;
    let offset = match fields.number("nested_offset")? {
        None => None,
        Some(offset) => {
            fixed("nested_blocksize", &json!(NESTED_BLOCK))?;
            fixed("nested_dtype", &json!("float32"))?;
            Some(offset as f32)
        }
    };
    let shape = fields.get("shape").and_then(|shape| {
        let [out, inner] = shape.as_array()?.as_slice() else { return None };
        Some([usize::try_from(out.as_u64()?).ok()?, usize::try_from(inner.as_u64()?).ok()?])
    });
    Ok(Quantized { shape: fields.need("shape", shape)?, dtype, offset })
}

fn expect(weights: &Weights, name: &str, dtype: Stored, length: usize) -> Result<()> {
    let (found, shape) = (weights.dtype(name)?, weights.shape(name)?);
    let elements: usize = shape.iter().product();
    if found != dtype || elements != length {
        let message = format!("`{name}` is {found:?} {shape:?} and should be {dtype:?} [{length}]");
        return Err(Error::new(weights.path(), message));
    }
    Ok(())
}

/// The map of scales may be off by a rounding: torch computes it, and processors without fused
/// multiply-add round once more.
fn same(weights: &Weights, name: &str, wanted: &[f32]) -> Result<()> {
    let found = weights.f32(name)?;
    if found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() <= 1e-6 * wanted.abs()) {
        return Ok(());
    }
    Err(Error::new(weights.path(), format!("`{name}` is another code book than bitsandbytes' own")))
}
