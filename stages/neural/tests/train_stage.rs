//! The `train` stage as the runner sees it: what it writes, what it refuses, and that stopping,
//! killing, splitting a batch or recomputing changes nothing.

mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contract::ErrorKind;
use formats::adapter::Adapter;
use formats::tokens::{TokenRow, TokenSet};
use formats::weights::Weights;
use neural::batch::SplitMix64;
use serde_json::{Value, json};
use support::{Bench, Told, plan, rows, tree};

fn lora() -> Value {
    json!({ "method": "lora", "rank": 4, "alpha": 8.0, "lr": 1e-2, "max_steps": 24, "warmup_steps": 3, "batch_size": 8, "save_every": 10, "eval_every": 12, "device": "cpu" })
}

fn with(mut base: Value, more: Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (step, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance, "step {}: {a} is not {b}", step + 1);
    }
}

#[test]
fn every_method_learns_and_writes_what_the_next_stages_read() {
    let bench = Bench::new();
    for method in ["lora", "dora", "full"] {
        let told = bench.run(method, &with(lora(), json!({ "method": method, "max_steps": 60 })));
        let losses = bench.losses(method);
        assert!(losses[59] < losses[0] - 0.3, "{method}: {losses:?}");
        assert_eq!(told.warnings(), Vec::<String>::new(), "{method}");
        for step in [10, 20, 60] {
            let folder = bench.out(method).join(format!("step-{step:06}"));
            if method == "full" {
                let weights = Weights::open(&folder).unwrap();
                weights.check(&formats::config::LlamaConfig::read(&folder).unwrap()).unwrap();
            } else {
                let adapter = Adapter::read(&folder).unwrap();
                assert_eq!(adapter.config.dora, method == "dora");
                assert_eq!(adapter.modules.len(), 14);
            }
        }
        let metrics = bench.metrics(method);
        assert!(
            metrics[11]["eval_loss"].is_f64()
                && metrics[59]["eval_loss"].is_f64()
                && metrics[0].get("eval_loss").is_none()
        );
        assert_eq!(metrics[9]["delta_direction"].as_f64().is_some(), method != "full");
        assert!(
            bench.out(method).join("run.json").exists() && bench.out(method).join("summary.json").exists()
        );
    }
}

#[test]
fn dora_moves_its_magnitudes_and_says_so_if_not() {
    let bench = Bench::new();
    let settings = with(lora(), json!({ "method": "dora", "save_every": 0 }));
    bench.run("moves", &settings);
    assert!(bench.metrics("moves")[23]["delta_magnitude"].as_f64().unwrap() > 1e-4);
    let told = bench.run("stands", &with(settings, json!({ "lr": 0.0 })));
    assert!(told.warnings()[0].contains("14 of 14 magnitudes did not move"), "{:?}", told.warnings());
}

/// A step of 4e-4 on a magnitude of 1.3 is nothing in 16 bit: what is trained must be f32.
#[test]
fn sixteen_bit_compute_trains_magnitudes_and_comes_close_to_f32() {
    let bench = Bench::new();
    let settings = with(lora(), json!({ "method": "dora", "lr": 4e-4, "save_every": 0 }));
    bench.run("float32", &settings);
    for dtype in ["bfloat16", "float16"] {
        let told = bench.run(dtype, &with(settings.clone(), json!({ "compute_dtype": dtype })));
        assert_eq!(told.warnings(), Vec::<String>::new(), "{dtype}");
        let (exact, rounded) = (bench.losses("float32"), bench.losses(dtype));
        close(&rounded, &exact, 0.05);
        assert!(exact != rounded, "{dtype} was used");
        let moved = |run: &str| bench.metrics(run)[23]["delta_magnitude"].as_f64().unwrap();
        assert!((moved(dtype) / moved("float32")).ln().abs() < 0.2, "{dtype}: {}", moved(dtype));
        assert_eq!(bench.metrics(dtype)[0]["loss_scale"].as_f64().is_some(), dtype == "float16");
    }
    let full = json!({ "method": "full", "compute_dtype": "bfloat16", "max_steps": 60, "save_every": 0 });
    bench.run("full", &with(lora(), full));
    assert!(bench.losses("full")[59] < bench.losses("full")[0] - 0.3);
}

