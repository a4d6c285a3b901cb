//! `download`: a file or folder from this machine or from an http(s) server.
//!
//! A partial transfer is kept in the work folder, so that a killed stage goes on where it was
//! ([`http`]). A checksum is computed from the bytes as they stream by. Knows nothing of what is in
//! the files.
//!
//! What a local path holds may change under an unchanged pipeline file; `source` is therefore
//! declared as a local path, and the runner puts the digest of its content into the key. What an
//! URL serves may change too, and nothing but `sha256` can tell: without it a finished download is
//! taken to be the same for ever.
//!
//! Version log: 1 first.

mod http;
mod local;

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use contract::{Config, ConfigError, Context, Default, Job, Param, Pool, Ports, Stage, StageError, Type};
use serde::Deserialize;

/// The kind `download`.
pub struct Download;

const PARAMS: &[Param] = &[
    Param::new(
        "source",
        Type::Text,
        Default::Required,
        "a file or folder on this machine (its content is then part of the key), or an http://, https:// or file:// address",
    )
    .local_path(),
    Param::new("sha256", Type::Text, Default::Absent, "what the file must hash to, in hexadecimal; the only guard against an address that serves something new"),
    Param::new("files", Type::List(&Type::Text), Default::Absent, "of a folder, or below an address, only these files"),
];

#[derive(Deserialize)]
struct Settings {
    source: String,
    sha256: Option<String>,
    files: Option<Vec<String>>,
}

enum Source {
    Local(PathBuf),
    Http(String),
}

struct Fetch {
    source: Source,
    sha256: Option<String>,
    files: Vec<String>,
}

impl Stage for Download {
    fn kind(&self) -> &'static str {
        "download"
    }

    fn version(&self) -> u32 {
        1
    }

    fn doc(&self) -> &'static str {
        "fetches a file or folder: a local path or an http(s) address; partial transfers are resumed"
    }

    fn pool(&self) -> Pool {
        Pool::Network
    }

    fn inputs(&self) -> Ports {
        Ports::Listed(&[])
    }

    fn params(&self) -> &'static [Param] {
        PARAMS
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        let mut errors = Vec::new();
        let files = settings.files.clone().unwrap_or_default();
        if settings.files.is_some() && files.is_empty() {
            errors.push(ConfigError::new("files", "names no file; leave it out for all of them"));
        }
        errors.extend(
            files.iter().filter(|name| !stays_inside(name)).map(|name| {
                ConfigError::new("files", format!("`{name}` is not a plain path below the source"))
            }),
        );
        if let Some(digest) = &settings.sha256 {
            if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                errors.push(ConfigError::new("sha256", "must be 64 hexadecimal digits"));
            }
            if !files.is_empty() {
                errors
                    .push(ConfigError::new("sha256", "belongs to one file and cannot stand beside `files`"));
            }
        }
        match source(&settings.source) {
            Ok(source) if errors.is_empty() => {
                let sha256 = settings.sha256.map(|digest| digest.to_ascii_lowercase());
                Ok(Box::new(Fetch { source, sha256, files }))
            }
            Ok(_) => Err(errors),
            Err(error) => {
                errors.push(error);
                Err(errors)
            }
        }
    }
}

/// Where `text` points to.
fn source(text: &str) -> Result<Source, ConfigError> {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        "http" | "https" => Ok(Source::Http(text.to_owned())),
        "file" => {
            match text.strip_prefix("file://").map(|rest| rest.strip_prefix("localhost").unwrap_or(rest)) {
                Some(path) if path.starts_with('/') => Ok(Source::Local(percent_decoded(path).into())),
                _ => Err(ConfigError::new(
                    "source",
                    format!("`{text}` is not of the form `file:///absolute/path`"),
                )),
            }
        }
        "hf" => Err(ConfigError::new(
            "source",
            format!(
                "hub sources such as `{text}` are not supported yet: download the files by hand and name the folder instead (`source = \"PATH\"`, or `--set model=PATH` where `source` is a variable)"
            ),
        )),
        "ftp" | "s3" | "gs" | "ssh" | "git" => Err(ConfigError::new(
            "source",
            format!("the scheme `{scheme}:` is not supported: use a path, file://, http:// or https://"),
        )),
        _ if text.is_empty() => Err(ConfigError::new("source", "is empty")),
        _ => Ok(Source::Local(text.into())),
    }
}

/// Whether `name` leads to a place below the folder it is looked up in.
fn stays_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// `%20` and its like turned into bytes.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Job for Fetch {
    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        match &self.source {
            Source::Local(path) => local::copy(path, &self.files, self.sha256.as_deref(), ctx),
            Source::Http(url) if self.files.is_empty() => {
                http::Client::new().fetch(url, &file_name(url), self.sha256.as_deref(), ctx)
            }
            Source::Http(url) => {
                let (client, base) = (http::Client::new(), url.trim_end_matches('/'));
                self.files
                    .iter()
                    .try_for_each(|name| client.fetch(&format!("{base}/{name}"), name, None, ctx))
            }
        }
    }
}

/// The last part of an address' path.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = path.split('/').skip(1).filter(|part| !part.is_empty()).last().map(percent_decoded);
    name.filter(|name| stays_inside(name) && !name.contains('/')).unwrap_or_else(|| "download".to_owned())
}

/// Checks a finished file's hash, if one was asked for.
fn check_sha256(what: &str, wanted: Option<&str>, digest: &[u8]) -> Result<(), StageError> {
    let found = digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    });
    match wanted {
        Some(wanted) if wanted != found => Err(StageError::new(format!(
            "`{what}` does not have the expected content: sha256 is {found}, expected {wanted}"
        ))
        .hint("check the address; if the new content is wanted, put the new sha256 into the pipeline file")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::plan_errors;

    #[test]
    fn a_hub_source_is_refused_with_the_way_out() {
        let errors = plan_errors(&Download, json!({ "source": "hf:meta-llama/Llama-2-7b-hf" }));
        assert_eq!(errors[0].key, "source");
        assert!(errors[0].message.contains("not supported yet"));
        assert!(errors[0].message.contains("--set model=PATH"));
    }

    #[test]
    fn all_contradictions_are_told_at_once() {
        let errors =
            plan_errors(&Download, json!({ "source": "s3://x", "sha256": "12", "files": ["../etc"] }));
        let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
        assert_eq!(keys, ["files", "sha256", "sha256", "source"]);
    }

    #[test]
    fn file_names_come_from_the_path_of_an_address() {
        let names =
            ["https://h/a/b.json?x=/y", "https://h/a%20b/", "https://h", "https://h/..", "https://h/a%2Fb"];
        assert_eq!(names.map(file_name), ["b.json", "a b", "download", "download", "download"]);
    }
}
