use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use contract::{Context, Event, Inputs, Reporter};
use serde_json::json;

use super::failure::window;
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
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"v1\"\r\nConnection: close\r\n\r\n{body}")
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
