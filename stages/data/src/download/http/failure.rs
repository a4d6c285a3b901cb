//! What goes wrong with a request, and whether it is worth another one.

use std::time::Duration;

use contract::StageError;
use ureq::Body;
use ureq::http::{Response, StatusCode};

/// Why there is no answer.
pub enum Failure {
    /// The server said no.
    Refused(Refusal),
    /// Anything else.
    Other(StageError),
}

/// How a server said no.
#[derive(Debug)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// The hub's own word for it, if it gave one: `GatedRepo`, `RevisionNotFound`.
    pub code: String,
}

/// How one attempt ended, if not well.
pub enum Broken {
    /// Worth another attempt, after this pause at least.
    Retry(StageError, Option<Duration>),
    /// Not worth one.
    Fatal(Failure),
}

impl From<StageError> for Broken {
    fn from(error: StageError) -> Self {
        Self::Fatal(Failure::Other(error))
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    /// The failure in words that fit any server.
    pub fn plainly(self, url: &str) -> StageError {
        let Refusal { status, .. } = match self {
            Self::Other(error) => return error,
            Self::Refused(refusal) => refusal,
        };
        let failure = StageError::new(format!("the server answered `{url}` with {status}"));
        match status.as_u16() {
            401 | 403 => {
                failure.hint("the address needs a login; download the file by hand and name its path")
            }
            404 | 410 => failure.hint("check the address"),
            _ => failure,
        }
    }
}

/// There was no answer at all.
pub fn unreachable_host(url: &str, error: &ureq::Error) -> Broken {
    let failure = StageError::new(format!("cannot fetch `{url}`: {error}"));
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => failure.into(),
        _ => Broken::Retry(failure, None),
    }
}

/// There was one, and it is not what was asked for.
pub fn refused(url: &str, response: &Response<Body>) -> Broken {
    let status = response.status();
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => {
            let error = StageError::new(format!("the server answered `{url}` with {status}"));
            let after = header("retry-after").and_then(|text| text.trim().parse().ok());
            let after = after.or_else(|| window(header("ratelimit").filter(|_| status == 429)?));
            Broken::Retry(error, after.map(Duration::from_secs))
        }
        _ => {
            let code = header("x-error-code").unwrap_or_default().to_owned();
            Broken::Fatal(Failure::Refused(Refusal { status, code }))
        }
    }
}

/// Seconds until a server counts anew: `"api";r=0;t=55` (draft-ietf-httpapi-ratelimit-headers).
pub fn window(header: &str) -> Option<u64> {
    header.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
}
