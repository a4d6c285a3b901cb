//! What right files mean.

use insta::assert_snapshot;
use serde_json::json;

use super::{edges, good};

#[test]
fn defaults_are_filled_in_and_absent_ones_stay_absent() {
    let pipeline =
        good("[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"tune\"\ninputs = { model = \"m\" }\n", &[]);
    let [m, t] = &pipeline.instances[..] else { panic!("two instances") };
    assert_eq!(json!(m.config), json!({ "seed": 0 }));
    assert_eq!(
        json!(t.config),
        json!({ "method": "lora", "rank": 8, "lr": 1e-3, "targets": ["q", "v"], "steps": "all" })
    );
}

#[test]
fn whole_numbers_given_for_numbers_become_numbers() {
    let pipeline = good("[stages.m]\nkind = \"make\"\nshare = 1\n", &[]);
    let share = pipeline.instances[0].config.get("share").unwrap();
    assert!(share.is_f64() && share.as_f64() == Some(1.0));
}

#[test]
fn a_whole_text_reference_keeps_the_type_and_a_part_is_written_out() {
    let text = "[vars]\nn = 3\nx = 0.5\nl = [\"a\", \"b\"]\n[stages.m]\nkind = \"make\"\nseed = \"${n}\"\nshare = \"${x}\"\n\
        [stages.a]\nkind = \"any\"\nargs = [\"n=${n}, x=${x}\", \"$${n}\"]\n[stages.b]\nkind = \"any\"\nargs = \"${l}\"\n";
    let pipeline = good(text, &[]);
    let configs: Vec<_> = pipeline.instances.iter().map(|one| json!(one.config)).collect();
    assert_eq!(
        configs,
        [
            json!({ "seed": 3, "share": 0.5 }),
            json!({ "args": ["n=3, x=0.5", "${n}"] }),
            json!({ "args": ["a", "b"] }),
        ]
    );
}

