//! Words and tables for people.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Text that others chose, without what a terminal would obey.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() && char != '\t' { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}

/// A size in MiB, in GiB where that is a whole number.
pub fn mib(mib: u64) -> String {
    if mib > 0 && mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

/// Bytes in their largest unit, with one digit after the point.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// How long ago, in its largest unit.
pub fn age(at: &str, now: OffsetDateTime) -> String {
    let Ok(at) = OffsetDateTime::parse(at, &Rfc3339) else { return "?".to_owned() };
    let seconds = (now - at).whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// Rows of one width per column, the last column as wide as it is.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_use_their_largest_unit() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        let ago = |seconds| {
            let then = now - time::Duration::seconds(seconds);
            age(&then.format(&Rfc3339).unwrap(), now)
        };
        assert_eq!([ago(-5), ago(59), ago(60), ago(7200), ago(90_000)], ["0 s", "59 s", "1 min", "2 h", "1 d"]);
        assert_eq!(age("yesterday", now), "?");
        assert_eq!([mib(512), mib(2048), mib(0)], ["512 MiB", "2 GiB", "0 MiB"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "NAME"], ["1", "größe"], ["22", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "ID  NAME\n1   größe\n22\n");
    }

    #[test]
    fn a_terminal_is_not_told_what_to_do() {
        assert_eq!(printable("a\x1b[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }
}
