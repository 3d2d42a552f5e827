//! A screen as output that draws it: for a client that comes back, and for one that could not follow.
//!
//! The order matters: the ordinary screen first, with what is above it flowing through, so that a client's own scrollback
//! holds it; then the alternate one over it; then the region, the modes, the pen, and the cursor last. Nothing that the
//! client has scrolled up is erased.

use std::fmt::Write as _;

use vte::ansi::{CursorShape, StandardCharset};

use super::{
    Modes, State,
    cell::{Color, Content, Pen, Row, SGR_FLAGS},
    grid::{Cursor, Grid},
};

/// Most bytes of scrollback in one replay; its newest lines count.
const SCROLLBACK_BYTES_MAX: usize = 512 << 10;

/// To the ordinary screen, softly reset (DECSTR), cleared, pen and cursor at the start. DECSTR does not end the modes of
/// mice and pastes in every terminal, so they are ended by name.
const BEGIN: &str = "\x1b[?1049l\x1b[!p\x1b[r\x1b(B\x1b)B\x0f\x1b[?7h\x1b[4l\x1b[20l\x1b>\
    \x1b[?1;6;1000;1002;1003;1004;1005;1006;2004l\x1b[?1007l\x1b[m\x1b[H\x1b[2J";

/// See [`super::Screen::replay`].
pub fn replay(state: &State, scrollback: bool) -> Vec<u8> {
    let mut out = Output { text: BEGIN.to_owned(), pen: Pen::default() };
    out.flow(state, scrollback);
    out.pen(Pen::default());
    if state.region != (0, state.rows) {
        let _ = write!(out.text, "\x1b[{};{}r", state.region.0 + 1, state.region.1);
    }
    if state.on_alternate {
        // Entering it saves the cursor, and the program's leaving will restore it.
        out.cursor(state, &state.primary, &state.primary.saved);
        out.text.push_str("\x1b[?1049h\x1b[?6l\x1b(B\x1b)B\x0f");
        out.pen(Pen::default());
        out.text.push_str("\x1b[2J");
        for (line, row) in state.alternate.rows.iter().enumerate() {
            if row.used() > 0 {
                out.at(line, 0);
                out.row(row, row.used());
            }
        }
    }
    out.cursor(state, state.grid(), &state.grid().saved);
    out.text.push_str("\x1b7");
    out.modes(&state.modes);
    if let Some(style) = state.style {
        let base = match style.shape {
            CursorShape::Underline => 4,
            CursorShape::Beam => 6,
            _ => 2,
        };
        let _ = write!(out.text, "\x1b[{} q", base - u8::from(style.blinking));
    }
    if let Some(title) = &state.title {
        let _ = write!(out.text, "\x1b]2;{title}\x07");
    }
    out.cursor(state, state.grid(), &state.grid().cursor);
    if !state.modes.wrap {
        out.text.push_str("\x1b[?7l");
    }
    if state.modes.insert {
        out.text.push_str("\x1b[4h");
    }
    out.text.into_bytes()
}

struct Output {
    text: String,
    pen: Pen,
}

impl Output {
    /// The lines above the ordinary screen and its own, one after the other as a program would have written them.
    fn flow(&mut self, state: &State, scrollback: bool) {
        let first = if scrollback { first_line(state) } else { state.scrollback.len() };
        let rows = state.scrollback.iter().skip(first).chain(&state.primary.rows);
        let mut before: Option<bool> = None;
        for row in rows {
            let used = if row.wrapped { state.columns } else { row.used().min(state.columns) };
            // A full line goes on by itself, if there is something to go on with.
            if before.is_some_and(|wrapped| !wrapped || used == 0) {
                self.pen(Pen::default());
                self.text.push_str("\r\n");
            }
            self.row(row, used);
            before = Some(row.wrapped);
        }
    }

    /// The first `used` columns of a row.
    fn row(&mut self, row: &Row, used: usize) {
        for column in 0..used {
            let blank = (Content::Narrow(' '), Pen::default());
            let (content, pen) = row.cells.get(column).map_or(blank, |cell| (cell.content, cell.pen));
            let (Content::Narrow(character) | Content::Wide(character)) = content else { continue };
            self.pen(pen);
            self.text.push(character);
            self.text.extend(row.marks(column));
        }
    }

