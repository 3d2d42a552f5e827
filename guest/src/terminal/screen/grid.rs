//! The rows of one screen and its cursor. A terminal has two of them: the ordinary one, and the alternate one of full-screen
//! programs. Nothing here can fail: what lies outside is cut off.

use vte::ansi::StandardCharset;

use super::cell::{Color, Pen, Row};

/// Where the next character goes, and how it is drawn: what a program saves and restores (DECSC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// From the top, 0 is the first.
    pub line: usize,
    /// From the left.
    pub column: usize,
    /// The last column was written, and the next character begins a new line.
    pub wraps: bool,
    /// How it is drawn.
    pub pen: Pen,
    /// G0 and G1.
    pub charsets: [StandardCharset; 2],
    /// G1 is used.
    pub shifted: bool,
    /// Lines are counted from the top of the scrolling region.
    pub origin: bool,
}

/// One screen.
#[derive(Clone, Debug)]
pub struct Grid {
    /// From the top.
    pub rows: Vec<Row>,
    /// Where it is.
    pub cursor: Cursor,
    /// What DECSC kept.
    pub saved: Cursor,
}

impl Grid {
    /// An empty one.
    pub fn new(columns: usize, rows: usize) -> Self {
        let rows = vec![Row::new(columns, Color::Default); rows];
        Self { rows, cursor: Cursor::default(), saved: Cursor::default() }
    }

    /// The row with the cursor.
    pub fn row(&mut self) -> Option<&mut Row> {
        self.rows.get_mut(self.cursor.line)
    }

    /// Moves the lines `top..bottom` up and gives those that leave.
    pub fn scroll_up(&mut self, top: usize, bottom: usize, count: usize) -> impl Iterator<Item = Row> {
        let (columns, background) = (self.columns(), self.cursor.pen.background);
        let lines = self.rows.get_mut(top..bottom).unwrap_or_default();
        let count = count.min(lines.len());
        lines.rotate_left(count);
        let freed = lines.len() - count;
        let freed = lines.get_mut(freed..).unwrap_or_default();
        freed.iter_mut().map(move |row| std::mem::replace(row, Row::new(columns, background)))
    }

    /// Moves the lines `top..bottom` down; those that leave are lost.
    pub fn scroll_down(&mut self, top: usize, bottom: usize, count: usize) {
        let (columns, background) = (self.columns(), self.cursor.pen.background);
        let lines = self.rows.get_mut(top..bottom).unwrap_or_default();
        let count = count.min(lines.len());
        lines.rotate_right(count);
        lines.iter_mut().take(count).for_each(|row| *row = Row::new(columns, background));
    }

    /// Clears whole lines.
    pub fn clear_lines(&mut self, lines: std::ops::Range<usize>) {
        let (columns, background) = (self.columns(), self.cursor.pen.background);
        let end = lines.end.min(self.rows.len());
        let lines = self.rows.get_mut(lines.start.min(end)..end).unwrap_or_default();
        lines.iter_mut().for_each(|row| *row = Row::new(columns, background));
    }

    /// Gives the screen another size, and the lines that leave at its top so that the cursor stays on it.
    pub fn resize(&mut self, columns: usize, rows: usize) -> Vec<Row> {
        let leaving = (self.cursor.line + 1).saturating_sub(rows).min(self.rows.len());
        let left = self.rows.drain(..leaving).collect();
        self.rows.resize_with(rows, || Row::new(columns, Color::Default));
        self.rows.iter_mut().for_each(|row| row.resize(columns));
        for cursor in [&mut self.cursor, &mut self.saved] {
            cursor.line = cursor.line.saturating_sub(leaving).min(rows - 1);
            cursor.column = cursor.column.min(columns - 1);
            cursor.wraps = false;
        }
        left
    }

    fn columns(&self) -> usize {
        self.rows.first().map_or(0, |row| row.cells.len())
    }
}
