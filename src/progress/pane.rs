//! The lower end of a terminal, where bars are: each cut to one row, all erased before they are drawn again.
//!
//! A terminal that is made narrower breaks rows that are there into several. So what is erased is counted
//! by the width at that moment, not by the one at which it was drawn. It knows nothing of stages.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use console::{Term, measure_text_width, truncate_str};
use indicatif::TermLike;

/// Stands before each bar, and tells it from a line of text that stays.
pub const BAR: &str = "\u{1}";

/// Wider than any bar: rows are cut here, not by who draws.
const WIDE: u16 = 4096;

/// A pane on standard error.
#[derive(Debug)]
pub struct Pane {
    terminal: Term,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is to be drawn, each line followed by its filler.
    written: Vec<String>,
    /// The widths of the bars that are there; the cursor stands behind the last.
    bars: Vec<usize>,
}

impl Pane {
    /// A pane without bars. The cursor stands at the beginning of a row.
    pub fn new() -> Self {
        Self { terminal: Term::stderr(), state: Mutex::default() }
    }

    fn write(&self, text: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).written.push(text.to_owned());
    }
}

impl State {
    /// What to send to a terminal of `columns` columns to have the old bars gone, the new lines above and
    /// the new bars below.
    fn drawn(&mut self, columns: usize) -> String {
        let columns = columns.max(2);
        let mut text = String::new();
        if !self.bars.is_empty() {
            let rows: usize = self.bars.iter().map(|width| width.div_ceil(columns).max(1)).sum();
            // Row by row, from below: some terminals keep what is erased at once as history.
            text += "\r\x1b[2K";
            text += &"\x1b[A\x1b[2K".repeat(rows - 1);
        }
        // Every second one is a filler.
        let written: Vec<String> = std::mem::take(&mut self.written).into_iter().step_by(2).collect();
        let (bars, lines): (Vec<&String>, Vec<&String>) =
            written.iter().partition(|line| line.starts_with(BAR));
        text.extend(lines.iter().map(|line| format!("{line}\r\n")));
        // The last column stays free: a terminal breaks a row when it is full.
        let bars: Vec<_> = bars.iter().map(|bar| truncate_str(&bar[BAR.len()..], columns - 1, "…")).collect();
        text += &bars.join("\r\n");
        self.bars = bars.iter().map(|bar| measure_text_width(bar)).collect();
        text
    }
}

impl TermLike for Pane {
    fn width(&self) -> u16 {
        WIDE
    }

    fn height(&self) -> u16 {
        self.terminal.size().0
    }

    // Who draws moves and erases row by row, counting by the width at which it drew. All of that is done
    // at the end, in one go.
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write(text);
        self.write("");
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.write(text);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let columns = usize::from(self.terminal.size().1);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        io::stderr().lock().write_all(state.drawn(columns).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(state: &mut State, columns: usize, lines: &[&str]) -> String {
        state.written = lines.iter().flat_map(|line| [(*line).to_owned(), " ".to_owned()]).collect();
        state.drawn(columns)
    }

    #[test]
    fn bars_are_cut_to_a_row_and_erased_by_the_width_of_the_moment() {
        let mut state = State::default();
        assert_eq!(draw(&mut state, 10, &["\u{1}0123456789", "\u{1}x"]), "01234567…\r\nx");
        assert_eq!(draw(&mut state, 10, &["\u{1}a"]), "\r\x1b[2K\x1b[A\x1b[2Ka");
        assert_eq!(draw(&mut state, 10, &["a line that stays", "\u{1}b"]), "\r\x1b[2Ka line that stays\r\nb");
        draw(&mut state, 30, &["\u{1}01234567890123456789", "\u{1}01234567890123456789"]);
        // Two rows of 20 became three each.
        assert_eq!(draw(&mut state, 8, &[]), format!("\r\x1b[2K{}", "\x1b[A\x1b[2K".repeat(5)));
        assert_eq!(draw(&mut state, 8, &[]), "");
    }
}
