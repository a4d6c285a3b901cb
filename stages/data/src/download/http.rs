//! Requests over http(s) that survive interruptions.
//!
//! What has arrived is kept ([`super::transfer`]), pauses between attempts grow, and `Retry-After` is
//! heeded. Redirections are followed; a token goes to the host that was asked and to no other. Messages
//! name the address that was asked, never one that it led to: those carry signatures.

mod failure;
mod headers;
mod patience;
#[cfg(test)]
mod tests;

use std::time::Duration;

use contract::StageError;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use failure::{Broken, refused, unreachable_host};
pub use failure::{Failure, Refusal};
use headers::{content_range, content_range_total, length};
use patience::Patience;

use super::meter::Meter;
use super::transfer::{Transfer, Wanted};

/// Longest answer that is read as text.
const TEXT_LIMIT: u64 = 256 << 20;

/// What lets one in. It can be sent and not be printed.
pub struct Token(String);

impl Token {
    /// A token, less white space around it; `None` if there is nothing else.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }
}

/// Fetches files and tries again when a transfer breaks.
pub struct Client {
    agent: Agent,
    patience: Patience,
}

impl Client {
    /// Five attempts, with pauses of 1, 2, 4 and 8 seconds. A link that is silent for a minute is cut.
    pub fn new() -> Self {
        Self::with(5, Duration::from_secs(1), Duration::from_secs(60))
    }

    /// `attempts` in a row that bring nothing, `pause` between the first two, `silence` on the line.
    pub fn with(attempts: u32, pause: Duration, silence: Duration) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")))
            // A compressed stream has no byte ranges.
            .accept_encoding("identity")
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(silence.min(Duration::from_secs(30))))
            .timeout_recv_response(Some(silence))
            .timeout_per_read(Some(silence))
            .build();
        Self { agent: config.into(), patience: Patience { attempts, pause } }
    }

    /// Fetches a file into the folder `work`. Gives the complete and checked file there.
    pub fn fetch(
        &self,
        wanted: &Wanted,
        token: Option<&Token>,
        work: &std::path::Path,
        meter: &Meter<'_>,
    ) -> Result<std::path::PathBuf, Failure> {
        let mut transfer = Transfer::open(wanted, work, meter)?;
        if transfer.done > 0 && !transfer.is_complete() {
            meter.note(format!("going on with `{}` after {} bytes", wanted.name, transfer.done));
        }
        let mut again = wanted.fixed;
        loop {
            if !transfer.is_complete() {
                let attempt = |transfer: &mut Transfer<'_>| self.attempt(transfer, token, meter);
                self.patience.persist(&mut transfer, |transfer| transfer.done, attempt, meter)?;
            }
            match transfer.check() {
                Ok(()) => return Ok(transfer.finish()?),
                // A part of an earlier run, or the line, may be to blame; but not twice.
                Err(error) if again => meter.warn(format!("{error}; fetching it once more")),
                Err(error) => {
                    return Err(error.hint(if wanted.fixed {
                        "the hub, a mirror or a proxy serves other bytes than were announced (or `sha256` is not this file's); try again later"
                    } else {
                        "check the address; if the new content is wanted, put the new sha256 into the pipeline file"
                    })
                    .into());
                }
            }
            again = false;
        }
    }

    /// The text that `url` answers with.
    pub fn text(&self, url: &str, token: Option<&Token>, meter: &Meter<'_>) -> Result<String, Failure> {
        let mut answer = String::new();
        let attempt = |answer: &mut String| {
            let response = self.get(url, token, &[])?;
            if response.status() != StatusCode::OK {
                return Err(refused(url, &response));
            }
            *answer = response
                .into_body()
                .into_with_config()
                .limit(TEXT_LIMIT)
                .read_to_string()
                .map_err(|error| Broken::Retry(StageError::new(format!("`{url}`: {error}")), None))?;
            Ok(())
        };
        self.patience.persist(&mut answer, |_| 0, attempt, meter)?;
        Ok(answer)
    }

    /// What the first server says about `url`, without following where it leads.
    pub fn head(&self, url: &str, token: Option<&Token>, meter: &Meter<'_>) -> Result<Head, Failure> {
        let mut head = Head::default();
        let attempt = |head: &mut Head| {
            let mut request = self.agent.head(url).config().max_redirects(0).build();
            if let Some(Token(token)) = token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| unreachable_host(url, &error))?;
            if !response.status().is_success() && !response.status().is_redirection() {
                return Err(refused(url, &response));
            }
            let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
            head.tag = header("x-linked-etag").or_else(|| header("etag"));
            let length = header("x-linked-size")
                .or_else(|| header("content-length").filter(|_| response.status().is_success()));
            head.size = length.and_then(|length| length.parse().ok());
            Ok(())
        };
        self.patience.persist(&mut head, |_| 0, attempt, meter)?;
        Ok(head)
    }

    fn attempt(
        &self,
        transfer: &mut Transfer<'_>,
        token: Option<&Token>,
        meter: &Meter<'_>,
    ) -> Result<(), Broken> {
        let url = transfer.wanted.url.as_str();
        let mut headers = Vec::new();
        if transfer.done > 0 {
            headers.push(("Range", format!("bytes={}-", transfer.done)));
            headers
                .extend(transfer.version().filter(|_| !transfer.wanted.fixed).map(|tag| ("If-Range", tag)));
        }
        let response = self.get(url, token, &headers)?;
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(&response) {
                Some((start, total)) if start == transfer.done => total,
                _ => return Err(restart(transfer, "the server resumed at another byte than asked")?),
            },
            StatusCode::OK => {
                transfer.reset()?;
                transfer.remember(&response)?;
                length(&response)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // Nothing is left, if what has arrived is the whole; else the file has changed.
                if content_range_total(&response) == Some(transfer.done) {
                    return Ok(());
                }
                return Err(restart(transfer, "the file is shorter than what has arrived of it")?);
            }
            _ => return Err(refused(url, &response)),
        };
        let total = transfer.wanted.size.or(total);
        if let (None, Some(total)) = (transfer.wanted.size, total) {
            meter.expect(total);
        }
        let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        let cut = |why: String| {
            Broken::Retry(StageError::new(format!("the transfer of `{url}` broke off: {why}")), None)
        };
        transfer.receive(&mut reader)?.map_err(|error| cut(error.to_string()))?;
        match total {
            Some(total) if transfer.done > total => {
                Err(restart(transfer, &format!("more than {total} bytes arrived"))?)
            }
            Some(total) if transfer.done < total => {
                Err(cut(format!("{} of {total} bytes arrived", transfer.done)))
            }
            _ => Ok(()),
        }
    }

    fn get(
        &self,
        url: &str,
        token: Option<&Token>,
        headers: &[(&str, String)],
    ) -> Result<Response<Body>, Broken> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(Token(token)) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| unreachable_host(url, &error))
    }
}

/// What a server says about a file.
#[derive(Default)]
pub struct Head {
    /// Its entity tag.
    pub tag: Option<String>,
    /// Its length.
    pub size: Option<u64>,
}

fn restart(transfer: &mut Transfer<'_>, why: &str) -> Result<Broken, StageError> {
    transfer.reset()?;
    Ok(Broken::Retry(StageError::new(format!("`{}`: {why}", transfer.wanted.url)), None))
}