    fn at(&mut self, line: usize, column: usize) {
        let _ = write!(self.text, "\x1b[{};{}H", line + 1, column + 1);
    }

    fn pen(&mut self, pen: Pen) {
        if pen == self.pen {
            return;
        }
        self.pen = pen;
        self.text.push_str("\x1b[0");
        for (_, parameter) in SGR_FLAGS.iter().filter(|(flag, _)| pen.flags & flag != 0) {
            let _ = write!(self.text, ";{parameter}");
        }
        self.color(pen.foreground, 30);
        self.color(pen.background, 40);
        self.text.push('m');
    }

    fn color(&mut self, color: Color, base: u8) {
        let _ = match color {
            Color::Default => Ok(()),
            Color::Indexed(index @ 0..8) => write!(self.text, ";{}", base + index),
            Color::Indexed(index @ 8..16) => write!(self.text, ";{}", base + 60 + index - 8),
            Color::Indexed(index) => write!(self.text, ";{};5;{index}", base + 8),
            Color::Rgb(r, g, b) => write!(self.text, ";{};2;{r};{g};{b}", base + 8),
        };
    }

    /// All that a cursor is.
    fn cursor(&mut self, state: &State, grid: &Grid, cursor: &Cursor) {
        self.text.push_str("\x1b(B\x0f\x1b[?6l");
        if state.is_relative(cursor) {
            self.text.push_str("\x1b[?6h");
            self.at(cursor.line - state.region.0, cursor.column);
        } else {
            self.at(cursor.line, cursor.column);
        }
        self.redraw_last(grid, cursor);
        self.pen(cursor.pen);
        for (charset, index) in cursor.charsets.iter().zip(["(", ")"]) {
            let name = if *charset == StandardCharset::Ascii { 'B' } else { '0' };
            let _ = write!(self.text, "\x1b{index}{name}");
        }
        self.text.push(if cursor.shifted { '\x0e' } else { '\x0f' });
    }

    /// A cursor that is about to wrap can only be had by writing the last column.
    fn redraw_last(&mut self, grid: &Grid, cursor: &Cursor) {
        let Some(row) = grid.rows.get(cursor.line).filter(|_| cursor.wraps) else { return };
        let is_tail = row.cells.get(cursor.column).is_some_and(|cell| cell.content == Content::Tail);
        let column = cursor.column - usize::from(is_tail && cursor.column > 0);
        if is_tail {
            self.text.push('\x08');
        }
        if let Some(cell) = row.cells.get(column)
            && let Content::Narrow(character) | Content::Wide(character) = cell.content
        {
            self.pen(cell.pen);
            self.text.push(character);
            self.text.extend(row.marks(column));
        }
    }

    fn modes(&mut self, modes: &Modes) {
        let private = [
            (1, modes.application_cursor),
            (1004, modes.focus),
            (1005, modes.utf8_mouse),
            (1006, modes.sgr_mouse),
            (1007, modes.alternate_scroll),
            (2004, modes.bracketed_paste),
        ];
        for mode in private.iter().filter_map(|(mode, on)| on.then_some(*mode)).chain(modes.mouse) {
            let _ = write!(self.text, "\x1b[?{mode}h");
        }
        if modes.application_keypad {
            self.text.push_str("\x1b=");
        }
        if modes.newline {
            self.text.push_str("\x1b[20h");
        }
        self.text.push_str(if modes.cursor_visible { "\x1b[?25h" } else { "\x1b[?25l" });
    }
}

/// The first line of the scrollback that goes into a replay.
fn first_line(state: &State) -> usize {
    let mut left = SCROLLBACK_BYTES_MAX;
    let mut first = state.scrollback.len();
    for row in state.scrollback.iter().rev() {
        let mut line = Output { text: String::new(), pen: Pen::default() };
        line.row(row, row.used());
        match left.checked_sub(line.text.len() + 16) {
            Some(rest) => left = rest,
            None => break,
        }
        first -= 1;
    }
    first
}
