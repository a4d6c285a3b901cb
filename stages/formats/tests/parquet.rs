//! Parquet as pyarrow writes it gives the same rows as JSON; see `tests/fixtures/parquet`.

use std::path::{Path, PathBuf};

use formats::example::Example;
use formats::rows::for_each;
use serde_json::Value;

fn folder() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    std::env::var_os("PIPE_FIXTURES").map_or_else(own, PathBuf::from).join("parquet")
}

#[test]
fn every_packing_gives_the_rows_that_were_written() {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for file in std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|ending| ending != "parquet") {
            continue;
        }
        let name = file.file_name().unwrap().to_str().unwrap();
        let key = name.split('-').next().unwrap();
        let rows = expected[key].as_array().unwrap().iter();
        let rows: Vec<Example> = rows.map(|row| Example::from_value(row.clone()).unwrap()).collect();
        let mut found = Vec::new();
        for_each(&file, |row| row.map(|row| found.push(row))).unwrap();
        assert_eq!(found, rows, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 6);
}