#[test]
fn an_overflow_in_float16_leaves_the_step_out_and_halves_the_scale() {
    // one predicted token: the gradient of its logit is near -1, and -65536 is beyond float16
    let rows = TokenSet {
        rows: (0..8)
            .map(|k| TokenRow { ids: vec![3 + k, 4 + k, 5 + k], prompt_len: 2, turns: vec![] })
            .collect(),
        mask_prompt: true,
    };
    let bench = Bench::with(&rows, &rows);
    let given = json!({ "compute_dtype": "float16", "batch_size": 1, "max_steps": 4, "warmup_steps": 0, "save_every": 0, "save_steps": [1], "eval_every": 0 });
    bench.run("run", &with(lora(), given));
    let metrics = bench.metrics("run");
    assert!(metrics[0]["grad_norm"].is_null() && metrics[0]["loss"].is_f64(), "{}", metrics[0]);
    assert_eq!(metrics[0]["loss_scale"], 65536.0);
    assert!(metrics[1]["grad_norm"].is_f64());
    assert_eq!(metrics[1]["loss_scale"], 32768.0);
    let adapter = Adapter::read(&bench.out("run").join("step-000001")).unwrap();
    assert!(adapter.modules.values().all(|module| module.b.iter().all(|&b| b == 0.0)), "nothing was updated");
    let adapter = Adapter::read(&bench.out("run").join("step-000004")).unwrap();
    assert!(adapter.modules.values().any(|module| module.b.iter().any(|&b| b != 0.0)), "later steps were");
}

#[test]
fn the_same_parameters_give_the_same_bytes() {
    let bench = Bench::new();
    bench.run("one", &with(lora(), json!({ "method": "dora", "dropout": 0.1 })));
    bench.run("two", &with(lora(), json!({ "method": "dora", "dropout": 0.1 })));
    assert_eq!(tree(&bench.out("one")), tree(&bench.out("two")));
}

#[test]
fn a_run_stopped_again_and_again_ends_with_the_bytes_of_one_that_was_not() {
    let bench = Bench::new();
    for (method, compute) in [("dora", "float32"), ("dora", "float16"), ("full", "float32")] {
        let settings = with(
            lora(),
            json!({ "method": method, "compute_dtype": compute, "dropout": 0.1, "max_steps": 120, "checkpoint_every": 7 }),
        );
        let method = format!("{method}-{compute}");
        let whole = format!("{method}-whole");
        bench.run(&whole, &settings);
        let (stopped, mut random, mut stops) = (format!("{method}-stopped"), SplitMix64(4), 0);
        loop {
            let stop = AtomicBool::new(false);
            let wait = Duration::from_millis(20 + random.below(150));
            let outcome = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(wait);
                    stop.store(true, Ordering::Relaxed);
                });
                bench.attempt(&stopped, &settings, &stop, &Told::default())
            });
            match outcome {
                Ok(()) => break,
                Err(error) => assert_eq!(error.kind, ErrorKind::Cancelled, "{error}"),
            }
            stops += 1;
        }
        assert!(stops > 0, "the run was never stopped");
        assert_eq!(tree(&bench.out(&stopped)), tree(&bench.out(&whole)), "{method} after {stops} stops");
    }
}

/// Not a test of its own: the process that the next one kills.
#[test]
fn child_of_the_killed_run() {
    let Some(dir) = std::env::var_os("PIPE_TRAIN_CHILD").map(std::path::PathBuf::from) else { return };
    let inputs = serde_json::from_str(&std::fs::read_to_string(dir.join("inputs.json")).unwrap()).unwrap();
    let given = serde_json::from_str(&std::fs::read_to_string(dir.join("given.json")).unwrap()).unwrap();
    support::attempt(&inputs, &dir, &given, &AtomicBool::new(false), &Told::default()).unwrap();
    std::fs::write(dir.join("finished"), "").unwrap();
}

