//! The resolved parameters of one stage instance.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ConfigError;

/// Parameter name → value: interpolated, type-checked, defaults filled in. Ordered by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Config(pub Map<String, Value>);

impl Config {
    /// The config as a kind's own plain struct (`#[derive(Deserialize)]`, one field a parameter;
    /// `Option` where the default is absent).
    ///
    /// # Errors
    /// One error if the struct does not fit the kind's parameter list: a bug of the kind.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, Vec<ConfigError>> {
        serde_json::from_value(Value::Object(self.0.clone()))
            .map_err(|error| vec![ConfigError::new("", error.to_string())])
    }

    /// One value, if present.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}
