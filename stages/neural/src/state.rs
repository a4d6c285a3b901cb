//! What a training run needs to go on as if it had never stopped.
//!
//! One folder per checkpoint, `state-000100/`: `slabs.safetensors` (parameters and moments in f32),
//! then, last, `state.json`. Each is written beside and renamed, and a folder without its
//! `state.json` counts for nothing. The position in the data and every random number are functions
//! of seed and step, so the step is their whole state. Knows no model and no device.
//!
//! [`Last`] is the same of a finished run, in its output, for a longer one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use contract::{StageError, at};
use formats::weights::{self, Tensor, Weights};
use serde::{Deserialize, Serialize};

use crate::loss_scale::LossScale;
use crate::metrics::Lines;
use crate::watch::Watch;

/// Parameters and moments of one group, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostSlab {
    /// The group's name.
    pub name: String,
    /// Parameters, first moment, second moment: equally long.
    pub values: [Vec<f32>; 3],
}

/// A checkpoint's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Steps done.
    pub step: u64,
    /// Bytes of `metrics.jsonl` up to this step.
    pub metrics_bytes: u64,
    /// Bytes of `samples.jsonl`, 0 where none are asked for.
    #[serde(default)]
    pub samples_bytes: u64,
    /// What must be the same for the run to go on: parameters that matter, and what is trained.
    pub fingerprint: String,
    /// Where it was computed.
    pub device: String,
    /// The scale of the loss for the next step.
    #[serde(default)]
    pub loss_scale: LossScale,
    /// The held-out loss so far.
    #[serde(default)]
    pub watch: Watch,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its groups, in order.
    pub slabs: Vec<HostSlab>,
}

const PARTS: [&str; 3] = ["params", "m", "v"];
const SLABS: &str = "slabs.safetensors";
const MANIFEST: &str = "state.json";

impl State {
    /// Writes the checkpoint under `work` and drops older ones.
    ///
    /// # Errors
    /// If it cannot be written; older checkpoints are then still there.
    pub fn save(&self, work: &Path) -> Result<(), StageError> {
        let folder = work.join(format!("state-{:06}", self.manifest.step));
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(at(&folder))?;
        }
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        write_slabs(&folder, &self.slabs)?;
        write_durably(&folder.join(MANIFEST), &serde_json::to_vec_pretty(&self.manifest)?)?;
        sync_folder(work)?;
        for (step, old) in folders(work)? {
            if step != self.manifest.step {
                fs::remove_dir_all(&old).map_err(at(&old))?;
            }
        }
        Ok(())
    }

    /// The newest whole checkpoint under `work` with this fingerprint. Broken ones and strangers are
    /// passed over.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn newest(work: &Path, fingerprint: &str) -> Result<Option<Self>, StageError> {
        let mut found = folders(work)?;
        found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        Ok(found
            .iter()
            .find_map(|(_, folder)| read(folder).ok().filter(|state| state.fits(work, fingerprint))))
    }

    fn fits(&self, work: &Path, fingerprint: &str) -> bool {
        self.manifest.fingerprint == fingerprint
            && Lines::reaches(work, Lines::METRICS, self.manifest.metrics_bytes)
            && Lines::reaches(work, Lines::SAMPLES, self.manifest.samples_bytes)
    }
}

/// Where a finished run ended: `state/` in its output.
#[derive(Clone, Debug, PartialEq)]
pub struct Last {
    /// Steps done.
    pub step: u64,
    /// The scale of the loss for the next step.
    pub loss_scale: LossScale,
    /// Its groups, in order.
    pub slabs: Vec<HostSlab>,
}

#[derive(Serialize, Deserialize)]
struct LastManifest {
    step: u64,
    loss_scale: LossScale,
}

impl Last {
    /// The folder's name in the output.
    pub const FOLDER: &'static str = "state";

    /// Writes it into a run's output.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn write(&self, output: &Path) -> Result<(), StageError> {
        let folder = output.join(Self::FOLDER);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        write_slabs(&folder, &self.slabs)?;
        let manifest = LastManifest { step: self.step, loss_scale: self.loss_scale };
        write_durably(&folder.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)
    }

    /// Reads it from a run's output.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn read(output: &Path) -> Result<Self, StageError> {
        let folder = output.join(Self::FOLDER);
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Err(StageError::new(format!("`{}` holds no state to go on from", output.display()))
                .hint("`save_state = true` in the train stage that made it; a `checkpoint` stage has none"));
        }
        let manifest: LastManifest = manifest(&path)?;
        let slabs = read_slabs(&folder)?;
        Ok(Self { step: manifest.step, loss_scale: manifest.loss_scale, slabs })
    }
}

