use std::fs;
use std::path::{Path, PathBuf};

use formats::run::step_dir;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Bench, fixtures, plan_errors, write_run};

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    crate::folder::copy_files(from, to, |_| true).unwrap();
}

/// The saved steps of a fixture's run: those of its folders `step-N` that hold all of `steps`.
fn saved(runs: &Path, steps: &[u64]) -> Vec<(u64, PathBuf)> {
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let folders = |path: &Path| {
        fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let mut candidates = folders(runs);
    candidates.sort();
    let found = candidates.into_iter().map(|run| {
        let of_run = folders(&run).into_iter().filter_map(|path| Some((number(&path)?, path)));
        of_run.filter(|(step, _)| steps.contains(step)).collect::<Vec<_>>()
    });
    found.into_iter().find(|of_run| of_run.len() == steps.len()).expect("a run with every analysed step")
}

/// Lays out what `train` would have written.
fn run_folder(bench: &Bench, name: &str, dora: bool, steps: &[(u64, PathBuf)]) -> PathBuf {
    let folder = bench.path(name);
    for (step, path) in steps {
        copy_all(path, &folder.join(step_dir(*step)));
    }
    let mut saved: Vec<u64> = steps.iter().map(|(step, _)| *step).collect();
    saved.sort_unstable();
    write_run(&folder, if dora { "dora" } else { "lora" }, &saved);
    folder
}

fn close(found: &Value, expected: &Value, what: &str) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((found - expected).abs() <= 1e-9 * expected.abs() + 1e-13, "{what}: {found} is not {expected}");
}

fn find<'a>(list: &'a Value, wanted: &[(&str, &Value)]) -> &'a Value {
    let fits = |item: &&Value| wanted.iter().all(|(key, value)| &item[*key] == *value);
    list.as_array().unwrap().iter().find(fits).unwrap_or_else(|| panic!("no {wanted:?}"))
}

#[test]
fn parity_analysis_equals_the_float64_figures_for_every_layer_and_checkpoint() {
    let fixtures = fixtures();
    let golden = read(&fixtures.join("analysis/analysis.json"));
    for (kind, golden) in golden.as_object().unwrap() {
        let points = golden["points"].as_array().unwrap();
        let mut steps: Vec<u64> = points.iter().map(|point| point["step"].as_u64().unwrap()).collect();
        steps.sort_unstable();
        steps.dedup();
        let runs = fixtures.join(format!("{kind}-train"));
        let bench = Bench::new();
        let base = bench.path("base");
        copy_all(&fixtures.join("tiny-llama"), &base);
        if runs.join("base_dequant.safetensors").exists() {
            fs::copy(runs.join("base_dequant.safetensors"), base.join("model.safetensors")).unwrap();
        }
        let run = run_folder(&bench, "run", kind.contains("dora"), &saved(&runs, &steps));
        let bench = bench.input("runs", kind, &run).input("model", "base", &base);
        bench.run(&Analyze, json!({})).unwrap();
        let found: Value = serde_json::from_str(&bench.read("analysis.json")).unwrap();
        assert_eq!(found["points"].as_array().unwrap().len(), points.len());
        for point in points {
            let what = format!("{kind} {} layer {} step {}", point["module"], point["layer"], point["step"]);
            let keys = ["module", "layer", "step"].map(|key| (key, &point[key]));
            let found = find(&found["points"], &keys);
            close(&found["delta_magnitude"], &point["dM"], &format!("ΔM of {what}"));
            close(&found["delta_direction"], &point["dD"], &format!("ΔD of {what}"));
        }
        for (module, name) in [("q_proj", "q_proj"), ("v_proj", "v_proj"), ("all", "q_and_v")] {
            let (golden, found) =
                (&golden["correlation"][name], find(&found["correlations"], &[("module", &json!(module))]));
            assert_eq!(found["n"], golden["n"]);
            close(&found["r"], &golden["pearson"], &format!("correlation of {kind} {name}"));
            if !golden["slope_dM_per_dD"].is_null() {
                close(&found["slope"], &golden["slope_dM_per_dD"], &format!("slope of {kind} {name}"));
            }
        }
    }
}

