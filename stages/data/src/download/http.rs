//! Transfers over http(s) that survive interruptions.
//!
//! The bytes go to `<work>/<name>.part`; beside it `<name>.tag` keeps the server's ETag (or date), so
//! that a resumed transfer (`Range`, `If-Range`) never joins halves of two versions. Only a complete
//! and checked file moves to the output folder.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use contract::{Context, StageError, at};
use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::check_sha256;

const CHUNK: usize = 1 << 18;

/// Fetches files and tries again when a transfer breaks.
pub struct Client {
    agent: Agent,
    /// Attempts in a row that bring no new byte.
    attempts: u32,
    /// The first pause between attempts; each is twice the last.
    pause: Duration,
}

/// How one attempt ended, if not well.
enum Broken {
    /// Worth another attempt.
    Retry(StageError),
    /// Not worth one.
    Fatal(StageError),
}

impl From<StageError> for Broken {
    fn from(error: StageError) -> Self {
        Self::Fatal(error)
    }
}

/// The files of one transfer.
struct Transfer<'a> {
    url: &'a str,
    part: PathBuf,
    tag: PathBuf,
    sha256: Sha256,
    done: u64,
}

impl Client {
    /// Five attempts, with pauses of 1, 2, 4 and 8 seconds.
    pub fn new() -> Self {
        Self::with(5, Duration::from_secs(1))
    }

    fn with(attempts: u32, pause: Duration) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")))
            // A compressed stream has no byte ranges.
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Self { agent: config.into(), attempts, pause }
    }

    /// Fetches `url` to `<out>/<name>`.
    pub fn fetch(
        &self,
        url: &str,
        name: &str,
        sha256: Option<&str>,
        ctx: &Context<'_>,
    ) -> Result<(), StageError> {
        let mut transfer = Transfer::open(url, name, ctx)?;
        if transfer.done > 0 {
            ctx.note(format!("going on with `{name}` after {} bytes", transfer.done));
        }
        let mut attempt = 1;
        loop {
            let before = transfer.done;
            match self.attempt(&mut transfer, ctx) {
                Ok(()) => break,
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Retry(error)) => {
                    attempt = if transfer.done > before { 1 } else { attempt + 1 };
                    if attempt > self.attempts {
                        return Err(error.hint(
                            "run again: what has arrived is kept, and the transfer goes on from there",
                        ));
                    }
                    let pause = self.pause * 2_u32.pow(attempt.saturating_sub(2));
                    ctx.warn(format!("{error}; trying again"));
                    wait(pause, ctx)?;
                }
            }
        }
        transfer.finish(&ctx.out().join(name), sha256)
    }

    fn attempt(&self, transfer: &mut Transfer<'_>, ctx: &Context<'_>) -> Result<(), Broken> {
        let mut request = self.agent.get(transfer.url);
        if transfer.done > 0 {
            request = request.header("Range", format!("bytes={}-", transfer.done));
            if let Some(tag) = fs::read_to_string(&transfer.tag).ok().filter(|tag| !tag.is_empty()) {
                request = request.header("If-Range", tag);
            }
        }
        let response = request.call().map_err(|error| unreachable_host(transfer.url, &error))?;
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(&response) {
                Some((start, total)) if start == transfer.done => total,
                _ => return Err(transfer.restart("the server resumed at another byte than asked")?),
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
                return Err(transfer.restart("the file is shorter than what has arrived of it")?);
            }
            status => return Err(refused(transfer.url, status)),
        };
        transfer.receive(response.into_body(), total, ctx)
    }
}

impl<'a> Transfer<'a> {
    /// Takes up what an earlier run left in the work folder.
    fn open(url: &'a str, name: &str, ctx: &Context<'_>) -> Result<Self, StageError> {
        let base = ctx.work().join(name.replace('/', "%2F"));
        let (part, tag) = (base.with_added_extension("part"), base.with_added_extension("tag"));
        let (mut sha256, mut done) = (Sha256::new(), 0);
        if let Ok(mut file) = File::open(&part) {
            let mut buffer = vec![0; CHUNK];
            loop {
                let count = file.read(&mut buffer).map_err(at(&part))?;
                if count == 0 {
                    break;
                }
                sha256.update(&buffer[..count]);
                done += count as u64;
            }
        }
        Ok(Self { url, part, tag, sha256, done })
    }

