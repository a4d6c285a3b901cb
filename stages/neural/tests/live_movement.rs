//! ΔM and ΔD as `train` tells them live, from the terms of the factored norm, against those that
//! `analyze` measures on the checkpoints that the run saved.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod support;

use std::sync::atomic::AtomicBool;

use contract::{Artifact, Config, Context, Inputs};
use serde_json::{Value, json};
use support::{Bench, Told};

#[test]
fn live_movement_equals_the_analysis_of_saved_checkpoints() {
    let bench = Bench::new();
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    for method in ["lora", "dora"] {
        let given = json!({ "method": method, "rank": 4, "alpha": 8.0, "lr": 1e-2, "max_steps": 30, "save_every": 10, "device": "cpu" });
        bench.run(method, &given);
        let analyze = data::STAGES.iter().find(|stage| stage.kind() == "analyze").unwrap();
        let config = json!({ "modules": modules, "definition": "paper" });
        let job = analyze.plan(&Config(config.as_object().unwrap().clone())).unwrap();
        let artifact = |path| vec![Artifact { label: method.into(), path }];
        let inputs = [("runs", bench.out(method)), ("model", bench.dir.path().join("model"))];
        let inputs = Inputs(inputs.map(|(name, path)| (name.to_owned(), artifact(path))).into());
        let dir = bench.dir.path().join(format!("{method}-analysis"));
        std::fs::create_dir_all(&dir).unwrap();
        let (told, stop) = (Told::default(), AtomicBool::new(false));
        job.run(&mut Context::new(inputs, dir.clone(), dir.join("work"), Vec::new(), &told, &stop)).unwrap();
        let text = std::fs::read_to_string(dir.join("analysis.json")).unwrap();
        let analysis: Value = serde_json::from_str(&text).unwrap();
        for (step, line) in bench.metrics(method).iter().enumerate().filter(|(step, _)| (step + 1) % 10 == 0)
        {
            let points = analysis["points"].as_array().unwrap().iter();
            let points: Vec<&Value> = points.filter(|point| point["step"] == step as u64 + 1).collect();
            assert_eq!(points.len(), 2 * modules.len());
            for (live, measured) in
                [("delta_magnitude", "delta_magnitude"), ("delta_direction", "delta_direction")]
            {
                let mean = points.iter().map(|point| point[measured].as_f64().unwrap()).sum::<f64>()
                    / points.len() as f64;
                let live = line[live].as_f64().unwrap();
                assert!(mean > 1e-6, "{method} step {}: {measured} {mean}", step + 1);
                assert!(
                    (live / mean - 1.0).abs() <= 1e-4,
                    "{method} step {}: {live} is not {mean}",
                    step + 1
                );
            }
        }
    }
}
