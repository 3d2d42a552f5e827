//! The keyboard controller's one part that a guest without a keyboard uses: the reset line (`reboot=k`).

use super::BusDevice;
use crate::machine::Ending;
use cove_protocol::vmm::ExitReason;

/// The command and status port.
pub const PORT: u64 = 0x64;
/// Pulses the processor's reset line.
const RESET: u8 = 0xfe;

/// The controller: always idle, and its reset line ends the machine.
pub struct I8042 {
    ending: Ending,
}

impl I8042 {
    /// A controller whose reset line ends the machine that `ending` belongs to.
    pub fn new(ending: Ending) -> Self {
        Self { ending }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Nothing to read, ready for a command.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [RESET] {
            self.ending.set(ExitReason::Reset);
        }
    }
}
