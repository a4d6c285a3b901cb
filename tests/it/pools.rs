//! The pool of adapters, with adapters that are numbers and nothing else: `command` stages that ask for
//! some and write down which they were given, and when.

use std::collections::BTreeMap;

use super::place::{Place, stage};

/// `begin NAME SLOTS` and `end NAME` in `log`, at least `seconds` apart. `more` is done in between.
fn recorded(name: &str, seconds: f64, more: &str) -> String {
    format!(
        "echo \"begin {name} $DEVICES\" >> @/log; {more}sleep {seconds}; echo \"end {name}\" >> @/log; \
         echo {name} > $OUT/x"
    )
}

/// Two arms that take an adapter each and wait until they have seen each other, one stage that takes two
/// and one more that takes one, all of them ready at once.
fn arms_and_a_wide_one() -> String {
    let met = "touch @/in-${matrix.arm}; for i in $(seq 500); do [ -e @/in-x ] && [ -e @/in-y ] && break; sleep 0.02; done; \
               [ -e @/in-x ] && [ -e @/in-y ] || exit 1; ";
    let arm = recorded("arm-${matrix.arm}", 0.05, met);
    [
        stage("arm", &arm, "matrix = { arm = [\"x\", \"y\"] }\nresources = { gpus = 1 }"),
        stage("wide", &recorded("wide", 0.05, ""), "resources = { gpus = 2 }"),
        stage("late", &recorded("late", 0.05, ""), "resources = { gpus = 1 }"),
    ]
    .concat()
}

/// Reads the log: nobody was given what another one held. Gives the slots by name, and the most stages that
/// ran side by side.
fn held(place: &Place) -> (BTreeMap<String, Vec<usize>>, usize) {
    let (mut all, mut now, mut most) = (BTreeMap::new(), BTreeMap::<String, Vec<usize>>::new(), 0);
    for line in place.read("log").lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["begin", name, slots] => {
                let slots: Vec<usize> = slots.split(',').map(|slot| slot.parse().unwrap()).collect();
                let taken = |slot: &usize| now.values().flatten().any(|held| held == slot);
                assert!(!slots.iter().any(taken), "{line}: held already: {now:?}");
                now.insert(name.to_owned(), slots.clone());
                all.insert(name.to_owned(), slots);
            }
            ["end", name] => drop(now.remove(name)),
            _ => panic!("{line}"),
        }
        most = most.max(now.len());
    }
    (all, most)
}

#[test]
fn arms_take_an_adapter_each_and_a_stage_with_two_waits_for_both() {
    let place = Place::new(&format!("[pools]\ngpu = 2\ncpu = 1\n{}", arms_and_a_wide_one()));
    place.run().counts(0, 4, 0);
    let (slots, most) = held(&place);
    assert_eq!(most, 2);
    assert_ne!(slots["arm-x"], slots["arm-y"]);
    assert_eq!(slots["wide"], [0, 1]);
    // Nothing narrower overtakes what waits for two.
    let log = place.read("log");
    let at = |what: &str| log.lines().position(|line| line.starts_with(what)).unwrap();
    assert!(at("begin wide") > at("end arm-x").max(at("end arm-y")), "{log}");
    assert!(at("begin late") > at("end wide"), "{log}");
    // How many there are says nothing about results.
    place.pipe("run p.toml -j gpu=4").ends(0).counts(4, 0, 0);
}

#[test]
fn the_command_line_says_how_many_adapters_there_are() {
    let arm = recorded("${matrix.arm}", 0.1, "");
    let arms = stage("arm", &arm, "matrix = { arm = [1, 2, 3] }\nresources = { gpus = 1 }");
    for (flags, wanted) in [("", 3), ("-j gpu=1", 1), ("-j gpu=2", 2), ("-j 1 -j gpu=3", 1)] {
        let place = Place::new(&format!("[pools]\ngpu = 3\n{arms}"));
        place.pipe(&format!("run p.toml {flags}")).ends(0).counts(0, 3, 0);
        let (slots, most) = held(&place);
        assert_eq!(most, wanted, "{flags}: {slots:?}");
    }
}

#[test]
fn a_stage_that_asks_for_no_adapter_is_given_none() {
    let place = Place::new(&stage("a", "echo \"<$DEVICES>\" > $OUT/x", "resources = { cpus = 1 }"));
    place.run();
    assert_eq!(place.output("a")[0].1, b"<>\n");
}

#[test]
fn a_pool_that_does_not_exist_is_refused() {
    let place = Place::new(&stage("a", "echo x > $OUT/x", ""));
    place.pipe("run p.toml -j gpus=2").ends(2).says(&["no pool `gpus`", "`gpu`, `cpu` and `network`"]);
    place.pipe("run p.toml -j 0").ends(2).says(&["`0` is no number"]);
}
