//! What the hub's refusals mean, and the way out.

use contract::StageError;

use super::super::http::{Failure, Refusal};
use super::place::Place;
use super::repository::{Kind, Repository};

/// What was asked for.
pub struct Asked<'a> {
    pub repository: &'a Repository,
    pub revision: &'a str,
    pub file: Option<&'a str>,
    pub place: &'a Place,
}

impl Asked<'_> {
    /// The failure in the hub's terms. The token is in none of them.
    pub fn explain(&self, failure: Failure) -> StageError {
        let Refusal { status, code } = match failure {
            Failure::Other(error) => return error,
            Failure::Refused(refusal) => refusal,
        };
        let Self { repository, revision, place, .. } = self;
        let (name, endpoint) = (repository.name(), &place.endpoint);
        let page = format!("{endpoint}/{}{}", repository.prefix(), repository.id);
        match (status.as_u16(), code.as_str()) {
            (401 | 403, "GatedRepo") => {
                let error = StageError::new(format!(
                    "`{name}` is gated, and the hub lets nobody in without its licence accepted ({status})"
                ));
                error.hint(if place.token.is_some() {
                    format!("the account of the token has no access: accept the licence on {page} with that account, wait until access is granted, and see that the token may read gated repositories")
                } else {
                    format!("accept the licence on {page}, make a token on {endpoint}/settings/tokens, and set HF_TOKEN to it (or log in with `hf auth login`)")
                })
            }
            (401, "") if place.token.is_some() => {
                StageError::new(format!("the hub does not accept the token for `{name}` ({status})"))
                    .hint(format!("it may have expired: make a new one on {endpoint}/settings/tokens"))
            }
            (404, "RevisionNotFound") => StageError::new(format!("`{name}` has no revision `{revision}`"))
                .hint(format!("its branches, tags and commits are listed on {page}/tree/main")),
            (404, "EntryNotFound") => {
                let file = self.file.unwrap_or("(unnamed)");
                StageError::new(format!("`{name}` has no file `{file}` at `{revision}`"))
                    .hint("check the path")
            }
            (401 | 403 | 404, _) => {
                let other = match repository.kind {
                    Kind::Model => "a data set is `hf:datasets/owner/name`",
                    Kind::Dataset => "a model is `hf:owner/name`",
                };
                let login = if place.token.is_some() {
                    "the token's account may not see it"
                } else {
                    "if it is private, set HF_TOKEN"
                };
                StageError::new(format!("the hub has no `{name}`, or it is private ({status})"))
                    .hint(format!("check the name; {login}; {other}"))
            }
            _ => StageError::new(format!("the hub answered with {status} for `{name}`")),
        }
    }
}
