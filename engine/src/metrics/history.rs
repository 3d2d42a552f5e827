//! Figures of one sandbox over time: the last hour closely, the last day by the minute. Pure.
//!
//! A sandbox has samples for the time in which its machine ran; what lies between is a hole and not a zero. The history is
//! in memory only: a new server begins anew.

use std::collections::VecDeque;

use super::process::ProcessFigures;
use crate::db::MachineRow;

/// Seconds between two samples.
pub(crate) const SAMPLE_EVERY_SEC: u64 = 5;

/// Samples that are kept: an hour of them.
const FINE_MAX: usize = 720;

/// Samples that become one sample of the longer history.
const FINE_PER_COARSE: u32 = 12;

/// Samples of the longer history that are kept: a day of them.
const COARSE_MAX: usize = 1440;

/// One sandbox at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Percent of one processor since the sample before: 100 for one that is busy, 200 for two.
    pub cpu_percent: f32,
    /// Bytes of memory that the host holds for this sandbox alone.
    pub memory_bytes: u64,
    /// Bytes that the sandbox's own layer takes on the host's disk: what it wrote since its last snapshot or fork.
    pub disk_bytes: Option<u64>,
}

/// Processor time of all processes that ran a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTotal {
    /// Of those before the latest, in microseconds.
    pub(crate) ended_us: u64,
    /// The latest process.
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
    /// Its own, in microseconds, as last seen.
    pub(crate) latest_us: u64,
}

impl CpuTotal {
    /// Takes what a process has used by now.
    pub(crate) fn see(&mut self, machine: &MachineRow, cpu_us: u64) {
        if (self.pid, self.start_ticks) != (machine.pid, machine.start_ticks) {
            self.ended_us = self.ended_us.saturating_add(self.latest_us);
            (self.pid, self.start_ticks, self.latest_us) = (machine.pid, machine.start_ticks, 0);
        }
        self.latest_us = self.latest_us.max(cpu_us);
    }

    /// Of all of them, in microseconds.
    pub(crate) fn us(&self) -> u64 {
        self.ended_us.saturating_add(self.latest_us)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct History {
    fine: VecDeque<Sample>,
    coarse: VecDeque<Sample>,
    /// The process of the last sample, when it was taken, and its processor time then.
    last: Option<(MachineRow, i64, u64)>,
    /// Samples since the last coarse one, and the sum of their percentages.
    gathered: (u32, f32),
}

impl History {
    /// Takes figures of the machine that runs now.
    pub(crate) fn add(&mut self, at_ms: i64, machine: MachineRow, figures: ProcessFigures, disk_bytes: Option<u64>) {
        let before = self.last.replace((machine, at_ms, figures.cpu_us));
        // Without a sample before it there is nothing to compare with.
        let Some((_, then_ms, then_us)) = before.filter(|(of, ..)| *of == machine) else { return };
        let span_us = u64::try_from(at_ms - then_ms).unwrap_or(0).saturating_mul(1000).max(1);
        let cpu_percent = figures.cpu_us.saturating_sub(then_us) as f32 * 100.0 / span_us as f32;
        let sample = Sample { at_ms, cpu_percent, memory_bytes: figures.memory_bytes, disk_bytes };
        push(&mut self.fine, sample, FINE_MAX);
        self.gathered = (self.gathered.0 + 1, self.gathered.1 + cpu_percent);
        if self.gathered.0 == FINE_PER_COARSE {
            let cpu_percent = self.gathered.1 / FINE_PER_COARSE as f32;
            push(&mut self.coarse, Sample { cpu_percent, ..sample }, COARSE_MAX);
            self.gathered = (0, 0.0);
        }
    }

    /// The newest sample.
    pub(crate) fn newest(&self) -> Option<Sample> {
        self.fine.back().copied()
    }

    /// The samples from `since_ms` on, and the seconds between two of them.
    pub(crate) fn since(&self, since_ms: i64, now_ms: i64) -> (Vec<Sample>, u64) {
        let hour_ms = (FINE_MAX as i64) * (SAMPLE_EVERY_SEC as i64) * 1000;
        let (samples, every_sec) = if now_ms - since_ms <= hour_ms {
            (&self.fine, SAMPLE_EVERY_SEC)
        } else {
            (&self.coarse, SAMPLE_EVERY_SEC * u64::from(FINE_PER_COARSE))
        };
        (samples.iter().filter(|sample| sample.at_ms >= since_ms).copied().collect(), every_sec)
    }
}

fn push(samples: &mut VecDeque<Sample>, sample: Sample, max: usize) {
    if samples.len() == max {
        samples.pop_front();
    }
    samples.push_back(sample);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: MachineRow = MachineRow { pid: 7, start_ticks: 1 };

    fn figures(cpu_us: u64) -> ProcessFigures {
        ProcessFigures { cpu_us, memory_bytes: 1 << 20 }
    }

    #[test]
    fn a_busy_processor_is_a_hundred_percent() {
        let mut history = History::default();
        history.add(0, MACHINE, figures(1_000_000), None);
        assert_eq!(history.newest(), None, "nothing to compare with");
        history.add(5000, MACHINE, figures(6_000_000), Some(9));
        history.add(10_000, MACHINE, figures(8_500_000), Some(9));
        let percents: Vec<f32> = history.since(0, 10_000).0.iter().map(|sample| sample.cpu_percent).collect();
        assert_eq!(percents, [100.0, 50.0]);
        // A new process counts from its own start.
        history.add(15_000, MachineRow { pid: 8, ..MACHINE }, figures(10), None);
        assert_eq!(history.newest().unwrap().at_ms, 10_000);
    }

    #[test]
    fn an_hour_is_kept_closely_and_a_day_by_the_minute() {
        let mut history = History::default();
        let ticks = 25 * 3600 / SAMPLE_EVERY_SEC;
        for tick in 0..ticks {
            history.add((tick * SAMPLE_EVERY_SEC * 1000) as i64, MACHINE, figures(tick * 1_000_000), None);
        }
        let now = ((ticks - 1) * SAMPLE_EVERY_SEC * 1000) as i64;
        let (fine, every) = history.since(now - 3_600_000, now);
        assert_eq!((fine.len(), every), (FINE_MAX, 5));
        let (coarse, every) = history.since(now - 86_400_000, now);
        assert!((1439..=1440).contains(&coarse.len()) && every == 60, "{}", coarse.len());
        assert!(coarse.iter().all(|sample| (sample.cpu_percent - 20.0).abs() < 0.01));
        assert_eq!(history.since(now - 60_000, now).0.len(), 13);
    }

    #[test]
    fn processor_time_is_counted_once_through_new_processes_and_servers() {
        let mut total = CpuTotal::default();
        total.see(&MACHINE, 100);
        total.see(&MACHINE, 250);
        assert_eq!(total.us(), 250);
        // A new server saw an older figure.
        total.see(&MACHINE, 240);
        assert_eq!(total.us(), 250);
        total.see(&MachineRow { pid: 9, start_ticks: 5 }, 30);
        total.see(&MachineRow { pid: 9, start_ticks: 5 }, 40);
        assert_eq!(total.us(), 290);
    }
}
