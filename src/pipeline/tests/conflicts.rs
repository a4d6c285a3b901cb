//! Errors between places: duplicates, circles, inputs, matrices that do not fit.

use insta::assert_snapshot;

use super::seen;

#[test]
fn a_duplicate_key_shows_both_places() {
    assert_snapshot!(seen("[vars]\nrank = 1\n[stages.a]\nkind = \"make\"\nseed = 1\nseed = 2\n", &[]), @r#"
    error: `seed` is given twice
     --> p.toml:6:1
      |
    5 | seed = 1
      | ---- first given here
    6 | seed = 2
      | ^^^^ again here
      |
      = help: remove or rename one of the two
    "#);
}

#[test]
fn a_duplicate_stage_shows_both_places() {
    assert_snapshot!(seen("[stages.a]\nkind = \"make\"\n\n[stages.a]\nkind = \"make\"\n", &[]), @r#"
    error: `a` is given twice
     --> p.toml:4:9
      |
    1 | [stages.a]
      |         - first given here
    ...
    4 | [stages.a]
      |         ^ again here
      |
      = help: remove or rename one of the two
    "#);
}

#[test]
fn a_duplicate_input_shows_both_places() {
    assert_snapshot!(seen("[stages.a]\nkind = \"make\"\n[stages.b]\nkind = \"any\"\ninputs = { x = \"a\", x = \"a\" }\n", &[]), @r#"
    error: `x` is given twice
     --> p.toml:5:21
      |
    5 | inputs = { x = "a", x = "a" }
      |            -        ^ again here
      |            |
      |            first given here
      |
      = help: remove or rename one of the two
    "#);
}

#[test]
fn a_circle_shows_the_whole_path() {
    let text = "[stages.a]\nkind = \"any\"\ninputs = { x = \"c\" }\n[stages.b]\nkind = \"any\"\ninputs = { x = \"a\" }\n[stages.c]\nkind = \"any\"\ninputs = { x = \"b\" }\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: stages need each other in a circle: `a` → `c` → `b` → `a`
     --> p.toml:3:16
      |
    3 | inputs = { x = "c" }
      |                ^^^ `a` needs `c`
    ...
    6 | inputs = { x = "a" }
      |                --- `b` needs `a`
    ...
    9 | inputs = { x = "b" }
      |                --- `c` needs `b`
      |
      = help: a stage can only take what is finished before it: remove one of these inputs
    "#);
}

#[test]
fn a_stage_that_needs_itself() {
    assert_snapshot!(seen("[stages.a]\nkind = \"any\"\ninputs = { x = \"a\" }\n", &[]), @r#"
    error: stage `a` needs itself
     --> p.toml:3:16
      |
    3 | inputs = { x = "a" }
      |                ^^^
      |
      = help: a stage can only take what is finished before it: remove one of these inputs
    "#);
}

#[test]
fn unknown_input_unknown_producer_and_a_missing_input() {
    let text = "[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"tune\"\ninputs = { modle = \"m\", data = \"mm\" }\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: stage `t` lacks the input `model`
     --> p.toml:3:9
      |
    3 | [stages.t]
      |         ^ kind `tune` needs it
      |
      = help: `model`: what is tuned

    error: unknown input `modle` in stage `t`
     --> p.toml:5:12
      |
    5 | inputs = { modle = "m", data = "mm" }
      |            ^^^^^
      |
      = help: did you mean `model`?

    error: unknown stage `mm`
     --> p.toml:5:32
      |
    5 | inputs = { modle = "m", data = "mm" }
      |                                ^^^^
      |
      = help: did you mean `m`?
    "#);
}

#[test]
fn an_input_that_is_no_reference() {
    assert_snapshot!(seen("[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"any\"\ninputs = { a = \"m[\", b = 3, c = [] }\n", &[]), @r#"
    error: `m[` does not name a stage
     --> p.toml:5:16
      |
    5 | inputs = { a = "m[", b = 3, c = [] }
      |                ^^^^
      |
      = help: write `train`, `train[lora]` for one instance of its matrix, or `train[*]` for all

    error: input `b` must be the name of a stage, or a list of them
     --> p.toml:5:26
      |
    5 | inputs = { a = "m[", b = 3, c = [] }
      |                          ^ this is the number 3

    error: input `c` is empty
     --> p.toml:5:33
      |
    5 | inputs = { a = "m[", b = 3, c = [] }
      |                                 ^^ no stage
    "#);
}

const SEEDS: &str = "[stages.m]\nkind = \"make\"\nmatrix = { seed = [1, 2] }\n";

#[test]
fn one_artifact_is_wanted_and_several_are_given() {
    assert_snapshot!(seen(&format!("{SEEDS}[stages.t]\nkind = \"tune\"\ninputs = {{ model = \"m[*]\" }}\n"), &[]), @r#"
    error: input `model` of stage `t` takes one artifact
     --> p.toml:6:20
      |
    6 | inputs = { model = "m[*]" }
      |                    ^^^^^^ these are 2: `m[1]`, `m[2]`
      |
      = help: name one stage; `STAGE[…]` picks one instance of a matrix
    "#);
}

#[test]
fn the_same_artifact_twice() {
    let text = format!(
        "{SEEDS}[stages.j]\nkind = \"join\"\ntitle = \"x\"\ninputs = {{ runs = [\"m[*]\", \"m[2]\"] }}\n"
    );
    assert_snapshot!(seen(&text, &[]), @r#"
    error: input `runs` takes `m[2]` twice
     --> p.toml:7:28
      |
    7 | inputs = { runs = ["m[*]", "m[2]"] }
      |                    ------  ^^^^^^ again here
      |                    |
      |                    first here
    "#);
}

#[test]
fn an_instance_that_does_not_exist() {
    assert_snapshot!(seen(&format!("{SEEDS}[stages.t]\nkind = \"tune\"\ninputs = {{ model = \"m[3]\" }}\n"), &[]), @r#"
    error: `m[3]` does not exist
     --> p.toml:6:20
      |
    1 | [stages.m]
      |         - `m` has `1`, `2`
    ...
    6 | inputs = { model = "m[3]" }
      |                    ^^^^^^ for `t`
      |
      = help: take all with `m[*]`, or change one of the two
    "#);
}

#[test]
fn an_instance_of_a_stage_without_a_matrix() {
    assert_snapshot!(seen("[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"tune\"\ninputs = { model = \"m[3]\" }\n", &[]), @r#"
    error: `m[3]` does not exist
     --> p.toml:5:20
      |
    1 | [stages.m]
      |         - `m` has no matrix
    ...
    5 | inputs = { model = "m[3]" }
      |                    ^^^^^^
      |
      = help: write `m`
    "#);
}

#[test]
fn a_matrix_that_lacks_the_axis_of_its_producer() {
    let text = format!(
        "{SEEDS}[stages.t]\nkind = \"tune\"\ninputs = {{ model = \"m\" }}\nmatrix = {{ rank = [4, 8] }}\n"
    );
    assert_snapshot!(seen(&text, &[]), @r#"
    error: stage `t` has no matrix axis `seed`, which `m` has
     --> p.toml:6:20
      |
    1 | [stages.m]
      |         - `m` has `1`, `2`
    ...
    6 | inputs = { model = "m" }
      |                    ^^^ which instance?
      |
      = help: take all with `m[*]`, one with `m[1]`, or give stage `t` that axis
    "#);
}

#[test]
fn a_value_that_the_producer_lacks() {
    let text = format!(
        "{SEEDS}[stages.t]\nkind = \"tune\"\ninputs = {{ model = \"m\" }}\nmatrix = {{ seed = [2, 3] }}\n"
    );
    assert_snapshot!(seen(&text, &[]), @r#"
    error: `m[3]` does not exist
     --> p.toml:6:20
      |
    1 | [stages.m]
      |         - `m` has `1`, `2`
    ...
    6 | inputs = { model = "m" }
      |                    ^^^ for `t[3]`
      |
      = help: take all with `m[*]`, or change one of the two
    "#);
}

#[test]
fn producers_with_different_values_do_not_pair_up() {
    let text = format!(
        "{SEEDS}[stages.n]\nkind = \"make\"\nmatrix = {{ seed = [1, 3] }}\n[stages.t]\nkind = \"tune\"\ninputs = {{ model = \"m\", data = \"n\" }}\n"
    );
    assert_snapshot!(seen(&text, &[]), @r#"
    error: `m` and `n` do not pair up
     --> p.toml:9:32
      |
    9 | inputs = { model = "m", data = "n" }
      |                    ---         ^^^ `n` has no `2`
      |                    |
      |                    input `model`: `m` has `2`
      |
      = help: pick one with `n[…]`, take all with `n[*]`, or give the stage a matrix
    "#);
}

#[test]
fn producers_with_different_axes_do_not_pair_up() {
    let text = format!(
        "{SEEDS}[stages.n]\nkind = \"make\"\nmatrix = {{ share = [0.5] }}\n[stages.t]\nkind = \"tune\"\ninputs = {{ model = \"m\", data = \"n\" }}\n"
    );
    assert_snapshot!(seen(&text, &[]), @r#"
    error: `m` and `n` do not pair up
     --> p.toml:9:32
      |
    9 | inputs = { model = "m", data = "n" }
      |                    ---         ^^^ `n` has the axes `share`
      |                    |
      |                    input `model`: `m` has the axes `seed`
      |
      = help: pick one with `n[…]`, take all with `n[*]`, or give the stage a matrix
    "#);
}

#[test]
fn a_matrix_axis_that_nothing_uses() {
    assert_snapshot!(seen("[stages.m]\nkind = \"make\"\nmatrix = { sede = [1, 2] }\n", &[]), @r#"
    error: matrix axis `sede` of stage `m` is not used
     --> p.toml:3:12
      |
    3 | matrix = { sede = [1, 2] }
      |            ^^^^ all its instances would be the same
      |
      = help: did you mean `seed`?
    "#);
}

#[test]
fn bad_axes_of_every_sort() {
    let text = "[stages.a]\nkind = \"make\"\nmatrix = { seed = [] }\n[stages.b]\nkind = \"make\"\nmatrix = { seed = 3 }\n\
        [stages.c]\nkind = \"make\"\nmatrix = { seed = [1, 2, 1] }\n[stages.d]\nkind = \"make\"\nmatrix = { seed = [[1]] }\n\
        [stages.e]\nkind = \"any\"\nmatrix = { word = [\"a,b\"] }\nargs = [\"${matrix.word}\"]\n[stages.f]\nkind = \"make\"\nmatrix = {}\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: matrix axis `seed` is empty
     --> p.toml:3:19
      |
    3 | matrix = { seed = [] }
      |                   ^^ no values

    error: matrix axis `seed` must be a list
     --> p.toml:6:19
      |
    6 | matrix = { seed = 3 }
      |                   ^ this is the number 3

    error: matrix axis `seed` has `1` twice
     --> p.toml:9:26
      |
    9 | matrix = { seed = [1, 2, 1] }
      |                    -     ^ again here
      |                    |
      |                    first here

    error: a value of matrix axis `seed` must be text, a number, `true` or `false`
      --> p.toml:12:20
       |
    12 | matrix = { seed = [[1]] }
       |                    ^^^ this is a list

    error: a value of matrix axis `word` cannot be `a,b`
      --> p.toml:15:20
       |
    15 | matrix = { word = ["a,b"] }
       |                    ^^^^^ it names instances
       |
       = help: use text without `[`, `]`, `,` and `*`

    error: `matrix` of stage `f` has no axes
      --> p.toml:19:10
       |
    19 | matrix = {}
       |          ^^
       |
       = help: write `matrix = { seed = [1, 2, 3] }`, or leave it out
    "#);
}

#[test]
fn include_and_exclude_that_fit_nothing() {
    let text = "[stages.a]\nkind = \"make\"\nmatrix = { seed = [1, 2], include = [{ seed = 1 }, { sed = 3 }], exclude = [{ seed = 9 }] }\n\
        [stages.b]\nkind = \"make\"\nmatrix = { seed = [1], exclude = [{ seed = 1 }] }\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: instance `1` exists already
     --> p.toml:3:38
      |
    3 | matrix = { seed = [1, 2], include = [{ seed = 1 }, { sed = 3 }], exclude = [{ seed = 9 }] }
      |                                      ^^^^^^^^^^^^
      |
      = help: the axes make it; leave it out here

    error: unknown matrix axis `sed`
     --> p.toml:3:54
      |
    3 | matrix = { seed = [1, 2], include = [{ seed = 1 }, { sed = 3 }], exclude = [{ seed = 9 }] }
      |                                                      ^^^
      |
      = help: did you mean `seed`?

    error: `exclude` matches no instance
     --> p.toml:3:77
      |
    3 | matrix = { seed = [1, 2], include = [{ seed = 1 }, { sed = 3 }], exclude = [{ seed = 9 }] }
      |                                                                             ^^^^^^^^^^^^
      |
      = help: it lists axis values: `exclude = [{ method = "lora", rank = 16 }]`

    error: `matrix` of stage `b` leaves no instance
     --> p.toml:6:10
      |
    6 | matrix = { seed = [1], exclude = [{ seed = 1 }] }
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ everything is excluded
    "#);
}
