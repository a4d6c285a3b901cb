use super::place::{Place, chain, stage};

#[test]
fn every_error_of_a_pipeline_file_is_shown_with_its_place_before_any_work() {
    let text = chain().replace("argv", "arvg") + "[stages.d]\nkind = \"comand\"\n";
    let place = Place::new(&text);
    let said = place.pipe("run p.toml").ends(2);
    said.says(&["unknown key `arvg`", "`argv`", "`comand`", "`command`", "p.toml:3"]);
    assert_eq!(place.lines("ran"), 0);
    assert!(!place.path(".pipe/actions").exists(), "no work, no store");
}

#[test]
fn a_cycle_is_shown_whole() {
    let text = [
        stage("a", "true", "inputs = { x = \"c\" }"),
        stage("b", "true", "inputs = { x = \"a\" }"),
        stage("c", "true", "inputs = { x = \"b\" }"),
    ];
    Place::new(&text.concat()).pipe("run p.toml").ends(2).says(&["in a circle", "`a`", "`b`", "`c`"]);
}

#[test]
fn a_missing_pipeline_file_is_named() {
    Place::new("").pipe("run nowhere.toml").ends(1).says(&["nowhere.toml"]);
}

#[test]
fn a_local_source_that_is_not_there_is_named() {
    let place = Place::new("[stages.get]\nkind = \"download\"\nsource = \"@/gone.json\"\n");
    place.pipe("run p.toml").ends(1).says(&["gone.json"]);
}

#[cfg(feature = "neural")]
#[test]
fn ranks_that_cannot_be_are_refused_before_anything_runs() {
    let train = |settings: &str| {
        let command = stage("a", "echo a >> @/ran", "");
        Place::new(&format!(
            "{command}[stages.t]\nkind = \"train\"\ninputs = {{ model = \"a\", data = \"a\" }}\n{settings}"
        ))
    };
    let nodes = train("[stages.t.resources]\nnodes = 2\n");
    let said = nodes.pipe("run p.toml").ends(2);
    said.says(&[
        "`nodes` in `resources` of stage `t` is 2, and its `ranks` is 1",
        "nothing to do",
        "`ranks = 2`",
    ]);
    if !cfg!(feature = "mpi") {
        let ranks = train("ranks = 2\n");
        let said = ranks.pipe("run p.toml").ends(2);
        said.says(&["`ranks` in stage `t` is 2", "without MPI", "--features mpi", "libopenmpi-dev"]);
    }
    assert_eq!(nodes.lines("ran"), 0);
}
