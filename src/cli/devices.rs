//! `pipe devices`: the machine's adapters.
//!
//! Asking a driver what it can do may crash the process that asks. So the program starts itself as
//! `pipe probe-devices`, which prints JSON, and reads that.

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use clap::Args;
use serde_json::{Value, json};

use super::{print, print_json};
use crate::error::{Error, Exit, io_at};
use crate::registry::Registry;

/// `pipe devices`
#[derive(Args, Clone, Debug)]
pub struct Devices {
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Devices, registry: &Registry) -> Result<Exit, Error> {
    if registry.devices.is_none() {
        return Err(no_backend());
    }
    let program = std::env::current_exe()
        .map_err(|error| Error::new(Exit::Failed, format!("cannot find the program's own file: {error}")))?;
    let output =
        Command::new(&program).arg("probe-devices").stdin(Stdio::null()).output().map_err(io_at(&program))?;
    if !output.status.success() {
        // Drivers chatter; what they said matters only where they failed.
        anstream::eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let adapters = read(output.status, &output.stdout)?;
    if args.json {
        print_json(&json!({ "version": 1, "adapters": adapters }))
    } else {
        print(&table(&adapters))
    }
}

/// The child's side: lists adapters on standard output.
pub fn probe(registry: &Registry) -> Result<Exit, Error> {
    let list = registry.devices.ok_or_else(no_backend)?;
    print_json(&list())
}

fn no_backend() -> Error {
    Error::usage("this binary was built without a tensor backend and knows no adapters")
        .hint("build it with `cargo build --release`, without `--no-default-features`")
}

fn read(status: ExitStatus, stdout: &[u8]) -> Result<Value, Error> {
    let hint =
        "the software adapter can be told apart with `VK_DRIVER_FILES`; `device = \"cpu\"` needs no driver";
    if let Some(signal) = status.signal() {
        let message = format!("the driver crashed while its adapters were listed (signal {signal})");
        return Err(Error::new(Exit::Failed, message).hint(hint));
    }
    if !status.success() {
        let code = status.code().unwrap_or_default();
        let message = format!("listing the adapters failed with exit code {code}");
        return Err(Error::new(Exit::Failed, message).hint(hint));
    }
    serde_json::from_slice(stdout)
        .map_err(|error| Error::new(Exit::Failed, format!("the list of adapters cannot be read: {error}")))
}

/// One paragraph an adapter: its first field, then the others, one a line.
fn table(adapters: &Value) -> String {
    let mut text = String::new();
    let adapters = adapters.as_array().map_or(&[][..], Vec::as_slice);
    if adapters.is_empty() {
        return "no adapters\n".into();
    }
    for adapter in adapters {
        let Some(fields) = adapter.as_object() else {
            let _ = writeln!(text, "{}", plain(adapter));
            continue;
        };
        let title = ["request", "name"].into_iter().find_map(|field| Some((field, fields.get(field)?)));
        if let Some((_, title)) = title {
            let _ = writeln!(text, "{}", plain(title));
        }
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in
            fields.iter().filter(|(name, _)| Some(name.as_str()) != title.map(|(field, _)| field))
        {
            let _ = writeln!(text, "  {name:width$}  {}", plain(value));
        }
    }
    text
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name} {}", plain(value)))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Null => "–".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn a_driver_that_crashes_is_told_as_such() {
        let error = read(ExitStatus::from_raw(11), b"").unwrap_err();
        assert_eq!(error.message, "the driver crashed while its adapters were listed (signal 11)");
    }

    #[test]
    fn a_probe_that_fails_is_told_with_its_code() {
        let error = read(ExitStatus::from_raw(3 << 8), b"").unwrap_err();
        assert_eq!(error.message, "listing the adapters failed with exit code 3");
    }

    #[test]
    fn adapters_are_listed_field_by_field() {
        let adapters = json!([{ "request": "gpu:0", "name": "A", "dtypes": ["f32", "f16"], "limits": { "binding": 4 } }]);
        assert_snapshot!(table(&adapters), @r#"
        gpu:0
          dtypes   f32, f16
          limits   binding 4
          name     A
        "#);
    }
}
