//! The serial console: a 16550 (vm-superio) whose output is the machine's [`ConsoleLog`]. It has no input.

use std::io;

use cove_protocol::vmm::DeviceStats;
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use super::BusDevice;
use super::console::ConsoleLog;

/// First port of the first serial port.
pub const PORT: u64 = 0x3f8;
/// Ports it answers.
pub const PORTS: u64 = 8;

/// The interrupt line, as an eventfd that the VM holds as irqfd.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port.
pub struct Serial {
    port: vm_superio::Serial<Line, NoEvents, ConsoleLog>,
    stats: DeviceStats,
}

impl Serial {
    /// A port that writes to `log` and raises `irq`.
    pub fn new(irq: EventFd, log: ConsoleLog) -> Self {
        Self { port: vm_superio::Serial::new(Line(irq), log), stats: DeviceStats::default() }
    }

    /// The newest `bytes_max` bytes that the guest wrote.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn tail(&mut self, bytes_max: usize) -> io::Result<Vec<u8>> {
        self.port.writer_mut().tail(bytes_max)
    }

    /// Figures since the machine's start.
    pub fn stats(&self) -> DeviceStats {
        self.stats
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match data {
            [byte] => *byte = self.port.read(offset as u8),
            _ => self.stats.errors += 1,
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [byte] = data else {
            self.stats.errors += 1;
            return;
        };
        if offset == 0 {
            self.stats.write_bytes += 1;
            self.stats.requests += 1;
        }
        if let Err(error) = self.port.write(offset as u8, *byte) {
            // A full disk loses console output, and no more than that.
            self.stats.errors += 1;
            tracing::debug!(?error, "The console's output is lost");
        }
    }
}
