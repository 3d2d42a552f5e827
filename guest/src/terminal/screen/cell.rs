//! One character of a screen, and a row of them.

use vte::ansi::{Attr, Color as Told, NamedColor};

/// Marks (accents, joiners) that are kept for one row; more are dropped.
const MARKS_MAX: usize = 64;

/// A colour as programs choose it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// The terminal's own.
    #[default]
    Default,
    /// Of the palette: 0 to 15 are the named ones.
    Indexed(u8),
    /// Red, green, blue.
    Rgb(u8, u8, u8),
}

impl From<Told> for Color {
    fn from(told: Told) -> Self {
        match told {
            Told::Spec(rgb) => Color::Rgb(rgb.r, rgb.g, rgb.b),
            Told::Indexed(index) => Color::Indexed(index),
            Told::Named(name) if (name as usize) < 16 => Color::Indexed(name as u8),
            Told::Named(name)
                if (NamedColor::DimBlack as usize..=NamedColor::DimWhite as usize).contains(&(name as usize)) =>
            {
                Color::Indexed((name as usize - NamedColor::DimBlack as usize) as u8)
            }
            Told::Named(_) => Color::Default,
        }
    }
}

/// Bits of [`Pen::flags`], with the parameter of SGR that sets each (ECMA-48, 8.3.117).
pub const SGR_FLAGS: [(u16, &str); 8] = [
    (BOLD, "1"),
    (DIM, "2"),
    (ITALIC, "3"),
    (UNDERLINE, "4"),
    (BLINK, "5"),
    (REVERSE, "7"),
    (HIDDEN, "8"),
    (STRIKE, "9"),
];

const BOLD: u16 = 1;
const DIM: u16 = 1 << 1;
const ITALIC: u16 = 1 << 2;
const UNDERLINE: u16 = 1 << 3;
const BLINK: u16 = 1 << 4;
const REVERSE: u16 = 1 << 5;
const HIDDEN: u16 = 1 << 6;
const STRIKE: u16 = 1 << 7;

/// How characters are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pen {
    /// Of the character.
    pub foreground: Color,
    /// Behind it.
    pub background: Color,
    /// Some of [`SGR_FLAGS`].
    pub flags: u16,
}

impl Pen {
    /// Takes one attribute.
    pub fn apply(&mut self, attribute: Attr) {
        let (set, clear) = match attribute {
            Attr::Reset => return *self = Self::default(),
            Attr::Foreground(color) => return self.foreground = color.into(),
            Attr::Background(color) => return self.background = color.into(),
            Attr::UnderlineColor(_) => return,
            Attr::Bold => (BOLD, 0),
            Attr::Dim => (DIM, 0),
            Attr::Italic => (ITALIC, 0),
            Attr::Underline
            | Attr::DoubleUnderline
            | Attr::Undercurl
            | Attr::DottedUnderline
            | Attr::DashedUnderline => (UNDERLINE, 0),
            Attr::BlinkSlow | Attr::BlinkFast => (BLINK, 0),
            Attr::Reverse => (REVERSE, 0),
            Attr::Hidden => (HIDDEN, 0),
            Attr::Strike => (STRIKE, 0),
            Attr::CancelBold => (0, BOLD),
            Attr::CancelBoldDim => (0, BOLD | DIM),
            Attr::CancelItalic => (0, ITALIC),
            Attr::CancelUnderline => (0, UNDERLINE),
            Attr::CancelBlink => (0, BLINK),
            Attr::CancelReverse => (0, REVERSE),
            Attr::CancelHidden => (0, HIDDEN),
            Attr::CancelStrike => (0, STRIKE),
        };
        self.flags = (self.flags | set) & !clear;
    }
}

/// What is in a place of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A character of one column.
    Narrow(char),
    /// One of two columns; the place to its right is [`Content::Tail`].
    Wide(char),
    /// The second column of the character to the left.
    Tail,
}

/// A place of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What is in it.
    pub content: Content,
    /// How it is drawn.
    pub pen: Pen,
}

impl Cell {
    /// Nothing, on a background.
    pub fn blank(background: Color) -> Self {
        Self { content: Content::Narrow(' '), pen: Pen { background, ..Pen::default() } }
    }

    /// True for what a cleared screen has.
    pub fn is_clear(&self) -> bool {
        *self == Self::blank(Color::Default)
    }
}

/// A line of the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// From the left. Rows of the scrollback have no clear cells at their end.
    pub cells: Vec<Cell>,
    /// The text goes on in the next row.
    pub wrapped: bool,
    /// What is combined with the character in a column.
    marks: Vec<(u16, char)>,
}

