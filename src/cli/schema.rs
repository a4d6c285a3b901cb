//! `pipe schema`: the JSON Schema of pipeline files.

use super::print_json;
use crate::error::{Error, Exit};
use crate::registry::Registry;
use crate::schema::schema;

pub fn run(registry: &Registry) -> Result<Exit, Error> {
    print_json(&schema(registry))
}
