//! Requests over http(s) that survive interruptions.
//!
//! What has arrived is kept ([`super::transfer`]), pauses between attempts grow, and `Retry-After` is
//! heeded. Redirections are followed; a token goes to the host that was asked and to no other. Messages
//! name the address that was asked, never one that it led to: those carry signatures.

use std::time::Duration;

use contract::StageError;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::meter::Meter;
use super::transfer::{Transfer, Wanted};

/// The longest pause that a server may ask for; the hub counts requests in windows of five minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(330);

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
    /// Attempts in a row that bring no new byte.
    attempts: u32,
    /// The first pause between attempts; each is twice the last.
    pause: Duration,
}

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
enum Broken {
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
        Self { agent: config.into(), attempts, pause }
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
                self.persist(&mut transfer, |transfer| transfer.done, attempt, meter)?;
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
        self.persist(&mut answer, |_| 0, attempt, meter)?;
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
        self.persist(&mut head, |_| 0, attempt, meter)?;
        Ok(head)
    }

    /// Tries again and again, as long as `done` grows or attempts are left.
    fn persist<T>(
        &self,
        state: &mut T,
        done: impl Fn(&T) -> u64,
        mut attempt: impl FnMut(&mut T) -> Result<(), Broken>,
        meter: &Meter<'_>,
    ) -> Result<(), Failure> {
        let mut number = 1;
        loop {
            let before = done(state);
            let (error, asked) = match attempt(state) {
                Ok(()) => return Ok(()),
                Err(Broken::Fatal(failure)) => return Err(failure),
                Err(Broken::Retry(error, asked)) => (error, asked),
            };
            number = if done(state) > before { 1 } else { number + 1 };
            if number > self.attempts {
                return Err(error
                    .hint("run again: what has arrived is kept, and the transfer goes on from there")
                    .into());
            }
            let own = self.pause * 2_u32.pow(number.saturating_sub(2).min(16));
            let pause = own.max(asked.unwrap_or_default()).min(LONGEST_PAUSE.max(own));
            meter.warn(format!("{error}; trying again in {:.0} s", pause.as_secs_f64().ceil()));
            meter.wait(pause)?;
        }
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

fn unreachable_host(url: &str, error: &ureq::Error) -> Broken {
    let failure = StageError::new(format!("cannot fetch `{url}`: {error}"));
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => failure.into(),
        _ => Broken::Retry(failure, None),
    }
}

fn refused(url: &str, response: &Response<Body>) -> Broken {
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

/// Seconds until a server counts anew: `"api";r=0;t=55` (draft-ietf-httpapi-ratelimit-headers).
fn window(header: &str) -> Option<u64> {
    header.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
}

fn length(response: &Response<Body>) -> Option<u64> {
    response.headers().get("content-length")?.to_str().ok()?.parse().ok()
}

/// Start and total of `Content-Range: bytes START-END/TOTAL`.
fn content_range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let header = response.headers().get("content-range")?.to_str().ok()?;
    let (start, _) = header.strip_prefix("bytes ")?.split_once('-')?;
    Some((start.parse().ok()?, content_range_total(response)))
}

