//! What stages that are to run tell beforehand: parameter counts, memory, and whether they cannot succeed.
//!
//! Inputs that are not in the store yet are stood in for by the few files that their makers foresee. It
//! starts nothing, and an error of a stage is told, not raised: `plan` has many stages to speak of.

use std::fs;
use std::path::PathBuf;

use contract::{Artifact, Inputs};

use crate::error::{Error, io_at};
use crate::graph::Graph;
use crate::pipeline::{Instance, Pipeline};
use crate::plan::{Planned, Verdict};
use crate::store::Store;

/// A list of sentences for every instance of `pipeline`, in its order.
///
/// # Errors
/// If foreseen files cannot be written, or instances need each other in a circle.
pub fn preview(pipeline: &Pipeline, store: &Store, planned: &[Planned]) -> Result<Vec<Vec<String>>, Error> {
    let scratch = tempfile::tempdir().map_err(|error| Error::io(&std::env::temp_dir(), &error))?;
    let graph = Graph::new(pipeline)?;
    let mut known: Vec<Option<PathBuf>> = planned
        .iter()
        .map(|planned| planned.action.as_ref().map(|action| store.objects.files(&action.object)))
        .collect();
    let mut told = vec![Vec::new(); pipeline.instances.len()];
    for &index in graph.order() {
        let (instance, stage) = (&pipeline.instances[index], &planned[index]);
        if matches!(stage.verdict, Verdict::Cached | Verdict::WillFetch(_) | Verdict::Missing(_)) {
            continue;
        }
        // What is wrong with the parameters was said when the pipeline was read.
        let Ok(job) = instance.kind.plan(&instance.config) else { continue };
        let inputs = inputs(instance, &graph, &known);
        let files = job.foresee(&inputs);
        if !files.is_empty() {
            let folder = scratch.path().join(index.to_string());
            fs::create_dir_all(&folder).map_err(io_at(&folder))?;
            for (name, bytes) in files {
                let path = folder.join(name);
                fs::write(&path, bytes).map_err(io_at(&path))?;
            }
            known[index] = Some(folder);
        }
        if inputs.0.is_empty() {
            continue;
        }
        told[index] = match job.preview(&inputs) {
            Ok(notes) => notes,
            Err(error) => {
                let hint = error.hint.map_or(String::new(), |hint| format!("; {hint}"));
                vec![format!("would fail: {}{hint}", error.message)]
            }
        };
    }
    Ok(told)
}

/// Those inputs of which anything is known.
fn inputs(instance: &Instance, graph: &Graph, known: &[Option<PathBuf>]) -> Inputs {
    let mut inputs = Inputs::default();
    for (name, producers) in &instance.inputs {
        let found: Option<Vec<Artifact>> = producers
            .iter()
            .map(|input| {
                let path = graph.find(&input.producer).and_then(|index| known[index].clone())?;
                Some(Artifact { label: input.label.clone(), path })
            })
            .collect();
        inputs.0.extend(found.map(|found| (name.clone(), found)));
    }
    inputs
}
