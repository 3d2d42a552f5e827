//! The serial console: a 16550 (vm-superio) whose output is the machine's [`ConsoleLog`]. It has no input.

use std::io;

use cove_protocol::vmm::DeviceStats;
use serde::{Deserialize, Serialize};
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

/// What a snapshot keeps of the port: its registers (without a FIFO's content: it has no input).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low and high byte.
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
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

    /// The port of a restored machine, whose output goes to a new `log`. The state may be anything: these are registers
    /// that the guest may write as it likes.
    ///
    /// # Errors
    /// When the interrupt that was due cannot be raised.
    pub fn restore(irq: EventFd, log: ConsoleLog, state: &SerialState) -> io::Result<Self> {
        let state = vm_superio::SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: Vec::new(),
        };
        match vm_superio::Serial::from_state(&state, Line(irq), NoEvents, log) {
            Ok(port) => Ok(Self { port, stats: DeviceStats::default() }),
            Err(vm_superio::serial::Error::Trigger(error) | vm_superio::serial::Error::IOError(error)) => Err(error),
            Err(vm_superio::serial::Error::FullFifo) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// What a snapshot keeps of it.
    pub fn state(&self) -> SerialState {
        let state = self.port.state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
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