/// Total of `Content-Range: bytes …/TOTAL`.
fn content_range_total(response: &Response<Body>) -> Option<u64> {
    response.headers().get("content-range")?.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};

    use contract::{Context, Event, Inputs, Reporter};
    use serde_json::json;

    use super::*;
    use crate::download::Download;
    use crate::testing::Bench;

    /// Answers one request after the other with these bytes, then hangs up. Gives its address and
    /// the heads of the requests.
    fn server(answers: Vec<String>) -> (String, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/data/rows.json", listener.local_addr().unwrap());
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                sender.send(head.join("\n").to_lowercase()).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (address, requests)
    }

    fn ok(length: usize, body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"v1\"\r\nConnection: close\r\n\r\n{body}"
        )
    }

    fn partial(range: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: bytes {range}\r\nConnection: close\r\n\r\n{body}"
        )
    }

    struct Silent;

    impl Reporter for Silent {
        fn report(&self, _: Event) {}
    }

    fn fetch(bench: &Bench, attempts: u32, url: &str, sha256: Option<&str>) -> Result<(), StageError> {
        let (out, work) = (bench.path("out"), bench.path("work"));
        let ctx = Context::new(Inputs::default(), out, work, vec![], &Silent, &bench.stop);
        let client = Client::with(attempts, Duration::from_millis(1), Duration::from_secs(5));
        super::super::fetch_address(&client, url, "rows.json", sha256, &ctx)
    }

    #[test]
    fn a_file_arrives_under_the_name_of_its_address() {
        let (url, _requests) = server(vec![ok(5, "hello")]);
        let bench = Bench::new();
        bench.run(&Download, json!({ "source": url })).unwrap();
        assert_eq!(bench.read("rows.json"), "hello");
    }

    #[test]
    fn files_below_an_address_arrive_under_their_names() {
        let (url, _requests) = server(vec![ok(1, "a"), ok(1, "b")]);
        let bench = Bench::new();
        bench.run(&Download, json!({ "source": url, "files": ["a.json", "sub/b.json"] })).unwrap();
        assert_eq!((bench.read("a.json"), bench.read("sub/b.json")), ("a".into(), "b".into()));
    }

    #[test]
    fn a_broken_transfer_goes_on_where_it_was_if_the_file_is_the_same() {
        let (url, requests) = server(vec![ok(10, "0123"), partial("4-9/10", "456789")]);
        let bench = Bench::new();
        let sha256 = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
        fetch(&bench, 2, &url, Some(sha256)).unwrap();
        assert_eq!(bench.read("rows.json"), "0123456789");
        assert!(!requests.recv().unwrap().contains("range:"));
        let second = requests.recv().unwrap();
        assert!(second.contains("range: bytes=4-") && second.contains("if-range: \"v1\""), "{second}");
    }

    #[test]
    fn a_killed_run_goes_on_in_the_next_one() {
        let bench = Bench::new();
        let (url, _requests) = server(vec![ok(10, "0123")]);
        let error = fetch(&bench, 1, &url, None).unwrap_err();
        assert!(error.hint.unwrap().contains("goes on from there"));
        let (url, _requests) = server(vec![partial("4-9/10", "456789")]);
        fetch(&bench, 1, &url, None).unwrap();
        assert_eq!(bench.read("rows.json"), "0123456789");
    }

    #[test]
    fn a_file_that_changed_meanwhile_is_fetched_from_the_start() {
        let (url, _requests) = server(vec![ok(10, "0123"), ok(3, "new")]);
        let bench = Bench::new();
        fetch(&bench, 2, &url, None).unwrap();
        assert_eq!(bench.read("rows.json"), "new");
    }

    #[test]
    fn a_complete_part_of_a_killed_run_is_recognised() {
        let bench = Bench::new();
        fs::write(bench.path("work/rows.json.part"), "0123").unwrap();
        let answer = "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */4\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let (url, _requests) = server(vec![answer.into()]);
        fetch(&bench, 1, &url, None).unwrap();
        assert_eq!(bench.read("rows.json"), "0123");
    }

    #[test]
    fn a_busy_server_is_asked_again_and_a_missing_file_is_not() {
        let answer =
            |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let bench = Bench::new();
        let (url, _requests) = server(vec![answer("503 Busy"), ok(2, "ok")]);
        fetch(&bench, 2, &url, None).unwrap();
        let (url, requests) = server(vec![answer("404 Not Found")]);
        let error = fetch(&bench, 5, &url, None).unwrap_err();
        assert!(error.message.contains("404"), "{error}");
        assert_eq!(requests.iter().count(), 1);
    }

    #[test]
    fn the_hubs_own_header_says_how_long_to_wait() {
        assert_eq!(window("\"api\";r=0;t=55"), Some(55));
        assert_eq!(window("\"api\";r=0"), None);
        let busy = "HTTP/1.1 429 No\r\nRateLimit: \"resolvers\";r=0;t=1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let (url, _requests) = server(vec![busy.into(), ok(2, "ok")]);
        let start = std::time::Instant::now();
        fetch(&Bench::new(), 2, &url, None).unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
    }

    #[test]
    fn a_wrong_sha256_names_both_and_drops_the_file() {
        let (url, _requests) = server(vec![ok(5, "hello")]);
        let bench = Bench::new();
        let error = fetch(&bench, 1, &url, Some(&"0".repeat(64))).unwrap_err();
        assert!(error.message.contains("2cf24dba") && error.message.contains(&"0".repeat(64)), "{error}");
        assert!(!bench.path("work/rows.json.part").exists());
    }
}