/// `PIPE_KILLS=50` for more than a few.
#[test]
fn a_run_killed_at_random_moments_ends_with_the_bytes_of_one_that_was_not() {
    let wanted: usize = std::env::var("PIPE_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let bench = Bench::new();
    let settings = with(
        lora(),
        json!({
            "method": "dora", "compute_dtype": "float16", "dropout": 0.1, "max_steps": 150, "save_every": 5, "checkpoint_every": 4,
            "eval_every": 6, "keep_best": true, "generate_every": 9, "generate_rows": 2, "generate_tokens": 3,
        }),
    );
    bench.run("whole", &settings);
    let whole = tree(&bench.out("whole"));
    assert!(
        ["metrics.jsonl", "samples.jsonl"]
            .iter()
            .all(|name| whole.iter().any(|(path, _)| path.ends_with(name)))
    );
    let (mut random, mut kills, mut round) = (SplitMix64(9), 0, 0);
    while kills < wanted {
        let name = format!("killed-{round}");
        kills += killed_again_and_again(&bench, &name, &settings, &mut random);
        assert_eq!(tree(&bench.out(&name)), whole, "after {kills} kills");
        round += 1;
        assert!(round <= 10 + wanted, "it finishes too soon to be killed");
    }
    println!("{kills} kills in {round} runs");
}

/// Starts the run in a process of its own, kills it, starts it again, until it is whole; returns how
/// often it was killed.
fn killed_again_and_again(bench: &Bench, name: &str, settings: &Value, random: &mut SplitMix64) -> usize {
    let dir = bench.dir.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("inputs.json"), serde_json::to_string(&bench.inputs).unwrap()).unwrap();
    std::fs::write(dir.join("given.json"), settings.to_string()).unwrap();
    let mut kills = 0;
    while !dir.join("finished").exists() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_the_killed_run"])
            .env("PIPE_TRAIN_CHILD", &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100 + random.below(900)));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
        assert!(kills < 200, "it never finishes");
    }
    kills
}

#[test]
fn accumulation_equals_the_larger_batch() {
    let bench = Bench::new();
    for method in ["dora", "full"] {
        let settings = with(lora(), json!({ "method": method, "lr": 2e-3 }));
        bench.run(&format!("{method}-large"), &settings);
        bench.run(&format!("{method}-parts"), &with(settings, json!({ "batch_size": 2, "accumulation": 4 })));
        close(&bench.losses(&format!("{method}-large")), &bench.losses(&format!("{method}-parts")), 1e-4);
    }
}

#[test]
fn checkpointing_changes_nothing() {
    let bench = Bench::new();
    for method in ["lora", "dora", "full"] {
        let settings = with(
            lora(),
            json!({ "method": method, "dropout": if method == "full" { 0.0 } else { 0.2 }, "lr": 2e-3 }),
        );
        bench.run(&format!("{method}-plain"), &settings);
        bench.run(&format!("{method}-again"), &with(settings, json!({ "checkpointing": true })));
        close(&bench.losses(&format!("{method}-plain")), &bench.losses(&format!("{method}-again")), 1e-4);
    }
}

#[test]
fn two_devices_equal_one_with_the_doubled_batch() {
    let bench = Bench::with(&rows(45, 1), &rows(10, 2)); // 45 = 2·16 + 13: the last step of an epoch is uneven
    for method in ["dora", "full"] {
        let settings = with(lora(), json!({ "method": method, "lr": 2e-3, "batch_size": 8, "devices": 2 }));
        bench.run(&format!("{method}-two"), &settings);
        bench.run(&format!("{method}-one"), &with(settings, json!({ "batch_size": 16, "devices": 1 })));
        close(&bench.losses(&format!("{method}-two")), &bench.losses(&format!("{method}-one")), 1e-4);
        let eval = |name: &str| bench.metrics(name)[23]["eval_loss"].as_f64().unwrap();
        assert!((eval(&format!("{method}-two")) - eval(&format!("{method}-one"))).abs() < 1e-4);
    }
}

