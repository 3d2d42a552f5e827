//! What each control function does to the screen (ECMA-48, DEC STD 070, xterm's control sequences).

use unicode_width::UnicodeWidthChar;
use vte::ansi::{
    Attr, CharsetIndex, ClearMode, CursorShape, CursorStyle, Handler, LineClearMode, Mode, NamedMode, PrivateMode,
    StandardCharset, TabulationClearMode,
};

use super::{
    State, TITLE_BYTES_MAX,
    cell::{Cell, Color, Content, Row},
    grid::{Cursor, Grid},
    tabs,
};

impl State {
    fn cursor(&mut self) -> &mut Cursor {
        &mut self.grid_mut().cursor
    }

    /// Lines that the cursor can be moved to.
    fn bounds(&mut self) -> (usize, usize) {
        if self.cursor().origin { self.region } else { (0, self.rows) }
    }

    fn move_to(&mut self, line: usize, column: usize) {
        let (line, column) = (line.min(self.rows - 1), column.min(self.columns - 1));
        let cursor = self.cursor();
        (cursor.line, cursor.column, cursor.wraps) = (line, column, false);
    }

    /// To a line counted from the top of the bounds.
    fn go(&mut self, line: i32, column: usize) {
        let (top, bottom) = self.bounds();
        let line = top.saturating_add(usize::try_from(line).unwrap_or(0)).min(bottom - 1);
        self.move_to(line, column);
    }

    fn scroll_lines_up(&mut self, top: usize, count: usize) {
        let bottom = self.region.1;
        if self.on_alternate || top > 0 {
            self.grid_mut().scroll_up(top, bottom, count).for_each(drop);
        } else {
            let left: Vec<Row> = self.primary.scroll_up(top, bottom, count).collect();
            self.keep(left);
        }
    }

    fn in_region(&mut self) -> bool {
        let (top, bottom) = self.region;
        (top..bottom).contains(&self.cursor().line)
    }

    /// The column after the next tab stop, `count` times.
    fn tab_to(&mut self, count: u16, backward: bool) {
        let mut column = self.cursor().column;
        for _ in 0..usize::from(count).min(self.columns) {
            column = if backward {
                (0..column).rev().find(|at| self.tabs.get(*at) == Some(&true)).unwrap_or(0)
            } else {
                (column + 1..self.columns).find(|at| self.tabs.get(*at) == Some(&true)).unwrap_or(self.columns - 1)
            };
        }
        let line = self.cursor().line;
        self.move_to(line, column);
    }

    /// Begins the next line, because the last one is full.
    fn wrap(&mut self) {
        if let Some(row) = self.grid_mut().row() {
            row.wrapped = true;
        }
        self.linefeed();
        self.carriage_return();
    }

    fn show_alternate(&mut self, alternate: bool, clear: bool) {
        if self.on_alternate == alternate {
            return;
        }
        let cursor = *self.cursor();
        self.on_alternate = alternate;
        if alternate && clear {
            self.alternate = Grid::new(self.columns, self.rows);
        }
        *self.cursor() = cursor;
    }

    fn set_private(&mut self, mode: u16, on: bool) {
        match mode {
            1 => self.modes.application_cursor = on,
            6 => {
                self.cursor().origin = on;
                self.go(0, 0);
            }
            7 => self.modes.wrap = on,
            25 => self.modes.cursor_visible = on,
            47 | 1047 => self.show_alternate(on, mode == 1047),
            1000 | 1002 | 1003 => self.modes.mouse = on.then_some(mode),
            1004 => self.modes.focus = on,
            1005 => self.modes.utf8_mouse = on,
            1006 => self.modes.sgr_mouse = on,
            1007 => self.modes.alternate_scroll = on,
            1048 if on => self.save_cursor_position(),
            1048 => self.restore_cursor_position(),
            1049 if on && !self.on_alternate => {
                self.save_cursor_position();
                self.show_alternate(true, true);
            }
            1049 if !on && self.on_alternate => {
                self.show_alternate(false, false);
                self.restore_cursor_position();
            }
            2004 => self.modes.bracketed_paste = on,
            _ => {}
        }
    }

    fn set(&mut self, mode: Mode, on: bool) {
        match mode {
            Mode::Named(NamedMode::Insert) => self.modes.insert = on,
            Mode::Named(NamedMode::LineFeedNewLine) => self.modes.newline = on,
            Mode::Unknown(_) => {}
        }
    }
}

impl Handler for State {
    fn set_title(&mut self, title: Option<String>) {
        self.title = title.filter(|title| title.len() <= TITLE_BYTES_MAX && !title.contains(char::is_control));
    }

    fn set_cursor_style(&mut self, style: Option<CursorStyle>) {
        self.style = style;
    }

    fn set_cursor_shape(&mut self, shape: CursorShape) {
        self.style = Some(CursorStyle { shape, blinking: false });
    }

