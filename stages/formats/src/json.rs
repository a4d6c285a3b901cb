//! Reading a JSON object field by field, so that an error can name the field.
//!
//! It does not know what the fields mean.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::at;
use crate::{Error, Result};

/// Largest JSON file that is read whole: data sets of a million rows fit, a mistaken path does not
/// fill the memory.
const LIMIT: u64 = 4 << 30;

/// A JSON file as text.
pub(crate) fn text(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path).map_err(at(path))?.len();
    if length > LIMIT {
        return Err(Error::new(path, format!("{length} bytes are too many for a JSON file")));
    }
    let bytes = std::fs::read(path).map_err(at(path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::new(path, format!("not UTF-8 text from byte {}", error.utf8_error().valid_up_to()))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// The fields of one object.
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
    /// What stands before a field's name in errors: `rope_scaling.`
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, path: &'a Path, prefix: &'a str) -> Self {
        Self { map, path, prefix }
    }

    /// An error about one field.
    pub(crate) fn error(&self, field: &str, message: impl std::fmt::Display) -> Error {
        Error::new(self.path, format!("`{}{field}` {message}", self.prefix))
    }

    /// The field, absent if null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field stands there, be it null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    fn typed<T>(
        &self,
        field: &str,
        what: &str,
        take: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match take(value) {
            Some(taken) => Ok(Some(taken)),
            None => Err(self.error(field, format!("is {} and should be {what}", brief(value)))),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>> {
        self.typed(field, "a text", Value::as_str)
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.typed(field, "`true` or `false`", Value::as_bool)
    }

    /// A finite number.
    pub(crate) fn number(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A whole number in `1..=max`.
    pub(crate) fn count(&self, field: &str, max: usize) -> Result<Option<usize>> {
        let what = format!("a whole number from 1 to {max}");
        self.typed(field, &what, |value| {
            let count = usize::try_from(value.as_u64()?).ok()?;
            (1..=max).contains(&count).then_some(count)
        })
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.typed(field, "an object", Value::as_object)
    }

    /// The value, or an error that it is missing.
    pub(crate) fn need<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(field, "is missing"))
    }
}

/// A value as an error shows it: whole if short.
pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => {
            let text = other.to_string();
            let mut short: String = text.chars().take(60).collect();
            if short.len() < text.len() {
                short.push('…');
            }
            format!("`{short}`")
        }
    }
}

/// Parses an object; the error says where.
pub(crate) fn object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::new(path, format!("holds {} and should hold an object", brief(&other)))),
        Err(error) => {
            Err(Error::new(path, format!("not JSON: {error}"))
                .hint("the file may be cut off; fetch it again"))
        }
    }
}

/// Writes a file beside its place, flushes it to the disk and renames it there.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let beside = crate::weights::beside(path);
    let mut file = std::fs::File::create(&beside).map_err(at(&beside))?;
    file.write_all(bytes).map_err(at(&beside))?;
    file.sync_all().map_err(at(&beside))?;
    drop(file);
    std::fs::rename(&beside, path).map_err(at(path))
}
