//! One wrong file for every kind of error: names, types, interpolation, grammar.

use insta::assert_snapshot;

use super::seen;

#[test]
fn an_unknown_key_suggests_the_near_miss() {
    assert_snapshot!(seen("[stages.train]\nkind = \"tune\"\ninputs = { model = \"m\" }\nrnak = 4\n[stages.m]\nkind = \"make\"\n", &[]), @r#"
    error: unknown key `rnak` in stage `train`
     --> p.toml:4:1
      |
    4 | rnak = 4
      | ^^^^
      |
      = help: did you mean `rank`?
    "#);
}

#[test]
fn an_unknown_key_that_is_an_input_says_where_it_belongs() {
    assert_snapshot!(seen("[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"tune\"\nmodel = \"m\"\n", &[]), @r#"
    error: stage `t` lacks the input `model`
     --> p.toml:3:9
      |
    3 | [stages.t]
      |         ^ kind `tune` needs it
      |
      = help: `model`: what is tuned

    error: unknown key `model` in stage `t`
     --> p.toml:5:1
      |
    5 | model = "m"
      | ^^^^^
      |
      = help: `model` is an input: write `inputs = { model = "STAGE" }`
    "#);
}

#[test]
fn an_unknown_kind_suggests_the_near_miss() {
    assert_snapshot!(seen("[stages.a]\nkind = \"maek\"\n", &[]), @r#"
    error: unknown kind `maek`
     --> p.toml:2:8
      |
    2 | kind = "maek"
      |        ^^^^^^
      |
      = help: did you mean `make`?
    "#);
}

#[test]
fn a_kind_unlike_any_lists_the_kinds() {
    assert_snapshot!(seen("[stages.a]\nkind = \"transmogrify\"\n", &[]), @r#"
    error: unknown kind `transmogrify`
     --> p.toml:2:8
      |
    2 | kind = "transmogrify"
      |        ^^^^^^^^^^^^^^
      |
      = help: the kinds are `make`, `tune`, `join`, `any`
    "#);
}

#[test]
fn a_stage_without_a_kind_points_at_its_header() {
    assert_snapshot!(seen("[stages.a]\nseed = 1\n", &[]), @r#"
    error: stage `a` has no `kind`
     --> p.toml:1:9
      |
    1 | [stages.a]
      |         ^ `kind` is missing
      |
      = help: the kinds are `make`, `tune`, `join`, `any`
    "#);
}

#[test]
fn unknown_keys_at_the_top() {
    assert_snapshot!(seen("nam = \"x\"\n[var]\nrank = 8\n[train]\nkind = \"make\"\n[stages.a]\nkind = \"make\"\n", &[]), @r#"
    error: unknown key `nam`
     --> p.toml:1:1
      |
    1 | nam = "x"
      | ^^^
      |
      = help: did you mean `name`?

    error: unknown key `var`
     --> p.toml:2:2
      |
    2 | [var]
      |  ^^^
      |
      = help: did you mean `vars`?

    error: unknown key `train`
     --> p.toml:4:2
      |
    4 | [train]
      |  ^^^^^
      |
      = help: a stage is written `[stages.train]`
    "#);
}

#[test]
fn a_wrong_type_says_what_it_is_and_what_it_must_be() {
    assert_snapshot!(seen("[stages.a]\nkind = \"make\"\nseed = \"many\"\nshare = [1]\n", &[]), @r#"
    error: `seed` in stage `a` must be a whole number of at least 0
     --> p.toml:3:8
      |
    3 | seed = "many"
      |        ^^^^^^ this is the text `many`

    error: `share` in stage `a` must be a number between 0 and 1
     --> p.toml:4:9
      |
    4 | share = [1]
      |         ^^^ this is a list
    "#);
}

#[test]
fn a_number_in_quotes_says_to_leave_them_out() {
    assert_snapshot!(seen("[stages.a]\nkind = \"make\"\nseed = \"8\"\n", &[]), @r#"
    error: `seed` in stage `a` must be a whole number of at least 0
     --> p.toml:3:8
      |
    3 | seed = "8"
      |        ^^^ this is the text `8`
      |
      = help: leave out the quotes: `8`
    "#);
}

#[test]
fn out_of_range_says_the_range() {
    assert_snapshot!(seen("[stages.a]\nkind = \"make\"\nseed = -1\nshare = 1.5\n", &[]), @r#"
    error: `seed` in stage `a` must be a whole number of at least 0
     --> p.toml:3:8
      |
    3 | seed = -1
      |        ^^ this is the number -1

    error: `share` in stage `a` must be a number between 0 and 1
     --> p.toml:4:9
      |
    4 | share = 1.5
      |         ^^^ this is the number 1.5
    "#);
}

#[test]
fn a_wrong_choice_suggests_the_near_miss() {
    let text = "[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"tune\"\ninputs = { model = \"m\" }\nmethod = \"lroa\"\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: `method` in stage `t` must be `full`, `lora` or `dora`
     --> p.toml:6:10
      |
    6 | method = "lroa"
      |          ^^^^^^ this is the text `lroa`
      |
      = help: did you mean `lora`?
    "#);
}

#[test]
fn every_bad_item_of_a_list_is_pointed_at() {
    let text = "[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"tune\"\ninputs = { model = \"m\" }\ntargets = [\"q\", 3]\nsteps = [0]\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: an item of `targets` in stage `t` must be text
     --> p.toml:6:17
      |
    6 | targets = ["q", 3]
      |                 ^ this is the number 3

    error: an item of `steps` in stage `t` must be a whole number of at least 1
     --> p.toml:7:10
      |
    7 | steps = [0]
      |          ^ this is the number 0
    "#);
}

#[test]
fn a_bad_value_of_a_variable_shows_where_it_is_set_and_used() {
    assert_snapshot!(seen("[vars]\nn = \"x\"\n[stages.a]\nkind = \"make\"\nseed = \"${n}\"\n", &[]), @r#"
    error: `seed` in stage `a` must be a whole number of at least 0
     --> p.toml:5:8
      |
    2 | n = "x"
      |     --- `n` is set here
    ...
    5 | seed = "${n}"
      |        ^^^^^^ this is the text `x`
    "#);
}

#[test]
fn what_the_kind_refuses_is_shown_at_the_parameter() {
    let text =
        "[stages.m]\nkind = \"make\"\n[stages.t]\nkind = \"tune\"\ninputs = { model = \"m\" }\nrank = 13\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: `rank` in stage `t` brings bad luck
     --> p.toml:6:8
      |
    6 | rank = 13
      |        ^^
    "#);
}

#[test]
fn a_missing_parameter_points_at_the_stage_and_explains_it() {
    assert_snapshot!(seen("[stages.m]\nkind = \"make\"\n[stages.j]\nkind = \"join\"\ninputs = { runs = \"m\" }\n", &[]), @r#"
    error: stage `j` lacks `title`
     --> p.toml:3:9
      |
    3 | [stages.j]
      |         ^ kind `join` needs it
      |
      = help: `title`: a line above (text)
    "#);
}

#[test]
fn not_finite_too_large_and_dates_are_refused() {
    assert_snapshot!(seen("[stages.a]\nkind = \"make\"\nshare = nan\nseed = 99999999999999999999\n[stages.b]\nkind = \"make\"\nseed = 2024-01-01\nshare = -inf\n", &[]), @r#"
    error: numbers must be finite
     --> p.toml:3:9
      |
    3 | share = nan
      |         ^^^ not a finite number

    error: a whole number must fit 64 bits
     --> p.toml:4:8
      |
    4 | seed = 99999999999999999999
      |        ^^^^^^^^^^^^^^^^^^^^ too large

    error: dates and times are not used in pipelines
     --> p.toml:7:8
      |
    7 | seed = 2024-01-01
      |        ^^^^^^^^^^ put it in quotes

    error: numbers must be finite
     --> p.toml:8:9
      |
    8 | share = -inf
      |         ^^^^ not a finite number
    "#);
}

#[test]
fn an_unknown_variable_is_pointed_at_within_its_text() {
    assert_snapshot!(seen("[vars]\nrank = 8\n[stages.a]\nkind = \"any\"\nargs = [\"é --rank=${rnak}\"]\n", &[]), @r#"
    error: unknown variable `rnak`
     --> p.toml:5:19
      |
    5 | args = ["é --rank=${rnak}"]
      |                   ^^^^^^^ not in `[vars]`
      |
      = help: did you mean `rank`?
    "#);
}

#[test]
fn bad_interpolation_of_every_sort() {
    let text = "[vars]\nlist = [1]\n[stages.a]\nkind = \"any\"\nargs = [\"${list\", \"${}\", \"${a b}\", \"x${list}\", \"${matrix.seed}\"]\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: `${` without its `}`
     --> p.toml:5:10
      |
    5 | args = ["${list", "${}", "${a b}", "x${list}", "${matrix.seed}"]
      |          ^^^^^^
      |
      = help: write `${name}` for a variable, `$${` for a literal `${`

    error: `${}` does not name a variable
     --> p.toml:5:20
      |
    5 | args = ["${list", "${}", "${a b}", "x${list}", "${matrix.seed}"]
      |                    ^^^
      |
      = help: write `${name}` for a variable, `$${` for a literal `${`

    error: `${a b}` does not name a variable
     --> p.toml:5:27
      |
    5 | args = ["${list", "${}", "${a b}", "x${list}", "${matrix.seed}"]
      |                           ^^^^^^
      |
      = help: write `${name}` for a variable, `$${` for a literal `${`

    error: `list` is a list and cannot stand within a text
     --> p.toml:5:38
      |
    2 | list = [1]
      |        --- `list` is set here
    ...
    5 | args = ["${list", "${}", "${a b}", "x${list}", "${matrix.seed}"]
      |                                      ^^^^^^^
      |
      = help: `"${list}"` alone takes the value as it is

    error: unknown matrix axis `seed`
     --> p.toml:5:49
      |
    5 | args = ["${list", "${}", "${a b}", "x${list}", "${matrix.seed}"]
      |                                                 ^^^^^^^^^^^^^^
      |
      = help: the stage has no matrix, and none of its inputs brings one
    "#);
}

#[test]
fn a_variable_cannot_use_another() {
    assert_snapshot!(seen("[vars]\na = 1\nb = \"${a}\"\n[stages.s]\nkind = \"make\"\n", &[]), @r#"
    error: the variable `b` cannot use another one
     --> p.toml:3:5
      |
    3 | b = "${a}"
      |     ^^^^^^
      |
      = help: write `$${` for a literal `${`
    "#);
}

#[test]
fn broken_grammar_is_pointed_at() {
    assert_snapshot!(seen("[stages.a]\nkind = make\nseed = = 3\n", &[]), @r#"
    error: string values must be quoted, expected literal string
     --> p.toml:2:8
      |
    2 | kind = make
      |        ^^^^

    error: extra `=`, expected nothing
     --> p.toml:3:8
      |
    3 | seed = = 3
      |        ^

    error: unexpected key or value, expected newline, `#`
     --> p.toml:3:10
      |
    3 | seed = = 3
      |          ^
    "#);
}

#[test]
fn an_empty_file_says_how_to_start() {
    assert_snapshot!(seen("", &[]), @r#"
    error: the file has no stages
     --> p.toml:1:1
      |
    1 |
      | ^
      |
      = help: start from the file that `pipe init FILE` writes
    "#);
}

#[test]
fn a_stage_name_takes_letters_digits_and_two_signs() {
    assert_snapshot!(seen("[stages.\"a b\"]\nkind = \"make\"\n", &[]), @r#"
    error: `a b` cannot be a stage's name
     --> p.toml:1:9
      |
    1 | [stages."a b"]
      |         ^^^^^
      |
      = help: use letters, digits, `_` and `-`
    "#);
}
