//! Bars on a terminal that changes its size: a real one, which tmux keeps.

use std::process::{Command, Output};
use std::time::Duration;

use super::place::{Place, stage, until};

/// A terminal with one program in it. `None` where there is no tmux.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn new(place: &Place, columns: u32, command: &str) -> Option<Self> {
        let folder = place.path("").display().to_string();
        let terminal = Self { socket: place.path("tmux").display().to_string() };
        let size = columns.to_string();
        // The program ends, the terminal stays, to be looked at.
        let command = format!("{command}; echo \"end $?\"; sleep 120");
        let args = ["new-session", "-d", "-c", &folder, "-x", &size, "-y", "24", &command];
        let started = Command::new("tmux").args(terminal.to_server()).args(args).output().ok()?;
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        Some(terminal)
    }

    fn to_server(&self) -> [&str; 5] {
        ["-u", "-S", &self.socket, "-f", "/dev/null"]
    }

    fn tmux(&self, args: &[&str]) -> Output {
        Command::new("tmux").args(self.to_server()).args(args).output().unwrap()
    }

    fn resize(&self, columns: u32) {
        assert!(self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", "24"]).status.success());
    }

    /// What is on the screen, and what has left it at its top: rows with something in them.
    fn rows(&self) -> Vec<String> {
        let screen = String::from_utf8(self.tmux(&["capture-pane", "-p", "-S", "-"]).stdout).unwrap();
        screen.lines().map(str::to_owned).filter(|row| !row.is_empty()).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// Another run holds the stages, so that the bars say at length for whom they wait.
#[test]
fn on_a_resized_terminal_each_bar_stays_one_row_and_goes_in_the_end() {
    let held = "until [ -e @/go ]; do sleep 0.02; done; echo ${matrix.seed} > $OUT/x";
    let place = Place::new(&format!(
        "[pools]\ncpu = 4\n{}{}",
        stage("quick", "echo x > $OUT/x", ""),
        stage("held", held, "matrix = { seed = [1, 2, 3] }\ninputs = { a = \"quick\" }"),
    ));
    let first = place.pipe("run p.toml").start();
    let keys = || std::fs::read_dir(place.path(".pipe/work")).map_or(0, Iterator::count);
    until("the first run is in its stages", || keys() == 3);
    let program = env!("CARGO_BIN_EXE_pipe");
    let Some(terminal) = Terminal::new(&place, 120, &format!("{program} run p.toml --color never")) else {
        eprintln!("not checked: there is no tmux");
        return;
    };
    let holder = format!("waits for process {}", first.pid());
    let start = std::time::Instant::now();
    until("three bars", || {
        let rows = terminal.rows();
        assert!(start.elapsed() < Duration::from_secs(20), "no three bars: {rows:#?}");
        rows.iter().filter(|row| row.contains(&holder)).count() == 3
    });
    let bars = |rows: &[String]| {
        let live = &rows[rows.len() - 3..];
        let names: Vec<&str> =
            live.iter().map(|row| row.split_whitespace().next().unwrap_or_default()).collect();
        assert_eq!(names, ["held[1]", "held[2]", "held[3]"], "{rows:#?}");
        rows.len() - 3
    };
    for columns in [60, 100, 33, 120, 47, 20, 110] {
        terminal.resize(columns);
        std::thread::sleep(Duration::from_millis(400));
        // tmux breaks rows some time before it says so. What is drawn in that moment is erased by the old
        // width, and some of it stays; but once only.
        let now = bars(&terminal.rows());
        std::thread::sleep(Duration::from_millis(300));
        assert!(bars(&terminal.rows()) == now, "{columns} columns: {:#?}", terminal.rows());
    }
    place.write("go", "");
    until("the run's end", || terminal.rows().last().is_some_and(|row| row.starts_with("end")));
    let rows = terminal.rows();
    let closing = rows.iter().position(|row| row.starts_with("4 stages: 4 cached, 0 ran, 0 failed"));
    let below = &rows[closing.unwrap_or_else(|| panic!("{rows:#?}")) + 1..];
    assert!(below.iter().all(|row| row.starts_with("  pipe export") || row == "end 0"), "{rows:#?}");
    assert_eq!(first.wait().0, Some(0));
}
