//! `--set`, and the runner's own keys.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;

use super::{good, seen};
use crate::pipeline::EnvVar;

const FILE: &str = "[vars]\nn = 1\n[stages.a]\nkind = \"make\"\nseed = \"${n}\"\n";

#[test]
fn set_changes_a_variable_with_its_toml_type() {
    assert_eq!(good(FILE, &["n=7"]).instances[0].config.get("seed"), Some(&json!(7)));
    assert_eq!(good(FILE, &["n=7", "n=8"]).instances[0].config.get("seed"), Some(&json!(8)));
}

#[test]
fn what_is_no_toml_is_text() {
    let file = "[vars]\npath = \"a\"\n[stages.a]\nkind = \"any\"\nargs = [\"${path}\"]\n";
    for text in ["gpu:0", "/data/x y", "2024-01-01", "a=b", ""] {
        let pipeline = good(file, &[&format!("path={text}")]);
        assert_eq!(pipeline.instances[0].config.get("args"), Some(&json!([text])));
    }
}

#[test]
fn set_reaches_a_key_of_a_stage() {
    let pipeline =
        good(FILE, &["stages.a.seed=3", "stages.a.share=0.5", "stages.a.timeout=5m", "pools.gpu=2"]);
    let one = &pipeline.instances[0];
    assert_eq!((one.config.get("seed"), one.config.get("share")), (Some(&json!(3)), Some(&json!(0.5))));
    assert_eq!(one.timeout, Some(Duration::from_secs(300)));
    assert_eq!(pipeline.pools.get("gpu"), Some(&2));
}