/// `tests/golden/published.json` was made from the repository's own fixtures by `make_published.py`.
#[test]
fn parity_analysis_as_published_equals_numpy() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = manifest.join("../../tests/fixtures");
    let golden = read(&manifest.join("tests/golden/published.json"));
    for (kind, golden) in golden.as_object().unwrap() {
        let bench = Bench::new();
        let steps = saved(&fixtures.join(format!("{kind}-train")), &[5, 10, 15, 20]);
        let run = run_folder(&bench, "run", kind == "dora", &steps);
        let bench = bench.input("runs", kind, &run).input("model", "base", &fixtures.join("tiny-llama"));
        bench.run(&Analyze, json!({ "definition": "as-published", "modules": ["q_proj"] })).unwrap();
        let found: Value = serde_json::from_str(&bench.read("analysis.json")).unwrap();
        let points = golden["points"].as_array().unwrap();
        assert_eq!(found["points"].as_array().unwrap().len(), points.len());
        for point in points {
            let found = find(&found["points"], &["layer", "step"].map(|key| (key, &point[key])));
            for (ours, theirs) in [("delta_magnitude", "dM"), ("delta_direction", "dD")] {
                // Six decimals, so a last digit may round either way.
                let difference = found[ours].as_f64().unwrap() - point[theirs].as_f64().unwrap();
                assert!(difference.abs() < 1.5e-6, "{kind} {point}: {found}");
            }
        }
        let r = find(&found["correlations"], &[("module", &json!("q_proj"))])["r"].as_f64().unwrap();
        assert!((r - golden["pearson"].as_f64().unwrap()).abs() < 1e-3, "{kind}: {r}");
    }
}

#[test]
fn as_published_refuses_a_lora_on_a_matrix_that_is_not_square() {
    let fixtures = fixtures();
    let bench = Bench::new();
    let run = run_folder(&bench, "run", false, &saved(&fixtures.join("lora-train"), &[5]));
    let bench = bench.input("runs", "lora", &run).input("model", "base", &fixtures.join("tiny-llama"));
    let error =
        bench.run(&Analyze, json!({ "definition": "as-published", "modules": ["v_proj"] })).unwrap_err();
    assert!(error.message.contains("(BA)ᵀ"), "{error}");
}

#[test]
fn every_run_gets_its_figures_its_lines_and_a_row_of_the_summary() {
    let fixtures = fixtures();
    let bench = Bench::new();
    let lora = run_folder(&bench, "lora", false, &saved(&fixtures.join("lora-train"), &[5, 10]));
    let full = bench.path("full");
    copy_all(&fixtures.join("tiny-llama"), &full.join(step_dir(10)));
    write_run(&full, "full", &[10]);
    let base = fixtures.join("tiny-llama");
    let bench = bench
        .input("runs", "lora,8", &lora)
        .input("runs", "full", &full)
        .input("model", "base", &base)
        .input("original", "base", &base);
    bench.run(&Analyze, json!({ "modules": ["k_proj"] })).unwrap();
    for name in ["k_proj-lora_8.svg", "k_proj-lora_8.png", "k_proj-full.svg", "k_proj.svg", "k_proj.png"] {
        assert!(bench.out(name).exists(), "{name}");
    }
    let layers = LlamaConfig::read(&base).unwrap().num_hidden_layers;
    let csv = bench.read("analysis.csv");
    assert_eq!(csv.lines().count(), 1 + 3 * layers);
    assert!(csv.lines().nth(1).unwrap().starts_with("\"lora,8\",k_proj,0,5,"), "{csv}");
    // A model against itself: nothing moved, and no correlation is claimed.
    assert!(csv.lines().last().unwrap().ends_with(",10,0e0,0e0"), "{csv}");
    let found: Value = serde_json::from_str(&bench.read("analysis.json")).unwrap();
    assert!(
        find(&found["correlations"], &[("label", &json!("full")), ("module", &json!("all"))])["r"].is_null()
    );
    assert!(
        found["noise_floor"].as_array().unwrap().iter().all(|floor| floor["delta_magnitude"] == json!(0.0))
    );
    assert!(bench.read("summary.json").contains("quantization alone"));
}