#[test]
fn the_example_of_the_design() {
    let text = r#"
name = "quick"
[stages.base]
kind = "make"
[stages.train]
kind = "tune"
inputs = { model = "base" }
matrix = { method = ["lora", "dora"], rank = [8, 16] }
[stages.checkpoints]
kind = "any"
inputs = { run = "train" }
[stages.analyze]
kind = "any"
inputs = { runs = "checkpoints[*]", one = "train[dora,8]", some = "train[*,16]", model = "base" }
"#;
    let pipeline = good(text, &[]);
    assert_eq!(pipeline.name, "quick");
    assert_snapshot!(edges(&pipeline), @r#"
    base
    train[lora,8] model=base:base
    train[lora,16] model=base:base
    train[dora,8] model=base:base
    train[dora,16] model=base:base
    checkpoints[lora,8] run=lora,8:train[lora,8]
    checkpoints[lora,16] run=lora,16:train[lora,16]
    checkpoints[dora,8] run=dora,8:train[dora,8]
    checkpoints[dora,16] run=dora,16:train[dora,16]
    analyze model=base:base one=dora,8:train[dora,8] runs=lora,8:checkpoints[lora,8]+lora,16:checkpoints[lora,16]+dora,8:checkpoints[dora,8]+dora,16:checkpoints[dora,16] some=lora,16:train[lora,16]+dora,16:train[dora,16]
    "#);
    let train = &pipeline.instances[2];
    assert_eq!(
        (train.config.get("method"), train.config.get("rank")),
        (Some(&json!("lora")), Some(&json!(16)))
    );
    assert_eq!(train.origin.to_string(), "p.toml:5:9");
}

#[test]
fn producers_with_the_same_axes_pair_up_and_fewer_axes_join() {
    let text = r#"
[stages.a]
kind = "make"
matrix = { seed = [1, 2] }
[stages.b]
kind = "any"
inputs = { x = "a" }
matrix = { seed = [1, 2], rank = [4, 8] }
args = ["${matrix.rank}"]
[stages.c]
kind = "any"
inputs = { first = "b", second = "a" }
args = ["${matrix.seed}"]
"#;
    assert_snapshot!(edges(&good(text, &[])), @r#"
    a[1]
    a[2]
    b[1,4] x=1:a[1]
    b[1,8] x=1:a[1]
    b[2,4] x=2:a[2]
    b[2,8] x=2:a[2]
    c[1,4] first=1,4:b[1,4] second=1:a[1]
    c[1,8] first=1,8:b[1,8] second=1:a[1]
    c[2,4] first=2,4:b[2,4] second=2:a[2]
    c[2,8] first=2,8:b[2,8] second=2:a[2]
    "#);
}

#[test]
fn include_and_exclude() {
    let text = "[stages.m]\nkind = \"make\"\nmatrix = { seed = [1, 2], share = [0.1, 0.2], exclude = [{ seed = 2, share = 0.1 }], include = [{ seed = 9, share = 1 }] }\n";
    assert_snapshot!(edges(&good(text, &[])), @r#"
    m[1,0.1]
    m[1,0.2]
    m[2,0.2]
    m[9,1]
    "#);
}

#[test]
fn a_producer_may_be_chosen_by_the_matrix() {
    let text = "[stages.a]\nkind = \"make\"\n[stages.b]\nkind = \"make\"\nseed = 1\n[stages.t]\nkind = \"tune\"\nmatrix = { from = [\"a\", \"b\"] }\ninputs = { model = \"${matrix.from}\" }\n";
    assert_snapshot!(edges(&good(text, &[])), @r#"
    a
    b
    t[a] model=a:a
    t[b] model=b:b
    "#);
}

#[test]
fn an_instance_may_be_chosen_by_an_inherited_axis() {
    let text = "[stages.a]\nkind = \"make\"\nmatrix = { seed = [1, 2] }\n[stages.t]\nkind = \"any\"\ninputs = { one = \"a\", same = \"a[${matrix.seed}]\" }\n";
    assert_snapshot!(edges(&good(text, &[])), @r#"
    a[1]
    a[2]
    t[1] one=1:a[1] same=1:a[1]
    t[2] one=2:a[2] same=2:a[2]
    "#);
}

#[test]
fn equal_labels_of_different_producers_become_whole_names() {
    let text = "[stages.a]\nkind = \"make\"\nmatrix = { seed = [1, 2] }\n[stages.b]\nkind = \"make\"\nmatrix = { seed = [2, 3] }\n[stages.j]\nkind = \"join\"\ntitle = \"x\"\ninputs = { runs = [\"a[*]\", \"b[*]\"] }\n";
    assert_snapshot!(edges(&good(text, &[])).lines().last().unwrap(), @"j runs=1:a[1]+a[2]:a[2]+b[2]:b[2]+3:b[3]");
}

#[test]
fn without_a_name_the_files_stem_is_the_name() {
    assert_eq!(good("[stages.m]\nkind = \"make\"\n", &[]).name, "p");
}

#[test]
fn a_producer_may_stand_below_its_consumer() {
    assert_snapshot!(edges(&good("[stages.t]\nkind = \"tune\"\ninputs = { model = \"m\" }\n[stages.m]\nkind = \"make\"\n", &[])), @r#"
    t model=m:m
    m
    "#);
}

#[test]
fn a_variable_is_written_out_where_only_text_fits() {
    let text = "[vars]\nn = 3\n[stages.a]\nkind = \"any\"\nargs = [\"${n}\"]\n";
    assert_eq!(good(text, &[]).instances[0].config.get("args"), Some(&json!(["3"])));
}

/// Kinds of the house that a build lacks leave nothing to check.
#[test]
fn every_pipeline_of_the_house_is_right() {
    let registry = crate::registry::all();
    if registry.missing.is_some() {
        return;
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    for (file, sets) in [
        ("quickstart.toml", &[][..]),
        ("alpaca_lora.toml", &["model=/models/llama".to_owned()]),
        ("alpaca_dora.toml", &["model=/models/llama".to_owned()]),
    ] {
        let pipeline = crate::pipeline::Pipeline::load(&folder.join(file), sets, &registry);
        let pipeline =
            pipeline.unwrap_or_else(|error| panic!("{:?}", error.diagnostics.map(|all| all.to_string())));
        assert!(pipeline.instances.len() > 8, "{file}");
    }
}
