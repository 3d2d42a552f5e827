//! The model against itself: what a replay draws on an empty screen must be the screen that it was made of.

use proptest::prelude::*;

use super::*;

fn screen(columns: u16, rows: u16, output: &str) -> Screen {
    let mut screen = Screen::new(WindowSize { columns, rows });
    screen.process(output.as_bytes());
    screen
}

/// What must be equal after a replay.
fn seen(screen: &Screen) -> impl PartialEq + std::fmt::Debug + use<> {
    let state = &screen.state;
    let cells = |grid: &Grid| -> Vec<_> {
        let row = |row: &Row| {
            (row.cells.clone(), (0..state.columns).map(|at| row.marks(at).collect()).collect::<Vec<String>>())
        };
        grid.rows.iter().map(row).collect()
    };
    let grid = state.grid();
    let saved = |grid: &Grid| Cursor { origin: state.is_relative(&grid.saved), ..grid.saved };
    let under = state.on_alternate.then(|| (cells(&state.primary), saved(&state.primary)));
    (cells(grid), grid.cursor, saved(grid), under, state.region, state.modes, (state.title.clone(), state.style))
}

fn replayed(screen: &Screen) -> Screen {
    let state = &screen.state;
    let mut other = Screen::new(WindowSize { columns: state.columns as u16, rows: state.rows as u16 });
    // Whatever it showed before must not matter.
    other.process(b"old\x1b[?1049h\x1b[31;44molder\x1b[2;3r\x1b[?6h\x1b[4h\x1b(0\x1b[?7l\x1b[?1003h\x1b=");
    other.process(&screen.replay(true));
    other
}

fn check(columns: u16, rows: u16, output: &str) {
    let screen = screen(columns, rows, output);
    assert_eq!(seen(&screen), seen(&replayed(&screen)), "{output:?}");
}

#[test]
fn text_wraps_scrolls_and_is_kept_above() {
    let screen = screen(5, 2, "one\r\n1234567\r\nlast");
    assert_eq!(screen.text(), "67\nlast");
    assert_eq!(screen.state.scrollback.len(), 2);
    let again = replayed(&screen);
    assert_eq!(again.text(), "67\nlast");
    let lines = |screen: &Screen| screen.state.scrollback.iter().map(|row| row.used()).collect::<Vec<_>>();
    assert_eq!(lines(&again)[again.state.scrollback.len() - 2..], lines(&screen));
}

#[test]
fn a_full_screen_program_and_what_is_under_it_come_back() {
    check(
        20,
        4,
        "$ top\r\n\x1b[?1049h\x1b[2J\x1b[H\x1b[7mPID\x1b[m USER\x1b[3;1H\x1b[1;38;5;120mroot\x1b[m\x1b[?25l\x1b[?1h\x1b=",
    );
    check(20, 4, "under\x1b[?1049h\x1b[Hover\x1b[?1049lback");
    check(20, 4, "\x1b[?1049h\x1b[2;3r\x1b[?6h\x1b[2;4Hx");
}

#[test]
fn details_that_are_easily_lost_come_back() {
    for output in [
        "1234567890",
        "12345678\u{6f22}",
        "123456789\u{6f22}x",
        "e\u{301}\u{6f22}\u{301}",
        "\x1b(0lqk\x1b(B ascii \x0e",
        "\x1b)0\x0elq",
        "\x1b[44m\x1b[2J\x1b[3;3Hx",
        "\x1b[44mabc\x1b[K",
        "\x1b[1;2;3;4;5;7;8;9mall\x1b[22;24mless",
        "\x1b[38;2;1;2;3;48;5;200mx\x1b[91;102my",
        "\x1b[?2004h\x1b[?1006h\x1b[?1002h\x1b[?1004h\x1b[5 q\x1b]2;a title\x07",
        "\x1b[4habc\x1b[Hx",
        "\x1b[?7l12345678901234",
        "a\x1b7\x1b[31mbc",
        "one\r\ntwo\r\nthree\r\nfour\r\nfive\x1b[2;3r\x1b[3;1H\n\n",
        "1234567890\x1b[2;1H\x1b[K\x1b[3;1Hx",
    ] {
        check(10, 4, output);
    }
}

#[test]
fn a_fresh_screen_has_nothing_to_draw() {
    assert!(Screen::new(WindowSize::default()).replay(true).is_empty());
}

#[test]
fn a_smaller_screen_keeps_the_cursors_line() {
    let mut screen = screen(10, 4, "a\r\nb\r\nc\r\nd");
    screen.resize(WindowSize { columns: 4, rows: 2 });
    assert_eq!(screen.text(), "c\nd");
    screen.resize(WindowSize { columns: 12, rows: 5 });
    screen.process(b"!");
    assert_eq!(screen.text(), "c\nd!");
}

/// A piece of output as hostile programs write it.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![Just(0u32), Just(1), 0..40u32, Just(65_535), Just(99_999_999)];
    let csi =
        (any::<bool>(), proptest::collection::vec(number, 0..4), 0x40..0x7fu8).prop_map(|(private, numbers, end)| {
            let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
            let mut bytes = format!("\x1b[{}{}", if private { "?" } else { "" }, numbers.join(";")).into_bytes();
            // A repetition of tens of thousands of characters only takes time.
            bytes.push(if end == b'b' { b'B' } else { end });
            bytes
        });
    let modes = proptest::sample::select(vec![1, 6, 7, 25, 47, 1000, 1002, 1006, 1047, 1048, 1049, 2004]);
    let mode = (modes, any::<bool>())
        .prop_map(|(mode, on)| format!("\x1b[?{mode}{}", if on { 'h' } else { 'l' }).into_bytes());
    let text = proptest::sample::select(vec![
        "a",
        "word ",
        "1234567890",
        "\r\n",
        "\n",
        "\r",
        "\t",
        "\x08",
        "\u{6f22}",
        "\u{301}",
        "\u{1f468}\u{200d}\u{1f469}",
        "\x1b7",
        "\x1b8",
        "\x1bM",
        "\x1bD",
        "\x1bc",
        "\x1b(0",
        "\x1b(B",
        "\x0e",
        "\x0f",
        "\x1b#8",
        "\x1bH",
        "\x1b]2;t\x07",
    ]);
    prop_oneof![
        4 => text.prop_map(|text| text.as_bytes().to_vec()),
        4 => csi,
        2 => mode,
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn no_output_breaks_the_model_and_every_screen_comes_back(
        (columns, rows) in (1..24u16, 1..12u16),
        pieces in proptest::collection::vec((piece(), proptest::option::weighted(0.05, (1..24u16, 1..12u16))), 0..60),
    ) {
        let mut screen = Screen::new(WindowSize { columns, rows });
        for (piece, size) in &pieces {
            screen.process(piece);
            if let Some((columns, rows)) = *size {
                screen.resize(WindowSize { columns, rows });
            }
        }
        if screen.state.touched {
            prop_assert_eq!(seen(&screen), seen(&replayed(&screen)));
        }
    }
}
