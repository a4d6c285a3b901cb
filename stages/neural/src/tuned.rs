//! Kernels that were chosen by timing, kept beside the checkpoint.
//!
//! With the cargo feature `autotune`, the first product of a shape tries several kernels on the device and
//! the fastest computes it from then on. The last bits depend on which one that is. cubecl stores a choice
//! before the chosen kernel first runs for the model, and looks there before it times anything: with its
//! database in the training's work folder, a run that goes on chooses what its checkpoint was computed with.
//! The output has the choices as text, for another training that is to compute with the same kernels.
//!
//! It does not know what a kernel computes. Without the feature, `untuned` stands in its place.

use std::fs;
use std::path::{Path, PathBuf};

use contract::{StageError, at};
use cubecl::config::CubeClRuntimeConfig;
use cubecl::tune::{AutotuneOutcome, AutotuneResult, PersistentCacheKey, PersistentCacheValue};
use cubecl_environment::config::RuntimeConfig;
use cubecl_environment::environment;
use cubecl_environment::persistence::{
    Access, CacheOption, Database, Insertion, Namespace, Origin, Store, StoreError, StoreOptions,
};
use cubecl_environment::records::{self, RecordLevel, RecordsConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::state::write_durably;

/// In a work folder: cubecl's database.
const DATABASE: &str = "kernels.db";
/// In an output: the choices.
const TEXT: &str = "kernels.json";
/// Where cubecl keeps choices.
const TABLES: &str = "autotune";

/// A kernel for products of one kind and size on one device.
#[derive(Serialize, Deserialize)]
struct Choice {
    /// Device and operation.
    table: String,
    /// Which problem: sizes, layouts and element types, large sizes rounded.
    key: Value,
    /// Of the names of the kernels that there are to choose from.
    checksum: String,
    /// The kernel's name.
    kernel: String,
    /// Its place among those there are.
    index: usize,
}

/// Choices of this process are kept in `work` from now on, and those that are there hold. Whether there are
/// any. Each rank has a database of its own.
///
/// # Errors
/// If the database is damaged or cannot be written.
pub fn keep(work: &Path, rank: usize) -> Result<bool, StageError> {
    fs::create_dir_all(work).map_err(at(work))?;
    let path = of_rank(work, DATABASE, rank);
    // The place can be changed once the configuration, which names one too, has been read.
    let config = CubeClRuntimeConfig::get();
    if config.autotune.disable_cache {
        return Err(StageError::new("cubecl's settings forbid it to keep its choice of kernels")
            .hint("leave CUBECL_AUTOTUNE_CACHE, and `disable_cache` in cubecl.toml, out"));
    }
    records::configure(RecordsConfig { level: RecordLevel::Off, ..RecordsConfig::default() });
    environment::load(&path);
    let database = Database::open_at(&path, Access::ReadWrite).map_err(|why| broken(&path, &why))?;
    match database.insert("pipe", b"can be written", b"", Origin::Local) {
        Insertion::Failed(why) => Err(broken(&path, &why)),
        Insertion::Stored | Insertion::Conflict(_) => {
            Ok(database.namespaces().iter().any(|table| table.starts_with(TABLES)))
        }
    }
}

/// Takes the choices in a finished training's output, where [`keep`] has kept none of its own. Whether there
/// are any.
///
/// # Errors
/// If they are damaged, or not this version's.
pub fn take(output: &Path, rank: usize) -> Result<bool, StageError> {
    let path = of_rank(output, TEXT, rank);
    if !path.exists() {
        return Ok(false);
    }
    let text = fs::read(&path).map_err(at(&path))?;
    let choices: Vec<Choice> = serde_json::from_slice(&text)
        .map_err(|error| StageError::new(format!("`{}`: {error}", path.display())))?;
    let own = Namespace::scoped(TABLES, "");
    if let Some(strange) = choices.iter().find(|choice| !choice.table.starts_with(own.as_str())) {
        return Err(StageError::new(format!(
            "`{}` has kernels of `{}`, and those of this build are of `{}`",
            path.display(),
            strange.table,
            own.as_str()
        ))
        .hint("they are chosen anew without this input"));
    }
    for Choice { table, key, checksum, kernel, index } in choices {
        let outcome = Ok(AutotuneOutcome::new(kernel, index, Default::default()));
        let value = PersistentCacheValue {
            fastest_index: index,
            results: vec![AutotuneResult { outcome }],
            bounds: None,
            limit: None,
        };
        if let Err(StoreError::Backend { error, .. }) =
            store(&table).insert(PersistentCacheKey { key, checksum }, value)
        {
            return Err(broken(&environment::path(), &error));
        }
    }
    Ok(true)
}

/// Writes all choices so far into an output, if there are any.
///
/// # Errors
/// If they cannot be read or written.
pub fn publish(output: &Path, rank: usize) -> Result<(), StageError> {
    let path = environment::path();
    let database = Database::open_at(&path, Access::ReadWrite).map_err(|why| broken(&path, &why))?;
    let mut choices = Vec::new();
    let mut stored = 0;
    for table in database.summary().into_iter().filter(|table| table.namespace.starts_with(TABLES)) {
        stored += table.entries;
        store(&table.namespace).scan(|PersistentCacheKey { key, checksum }, value| {
            choices.push(Choice {
                table: table.namespace.clone(),
                key,
                checksum,
                kernel: name(&value),
                index: value.fastest_index,
            });
        });
    }
    if choices.len() as u64 != stored {
        return Err(broken(&path, &format!("{} of {stored} choices can be read", choices.len())));
    }
    if choices.is_empty() {
        return Ok(());
    }
    choices.sort_by_cached_key(|choice| (choice.table.clone(), choice.key.to_string()));
    write_durably(&of_rank(output, TEXT, rank), &serde_json::to_vec_pretty(&choices)?)
}

fn store(table: &str) -> Store<PersistentCacheKey<Value>, PersistentCacheValue> {
    Store::new(StoreOptions::new().storage(Namespace::from(table)).cache(CacheOption::Lazy))
}

/// Of the kernel that was chosen.
fn name(value: &PersistentCacheValue) -> String {
    let mut measured = value.results.iter().filter_map(|result| result.outcome.as_ref().ok());
    measured.find(|one| one.index == value.fastest_index).map(|one| one.name.clone()).unwrap_or_default()
}

fn of_rank(folder: &Path, name: &str, rank: usize) -> PathBuf {
    if rank == 0 { folder.join(name) } else { folder.join(format!("rank-{rank}-{name}")) }
}

fn broken(path: &Path, why: &str) -> StageError {
    StageError::new(format!("the kernels that were chosen are not kept in `{}`: {why}", path.display())).hint(
        "remove it, with the files whose names begin alike: kernels are then chosen anew, and the result may differ in its last bits from that of a run that was not stopped",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test: a process has one such database at a time.
    #[test]
    fn choices_travel_as_text_and_a_damaged_database_is_told() {
        let folder = tempfile::tempdir().expect("dir");
        let place = |name: &str| folder.path().join(name);
        let own = Namespace::scoped(TABLES, "device/product");
        let choice = |m: u64, index: usize| {
            let (table, kernel) = (own.as_str().to_owned(), format!("kernel {index}"));
            let key = serde_json::json!({ "m": m, "layout": { "Permuted": { "transposed": true } }, "k": [null, "F32"] });
            Choice { table, key, checksum: "abc".into(), kernel, index }
        };
        let write = |name: &str, choices: &[Choice]| {
            fs::create_dir_all(place(name)).expect("dir");
            fs::write(place(name).join(TEXT), serde_json::to_vec_pretty(choices).expect("text"))
                .expect("write");
        };
        let text = |name: &str| fs::read_to_string(place(name).join(TEXT)).expect("text");

        assert!(!keep(&place("first"), 0).expect("fresh"));
        assert!(!take(&place("nowhere"), 0).expect("none there"));
        write("given", &[choice(64, 3), choice(128, 0)]);
        assert!(take(&place("given"), 0).expect("take"));
        publish(&place("given"), 1).expect("publish");
        assert_eq!(fs::read_to_string(place("given").join("rank-1-kernels.json")).expect("text"), {
            write("sorted", &[choice(128, 0), choice(64, 3)]);
            text("sorted")
        });

        assert!(!keep(&place("second"), 0).expect("another work folder knows nothing of it"));
        assert!(keep(&place("first"), 0).expect("again"), "what was taken is kept");
        write("others", &[choice(64, 7)]);
        take(&place("others"), 0).expect("take");
        publish(&place("first"), 0).expect("publish");
        assert_eq!(text("first"), text("sorted"), "what is kept holds");

        let strange = Choice { table: "autotune/0.0.1/device/product".into(), ..choice(64, 1) };
        write("strange", &[strange]);
        assert!(take(&place("strange"), 0).expect_err("another version").message.contains("0.0.1"));

        fs::create_dir_all(place("damaged")).expect("dir");
        fs::write(place("damaged").join(DATABASE), [7; 5000]).expect("write");
        let error = keep(&place("damaged"), 0).expect_err("no database");
        assert!(error.message.contains(DATABASE) && error.hint.is_some(), "{error}");
    }
}
