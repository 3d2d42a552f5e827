//! The power switch: one port with which the agent turns the machine off. The guest has no ACPI, which would do that
//! elsewhere.

use super::BusDevice;
use crate::machine::Ending;
use cove_protocol::vmm::ExitReason;

/// Its port.
pub const PORT: u64 = 0x600;
/// The value that powers off: sleep type 5 and sleep enable, as in ACPI's sleep control register (ACPI 6.5, 4.8.3.7).
const POWER_OFF: u8 = 0x34;

/// The switch.
pub struct Power {
    ending: Ending,
}

impl Power {
    /// A switch that ends the machine that `ending` belongs to.
    pub fn new(ending: Ending) -> Self {
        Self { ending }
    }
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [POWER_OFF] {
            self.ending.set(ExitReason::PowerOff);
        }
    }
}