    fn input(&mut self, character: char) {
        let cursor = *self.cursor();
        let charset = cursor.charsets[usize::from(cursor.shifted)];
        let mut character = charset.map(character);
        let mut width = character.width().unwrap_or(0);
        if character.is_control() {
            return;
        }
        if width == 0 {
            let at = if cursor.wraps { cursor.column } else { cursor.column.saturating_sub(1) };
            if let Some(row) = self.grid_mut().row() {
                let is_tail = row.cells.get(at).is_some_and(|cell| cell.content == Content::Tail);
                row.mark(at - usize::from(is_tail && at > 0), character);
            }
            return;
        }
        if width > self.columns {
            (character, width) = (char::REPLACEMENT_CHARACTER, 1);
        }
        if cursor.wraps && self.modes.wrap {
            self.wrap();
        }
        if self.cursor().column + width > self.columns {
            if self.modes.wrap {
                self.wrap();
            } else {
                self.cursor().column = self.columns - width;
            }
        }
        let Cursor { column, pen, .. } = *self.cursor();
        let insert = self.modes.insert;
        if let Some(row) = self.grid_mut().row() {
            if insert {
                row.insert(column, width, pen.background);
            }
            match width {
                1 => row.set(column, Cell { content: Content::Narrow(character), pen }),
                _ => row.set_wide(column, character, pen),
            }
        }
        let columns = self.columns;
        let cursor = self.cursor();
        cursor.wraps = column + width >= columns;
        cursor.column = (column + width).min(columns - 1);
    }

    fn goto(&mut self, line: i32, column: usize) {
        self.go(line, column);
    }

    fn goto_line(&mut self, line: i32) {
        let column = self.cursor().column;
        self.go(line, column);
    }

    fn goto_col(&mut self, column: usize) {
        let line = self.cursor().line;
        self.move_to(line, column);
    }

    fn insert_blank(&mut self, count: usize) {
        let Cursor { column, pen, .. } = *self.cursor();
        self.cursor().wraps = false;
        if let Some(row) = self.grid_mut().row() {
            row.insert(column, count, pen.background);
        }
    }

    fn move_up(&mut self, count: usize) {
        let Cursor { line, column, .. } = *self.cursor();
        let top = if line >= self.region.0 { self.region.0 } else { 0 };
        self.move_to(line.saturating_sub(count).max(top), column);
    }

    fn move_down(&mut self, count: usize) {
        let Cursor { line, column, .. } = *self.cursor();
        let bottom = if line < self.region.1 { self.region.1 } else { self.rows };
        self.move_to(line.saturating_add(count).min(bottom - 1), column);
    }

    fn move_forward(&mut self, count: usize) {
        let Cursor { line, column, .. } = *self.cursor();
        self.move_to(line, column.saturating_add(count));
    }

    fn move_backward(&mut self, count: usize) {
        let Cursor { line, column, .. } = *self.cursor();
        self.move_to(line, column.saturating_sub(count));
    }

    fn move_down_and_cr(&mut self, count: usize) {
        self.move_down(count);
        self.carriage_return();
    }

    fn move_up_and_cr(&mut self, count: usize) {
        self.move_up(count);
        self.carriage_return();
    }

    fn put_tab(&mut self, count: u16) {
        self.tab_to(count, false);
    }

    fn backspace(&mut self) {
        self.move_backward(1);
    }

    fn carriage_return(&mut self) {
        let line = self.cursor().line;
        self.move_to(line, 0);
    }

    fn linefeed(&mut self) {
        let Cursor { line, column, .. } = *self.cursor();
        let column = if self.modes.newline { 0 } else { column };
        if line + 1 == self.region.1 {
            self.scroll_lines_up(self.region.0, 1);
            self.move_to(line, column);
        } else {
            self.move_to(line + 1, column);
        }
    }

    fn substitute(&mut self) {
        self.input(char::REPLACEMENT_CHARACTER);
    }

    fn set_horizontal_tabstop(&mut self) {
        let column = self.cursor().column;
        self.tabs.get_mut(column).into_iter().for_each(|stop| *stop = true);
    }

    fn scroll_up(&mut self, count: usize) {
        self.scroll_lines_up(self.region.0, count);
    }

    fn scroll_down(&mut self, count: usize) {
        let (top, bottom) = self.region;
        self.grid_mut().scroll_down(top, bottom, count);
    }

    fn insert_blank_lines(&mut self, count: usize) {
        if self.in_region() {
            let (line, bottom) = (self.cursor().line, self.region.1);
            self.grid_mut().scroll_down(line, bottom, count);
            self.carriage_return();
        }
    }

    fn delete_lines(&mut self, count: usize) {
        if self.in_region() {
            let (line, bottom) = (self.cursor().line, self.region.1);
            self.grid_mut().scroll_up(line, bottom, count).for_each(drop);
            self.carriage_return();
        }
    }

