//! A folder with a pipeline and a store, in which `pipe` can be called again and again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The folder of one test.
#[must_use]
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A folder with `pipeline` as `p.toml`. `@` stands for the folder's path.
    pub fn new(pipeline: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.pipeline(pipeline);
        place
    }

    /// Writes the pipeline anew.
    pub fn pipeline(&self, text: &str) {
        self.write("p.toml", &text.replace('@', &self.path("").display().to_string()));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// How many lines the stages have added to the file `name`.
    pub fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.path(name)).map_or(0, |text| text.lines().count())
    }

    /// A call of `pipe` in this folder: `command` is split at spaces.
    pub fn pipe(&self, command: &str) -> Call {
        let mut call = Command::new(env!("CARGO_BIN_EXE_pipe"));
        call.args(command.split_whitespace()).current_dir(self.folder.path());
        for name in ["PIPE_STORE", "PIPE_REMOTE", "NO_COLOR", "CLICOLOR_FORCE", "RAYON_NUM_THREADS"] {
            call.env_remove(name);
        }
        Call(call)
    }

    /// Runs the pipeline; it must succeed.
    pub fn run(&self) -> Said {
        self.pipe("run p.toml").ends(0)
    }

    /// The output of `stage`: path → content.
    pub fn output(&self, stage: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let target = tempfile::tempdir_in(self.folder.path()).unwrap();
        let folder = target.path().join("exported");
        self.pipe(&format!("export p.toml {stage} {}", folder.display())).ends(0);
        content(&folder)
    }

    /// All files of the store's `objects` that end in `name`.
    pub fn stored(&self, name: &str) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = Vec::new();
        let mut folders = vec![self.path(".pipe/objects")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if entry.path().ends_with(name) {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}

/// Path below `folder` → content, sorted.
pub fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(folder).unwrap().to_owned();
                files.push((name, fs::read(entry.path()).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// One call of `pipe`.
#[must_use]
pub struct Call(Command);

impl Call {
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// In a folder of the place.
    pub fn within(&mut self, folder: &str) {
        let place = self.0.get_current_dir().unwrap().join(folder);
        self.0.current_dir(place);
    }

    /// Runs it to its end, which must have exit code `code`.
    pub fn ends(mut self, code: i32) -> Said {
        let output = self.0.stdin(Stdio::null()).output().unwrap();
        let said = Said::new(&output);
        assert_eq!(output.status.code(), Some(code), "{:?} ended in {}\n{said:?}", self.0, output.status);
        said
    }

    /// Starts it, what it says kept.
    pub fn start(mut self) -> Running {
        self.0.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(Some(self.0.spawn().unwrap()))
    }
}

/// A call that goes on. Killed when dropped.
pub struct Running(Option<Child>);

impl Running {
    pub fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// Sends a signal, by the name that `kill` knows.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {name}");
    }

    /// Whether it goes on.
    pub fn is_there(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Waits for its end. Gives the exit code, `None` after a signal.
    pub fn wait(mut self) -> (Option<i32>, Said) {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        (output.status.code(), Said::new(&output))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a call said.
pub struct Said {
    pub out: String,
    pub err: String,
}

impl Said {
    fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// It must have said each of these, anywhere.
    pub fn says(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(self.out.contains(text) || self.err.contains(text), "nowhere `{text}`:\n{self:?}");
        }
        self
    }

    /// It must not have said this.
    pub fn lacks(&self, text: &str) -> &Self {
        assert!(!self.out.contains(text) && !self.err.contains(text), "`{text}` is there:\n{self:?}");
        self
    }

    /// The closing line's figures must be these.
    pub fn counts(&self, cached: usize, ran: usize, failed: usize) -> &Self {
        self.says(&[&format!(": {cached} cached, {ran} ran, {failed} failed")])
    }
}

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--- stdout\n{}\n--- stderr\n{}", self.out, self.err)
    }
}

/// Waits until `happened`, for a minute at most.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Living processes, zombies aside, whose command line contains `mark`.
#[cfg(target_os = "linux")]
pub fn processes(mark: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).replace('\0', " ").contains(mark)
    })
    .collect()
}

/// Whether a stage's process still works in the place's folder.
#[cfg(target_os = "linux")]
pub fn within(place: &Place) -> bool {
    let folder = place.path("").canonicalize().unwrap();
    let there = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder);
    processes("exec-stage").iter().any(there)
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// A number from the environment that makes a short test a long one: `PIPE_KILLS=1000 PIPE_SEED=7`.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// A `command` stage that runs `script` in a shell, as TOML. `more` are further lines of its table.
pub fn stage(name: &str, script: &str, more: &str) -> String {
    let mut text = String::new();
    let script = serde_json::Value::from(script);
    writeln!(text, "[stages.{name}]\nkind = \"command\"\nargv = [\"sh\", \"-c\", {script}]\n{more}").unwrap();
    text
}

/// Three stages in a row: `a` makes a text, `b` and `c` add a line each. All count their runs in `ran`.
pub fn chain() -> String {
    [
        stage("a", "echo a >> @/ran; echo one > $OUT/text", ""),
        stage(
            "b",
            "echo b >> @/ran; cat $IN_TEXT/text > $OUT/text; echo two >> $OUT/text",
            "inputs = { text = \"a\" }",
        ),
        stage(
            "c",
            "echo c >> @/ran; cat $IN_TEXT/text > $OUT/text; echo three >> $OUT/text",
            "inputs = { text = \"b\" }",
        ),
    ]
    .concat()
}
