//! A Hugging Face hub on loopback, for tests: it serves a folder over real sockets, as the hub does it,
//! and fails on request.
//!
//! `FOLDER/owner/name` is a model, `FOLDER/datasets/owner/name` a data set. A commit is made of all names
//! and contents; `main` is the commit of now. Files that the hub would keep in Git LFS (by their ending)
//! are redirected to another host name with a signature in the address, which, as S3 does, refuses a
//! request that carries a token. Source: <https://huggingface.co/docs/hub/api> and the answers of the hub.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Endings that the hub keeps in Git LFS.
const LFS: &[&str] = &[".safetensors", ".bin", ".parquet", ".model"];

/// A hub that serves as long as it lives, and a little longer.
pub struct Hub(Arc<State>);

struct State {
    root: PathBuf,
    port: u16,
    token: Mutex<Option<String>>,
    granted: Mutex<bool>,
    bare: Mutex<bool>,
    claims: Mutex<BTreeMap<String, u64>>,
    faults: Mutex<Vec<(String, u32, Fault)>>,
    requests: Mutex<Vec<String>>,
}

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with `Retry-After` if there is one.
    Status(u16, Option<u64>),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// One bit of the body is another.
    WrongBit,
    /// So long between any two kilobytes.
    Slow(Duration),
    /// So long before the first byte of the body.
    Silent(Duration),
}

impl Hub {
    /// Serves `root` on a free port.
    ///
    /// # Errors
    /// If there is none.
    pub fn serve(root: &Path) -> std::io::Result<Self> {
        Self::at(root, "127.0.0.1:0")
    }

