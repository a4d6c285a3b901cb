use proptest::prelude::*;
use serde_json::json;

use super::*;

fn fields() -> KeyFields {
    KeyFields {
        kind: "train".into(),
        version: 3,
        config: BTreeMap::from([
            ("rank".into(), json!(8)),
            ("lr".into(), json!(4e-4)),
            ("targets".into(), json!(["q_proj", "v_proj"])),
            ("table".into(), json!({"a": 1, "b": {"c": true}})),
            ("seed".into(), json!(42)),
            ("device".into(), json!("auto")),
        ]),
        inputs: BTreeMap::from([
            ("model".into(), vec![(String::new(), Digest::of(b"model"))]),
            ("runs".into(), vec![("lora".into(), Digest::of(b"1")), ("dora".into(), Digest::of(b"2"))]),
        ]),
        env: BTreeMap::from([("SEED".into(), Some("1".into()))]),
        paths: BTreeMap::from([("source".into(), Digest::of(b"file"))]),
    }
}

#[test]
fn every_component_flips_the_key() {
    type Flip = (&'static str, fn(&mut KeyFields));
    let flips: &[Flip] = &[
        ("kind", |f| f.kind = "merge".into()),
        ("stage version", |f| f.version += 1),
        ("a parameter", |f| drop(f.config.insert("rank".into(), json!(16)))),
        ("a parameter's type", |f| drop(f.config.insert("rank".into(), json!(8.0)))),
        ("a parameter's type to text", |f| drop(f.config.insert("rank".into(), json!("8")))),
        ("a removed parameter", |f| drop(f.config.remove("rank"))),
        ("argument order", |f| drop(f.config.insert("targets".into(), json!(["v_proj", "q_proj"])))),
        ("joined arguments", |f| drop(f.config.insert("targets".into(), json!(["q_projv_proj"])))),
        ("a nested value", |f| drop(f.config.insert("table".into(), json!({"a": 1, "b": {"c": false}})))),
        ("a moved nested value", |f| drop(f.config.insert("table".into(), json!({"a": 1, "b.c": true})))),
        ("an emptied table", |f| drop(f.config.insert("table".into(), json!({})))),
        ("an emptied list", |f| drop(f.config.insert("table".into(), json!([])))),
        ("the seed", |f| drop(f.config.insert("seed".into(), json!(43)))),
        ("the requested device", |f| drop(f.config.insert("device".into(), json!("cpu")))),
        ("an input's content", |f| f.inputs.get_mut("model").unwrap()[0].1 = Digest::of(b"model!")),
        ("the order of inputs", |f| f.inputs.get_mut("runs").unwrap().reverse()),
        ("a label of several", |f| f.inputs.get_mut("runs").unwrap()[0].0 = "full".into()),
        ("an input more", |f| drop(f.inputs.insert("adapter".into(), vec![("a".into(), Digest::of(b"a"))]))),
        ("the environment", |f| drop(f.env.insert("SEED".into(), Some("2".into())))),
        ("an unset variable", |f| drop(f.env.insert("SEED".into(), None))),
        ("a local file's content", |f| {
            f.paths.insert("source".into(), Digest::of(b"other"));
        }),
    ];
    let base = fields().key();
    let mut seen = std::collections::HashSet::from([base]);
    for (what, flip) in flips {
        let mut changed = fields();
        flip(&mut changed);
        assert!(seen.insert(changed.key()), "{what} does not change the key, or meets another change");
        assert!(!differences(&fields().explain(), &changed.explain()).is_empty(), "{what} is not explained");
    }
}

/// Of every kind that this program has: a forgotten parameter would be a false hit.
#[test]
fn every_parameter_of_every_kind_flips_the_key_unless_it_is_cosmetic() {
    for kind in crate::registry::all().stages {
        let config: BTreeMap<String, Value> =
            kind.params().iter().map(|param| (param.name.to_owned(), json!("before"))).collect();
        let key = |config: &BTreeMap<String, Value>| {
            let config = KeyFields::effective(kind, &contract::Config(config.clone().into_iter().collect()));
            KeyFields { config, ..fields() }.key()
        };
        for param in kind.params() {
            for other in [Some(json!("after")), Some(json!(["before"])), Some(Value::Null), None] {
                let mut changed = config.clone();
                match other {
                    Some(other) => drop(changed.insert(param.name.to_owned(), other)),
                    None => drop(changed.remove(param.name)),
                }
                let same = key(&config) == key(&changed);
                assert_eq!(same, param.effect == Effect::Cosmetic, "`{}` of `{}`", param.name, kind.kind());
            }
        }
    }
}

#[test]
fn the_order_of_tables_is_not_in_the_key() {
    let mut reordered = fields();
    reordered.config.insert("table".into(), serde_json::from_str(r#"{"b": {"c": true}, "a": 1}"#).unwrap());
    assert_eq!(reordered.key(), fields().key());
}

#[test]
fn trailing_zero_bytes_count() {
    let with = |text: &str| KeyFields { kind: text.into(), ..fields() }.key();
    assert_ne!(with("a"), with("a\0"));
}

#[test]
fn differences_read_well() {
    let mut now = fields();
    now.config.insert("rank".into(), json!(16));
    now.inputs.get_mut("model").unwrap()[0].1 = Digest::of(b"new");
    assert_eq!(
        differences(&fields().explain(), &now.explain()),
        ["rank: 8 → 16", "input `model`: content changed"]
    );
}

proptest! {
    #[test]
    fn different_texts_have_different_keys(a in ".{0,12}", b in ".{0,12}") {
        let with = |text: &str| {
            let mut fields = fields();
            fields.config.insert("x".into(), json!([text, "end"]));
            fields.key()
        };
        prop_assert_eq!(a == b, with(&a) == with(&b));
    }

    #[test]
    fn moving_the_boundary_of_list_items_changes_the_key(a in "[a-c]{0,4}", b in "[a-c]{0,4}", c in "[a-c]{0,4}", d in "[a-c]{0,4}") {
        let with = |x: &str, y: &str| {
            let mut fields = fields();
            fields.config.insert("x".into(), json!([x, y]));
            fields.key()
        };
        prop_assert_eq!((&a, &b) == (&c, &d), with(&a, &b) == with(&c, &d));
    }
}
