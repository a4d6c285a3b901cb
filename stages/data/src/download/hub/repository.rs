//! `hf:owner/name`, `hf:datasets/owner/name`, and either with a file behind it.

use std::fmt;

use super::super::stays_inside;

/// A repository of the hub, or one file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Models or data sets.
    pub kind: Kind,
    /// `owner/name`.
    pub id: String,
    /// The one file that is meant, if not all.
    pub file: Option<String>,
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl Repository {
    /// Reads what follows `hf:`.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write `hf:owner/name` for a model, `hf:datasets/owner/name` for a data set, and `/path/of/file` behind either for one file";
        let whole = format!("hf:{text}");
        if text.starts_with('/') {
            return Err(format!("`{whole}` is not of the hub's form: {FORMS}"));
        }
        if text.contains('@') {
            return Err(format!("`{whole}`: a revision stands apart: `revision = \"…\"`"));
        }
        let (kind, rest) = match text.strip_prefix("datasets/") {
            Some(rest) => (Kind::Dataset, rest),
            None => (Kind::Model, text.strip_prefix("models/").unwrap_or(text)),
        };
        if text.starts_with("spaces/") {
            return Err(format!("`{whole}`: a space holds neither a model nor a data set"));
        }
        let mut parts = rest.splitn(3, '/');
        let (owner, name, file) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let Some(name) = name else { return Err(format!("`{whole}` lacks a part: {FORMS}")) };
        if let Some(part) = [owner, name].into_iter().find(|part| !is_name(part)) {
            return Err(format!("`{whole}`: `{part}` is no name of an owner or repository; {FORMS}"));
        }
        if file.is_some_and(|file| !stays_inside(file)) {
            return Err(format!("`{whole}` does not end in the path of a file"));
        }
        Ok(Self { kind, id: format!("{owner}/{name}"), file: file.map(str::to_owned) })
    }

    /// The repository without a file: `hf:datasets/owner/name`.
    pub fn name(&self) -> String {
        format!("hf:{}{}", self.prefix(), self.id)
    }

    /// What stands before the id in the addresses of files.
    pub fn prefix(&self) -> &'static str {
        match self.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }

    /// The part of the hub's interface that knows it.
    pub fn section(&self) -> &'static str {
        match self.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }

    /// Its folder in the hub's cache.
    pub fn cache_folder(&self) -> String {
        format!("{}--{}", self.section(), self.id.replace('/', "--"))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "/{file}"))
    }
}

/// Whether an owner or a repository may be called so.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.bytes().all(plain) && !text.starts_with('.')
}

/// Whether a revision is a whole commit, which never means anything else.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a branch, tag or commit may be called so.
pub fn is_revision(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"~^:?*[\\\"%#".contains(&byte);
    !text.is_empty() && text.bytes().all(plain) && text.split('/').all(is_path_part)
}

fn is_path_part(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_data_sets_and_single_files_are_told_apart() {
        let parse = |text: &str| Repository::parse(text).map(|it| (it.kind, it.id, it.file));
        let id = || "o/n".to_owned();
        assert_eq!(parse("o/n"), Ok((Kind::Model, id(), None)));
        assert_eq!(parse("datasets/o/n"), Ok((Kind::Dataset, id(), None)));
        assert_eq!(parse("datasets/o/n/a/b.json"), Ok((Kind::Dataset, id(), Some("a/b.json".into()))));
        assert_eq!(
            Repository::parse("datasets/o/n/a b.json").unwrap().to_string(),
            "hf:datasets/o/n/a b.json"
        );
        for wrong in
            ["gpt2", "", "//datasets/o/n", "o/n@main", "../n", "o/n/../x", "o/n/", "spaces/o/n", "o o/n"]
        {
            let error = Repository::parse(wrong).unwrap_err();
            assert!(error.contains(&format!("hf:{wrong}")), "{error}");
        }
    }

    #[test]
    fn only_a_whole_commit_does_not_move() {
        assert!(is_commit(&"0a".repeat(20)));
        assert!(!is_commit("main") && !is_commit(&"0A".repeat(20)) && !is_commit("0a0a0a0"));
        assert!(is_revision("refs/pr/1") && is_revision("v1.0"));
        assert!(!is_revision("a b") && !is_revision("../x") && !is_revision("") && !is_revision("a//b"));
    }
}