#[test]
fn a_shared_out_optimizer_gives_the_bits_of_one_on_the_host() {
    let bench = Bench::with(&rows(45, 1), &rows(10, 2));
    let settings = with(
        lora(),
        json!({ "method": "dora", "loraplus_ratio": 4.0, "weight_decay": 0.01, "batch_size": 4, "devices": 3, "save_state": true }),
    );
    bench.run("host", &settings);
    let shared = with(settings.clone(), json!({ "zero": 1, "checkpoint_every": 3 }));
    bench.run("shared", &shared);
    assert_eq!(tree(&bench.out("host")), tree(&bench.out("shared")));
    // where norms do not decay and matrices do
    let full =
        with(settings.clone(), json!({ "method": "full", "loraplus_ratio": 1.0, "weight_decay": 0.1 }));
    bench.run("full-host", &full);
    bench.run("full-shared", &with(full, json!({ "zero": 1 })));
    assert_eq!(tree(&bench.out("full-host")), tree(&bench.out("full-shared")));
    // stopped at once and taken up again, every three steps
    let mut stops = 0;
    loop {
        let stop = AtomicBool::new(stops % 2 == 1);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(10 + 15 * stops));
                stop.store(true, Ordering::Relaxed);
            });
            bench.attempt("stopped", &shared, &stop, &Told::default())
        });
        let Err(error) = ended else { break };
        assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");
        stops += 1;
    }
    assert!(stops > 0, "the run was never stopped");
    assert_eq!(tree(&bench.out("host")), tree(&bench.out("stopped")), "after {stops} stops");
    // what was stored by three goes on with two
    let mut longer = Bench::with(&rows(45, 1), &rows(10, 2));
    longer.inputs.0.insert(
        "resume".into(),
        vec![contract::Artifact { label: "resume".into(), path: bench.out("shared") }],
    );
    let on = with(settings, json!({ "max_steps": 30, "batch_size": 6, "devices": 2 }));
    longer.run("host", &on);
    longer.run("shared", &with(on, json!({ "zero": 1 })));
    assert_eq!(tree(&longer.out("host")), tree(&longer.out("shared")));
}

