//! What a session's terminal shows: the model that lets a client come back to the same screen.
//!
//! ```text
//!  output ─► vte (Alacritty's parser) ─► handler ─► grids, modes ─► replay: output that draws the same on any terminal
//! ```
//!
//! Own grids on a parser of others, and not a whole terminal crate: this runs in PID 1, whose panic is the machine's end, and
//! `vt100` 0.18 panics within milliseconds of random output. Here every index is checked, every list has a bound, and
//! random output is a test. Characters, colours, both screens, scrolling regions, line drawing and the modes that matter to a
//! client are kept; pictures, hyperlinks and keyboard protocols are not.

mod cell;

mod grid;

mod handler;

mod replay;

mod unfinished;

use std::{collections::VecDeque, time::Duration};

use cove_protocol::guest::WindowSize;
use vte::ansi::{CursorStyle, Processor, Timeout};

use self::{
    cell::Row,
    grid::{Cursor, Grid},
    unfinished::Unfinished,
};

/// Lines that left the screen and are kept.
pub const SCROLLBACK_LINES_MAX: usize = 1000;

/// Longest title that is kept, in bytes.
const TITLE_BYTES_MAX: usize = 256;

/// Distance of the tab stops at the start.
const TAB_COLUMNS: usize = 8;

/// A terminal's screen.
pub struct Screen {
    processor: Processor<NoDelay>,
    unfinished: Unfinished,
    state: State,
}

/// Everything but the parser.
#[derive(Clone, Debug)]
struct State {
    columns: usize,
    rows: usize,
    primary: Grid,
    alternate: Grid,
    on_alternate: bool,
    scrollback: VecDeque<Row>,
    /// The scrolling region, first line and the one behind the last.
    region: (usize, usize),
    tabs: Vec<bool>,
    modes: Modes,
    style: Option<CursorStyle>,
    title: Option<String>,
    /// Something was drawn or set.
    touched: bool,
}

/// What programs switch on and off (xterm's control sequences, DECSET and SM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Modes {
    application_cursor: bool,
    application_keypad: bool,
    wrap: bool,
    cursor_visible: bool,
    insert: bool,
    newline: bool,
    bracketed_paste: bool,
    focus: bool,
    alternate_scroll: bool,
    utf8_mouse: bool,
    sgr_mouse: bool,
    /// 1000, 1002 or 1003.
    mouse: Option<u16>,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            application_cursor: false,
            application_keypad: false,
            wrap: true,
            cursor_visible: true,
            insert: false,
            newline: false,
            bracketed_paste: false,
            focus: false,
            alternate_scroll: false,
            utf8_mouse: false,
            sgr_mouse: false,
            mouse: None,
        }
    }
}

impl Screen {
    /// An empty screen. `size` must be possible.
    pub fn new(size: WindowSize) -> Self {
        let state = State::new(usize::from(size.columns), usize::from(size.rows));
        Self { processor: Processor::new(), unfinished: Unfinished::default(), state }
    }

    /// Takes output.
    pub fn process(&mut self, output: &[u8]) {
        self.state.touched |= !output.is_empty();
        self.unfinished.process(output);
        self.processor.advance(&mut self.state, output);
    }

    /// Takes another size. Lines are cut or made longer, not broken anew; what draws full screens draws again anyway.
    pub fn resize(&mut self, size: WindowSize) {
        let (columns, rows) = (usize::from(size.columns).max(1), usize::from(size.rows).max(1));
        if (columns, rows) == (self.state.columns, self.state.rows) {
            return;
        }
        self.state.resize(columns, rows);
    }

    /// Output that brings a terminal of this size to the same screen, whatever it shows; with `scrollback`, what is above
    /// it goes through first. Nothing for a screen on which nothing ever happened.
    pub fn replay(&self, scrollback: bool) -> Vec<u8> {
        if !self.state.touched {
            return Vec::new();
        }
        let mut output = replay::replay(&self.state, scrollback);
        output.extend_from_slice(self.unfinished.bytes());
        output
    }

    /// The text on the screen, for tests.
    #[cfg(test)]
    pub fn text(&self) -> String {
        self.state.text()
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen")
            .field("columns", &self.state.columns)
            .field("rows", &self.state.rows)
            .finish_non_exhaustive()
    }
}

impl State {
    fn new(columns: usize, rows: usize) -> Self {
        let (columns, rows) = (columns.max(1), rows.max(1));
        Self {
            columns,
            rows,
            primary: Grid::new(columns, rows),
            alternate: Grid::new(columns, rows),
            on_alternate: false,
            scrollback: VecDeque::new(),
            region: (0, rows),
            tabs: tabs(columns),
            modes: Modes::default(),
            style: None,
            title: None,
            touched: false,
        }
    }

    /// True when a cursor's line is counted from the top of the region, and lies in it.
    fn is_relative(&self, cursor: &Cursor) -> bool {
        cursor.origin && (self.region.0..self.region.1).contains(&cursor.line)
    }

    /// The screen that is seen.
    fn grid(&self) -> &Grid {
        if self.on_alternate { &self.alternate } else { &self.primary }
    }

    fn grid_mut(&mut self) -> &mut Grid {
        if self.on_alternate { &mut self.alternate } else { &mut self.primary }
    }

    fn resize(&mut self, columns: usize, rows: usize) {
        let left = self.primary.resize(columns, rows);
        self.keep(left);
        if columns != self.columns {
            // What goes on in the next line at one width does not at another.
            self.scrollback.iter_mut().for_each(|row| row.wrapped = false);
        }
        drop(self.alternate.resize(columns, rows));
        (self.columns, self.rows) = (columns, rows);
        self.region = (0, rows);
        let had = self.tabs.len();
        self.tabs.resize(columns, false);
        (had..columns).filter(|column| column.is_multiple_of(TAB_COLUMNS)).for_each(|column| self.tabs[column] = true);
    }

    /// Takes lines into the scrollback.
    fn keep(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            if self.scrollback.len() >= SCROLLBACK_LINES_MAX {
                self.scrollback.pop_front();
            }
            self.scrollback.push_back(row.trimmed());
        }
    }

    #[cfg(test)]
    fn text(&self) -> String {
        let line = |row: &Row| {
            let characters = row.cells.iter().filter_map(|cell| match cell.content {
                cell::Content::Narrow(character) | cell::Content::Wide(character) => Some(character),
                cell::Content::Tail => None,
            });
            characters.collect::<String>().trim_end().to_owned()
        };
        self.grid().rows.iter().map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }
}

fn tabs(columns: usize) -> Vec<bool> {
    (0..columns).map(|column| column.is_multiple_of(TAB_COLUMNS)).collect()
}

/// Synchronized updates are drawn as they come: nobody looks at the model in between, and holding them back would want a
/// clock and a buffer.
#[derive(Default)]
struct NoDelay;

impl Timeout for NoDelay {
    fn set_timeout(&mut self, _: Duration) {}

    fn clear_timeout(&mut self) {}

    fn pending_timeout(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