#[test]
fn runs_that_differ_in_their_seed_alone_become_mean_and_deviation() {
    let bench = Bench::new();
    let base = fixtures().join("tiny-llama");
    // Two trainings that ended elsewhere, as two seeds would.
    let train = fixtures().join("lora-train");
    let runs = [(1, saved(&train, &[5, 10])), (2, saved(&train, &[15, 20]))].map(|(seed, steps)| {
        let steps: Vec<(u64, PathBuf)> =
            [5, 10].into_iter().zip(steps).map(|(step, (_, path))| (step, path)).collect();
        let folder = run_folder(&bench, &format!("run{seed}"), false, &steps);
        let mut info = formats::run::RunInfo::read(&folder).unwrap();
        info.seed = seed;
        info.write(&folder).unwrap();
        (format!("lora,{seed}"), folder)
    });
    let bench = bench.input("model", "base", &base);
    let bench = runs.iter().fold(bench, |bench, (label, folder)| bench.input("runs", label, folder));
    bench.run(&Analyze, json!({})).unwrap();
    let found: Value = serde_json::from_str(&bench.read("analysis.json")).unwrap();
    let arm = &found["over_seeds"][0];
    assert_eq!((&arm["arm"], &arm["seeds"]), (&json!("lora"), &json!([1, 2])));
    // Of two, mean and deviation by hand: (a + b)/2 and |a − b|/√2.
    let by_hand = |spread: &Value, values: [f64; 2], what: &str| {
        close(&spread["mean"], &json!(f64::midpoint(values[0], values[1])), what);
        close(&spread["deviation"], &json!((values[0] - values[1]).abs() / 2.0_f64.sqrt()), what);
    };
    for module in ["q_proj", "v_proj", "all"] {
        let of = |label: &str| {
            find(&found["correlations"], &[("label", &json!(label)), ("module", &json!(module))])
        };
        let over = find(&arm["correlations"], &[("module", &json!(module))]);
        for figure in ["r", "slope"] {
            by_hand(
                &over[figure],
                ["lora,1", "lora,2"].map(|label| of(label)[figure].as_f64().unwrap()),
                figure,
            );
        }
    }
    let mean = |label: &str, step: u64| {
        let points = found["points"].as_array().unwrap().iter();
        let fits = |p: &&Value| p["label"] == label && p["step"] == step && p["module"] == "q_proj";
        let values: Vec<f64> = points.filter(fits).map(|p| p["delta_direction"].as_f64().unwrap()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    for step in [5, 10] {
        let over = find(&arm["steps"], &[("module", &json!("q_proj")), ("step", &json!(step))]);
        by_hand(&over["delta_direction"], [mean("lora,1", step), mean("lora,2", step)], "ΔD");
    }
    let summary: Value = serde_json::from_str(&bench.read("summary.json")).unwrap();
    let names: Vec<&str> =
        summary["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(names, ["lora (2 seeds)", "lora, step 5", "lora, step 10"]);
    assert!(summary["rows"][0][1].as_str().unwrap().contains('±'), "{summary}");
}

#[test]
fn a_dora_run_whose_magnitude_did_not_move_is_reported() {
    let fixtures = fixtures();
    let bench = Bench::new();
    let start = vec![(5, fixtures.join("dora-train/init"))];
    let run = run_folder(&bench, "run", true, &start);
    let bench = bench.input("runs", "dora", &run).input("model", "base", &fixtures.join("tiny-llama"));
    bench.run(&Analyze, json!({})).unwrap();
    assert!(bench.notes().iter().any(|note| note.contains("`dora` did not move")), "{:?}", bench.notes());
}

#[test]
fn a_module_without_an_adapter_and_a_cut_off_checkpoint_are_named() {
    let fixtures = fixtures();
    let bench = Bench::new();
    let run = run_folder(&bench, "run", false, &saved(&fixtures.join("lora-train"), &[5]));
    let bench = bench.input("runs", "lora", &run).input("model", "base", &fixtures.join("tiny-llama"));
    let error = bench.run(&Analyze, json!({ "modules": ["o_proj"] })).unwrap_err();
    assert!(error.message.contains("no adapter on `model.layers.0.self_attn.o_proj`"), "{error}");
    let file = run.join(step_dir(5)).join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = bench.run(&Analyze, json!({})).unwrap_err();
    assert!(error.message.contains("adapter_model.safetensors"), "{error}");
}

#[test]
fn modules_named_twice_are_refused() {
    assert_eq!(plan_errors(&Analyze, json!({ "modules": ["q_proj", "q_proj"] }))[0].key, "modules");
}

#[test]
fn a_run_on_another_base_is_refused() {
    let bench = Bench::new();
    let run = run_folder(&bench, "run", false, &saved(&fixtures().join("lora-train"), &[5]));
    let mut info = formats::run::RunInfo::read(&run).unwrap();
    info.base_digest = "of another model".into();
    info.write(&run).unwrap();
    let bench = bench.input("runs", "lora", &run).input("model", "base", &fixtures().join("tiny-llama"));
    let error = bench.run(&Analyze, json!({})).unwrap_err();
    assert!(error.message.contains("not the weights that the lora run was trained on"), "{error}");
}