#[test]
fn what_cannot_fit_is_refused_with_what_to_change() {
    let bench = Bench::new();
    let tight = with(lora(), json!({ "memory_limit": 0.0001 }));
    let error = plan(&tight).unwrap().preview(&bench.inputs).unwrap_err();
    assert!(error.message.contains("`memory_limit` is 0 MB"), "{error}");
    let hint = error.hint.unwrap();
    for way in
        ["`checkpointing = true` takes", "`batch_size = 1` takes", "`quantize` stage takes", "still too much"]
    {
        assert!(hint.contains(way), "{hint}");
    }
    let error = bench.attempt("run", &tight, &AtomicBool::new(false), &Told::default()).unwrap_err();
    assert!(error.message.contains("`memory_limit`"), "{error}");
    let wide = plan(&with(lora(), json!({ "memory_limit": 1.0 }))).unwrap();
    let notes = wide.preview(&bench.inputs).unwrap();
    assert!(notes[1].contains("takes about") && notes[1].contains("8 rows of 16 tokens"), "{notes:?}");
    assert_eq!(wide.preview(&contract::Inputs::default()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_whole_model_may_have_a_rate_of_its_own() {
    let bench = Bench::new();
    for method in ["full", "lora"] {
        let settings = with(lora(), json!({ "method": method, "full_lr": 1e-3, "schedule": "constant" }));
        bench.run(method, &settings);
        let lr = bench.metrics(method)[23]["lr"].as_f64().unwrap();
        assert!((lr - if method == "full" { 1e-3 } else { 1e-2 }).abs() < 1e-9, "{method}: {lr}");
    }
}

#[test]
fn training_goes_on_from_a_given_adapter() {
    let mut bench = Bench::new();
    bench.run("first", &with(lora(), json!({ "schedule": "constant" })));
    let before = bench.losses("first");
    let adapter =
        contract::Artifact { label: "adapter".into(), path: bench.out("first").join("step-000024") };
    bench.inputs.0.insert("adapter".into(), vec![adapter]);
    bench.run("second", &lora());
    assert!(
        bench.losses("second")[0] < before[0] - 0.05,
        "{} after {}",
        bench.losses("second")[0],
        before[0]
    );
    let refused = bench.attempt(
        "third",
        &with(lora(), json!({ "method": "dora" })),
        &AtomicBool::new(false),
        &Told::default(),
    );
    assert!(refused.unwrap_err().message.contains("is a lora adapter"));
}

#[test]
fn lora_plus_moves_b_faster() {
    let bench = Bench::new();
    bench.run("plain", &lora());
    bench.run("plus", &with(lora(), json!({ "loraplus_ratio": 8.0 })));
    let norm = |name: &str| -> f64 {
        let adapter = Adapter::read(&bench.out(name).join("step-000010")).unwrap();
        adapter
            .modules
            .values()
            .flat_map(|module| &module.b)
            .map(|&b| f64::from(b) * f64::from(b))
            .sum::<f64>()
            .sqrt()
    };
    assert!(norm("plus") > 2.0 * norm("plain"), "{} and {}", norm("plus"), norm("plain"));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint() {
    let bench = Bench::new();
    let settings = with(
        lora(),
        json!({ "method": "full", "lr": 1e30, "max_grad_norm": 0.0, "checkpoint_every": 1, "warmup_steps": 3 }),
    );
    let error = bench.attempt("diverges", &settings, &AtomicBool::new(false), &Told::default()).unwrap_err();
    assert!(error.message.contains("at step"), "{error}");
    assert!(error.hint.unwrap().contains("the checkpoint after step"));
    assert!(
        std::fs::read_dir(bench.work("diverges")).unwrap().any(|entry| entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("state-"))
    );
}

#[test]
fn bad_data_is_refused_with_the_way_out() {
    let refused = |train: &TokenSet| {
        let bench = Bench::with(train, &rows(2, 1));
        bench.attempt("run", &lora(), &AtomicBool::new(false), &Told::default()).unwrap_err()
    };
    let set = |ids: Vec<u32>, prompt_len| TokenSet {
        rows: vec![TokenRow { ids, prompt_len, turns: vec![] }],
        mask_prompt: true,
    };
    assert!(refused(&set(vec![1, 2, 40], 1)).message.contains("token 40"));
    assert!(refused(&set(vec![1, 2, 3], 3)).message.contains("no row"));
    assert!(refused(&set(vec![1; 65], 1)).message.contains("65 tokens"));
}

#[test]
fn rows_without_an_answer_are_left_out_and_counted() {
    let mut set = rows(20, 1);
    set.rows[3].prompt_len = set.rows[3].ids.len();
    let told = Bench::with(&set, &rows(2, 1)).run("run", &lora());
    assert!(told.warnings()[0].contains("1 of 20 training rows"), "{:?}", told.warnings());
}

#[test]
fn parameters_that_contradict_each_other_are_all_named() {
    let errors = plan(&json!({ "target_modules": [], "epochs": 0.0, "device": "cuda" })).err().unwrap();
    let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(keys, ["target_modules", "epochs", "device"]);
    let errors = plan(&json!({ "max_steps": 10, "warmup_steps": 11, "save_steps": [11] })).err().unwrap();
    assert_eq!(errors.len(), 2);
}

#[test]
fn the_preview_counts_parameters() {
    let bench = Bench::new();
    let notes = plan(&with(lora(), json!({ "method": "dora" }))).unwrap().preview(&bench.inputs).unwrap();
    let told =
        bench.run("run", &with(lora(), json!({ "method": "dora", "max_steps": 1, "warmup_steps": 0 })));
    let counted = told.notes().into_iter().find(|note| note.starts_with("trains")).unwrap();
    assert!(counted.starts_with(&notes[0]), "`{}` and `{counted}`", notes[0]);
}

#[test]
fn two_software_adapters_equal_one_with_the_doubled_batch() {
    for index in ["software:0", "software:1"] {
        if let Err(error) = neural::device::open(index, 0) {
            assert!(
                std::env::var("PIPE_REQUIRE_TWO_ADAPTERS").as_deref() != Ok("1"),
                "PIPE_REQUIRE_TWO_ADAPTERS=1, and {error}"
            );
            eprintln!("SKIPPED: {error}");
            return;
        }
    }
    let bench = Bench::with(&rows(45, 1), &rows(10, 2));
    let settings = with(
        lora(),
        json!({ "method": "dora", "lr": 2e-3, "max_steps": 4, "device": "software", "devices": 2 }),
    );
    bench.run("two", &settings);
    bench.run("one", &with(settings, json!({ "batch_size": 16, "devices": 1 })));
    close(&bench.losses("two"), &bench.losses("one"), 1e-4);
}
