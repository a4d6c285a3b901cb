//! A store that machines share, in a bucket: against moto, a real server program, on loopback, with a proxy
//! before it that fails on request.
//!
//! `PIPE_MOTO` names the program `moto_server` (`tests/s3/requirements.txt`); without it nothing is checked.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::place::{Call, Place, chain, stage, until};

const SECRET: &str = "do-not-tell-this";

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Status(u16),
    /// So long before it is passed on.
    Late(Duration),
    /// One bit of the answer is another.
    WrongBit,
    /// The answer's body ends half-way.
    Cut,
}

/// Requests of this method whose path holds this text, so many of them.
type Rule = (&'static str, &'static str, usize, Fault);

/// moto with a proxy before it.
struct Server {
    moto: Child,
    port: u16,
    rules: Arc<Mutex<Vec<Rule>>>,
    /// First lines and who signed.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `None` where there is no moto.
    fn start() -> Option<Self> {
        let Ok(program) = std::env::var("PIPE_MOTO") else {
            eprintln!("not checked: PIPE_MOTO names no moto_server");
            return None;
        };
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let behind = free().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &behind.to_string()]);
        let moto = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("moto listens", || TcpStream::connect(("127.0.0.1", behind)).is_ok());
        let listener = free();
        let port = listener.local_addr().unwrap().port();
        let server = Self { moto, port, rules: Arc::default(), seen: Arc::default() };
        let (rules, seen) = (Arc::clone(&server.rules), Arc::clone(&server.seen));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (rules, seen) = (Arc::clone(&rules), Arc::clone(&seen));
                // Whoever asks may be gone before the answer.
                std::thread::spawn(move || drop(pass(client, behind, &rules, &seen)));
            }
        });
        let mut made = TcpStream::connect(("127.0.0.1", behind)).unwrap();
        made.write_all(b"PUT /bucket HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        made.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("200"), "{answer}");
        Some(server)
    }

    fn rule(&self, rules: &[Rule]) {
        *self.rules.lock().unwrap() = rules.to_vec();
    }

    /// A call that knows the bucket.
    fn pipe(&self, place: &Place, command: &str) -> Call {
        let call = place.pipe(&format!("{command} --remote s3://bucket/some/prefix"));
        [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port).as_str()),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "known-here"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("NO_PROXY", "127.0.0.1"),
            ("no_proxy", "127.0.0.1"),
        ]
        .into_iter()
        .fold(call, |call, (name, value)| call.env(name, value))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.moto.kill();
        let _ = self.moto.wait();
    }
}

/// One request and its answer.
fn pass(
    mut client: TcpStream,
    behind: u16,
    rules: &Mutex<Vec<Rule>>,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length, mut signed) = (String::new(), 0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => signed = value.trim().to_owned(),
            "connection" => continue,
            _ => {}
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let first = head.lines().next().unwrap_or_default().to_owned();
    seen.lock().unwrap().push(format!("{first} {signed}"));
    let fault = rules.lock().unwrap().iter_mut().find_map(|(method, path, times, fault)| {
        let fits = *times > 0 && first.starts_with(*method) && first.contains(*path);
        fits.then(|| {
            *times -= 1;
            *fault
        })
    });
    match fault {
        Some(Fault::Status(status)) => {
            let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return client.write_all(answer.as_bytes());
        }
        Some(Fault::Late(time)) => std::thread::sleep(time),
        _ => {}
    }
    let mut server = TcpStream::connect(("127.0.0.1", behind))?;
    server.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let start = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    match fault {
        Some(Fault::WrongBit) if start < answer.len() => *answer.last_mut().unwrap() ^= 1,
        Some(Fault::Cut) => answer.truncate(start + (answer.len() - start) / 2),
        _ => {}
    }
    client.write_all(&answer)?;
    client.shutdown(Shutdown::Both)
}

/// A place with the same stages as any other, wherever it lies.
fn place() -> Place {
    let large = stage("large", "seq 1 4000000 > $OUT/numbers", "");
    Place::new(&[chain().replace("@/ran", "$WORK/ran"), large].concat())
}

const ALWAYS: usize = usize::MAX;

#[test]
fn two_machines_share_a_bucket_and_no_secret_is_told_or_kept() {
    let Some(server) = Server::start() else { return };
    let (home, other) = (place(), place());
    let first = server.pipe(&home, "run p.toml -v").ends(0);
    first.counts(0, 4, 0).lacks("warning").lacks(SECRET);
    let second = server.pipe(&other, "run p.toml -v").ends(0);
    second.counts(4, 0, 0).says(&["fetched 4 results"]).lacks(SECRET);
    assert_eq!(other.output("large"), home.output("large"));
    other.pipe("verify").ends(0);
    let found =
        Command::new("grep").args(["-r", SECRET]).arg(other.path("")).arg(home.path("")).output().unwrap();
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    // The large file went in parts, both ways.
    let seen = server.seen.lock().unwrap();
    assert!(seen.iter().any(|line| line.starts_with("POST") && line.contains("uploadId=")), "{seen:?}");
    assert!(
        seen.iter()
            .all(|line| line.contains("/bucket/some/prefix/v1/") && line.contains("Credential=known-here"))
    );
}

