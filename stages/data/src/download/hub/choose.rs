//! Which files of a repository are fetched.

use std::collections::BTreeSet;
use std::path::Path;

use contract::StageError;
use serde_json::Value;

use super::super::patterns::{Patterns, is_pattern};
use super::listing::Entry;
use super::repository::{Kind, Repository};

/// Endings of weights in formats that no stage reads; several of them hold programs.
const FOREIGN: &[&str] = &[
    "bin", "ckpt", "gguf", "h5", "keras", "mlmodel", "msgpack", "nemo", "npz", "onnx", "ot", "pkl", "pt",
    "pth", "tflite",
];

/// Picks from `files`: the one file that the address names; what `files` and `exclude` take; else, of a
/// model, all but weights in other formats than safetensors, and of a data set, all.
pub fn choose(
    repository: &Repository,
    files: Vec<Entry>,
    patterns: &Patterns,
) -> Result<Vec<Entry>, StageError> {
    if let Some(file) = &repository.file {
        let found = files.into_iter().find(|entry| entry.path == *file);
        let missing = || {
            StageError::new(format!("`{}` has no file `{file}`", repository.name())).hint("check the path")
        };
        return Ok(vec![found.ok_or_else(missing)?]);
    }
    for pattern in &patterns.include {
        if !files.iter().any(|entry| pattern.fits(&entry.path)) {
            let what = if is_pattern(&pattern.text) { "no file that fits" } else { "no file" };
            let names: Vec<String> = files.iter().take(12).map(|entry| format!("`{}`", entry.path)).collect();
            return Err(StageError::new(format!("`{repository}` has {what} `{}`", pattern.text))
                .hint(format!("it holds {}", names.join(", "))));
        }
    }
    let mut chosen: Vec<Entry> = files;
    chosen.retain(|entry| patterns.take(&entry.path));
    if patterns.include.is_empty() {
        chosen.retain(|entry| !entry.path.starts_with(".git"));
        if repository.kind == Kind::Model {
            let foreign = chosen.iter().find(|entry| is_foreign(&entry.path)).map(|entry| entry.path.clone());
            chosen.retain(|entry| !is_foreign(&entry.path));
            if let Some(foreign) = foreign
                && !chosen.iter().any(|entry| entry.path.ends_with(".safetensors"))
            {
                return Err(only_foreign(repository, &foreign));
            }
        }
    }
    if chosen.is_empty() {
        return Err(StageError::new(format!("`{repository}` has no file that is wanted"))
            .hint("look at `files` and `exclude`"));
    }
    Ok(chosen)
}

fn is_foreign(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|ending| FOREIGN.iter().any(|foreign| ending == *foreign))
}

fn only_foreign(repository: &Repository, file: &str) -> StageError {
    let pickled = [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|ending| file.ends_with(ending));
    let why = if pickled {
        "PyTorch's format is a pickled program, which runs when it is read"
    } else {
        "that format is not read here"
    };
    StageError::new(format!("`{repository}` has its weights as `{file}` only, not as safetensors: {why}")).hint(
        "take a repository or a `revision` with safetensors (the hub's converter offers `refs/pr/…`), or convert it with transformers' `save_pretrained`; `files` chooses what is fetched in any case",
    )
}

/// The shards that an index names, each relative to the repository.
pub fn shards(index: &str, text: &str) -> Result<BTreeSet<String>, StageError> {
    let wrong = |why: String| StageError::new(format!("`{index}` is no index of shards: {why}"));
    let file: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let map = file.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| wrong("it has no `weight_map`".to_owned()))?;
    let folder = index.rfind('/').map_or("", |end| &index[..=end]);
    let shard = |value: &Value| Some(format!("{folder}{}", value.as_str()?));
    map.values().map(|value| shard(value).ok_or_else(|| wrong("a shard is no text".to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        id: &str,
        files: &[&str],
        include: &[&str],
        exclude: &[&str],
    ) -> Result<Vec<String>, StageError> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let patterns =
            Patterns::new(&owned(include), &owned(exclude)).map_err(|_| StageError::new("pattern"))?;
        let entry = |path: &&str| Entry { path: (*path).to_owned(), size: None, check: None };
        let files = files.iter().map(entry).collect();
        let chosen = choose(&Repository::parse(id).unwrap(), files, &patterns)?;
        Ok(chosen.into_iter().map(|entry| entry.path).collect())
    }

    const BOTH: &[&str] = &[".gitattributes", "config.json", "model.safetensors", "pytorch_model.bin"];

    #[test]
    fn of_a_model_weights_come_as_safetensors_only() {
        assert_eq!(chosen("o/n", BOTH, &[], &[]).unwrap(), ["config.json", "model.safetensors"]);
        let error = chosen("o/n", &["config.json", "pytorch_model.bin"], &[], &[]).unwrap_err();
        assert!(
            error.message.contains("`pytorch_model.bin` only") && error.message.contains("pickled"),
            "{error}"
        );
        let named = chosen("o/n", &["config.json", "pytorch_model.bin"], &["*.bin"], &[]);
        assert_eq!(named.unwrap(), ["pytorch_model.bin"]);
        assert_eq!(chosen("datasets/o/n", BOTH, &[], &[]).unwrap().len(), 3);
    }

    #[test]
    fn what_is_asked_for_must_be_there() {
        let error = chosen("o/n", BOTH, &["config.json", "*.parquet"], &[]).unwrap_err();
        assert!(error.message.contains("no file that fits `*.parquet`"), "{error}");
        assert_eq!(chosen("o/n", BOTH, &[], &["*.safetensors", "*.bin"]).unwrap(), ["config.json"]);
        assert!(chosen("o/n/gone.json", BOTH, &[], &[]).unwrap_err().message.contains("no file `gone.json`"));
        assert_eq!(chosen("o/n/config.json", BOTH, &[], &[]).unwrap(), ["config.json"]);
    }

    #[test]
    fn shards_stand_beside_their_index() {
        let text =
            r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#;
        let found = shards("sub/m.index.json", text).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["sub/m-1.safetensors", "sub/m-2.safetensors"]);
        assert!(shards("i", "{}").unwrap_err().message.contains("weight_map"));
    }
}