#[test]
fn set_of_something_unknown_suggests_the_near_miss() {
    assert_snapshot!(seen(FILE, &["m=1", "stages.b.seed=1", "stages.a.sede=1", "rank", "a.b=1"]), @r#"
    error: unknown variable `m`
     --> --set:1:1
      |
    1 | m=1
      | ^ not in `[vars]`
      |
      = help: the variables are `n`; a stage's own key is set with `stages.STAGE.KEY=VALUE`

    error: unknown stage `b`
     --> --set:1:1
      |
    1 | stages.b.seed=1
      | ^^^^^^^^^^^^^
      |
      = help: the stages are `a`

    error: unknown key `sede` in stage `a`
     --> --set:1:1
      |
    1 | stages.a.sede=1
      | ^^^^^^^^^^^^^
      |
      = help: did you mean `seed`?

    error: `--set` takes `NAME=VALUE`
     --> --set:1:1
      |
    1 | rank
      | ^^^^ no `=`
      |
      = help: for example `--set rank=8` or `--set stages.train.rank=8`

    error: `--set` cannot reach `a.b`
     --> --set:1:1
      |
    1 | a.b=1
      | ^^^
      |
      = help: it sets a variable (`rank=8`) or a key of a stage (`stages.train.rank=8`)
    "#);
}

#[test]
fn a_wrong_value_is_shown_on_the_command_line_and_where_it_is_used() {
    assert_snapshot!(seen(FILE, &["n=x"]), @r#"
    error: `seed` in stage `a` must be a whole number of at least 0
     --> p.toml:5:8
      |
    5 | seed = "${n}"
      |        ^^^^^^ this is the text `x`
      |
     ::: --set:1:3
      |
    1 | n=x
      |   - `n` is set here
    "#);
    assert_snapshot!(seen(FILE, &["stages.a.seed=-4"]), @r#"
    error: `seed` in stage `a` must be a whole number of at least 0
     --> --set:1:15
      |
    1 | stages.a.seed=-4
      |               ^^ this is the number -4
    "#);
}

#[test]
fn timeout_retries_and_environment() {
    let text = "[vars]\nt = \"1h30m\"\n[stages.a]\nkind = \"make\"\ntimeout = \"${t}\"\nretries = 2\nenv = [\"HOME\"]\n\
        [stages.b]\nkind = \"make\"\nenv = { A = \"1\" }\n";
    let pipeline = good(text, &[]);
    let [a, b] = &pipeline.instances[..] else { panic!("two instances") };
    assert_eq!((a.timeout, a.retries), (Some(Duration::from_secs(5400)), 2));
    assert_eq!(a.env.get("HOME"), Some(&EnvVar::Pass));
    assert_eq!(b.env.get("A"), Some(&EnvVar::Set("1".into())));
}

#[test]
fn a_number_from_a_matrix_or_a_variable_is_text_in_the_environment() {
    let text = "[vars]\nlr = 0.5\non = true\n[stages.a]\nkind = \"make\"\nmatrix = { s = [1, 2] }\n\
        env = { S = \"${matrix.s}\", LR = \"${lr}\", ON = \"${on}\" }\n";
    let pipeline = good(text, &[]);
    let set = |instance: usize, name: &str| pipeline.instances[instance].env[name].clone();
    for (instance, name, wanted) in [(0, "S", "1"), (1, "S", "2"), (1, "LR", "0.5"), (1, "ON", "true")] {
        assert_eq!(set(instance, name), EnvVar::Set(wanted.into()));
    }
    let text = "[vars]\nlist = [1]\n[stages.a]\nkind = \"make\"\nenv = { L = \"${list}\" }\n";
    assert!(seen(text, &[]).contains("`L` in `env` of stage `a` must be text"));
}

#[test]
fn bad_timeout_retries_and_environment() {
    let text = "[stages.a]\nkind = \"make\"\ntimeout = \"10 minutes\"\nretries = -1\nenv = [\"1A\", 3]\n\
        [stages.b]\nkind = \"make\"\ntimeout = 90\nretries = \"x\"\nenv = { A = 1 }\n[stages.c]\nkind = \"make\"\ntimeout = \"0s\"\nenv = 3\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: `timeout` of stage `a` must be a length of time
     --> p.toml:3:11
      |
    3 | timeout = "10 minutes"
      |           ^^^^^^^^^^^^ this is the text `10 minutes`
      |
      = help: write `90s`, `10m`, `12h` or `3d`

    error: `retries` of stage `a` must be a whole number between 0 and 1000
     --> p.toml:4:11
      |
    4 | retries = -1
      |           ^^ this is the number -1

    error: `1A` cannot be the name of an environment variable
     --> p.toml:5:8
      |
    5 | env = ["1A", 3]
      |        ^^^^
      |
      = help: use letters, digits and `_`

    error: an item of `env` of stage `a` must be the name of a variable
     --> p.toml:5:14
      |
    5 | env = ["1A", 3]
      |              ^ this is the number 3

    error: `timeout` of stage `b` must be text such as `"90s"`, `"10m"`, `"12h"`
     --> p.toml:8:11
      |
    8 | timeout = 90
      |           ^^ this is the number 90

    error: `retries` of stage `b` must be a whole number between 0 and 1000
     --> p.toml:9:11
      |
    9 | retries = "x"
      |           ^^^ this is the text `x`

    error: `A` in `env` of stage `b` must be text
      --> p.toml:10:13
       |
    10 | env = { A = 1 }
       |             ^ this is the number 1

    error: `timeout` of stage `c` must be longer than nothing
      --> p.toml:13:11
       |
    13 | timeout = "0s"
       |           ^^^^
       |
       = help: leave it out for no limit

    error: `env` of stage `c` must be a list of names or a table of texts
      --> p.toml:14:7
       |
    14 | env = 3
       |       ^ this is the number 3
    "#);
}

#[test]
fn resources_are_read_and_interpolated() {
    let text = "[vars]\nn = 4\n[stages.a]\nkind = \"make\"\n[stages.a.resources]\ncpus = \"${n}\"\nmemory = \"2GB\"\ngpus = 1\n\
        nodes = 2\ntime = \"90m\"\nslurm = { partition = \"p\", account = \"x\", extra = [\"--qos=long\"] }\n";
    let pipeline = good(text, &[]);
    let seen = &pipeline.instances[0].resources;
    assert_eq!(
        (seen.cpus, seen.memory, seen.gpus, seen.nodes),
        (Some(4), Some(2_000_000_000), Some(1), Some(2))
    );
    assert_eq!(seen.time, Some(Duration::from_secs(5400)));
    assert_eq!((seen.slurm.partition.as_deref(), seen.slurm.account.as_deref()), (Some("p"), Some("x")));
    assert_eq!(seen.slurm.extra, ["--qos=long"]);
}

#[test]
fn bad_resources() {
    let text = "[stages.a]\nkind = \"make\"\nresources = { cpu = 1, gpus = 0, memory = 3, time = \"x\", \
        slurm = { partitoin = \"p\", account = \"a b\", extra = [\"qos\", \"--array=1-3\", \"-Jx\"] } }\n\
        [stages.b]\nkind = \"make\"\nresources = 3\n[stages.c]\nkind = \"make\"\nresources = { memory = \"much\" }\n";
    assert_snapshot!(seen(text, &[]), @r#"
    error: unknown key `cpu` in `resources` of stage `a`
     --> p.toml:3:15
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |               ^^^
      |
      = help: did you mean `cpus`?

    error: `gpus` in `resources` of stage `a` must be a whole number between 1 and 1000000
     --> p.toml:3:31
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |                               ^ this is the number 0

    error: `memory` in `resources` of stage `a` must be text such as `"16GB"`
     --> p.toml:3:43
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |                                           ^ this is the number 3

    error: `time` of `resources` of stage `a` must be a length of time
     --> p.toml:3:53
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |                                                     ^^^ this is the text `x`
      |
      = help: write `90s`, `10m`, `12h` or `3d`

    error: unknown key `partitoin` in `slurm` in `resources` of stage `a`
     --> p.toml:3:68
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |                                                                    ^^^^^^^^^
      |
      = help: did you mean `partition`?

    error: `account` in `slurm` in `resources` of stage `a` must be text without blanks
     --> p.toml:3:95
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |                                                                                               ^^^^^ this is the text `a b`

    error: an item of `extra` in `slurm` in `resources` of stage `a` must be an option
     --> p.toml:3:111
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |                                                                                                               ^^^^^
      |
      = help: write `--qos=long`, one option an item, its value behind `=`

    error: `extra` in `slurm` in `resources` of stage `a` cannot set `--array`
     --> p.toml:3:118
      |
    3 | resources = { cpu = 1, gpus = 0, memory = 3, time = "x", slurm = { partitoin = "p", account = "a b", extra = ["qos", "--array=1-3", "...
      |                                                                                                                      ^^^^^^^^^^^^^
      |
      = help: the runner sets it itself; leave it out

    error: `extra` in `slurm` in `resources` of stage `a` cannot set `-J`
     --> p.toml:3:133
      |
    3 | ...titoin = "p", account = "a b", extra = ["qos", "--array=1-3", "-Jx"] } }
      |                                                                  ^^^^^
      |
      = help: the runner sets it itself; leave it out

    error: `resources` of stage `b` must be a table
     --> p.toml:6:13
      |
    6 | resources = 3
      |             ^ this is the number 3

    error: `memory` in `resources` of stage `c` must be a size
     --> p.toml:9:24
      |
    9 | resources = { memory = "much" }
      |                        ^^^^^^ this is the text `much`
      |
      = help: write `500MB`, `16GB` or `16GiB`
    "#);
}

#[test]
fn bad_pools_and_name() {
    assert_snapshot!(seen("name = 3\n[pools]\ngpus = 1\ncpu = 0\n[stages.a]\nkind = \"make\"\n", &[]), @r#"
    error: `name` must be text
     --> p.toml:1:8
      |
    1 | name = 3
      |        ^ this is the number 3

    error: unknown pool `gpus`
     --> p.toml:3:1
      |
    3 | gpus = 1
      | ^^^^
      |
      = help: did you mean `gpu`?

    error: the pool `cpu` must be a whole number of at least 1
     --> p.toml:4:7
      |
    4 | cpu = 0
      |       ^ this is the number 0
    "#);
}
