//! `download`: a file or folder from this machine, from an http(s) server, or from the Hugging Face hub.
//!
//! A partial transfer is kept in the work folder, so that a killed stage goes on where it was
//! ([`transfer`]). A checksum is computed from the bytes as they stream by. Knows nothing of what is in
//! the files.
//!
//! What a local path holds may change under an unchanged pipeline file; `source` is therefore
//! declared as a local path, and the runner puts the digest of its content into the key. A branch or tag
//! of the hub moves; it is a moving reference, and the runner pins it to a commit. What an
//! URL serves may change too, and nothing but `sha256` can tell: without it a finished download is
//! taken to be the same for ever.
//!
//! Version log: 1 first.

mod checksum;
mod http;
mod hub;
mod local;
mod meter;
mod patterns;
mod transfer;

use std::path::{Component, Path, PathBuf};

use contract::{
    Config, ConfigError, Context, Default, Inputs, Job, Moving, Param, Pool, Ports, Stage, StageError, Type,
};
use serde::Deserialize;

use checksum::Checksum;
use http::Client;
use hub::{Hub, Repository, place, repository};
use meter::Meter;
use patterns::{Patterns, is_pattern};
use transfer::{Wanted, publish};

/// The kind `download`.
pub struct Download;

const PARAMS: &[Param] = &[
    Param::new(
        "source",
        Type::Text,
        Default::Required,
        "a file or folder on this machine (its content is then part of the key), an http://, https:// or file:// address, or of the Hugging Face hub `hf:owner/name` (a model), `hf:datasets/owner/name`, or either with `/path/of/file` behind it",
    )
    .local_path(),
    Param::new("revision", Type::Text, Default::Absent, "of the hub: a branch, tag or commit, `main` if absent; what moves is pinned in pipe.lock"),
    Param::new("sha256", Type::Text, Default::Absent, "what the file must hash to, in hexadecimal; the only guard against an address that serves something new"),
    Param::new("files", Type::List(&Type::Text), Default::Absent, "of a folder or repository, or below an address, only these files; patterns (`*.json`, `data/`) too, but for an address. Without it, of a model on the hub: all but weights in other formats than safetensors"),
    Param::new("exclude", Type::List(&Type::Text), Default::Absent, "of a folder or repository, not these files; patterns too"),
];

#[derive(Deserialize)]
struct Settings {
    source: String,
    revision: Option<String>,
    sha256: Option<String>,
    files: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
}

enum Source {
    Local(PathBuf),
    Http(String),
    Hub(Repository),
}

struct Fetch {
    source: Source,
    revision: Option<String>,
    sha256: Option<String>,
    files: Vec<String>,
    patterns: Patterns,
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