    /// Serves `root` on `address`.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn at(root: &Path, address: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let state = Arc::new(State {
            root: root.to_owned(),
            port: listener.local_addr()?.port(),
            token: Mutex::default(),
            granted: Mutex::new(true),
            bare: Mutex::default(),
            claims: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
        });
        let serving = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&serving);
                // A client that hangs up is part of what is tested.
                std::thread::spawn(move || drop(state.answer(stream)));
            }
        });
        Ok(Self(state))
    }

    /// What to put into `HF_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port)
    }

    /// All repositories are gated from now on; this token opens them if `granted`.
    pub fn gate(&self, token: &str, granted: bool) {
        *lock(&self.0.token) = Some(token.to_owned());
        *lock(&self.0.granted) = granted;
    }

    /// Lists files by name only from now on, as some mirrors do.
    pub fn list_names_only(&self) {
        *lock(&self.0.bare) = true;
    }

    /// Claims that a file is so long.
    pub fn claim(&self, path: &str, size: u64) {
        lock(&self.0.claims).insert(path.to_owned(), size);
    }

    /// The next `times` answers to addresses that contain `address` have a fault.
    pub fn fail(&self, address: &str, times: u32, fault: Fault) {
        lock(&self.0.faults).push((address.to_owned(), times, fault));
    }

    /// All requests so far: method, address, and `Range` if there was one.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.0.requests).clone()
    }

    /// The commit that `main` of a repository is now.
    #[must_use]
    pub fn commit(&self, repository: &str) -> String {
        commit(&files(&self.0.root.join(repository)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request, as far as it matters here.
struct Request {
    method: String,
    path: String,
    query: String,
    range: Option<u64>,
    token: Option<String>,
}

/// An answer.
struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn json(value: &Value) -> Self {
        Self { status: "200 OK", headers: Vec::new(), body: value.to_string().into_bytes() }
    }

    fn refusal(status: &'static str, code: &str) -> Self {
        let headers = if code.is_empty() { Vec::new() } else { vec![("X-Error-Code", code.to_owned())] };
        Self { status, headers, body: b"{\"error\":\"no\"}".to_vec() }
    }
}

impl State {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let Some(request) = read(&stream)? else { return Ok(()) };
        let range = request.range.map_or(String::new(), |start| format!(" {start}-"));
        lock(&self.requests).push(format!("{} {}{range}", request.method, request.path));
        let fault = self.fault(&request.path);
        if let Some(Fault::Status(status, after)) = fault {
            let after = after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
            let text =
                format!("HTTP/1.1 {status} No\r\n{after}Content-Length: 0\r\nConnection: close\r\n\r\n");
            return (&stream).write_all(text.as_bytes());
        }
        let answer = self.route(&request);
        send(&stream, &request, answer, fault)
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let (_, times, fault) =
            faults.iter_mut().find(|(part, times, _)| *times > 0 && path.contains(part.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn route(&self, request: &Request) -> Answer {
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        if let ["cdn", digest] = parts[..] {
            return self.cdn(request, digest);
        }
        if let ["api", section, owner, name, "revision", revision] = parts[..] {
            let folder = if section == "datasets" { "datasets/" } else { "" };
            return self.info(&format!("{folder}{owner}/{name}"), &decoded(revision), &request.query);
        }
        if let ["api", section, owner, name, "tree", revision] = parts[..] {
            let folder = if section == "datasets" { "datasets/" } else { "" };
            return self.tree(&format!("{folder}{owner}/{name}"), &decoded(revision));
        }
        let at = parts.iter().position(|part| *part == "resolve");
        match at {
            Some(at) if parts.len() > at + 2 => {
                let (repository, revision) = (parts[..at].join("/"), decoded(parts[at + 1]));
                self.file(request, &repository, &revision, &decoded(&parts[at + 2..].join("/")))
            }
            _ => Answer::refusal("404 Not Found", ""),
        }
    }

    /// The repository at a revision, or the refusal.
    fn at(&self, repository: &str, revision: &str) -> Result<(BTreeMap<String, Vec<u8>>, String), Answer> {
        let folder = self.root.join(repository);
        if !folder.is_dir() {
            return Err(Answer::refusal("401 Unauthorized", "RepoNotFound"));
        }
        let files = files(&folder);
        let commit = commit(&files);
        if revision != "main" && revision != commit {
            return Err(Answer::refusal("404 Not Found", "RevisionNotFound"));
        }
        Ok((files, commit))
    }

    fn info(&self, repository: &str, revision: &str, query: &str) -> Answer {
        let (files, commit) = match self.at(repository, revision) {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let bare = *lock(&self.bare) || !query.contains("blobs=true");
        let claims = lock(&self.claims);
        let sibling = |(path, bytes): (&String, &Vec<u8>)| {
            if bare {
                return json!({"rfilename": path});
            }
            let size = claims.get(path).copied().unwrap_or(bytes.len() as u64);
            let mut sibling = json!({"rfilename": path, "size": size, "blobId": git_blob(bytes)});
            if is_lfs(path) {
                sibling["lfs"] = json!({"sha256": sha256(bytes), "size": size, "pointerSize": 135});
            }
            sibling
        };
        let siblings: Vec<Value> = files.iter().map(sibling).collect();
        Answer::json(&json!({"id": repository, "sha": commit, "siblings": siblings}))
    }

    /// The list that `huggingface_hub` asks for, on one page.
    fn tree(&self, repository: &str, revision: &str) -> Answer {
        let files = match self.at(repository, revision) {
            Ok((files, _)) => files,
            Err(answer) => return answer,
        };
        let entry = |(path, bytes): (&String, &Vec<u8>)| {
            let size = bytes.len();
            let mut entry = json!({"type": "file", "path": path, "size": size, "oid": git_blob(bytes)});
            if is_lfs(path) {
                entry["lfs"] = json!({"oid": sha256(bytes), "size": size, "pointerSize": 135});
            }
            entry
        };
        Answer::json(&files.iter().map(entry).collect())
    }

    fn file(&self, request: &Request, repository: &str, revision: &str, path: &str) -> Answer {
        if let Some(token) = &*lock(&self.token) {
            match &request.token {
                None => return Answer::refusal("401 Unauthorized", "GatedRepo"),
                Some(given) if given != token => return Answer::refusal("401 Unauthorized", ""),
                Some(_) if !*lock(&self.granted) => return Answer::refusal("403 Forbidden", "GatedRepo"),
                Some(_) => {}
            }
        }
        let (files, commit) = match self.at(repository, revision) {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let Some(bytes) = files.get(path) else { return Answer::refusal("404 Not Found", "EntryNotFound") };
        let mut headers = vec![("X-Repo-Commit", commit)];
        if !is_lfs(path) {
            headers.push(("ETag", format!("\"{}\"", git_blob(bytes))));
            return Answer { status: "200 OK", headers, body: bytes.clone() };
        }
        let digest = sha256(bytes);
        headers.push(("X-Linked-ETag", format!("\"{digest}\"")));
        headers.push(("X-Linked-Size", bytes.len().to_string()));
        headers.push((
            "Location",
            format!("http://localhost:{}/cdn/{digest}?signature=not-to-be-told", self.port),
        ));
        Answer { status: "302 Found", headers, body: Vec::new() }
    }

    fn cdn(&self, request: &Request, digest: &str) -> Answer {
        if request.token.is_some() {
            return Answer::refusal("400 Bad Request", "OnlyOneWayToLogIn");
        }
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else if let Ok(body) = fs::read(entry.path())
                    && sha256(&body) == digest
                {
                    return Answer {
                        status: "200 OK",
                        headers: vec![("ETag", "\"of-the-cdn\"".into())],
                        body,
                    };
                }
            }
        }
        Answer::refusal("404 Not Found", "")
    }
}

fn read(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        range: None,
        token: None,
    };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                request.range = value
                    .trim()
                    .strip_prefix("bytes=")
                    .and_then(|range| range.strip_suffix('-')?.parse().ok());
            }
            "authorization" => request.token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Ok(Some(request))
}

fn send(
    mut stream: &TcpStream,
    request: &Request,
    answer: Answer,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let Answer { mut status, headers, mut body } = answer;
    let total = body.len();
    let mut head = String::new();
    if let (Some(start), "200 OK") = (request.range, status) {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        if start >= total {
            let text = format!(
                "HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return stream.write_all(text.as_bytes());
        }
        status = "206 Partial Content";
        let _ = write!(head, "Content-Range: bytes {start}-{}/{total}\r\n", total - 1);
        body.drain(..start);
    }
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let text =
        format!("HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(text.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::CutAfter(bytes)) => body.truncate(bytes),
        Some(Fault::WrongBit) => body[total / 2] ^= 1,
        Some(Fault::Silent(pause)) => std::thread::sleep(pause),
        Some(Fault::Slow(pause)) => {
            for piece in body.chunks(1024) {
                stream.write_all(piece)?;
                std::thread::sleep(pause);
            }
            return Ok(());
        }
        _ => {}
    }
    stream.write_all(&body)
}

/// Path → content of all files below a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, below)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push((entry.path(), path + "/"));
            } else if let Ok(bytes) = fs::read(entry.path()) {
                files.insert(path, bytes);
            }
        }
    }
    files
}

fn commit(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hash = Sha1::new();
    for (path, bytes) in files {
        hash.update(format!("{path} {}\n", git_blob(bytes)));
    }
    hexadecimal(&hash.finalize())
}

fn git_blob(bytes: &[u8]) -> String {
    hexadecimal(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_lfs(path: &str) -> bool {
    LFS.iter().any(|ending| path.ends_with(ending))
}

/// `%20` and its like turned into bytes.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
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