fn manifest<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, StageError> {
    serde_json::from_slice(&fs::read(path).map_err(at(path))?)
        .map_err(|error| StageError::new(format!("`{}`: {error}", path.display())))
}

fn read(folder: &Path) -> Result<State, StageError> {
    Ok(State { manifest: manifest(&folder.join(MANIFEST))?, slabs: read_slabs(folder)? })
}

fn write_slabs(folder: &Path, slabs: &[HostSlab]) -> Result<(), StageError> {
    let tensors = slabs.iter().flat_map(|slab| {
        PARTS.iter().zip(&slab.values).map(|(part, values)| {
            Tensor::f32(format!("{}.{part}", slab.name), vec![values.len()], values.clone())
        })
    });
    Ok(weights::save(&folder.join(SLABS), tensors.collect(), &[])?)
}

fn read_slabs(folder: &Path) -> Result<Vec<HostSlab>, StageError> {
    let weights = Weights::open(&folder.join(SLABS))?;
    let mut names: Vec<String> =
        weights.names().filter_map(|name| name.strip_suffix(".params").map(str::to_owned)).collect();
    names.sort();
    let mut slabs = Vec::new();
    for name in names {
        let part = |part: &str| weights.f32(&format!("{name}.{part}"));
        let values = [part(PARTS[0])?, part(PARTS[1])?, part(PARTS[2])?];
        slabs.push(HostSlab { name, values });
    }
    Ok(slabs)
}

/// Every checkpoint folder with its step, whole or not.
fn folders(work: &Path) -> Result<Vec<(u64, PathBuf)>, StageError> {
    let entries = match fs::read_dir(work) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(work)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(at(work))?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("state-"))
            .and_then(|step| step.parse().ok());
        found.extend(step.map(|step| (step, path)));
    }
    Ok(found)
}

/// Writes beside, syncs, renames.
///
/// # Errors
/// If any of the three fails.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StageError> {
    let beside = path.with_extension("partial");
    let mut file = File::create(&beside).map_err(at(&beside))?;
    file.write_all(bytes).map_err(at(&beside))?;
    file.sync_all().map_err(at(&beside))?;
    fs::rename(&beside, path).map_err(at(path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes the names in a folder outlive a power cut.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> Result<(), StageError> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64, fingerprint: &str) -> State {
        let slab = |name: &str, x: f32| HostSlab {
            name: name.into(),
            values: [vec![x, -0.0], vec![x + 0.5, 1e-40], vec![x * x, f32::MAX]],
        };
        let mut watch = Watch::default();
        watch.see(step, 0.1);
        let manifest = Manifest {
            step,
            metrics_bytes: 0,
            samples_bytes: 0,
            fingerprint: fingerprint.into(),
            device: "cpu".into(),
            loss_scale: LossScale::dynamic(),
            watch,
        };
        State { manifest, slabs: vec![slab("block-000", step as f32), slab("block-001", 0.1)] }
    }

    #[test]
    fn what_was_saved_comes_back_bit_for_bit_and_older_ones_go() {
        let work = tempfile::tempdir().expect("dir");
        state(10, "a").save(work.path()).expect("save");
        state(20, "a").save(work.path()).expect("save");
        assert_eq!(State::newest(work.path(), "a").expect("list"), Some(state(20, "a")));
        assert_eq!(folders(work.path()).expect("list").len(), 1);
    }

    #[test]
    fn another_runs_state_is_passed_over() {
        let work = tempfile::tempdir().expect("dir");
        state(10, "a").save(work.path()).expect("save");
        assert_eq!(State::newest(work.path(), "b").expect("list"), None);
        assert_eq!(State::newest(&work.path().join("nowhere"), "a").expect("list"), None);
    }

    #[test]
    fn a_state_without_manifest_or_with_a_cut_off_file_counts_for_nothing() {
        let work = tempfile::tempdir().expect("dir");
        state(10, "a").save(work.path()).expect("save");
        let kept = work.path().join("state-000010");
        let copy = work.path().join("state-000020");
        fs::create_dir(&copy).expect("dir");
        fs::copy(kept.join(SLABS), copy.join(SLABS)).expect("copy");
        assert_eq!(State::newest(work.path(), "a").expect("list"), Some(state(10, "a")));
        fs::copy(kept.join(MANIFEST), copy.join(MANIFEST)).expect("copy");
        let bytes = fs::read(kept.join(SLABS)).expect("read");
        fs::write(copy.join(SLABS), &bytes[..bytes.len() - 3]).expect("cut");
        assert_eq!(State::newest(work.path(), "a").expect("list"), Some(state(10, "a")));
    }
}