    fn secrets(&self) -> &'static [&'static str] {
        place::SECRETS
    }

    fn surroundings(&self) -> &'static [&'static str] {
        place::VARIABLES
    }

    fn moving(&self, config: &Config) -> Option<Moving> {
        let settings: Settings = config.to().ok()?;
        let Ok(Source::Hub(repository)) = source(&settings.source) else { return None };
        let revision = settings.revision.unwrap_or_else(|| hub::MAIN.to_owned());
        let moves = !repository::is_commit(&revision);
        moves.then(|| Moving { param: "revision", name: format!("{}@{revision}", repository.name()) })
    }

    fn settle(&self, config: &Config, ctx: &Context<'_>) -> Result<String, StageError> {
        let settings: Settings = config.to().map_err(|_| StageError::new("the parameters do not fit"))?;
        let Ok(Source::Hub(repository)) = source(&settings.source) else {
            return Err(StageError::new(format!("`{}` does not move", settings.source)));
        };
        let revision = settings.revision.as_deref().unwrap_or(hub::MAIN);
        Hub::from_env()?.commit(&repository, revision, &Meter::new(ctx, 0))
    }

    fn plan(&self, config: &Config) -> Result<Box<dyn Job>, Vec<ConfigError>> {
        let settings: Settings = config.to()?;
        let mut errors = Vec::new();
        let (files, exclude) = (settings.files.unwrap_or_default(), settings.exclude.unwrap_or_default());
        if config.get("files").is_some() && files.is_empty() {
            errors.push(ConfigError::new("files", "names no file; leave it out for all of them"));
        }
        let listed =
            files.iter().map(|name| ("files", name)).chain(exclude.iter().map(|name| ("exclude", name)));
        errors.extend(listed.filter(|(_, name)| !stays_inside(name)).map(|(key, name)| {
            ConfigError::new(key, format!("`{name}` is not a plain path below the source"))
        }));
        if let Some(digest) = &settings.sha256 {
            if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                errors.push(ConfigError::new("sha256", "must be 64 hexadecimal digits"));
            }
            if !files.is_empty() {
                errors
                    .push(ConfigError::new("sha256", "belongs to one file and cannot stand beside `files`"));
            }
        }
        if let Some(revision) = settings.revision.as_ref().filter(|name| !repository::is_revision(name)) {
            errors.push(ConfigError::new(
                "revision",
                format!("`{}` is no name of a branch, tag or commit", revision.escape_debug()),
            ));
        }
        let source = source(&settings.source).map_err(|error| errors.push(error)).ok();
        match &source {
            Some(Source::Http(_)) => {
                if let Some(name) = files.iter().find(|name| is_pattern(name)) {
                    let message =
                        format!("`{name}`: an address has no list of files for a pattern to choose from");
                    errors.push(ConfigError::new("files", message));
                }
            }
            Some(Source::Hub(repository)) => match (&repository.file, &settings.sha256) {
                (Some(_), _) if !files.is_empty() => {
                    errors.push(ConfigError::new(
                        "files",
                        "has nothing to choose from: the source is one file",
                    ));
                }
                (None, Some(_)) => {
                    let message = "belongs to one file, and the source is a repository, whose files are checked against the hub's hashes anyway";
                    errors.push(ConfigError::new("sha256", message));
                }
                _ => {}
            },
            _ => {}
        }
        let patterns = Patterns::new(&files, &exclude).map_err(|wrong| {
            errors.extend(wrong.into_iter().map(|(key, message)| ConfigError::new(key, message)));
        });
        match (source, patterns) {
            (Some(source), Ok(patterns)) if errors.is_empty() => {
                let sha256 = settings.sha256.map(|digest| digest.to_ascii_lowercase());
                Ok(Box::new(Fetch { source, revision: settings.revision, sha256, files, patterns }))
            }
            _ => Err(errors),
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
        "hf" => Repository::parse(&text["hf:".len()..])
            .map(Source::Hub)
            .map_err(|message| ConfigError::new("source", message)),
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
    fn foresee(&self, _: &Inputs) -> Vec<(String, Vec<u8>)> {
        let Source::Local(folder) = &self.source else { return Vec::new() };
        let config = std::fs::read(folder.join(formats::config::FILE));
        config.map(|bytes| vec![(formats::config::FILE.to_owned(), bytes)]).unwrap_or_default()
    }

    fn run(&self, ctx: &mut Context<'_>) -> Result<(), StageError> {
        let sha256 = self.sha256.as_deref();
        if let (Some(revision), Source::Local(_) | Source::Http(_)) = (&self.revision, &self.source) {
            ctx.note(format!("`revision = \"{revision}\"` is not used: only the hub has revisions"));
        }
        match &self.source {
            Source::Local(path) => local::copy(path, &self.patterns, sha256, ctx),
            Source::Http(url) if self.files.is_empty() => {
                fetch_address(&Client::new(), url, &file_name(url), sha256, ctx)
            }
            Source::Http(url) => {
                let (client, base) = (Client::new(), url.trim_end_matches('/'));
                self.files
                    .iter()
                    .try_for_each(|name| fetch_address(&client, &format!("{base}/{name}"), name, None, ctx))
            }
            Source::Hub(repository) => {
                let revision = self.revision.as_deref().unwrap_or(hub::MAIN);
                let request = hub::Request { repository, revision, patterns: &self.patterns, sha256 };
                Hub::from_env()?.fetch(&request, ctx)
            }
        }
    }
}

/// Fetches one file of any server to `<out>/<name>`.
fn fetch_address(
    client: &Client,
    url: &str,
    name: &str,
    sha256: Option<&str>,
    ctx: &Context<'_>,
) -> Result<(), StageError> {
    let checks: Vec<Checksum> =
        sha256.map(|digits| Checksum::Sha256(digits.to_owned())).into_iter().collect();
    let wanted = Wanted { url: url.to_owned(), name: name.to_owned(), size: None, checks, fixed: false };
    let part = client.fetch(&wanted, None, ctx.work(), &Meter::new(ctx, 0));
    publish(&part.map_err(|failure| failure.plainly(url))?, &ctx.out().join(name))
}

/// The last part of an address' path.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = path.split('/').skip(1).filter(|part| !part.is_empty()).last().map(percent_decoded);
    name.filter(|name| stays_inside(name) && !name.contains('/')).unwrap_or_else(|| "download".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::plan_errors;

    #[test]
    fn a_branch_moves_and_a_commit_does_not() {
        let moving = |params: serde_json::Value| Download.moving(&crate::testing::config(&Download, params));
        let main = moving(json!({ "source": "hf:datasets/o/n/a/b.json" })).unwrap();
        assert_eq!((main.param, main.name.as_str()), ("revision", "hf:datasets/o/n@main"));
        assert!(moving(json!({ "source": "hf:o/n", "revision": "0a".repeat(20) })).is_none());
        assert!(moving(json!({ "source": "some/path", "revision": "main" })).is_none());
    }

    #[test]
    fn what_does_not_fit_a_hub_source_is_refused() {
        let keys = |params: serde_json::Value| -> Vec<String> {
            plan_errors(&Download, params).into_iter().map(|error| error.key).collect()
        };
        assert_eq!(keys(json!({ "source": "hf:gpt2" })), ["source"]);
        assert_eq!(keys(json!({ "source": "hf:o/n", "revision": "a b" })), ["revision"]);
        assert_eq!(keys(json!({ "source": "hf:o/n", "sha256": "0".repeat(64) })), ["sha256"]);
        assert_eq!(keys(json!({ "source": "hf:o/n/f.json", "files": ["x"] })), ["files"]);
        assert_eq!(keys(json!({ "source": "https://h/x", "files": ["*.json"] })), ["files"]);
        assert!(keys(json!({ "source": "hf:o/n", "files": ["*.json"], "exclude": ["x/"] })).is_empty());
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
