//! What a machine's process takes of the host, as the kernel counts it (proc(5)).
//!
//! The machine is not asked and does not wake up for it. Processor time is that of the whole vmm process: the guest's, and
//! what the machine's devices need. Memory is what the process has for itself alone: guest pages that were only read are
//! shared with all machines of the same snapshot and are not in it.

use std::fs;
use std::io;

use crate::db::MachineRow;

/// Microseconds in a second.
const SECOND_US: u64 = 1_000_000;

/// What one process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessFigures {
    /// Microseconds of processor time since it started.
    pub(crate) cpu_us: u64,
    /// Bytes of memory that it holds for itself alone.
    pub(crate) memory_bytes: u64,
}

/// Of a machine's process; `None` when it is gone.
pub(crate) fn figures(machine: &MachineRow) -> io::Result<Option<ProcessFigures>> {
    let read = |file: &str| match fs::read_to_string(format!("/proc/{}/{file}", machine.pid)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(stat), Some(status)) = (read("stat")?, read("status")?) else { return Ok(None) };
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let Some((start_ticks, cpu_ticks)) = parse_stat(&stat) else { return Ok(None) };
    if start_ticks != machine.start_ticks {
        return Ok(None);
    }
    Ok(Some(ProcessFigures { cpu_us: cpu_ticks * SECOND_US / ticks, memory_bytes: parse_memory(&status) }))
}

/// Start time and processor time in clock ticks: fields 22, and 14 and 15. The name in field 2 may hold anything, so fields
/// count from its last `)`.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(22)?, field(14)? + field(15)?))
}

/// Anonymous and shared anonymous memory, and what of it is swapped out.
fn parse_memory(status: &str) -> u64 {
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    (of("RssAnon") + of("RssShmem") + of("VmSwap")) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15 16 17 18 4711 20 21";
        assert_eq!(parse_stat(&format!("42 (a) b ( c) {rest}")), Some((4711, 300)));
        assert_eq!(parse_stat("42 (a"), None);
        assert_eq!(parse_stat("42 (a) S 1"), None);
    }

    #[test]
    fn memory_is_what_is_its_own() {
        let status =
            "Name:\tvmm\nVmRSS:\t 900 kB\nRssAnon:\t  100 kB\nRssFile:\t 790 kB\nRssShmem:\t 10 kB\nVmSwap:\t 5 kB\n";
        assert_eq!(parse_memory(status), 115 << 10);
        assert_eq!(parse_memory(""), 0);
    }

    #[test]
    fn another_process_of_the_same_number_has_no_figures() {
        let pid = std::process::id();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (start_ticks, _) = parse_stat(&stat).unwrap();
        let found = figures(&MachineRow { pid, start_ticks }).unwrap().unwrap();
        assert!(found.memory_bytes > 0);
        assert_eq!(figures(&MachineRow { pid, start_ticks: start_ticks + 1 }).unwrap(), None);
        assert_eq!(figures(&MachineRow { pid: u32::MAX, start_ticks }).unwrap(), None);
    }
}