#[test]
fn the_files_of_the_aws_tools_are_read() {
    let Some(server) = Server::start() else { return };
    let place = place();
    fs::create_dir(place.path(".aws")).unwrap();
    let url = format!("http://127.0.0.1:{}", server.port);
    place.write(".aws/config", &format!("[profile lab]\nregion = us-west-2\nendpoint_url = {url}\n"));
    place.write(
        ".aws/credentials",
        &format!("[lab]\naws_access_key_id = of-a-file\naws_secret_access_key = {SECRET}\n"),
    );
    let home = place.path("").display().to_string();
    let call = place
        .pipe("run p.toml --until a --remote s3://bucket/x")
        .env("HOME", &home)
        .env("AWS_PROFILE", "lab");
    call.env("NO_PROXY", "127.0.0.1").ends(0).counts(0, 1, 0).lacks("warning").lacks(SECRET);
    let seen = server.seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|line| line.contains("Credential=of-a-file/")), "{seen:?}");
    assert!(seen.iter().all(|line| line.contains("/us-west-2/s3/")), "{seen:?}");
}

#[test]
fn a_server_that_is_busy_for_a_moment_is_asked_again() {
    let Some(server) = Server::start() else { return };
    server.rule(&[("PUT", "/blobs/", 2, Fault::Status(503)), ("GET", "/actions/", 1, Fault::Status(500))]);
    let (home, other) = (place(), place());
    server.pipe(&home, "run p.toml").ends(0).counts(0, 4, 0).lacks("warning");
    server.rule(&[("GET", "/blobs/", 2, Fault::Status(503)), ("GET", "/blobs/", 2, Fault::Cut)]);
    server.pipe(&other, "run p.toml").ends(0).counts(4, 0, 0).lacks("warning");
}

#[test]
fn a_server_that_says_no_is_told_and_done_without() {
    let Some(server) = Server::start() else { return };
    for fault in [Fault::Status(403), Fault::Status(503), Fault::Late(Duration::from_secs(3))] {
        server.rule(&[("", "", ALWAYS, fault)]);
        let start = Instant::now();
        let place = place();
        let call = server.pipe(&place, "run p.toml").env("PIPE_REMOTE_TIMEOUT", "500ms");
        call.ends(0).counts(0, 4, 0).says(&["warning", "left alone for the rest of this run"]);
        assert!(start.elapsed() < Duration::from_secs(40), "{fault:?}: {:?}", start.elapsed());
        server.pipe(&place, "push p.toml").env("PIPE_REMOTE_TIMEOUT", "500ms").ends(1).says(&["warning"]);
    }
}

#[test]
fn who_may_only_read_reads() {
    let Some(server) = Server::start() else { return };
    server.pipe(&place(), "run p.toml --until b").ends(0);
    server.rule(&[("PUT", "", ALWAYS, Fault::Status(403)), ("POST", "", ALWAYS, Fault::Status(403))]);
    let other = place();
    let said = server.pipe(&other, "run p.toml").ends(0);
    said.counts(2, 2, 0).says(&["its result was not sent", "no right to", "left alone"]);
}

#[test]
fn wrong_bytes_are_refused_and_made_here() {
    let Some(server) = Server::start() else { return };
    let home = place();
    server.pipe(&home, "run p.toml").ends(0);
    for (kind, fault) in [
        ("/blobs/", Fault::WrongBit),
        ("/objects/", Fault::WrongBit),
        ("/actions/", Fault::WrongBit),
        ("/blobs/", Fault::Cut),
    ] {
        server.rule(&[("GET", kind, ALWAYS, fault)]);
        let other = place();
        let said = server.pipe(&other, "run p.toml").ends(0);
        said.says(&["warning", "it is made here"]).lacks("failed to");
        other.pipe("verify").ends(0);
        assert_eq!(other.output("c"), home.output("c"));
    }
    server.rule(&[]);
    server.pipe(&place(), "run p.toml").ends(0).counts(4, 0, 0).lacks("warning");
}

/// Three requests a result, 100 ms each: one after the other these would take 60 s.
#[test]
fn many_results_travel_side_by_side() {
    let Some(server) = Server::start() else { return };
    let numbers = format!("matrix = {{ n = {:?} }}", (0..200).collect::<Vec<_>>());
    let text = stage("arm", "echo ${matrix.n} > $OUT/n", &numbers);
    let (home, other) = (Place::new(&text), Place::new(&text));
    home.pipe("run p.toml").ends(0);
    server.rule(&[("", "", ALWAYS, Fault::Late(Duration::from_millis(100)))]);
    server.pipe(&home, "push p.toml").ends(0).says(&["sent 200 results"]);
    let start = Instant::now();
    server.pipe(&other, "pull p.toml").ends(0).says(&["fetched 200 results"]);
    eprintln!("pull of 200 results: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    other.run().counts(200, 0, 0);
}

#[test]
fn asked_to_stop_a_run_does_not_wait_for_a_server_that_does_not_answer() {
    let Some(server) = Server::start() else { return };
    server.rule(&[("", "", ALWAYS, Fault::Late(Duration::from_secs(100)))]);
    let place = place();
    let run = server.pipe(&place, "run p.toml").start();
    until("the server is asked", || !server.seen.lock().unwrap().is_empty());
    run.signal("INT");
    let start = Instant::now();
    let (code, said) = run.wait();
    assert_eq!(code, Some(75), "{said:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}