    fn erase_chars(&mut self, count: usize) {
        let Cursor { column, pen, .. } = *self.cursor();
        self.cursor().wraps = false;
        if let Some(row) = self.grid_mut().row() {
            row.clear(column..column.saturating_add(count), pen.background);
        }
    }

    fn delete_chars(&mut self, count: usize) {
        let Cursor { column, pen, .. } = *self.cursor();
        self.cursor().wraps = false;
        if let Some(row) = self.grid_mut().row() {
            row.delete(column, count, pen.background);
        }
    }

    fn move_backward_tabs(&mut self, count: u16) {
        self.tab_to(count, true);
    }

    fn move_forward_tabs(&mut self, count: u16) {
        self.tab_to(count, false);
    }

    fn save_cursor_position(&mut self) {
        let grid = self.grid_mut();
        grid.saved = grid.cursor;
    }

    fn restore_cursor_position(&mut self) {
        let saved = self.grid_mut().saved;
        let origin = self.is_relative(&saved);
        *self.cursor() = Cursor { origin, ..saved };
    }

    fn clear_line(&mut self, mode: LineClearMode) {
        let Cursor { column, pen, .. } = *self.cursor();
        let columns = match mode {
            LineClearMode::Right => column..usize::MAX,
            LineClearMode::Left => 0..column + 1,
            LineClearMode::All => 0..usize::MAX,
        };
        self.cursor().wraps = false;
        if let Some(row) = self.grid_mut().row() {
            row.clear(columns, pen.background);
        }
    }

    fn clear_screen(&mut self, mode: ClearMode) {
        let line = self.cursor().line;
        match mode {
            ClearMode::Below => {
                self.clear_line(LineClearMode::Right);
                self.grid_mut().clear_lines(line + 1..usize::MAX);
            }
            ClearMode::Above => {
                self.clear_line(LineClearMode::Left);
                self.grid_mut().clear_lines(0..line);
            }
            ClearMode::All => {
                self.cursor().wraps = false;
                self.grid_mut().clear_lines(0..usize::MAX);
            }
            ClearMode::Saved => self.scrollback.clear(),
        }
    }

    fn clear_tabs(&mut self, mode: TabulationClearMode) {
        let column = self.cursor().column;
        match mode {
            TabulationClearMode::Current => self.tabs.get_mut(column).into_iter().for_each(|stop| *stop = false),
            TabulationClearMode::All => self.tabs.fill(false),
        }
    }

    fn set_tabs(&mut self, _: u16) {
        self.tabs = tabs(self.columns);
    }

    fn reset_state(&mut self) {
        *self = Self { touched: true, ..Self::new(self.columns, self.rows) };
    }

    fn reverse_index(&mut self) {
        let Cursor { line, column, .. } = *self.cursor();
        if line == self.region.0 {
            self.scroll_down(1);
            self.move_to(line, column);
        } else {
            self.move_to(line.saturating_sub(1), column);
        }
    }

    fn terminal_attribute(&mut self, attribute: Attr) {
        self.cursor().pen.apply(attribute);
    }

    fn set_mode(&mut self, mode: Mode) {
        self.set(mode, true);
    }

    fn unset_mode(&mut self, mode: Mode) {
        self.set(mode, false);
    }

    fn set_private_mode(&mut self, mode: PrivateMode) {
        self.set_private(mode.raw(), true);
    }

    fn unset_private_mode(&mut self, mode: PrivateMode) {
        self.set_private(mode.raw(), false);
    }

    fn set_scrolling_region(&mut self, top: usize, bottom: Option<usize>) {
        let (top, bottom) = (top.saturating_sub(1), bottom.unwrap_or(self.rows).min(self.rows));
        // A region has two lines at least.
        if top + 1 < bottom {
            self.region = (top, bottom);
            self.go(0, 0);
        }
    }

    fn set_keypad_application_mode(&mut self) {
        self.modes.application_keypad = true;
    }

    fn unset_keypad_application_mode(&mut self) {
        self.modes.application_keypad = false;
    }

    fn set_active_charset(&mut self, index: CharsetIndex) {
        self.cursor().shifted = index == CharsetIndex::G1;
    }

    fn configure_charset(&mut self, index: CharsetIndex, charset: StandardCharset) {
        match index {
            CharsetIndex::G0 => self.cursor().charsets[0] = charset,
            CharsetIndex::G1 => self.cursor().charsets[1] = charset,
            CharsetIndex::G2 | CharsetIndex::G3 => {}
        }
    }

    fn decaln(&mut self) {
        let cell = Cell { content: Content::Narrow('E'), ..Cell::blank(Color::Default) };
        let (columns, rows) = (self.columns, self.rows);
        self.region = (0, rows);
        for row in &mut self.grid_mut().rows {
            *row = Row::of(columns, cell);
        }
        self.move_to(0, 0);
    }
}
