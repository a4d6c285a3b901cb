//! From a stage instance and its producers' objects to its key.

use std::collections::BTreeMap;
use std::path::Path;

use contract::{Many, Ports, Type};

use super::KeyFields;
use crate::digest::Digest;
use crate::error::Error;
use crate::pipeline::{EnvVar, Instance, StageId};
use crate::store::StatCache;

impl KeyFields {
    /// The fields of `instance`, or `None` while `object` does not know one of its producers' outputs. What
    /// moves must have been pinned: it has no place in a key.
    ///
    /// # Errors
    /// If a local file that a parameter names cannot be read.
    pub fn of(
        instance: &Instance,
        object: impl Fn(&StageId) -> Option<Digest>,
        outside: &mut StatCache,
    ) -> Result<Option<Self>, Error> {
        let mut inputs = BTreeMap::new();
        for (name, producers) in &instance.inputs {
            let labelled = has_labels(instance, name, producers.len());
            let mut artifacts = Vec::with_capacity(producers.len());
            for input in producers {
                let Some(digest) = object(&input.producer) else { return Ok(None) };
                artifacts.push((if labelled { input.label.clone() } else { String::new() }, digest));
            }
            inputs.insert(name.clone(), artifacts);
        }
        let env = instance.env.iter().map(|(name, value)| (name.clone(), env_value(name, value))).collect();
        let paths = Self::local_paths(instance, outside)?;
        let mut config = Self::effective(instance.kind, &instance.config);
        for param in paths.keys() {
            // Where it lies is not in the key; what it is called may show in the output.
            let path = config.remove(param);
            let path = path.as_ref().and_then(|path| path.as_str()).map(local).unwrap_or(Path::new(""));
            if let Some(name) = path.file_name().filter(|_| path.is_file()) {
                config.insert(param.clone(), name.to_string_lossy().into());
            }
        }
        Ok(Some(Self {
            kind: instance.kind.kind().to_owned(),
            version: instance.kind.version(),
            config,
            inputs,
            env,
            paths,
        }))
    }

    /// Parameter → content of the local file or folder that it names, where there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn local_paths(
        instance: &Instance,
        outside: &mut StatCache,
    ) -> Result<BTreeMap<String, Digest>, Error> {
        let mut paths = BTreeMap::new();
        for param in instance.kind.params().iter().filter(|param| param.path) {
            let Some(path) = instance.config.get(param.name).and_then(|value| value.as_str()) else {
                continue;
            };
            if is_word(&param.ty, path) {
                continue;
            }
            let path = local(path);
            if path.exists() {
                paths.insert(param.name.to_owned(), outside.digest(path)?);
            }
        }
        Ok(paths)
    }
}

/// What a parameter names on this machine.
fn local(path: &str) -> &Path {
    Path::new(path.strip_prefix("file://").unwrap_or(path))
}

/// Whether the type lists this text as a word of its own: then it is no path, whatever lies about.
fn is_word(ty: &Type, text: &str) -> bool {
    match ty {
        Type::Choice(words) => words.contains(&text),
        Type::AnyOf(types) => types.iter().any(|ty| is_word(ty, text)),
        _ => false,
    }
}

/// Whether the stage can tell the artifacts behind an input apart by their labels.
fn has_labels(instance: &Instance, name: &str, count: usize) -> bool {
    match instance.kind.inputs() {
        Ports::Any => count > 1,
        Ports::Listed(ports) => ports.iter().any(|port| port.name == name && port.many == Many::Several),
    }
}

/// What a declared variable is for the stage; `None` if it is passed through and not set.
#[must_use]
pub fn env_value(name: &str, value: &EnvVar) -> Option<String> {
    match value {
        EnvVar::Set(text) => Some(text.clone()),
        EnvVar::Pass => std::env::var(name).ok(),
    }
}