impl Row {
    /// An empty one.
    pub fn new(columns: usize, background: Color) -> Self {
        Self::of(columns, Cell::blank(background))
    }

    /// The same cell everywhere.
    pub fn of(columns: usize, cell: Cell) -> Self {
        Self { cells: vec![cell; columns], wrapped: false, marks: Vec::new() }
    }

    /// The row without what a cleared screen has anyway.
    pub fn trimmed(mut self) -> Self {
        let used = self.used();
        self.cells.truncate(used);
        self.cells.shrink_to_fit();
        self
    }

    /// Columns up to the last one that is not clear.
    pub fn used(&self) -> usize {
        let cells = self.cells.iter().rposition(|cell| !cell.is_clear()).map_or(0, |last| last + 1);
        let marks = self.marks.iter().map(|(at, _)| usize::from(*at) + 1).max().unwrap_or(0);
        cells.max(marks)
    }

    /// Puts a cell into a column, and takes away the other half of a wide character that was there.
    pub fn set(&mut self, column: usize, cell: Cell) {
        self.cut(column);
        self.cut(column + 1);
        self.marks.retain(|(at, _)| usize::from(*at) != column);
        if let Some(place) = self.cells.get_mut(column) {
            *place = cell;
        }
    }

    /// Puts a wide character into two columns.
    pub fn set_wide(&mut self, column: usize, character: char, pen: Pen) {
        self.set(column, Cell { content: Content::Narrow(' '), pen });
        self.set(column + 1, Cell { content: Content::Narrow(' '), pen });
        if let Some([head, tail]) = self.cells.get_mut(column..column + 2) {
            head.content = Content::Wide(character);
            tail.content = Content::Tail;
        }
    }

    /// Combines a mark with the character in a column.
    pub fn mark(&mut self, column: usize, mark: char) {
        if self.marks.len() < MARKS_MAX && column < self.cells.len() {
            self.marks.push((column as u16, mark));
        }
    }

    /// The marks of a column.
    pub fn marks(&self, column: usize) -> impl Iterator<Item = char> {
        self.marks.iter().filter(move |(at, _)| usize::from(*at) == column).map(|(_, mark)| *mark)
    }

    /// Clears columns.
    pub fn clear(&mut self, columns: std::ops::Range<usize>, background: Color) {
        let end = columns.end.min(self.cells.len());
        let start = columns.start.min(end);
        self.cut(start);
        self.cut(end);
        self.marks.retain(|(at, _)| !(start..end).contains(&usize::from(*at)));
        self.cells.get_mut(start..end).into_iter().flatten().for_each(|cell| *cell = Cell::blank(background));
        if end == self.cells.len() {
            self.wrapped = false;
        }
    }

    /// Moves what is at and after a column to the right; what leaves the row is lost.
    pub fn insert(&mut self, column: usize, count: usize, background: Color) {
        self.cut(column);
        let count = count.min(self.cells.len().saturating_sub(column));
        self.cut(self.cells.len() - count);
        self.marks.retain(|(at, _)| usize::from(*at) < column);
        if let Some(moved) = self.cells.get_mut(column..) {
            moved.rotate_right(count);
        }
        self.clear(column..column + count, background);
    }

    /// Takes columns out and moves what follows to the left.
    pub fn delete(&mut self, column: usize, count: usize, background: Color) {
        let length = self.cells.len();
        let count = count.min(length.saturating_sub(column));
        self.cut(column);
        self.cut(column + count);
        self.marks.retain(|(at, _)| usize::from(*at) < column);
        if let Some(moved) = self.cells.get_mut(column..) {
            moved.rotate_left(count);
        }
        self.clear(length - count..length, background);
    }

    /// Gives the row another width.
    pub fn resize(&mut self, columns: usize) {
        if columns < self.cells.len() {
            self.cut(columns);
            self.marks.retain(|(at, _)| usize::from(*at) < columns);
        }
        self.wrapped &= columns == self.cells.len();
        self.cells.resize(columns, Cell::blank(Color::Default));
    }

    /// Where a wide character lies across the left edge of a column, both its halves become blanks.
    fn cut(&mut self, column: usize) {
        if self.cells.get(column).is_none_or(|cell| cell.content != Content::Tail) {
            return;
        }
        self.marks.retain(|(at, _)| usize::from(*at) + 1 != column);
        for cell in self.cells.get_mut(column.saturating_sub(1)..=column).into_iter().flatten() {
            cell.content = Content::Narrow(' ');
        }
    }
}