    /// Forgets what has arrived.
    fn reset(&mut self) -> Result<(), StageError> {
        File::create(&self.part).map_err(at(&self.part))?;
        self.sha256 = Sha256::new();
        self.done = 0;
        Ok(())
    }

    fn restart(&mut self, why: &str) -> Result<Broken, StageError> {
        self.reset()?;
        Ok(Broken::Retry(StageError::new(format!("`{}`: {why}", self.url))))
    }

    /// Keeps what identifies this version of the file.
    fn remember(&self, response: &Response<Body>) -> Result<(), StageError> {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        // A weak ETag does not vouch for bytes (RFC 9110, section 13.1.5).
        let tag = header("etag").filter(|tag| !tag.starts_with("W/")).or_else(|| header("last-modified"));
        fs::write(&self.tag, tag.unwrap_or_default()).map_err(at(&self.tag))
    }

    fn receive(&mut self, body: Body, total: Option<u64>, ctx: &Context<'_>) -> Result<(), Broken> {
        let mut file =
            OpenOptions::new().append(true).create(true).open(&self.part).map_err(at(&self.part))?;
        let mut reader = body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            if ctx.stopping() {
                return Err(Broken::Fatal(StageError::cancelled()));
            }
            let count = reader.read(&mut buffer).map_err(|error| self.cut(&error.to_string()))?;
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).map_err(at(&self.part))?;
            self.sha256.update(&buffer[..count]);
            self.done += count as u64;
            ctx.progress(self.done, total.unwrap_or(0), "bytes", &[]);
        }
        match total {
            Some(total) if self.done != total => {
                Err(self.cut(&format!("{} of {total} bytes arrived", self.done)))
            }
            _ => Ok(()),
        }
    }

    fn cut(&self, why: &str) -> Broken {
        Broken::Retry(StageError::new(format!("the transfer of `{}` broke off: {why}", self.url)))
    }

    /// Checks the file and moves it to `target`.
    fn finish(self, target: &Path, sha256: Option<&str>) -> Result<(), StageError> {
        let digest: [u8; 32] = self.sha256.finalize().into();
        if let Err(error) = check_sha256(self.url, sha256, &digest) {
            fs::remove_file(&self.part).map_err(at(&self.part))?;
            return Err(error);
        }
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        if !self.part.exists() {
            File::create(&self.part).map_err(at(&self.part))?;
        }
        if fs::rename(&self.part, target).is_err() {
            // The two folders may lie on different file systems.
            fs::copy(&self.part, target).map_err(at(target))?;
            fs::remove_file(&self.part).map_err(at(&self.part))?;
        }
        Ok(())
    }
}

/// Sleeps, but wakes up when asked to stop.
fn wait(pause: Duration, ctx: &Context<'_>) -> Result<(), StageError> {
    let end = Instant::now() + pause;
    while Instant::now() < end {
        if ctx.stopping() {
            return Err(StageError::cancelled());
        }
        sleep(Duration::from_millis(20).min(end - Instant::now().min(end)));
    }
    Ok(())
}

fn unreachable_host(url: &str, error: &ureq::Error) -> Broken {
    let failure = StageError::new(format!("cannot fetch `{url}`: {error}"));
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Broken::Fatal(failure),
        _ => Broken::Retry(failure),
    }
}

fn refused(url: &str, status: StatusCode) -> Broken {
    let failure = StageError::new(format!("the server answered `{url}` with {status}"));
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => Broken::Retry(failure),
        401 | 403 => Broken::Fatal(
            failure.hint("the address needs a login; download the file by hand and name its path"),
        ),
        404 | 410 => Broken::Fatal(failure.hint("check the address")),
        _ => Broken::Fatal(failure),
    }
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
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};

    use contract::{Event, Inputs, Reporter};
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
        Client::with(attempts, Duration::from_millis(1)).fetch(url, "rows.json", sha256, &ctx)
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
    fn a_wrong_sha256_names_both_and_drops_the_file() {
        let (url, _requests) = server(vec![ok(5, "hello")]);
        let bench = Bench::new();
        let error = fetch(&bench, 1, &url, Some(&"0".repeat(64))).unwrap_err();
        assert!(error.message.contains("2cf24dba") && error.message.contains(&"0".repeat(64)), "{error}");
        assert!(!bench.path("work/rows.json.part").exists());
    }
}
