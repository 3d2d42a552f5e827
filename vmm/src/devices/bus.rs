//! From an address to the device that answers there. One bus for ports, one for memory; made once, then shared by all
//! vCPU threads.

use std::sync::{Arc, Mutex, PoisonError};

use super::BusDevice;

/// What a read gives where nothing answers: all ones, as an idle ISA bus.
const NOTHING: u8 = 0xff;

/// A range cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("The range {start:#x} to {end:#x} of {name} is empty or overlaps another device's")]
pub struct OverlapError {
    start: u64,
    end: u64,
    name: &'static str,
}

struct Range {
    start: u64,
    end: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Address ranges and their devices.
#[derive(Default)]
pub struct Bus {
    /// In the order of their addresses.
    ranges: Vec<Range>,
}

impl Bus {
    /// Lets `device`, called `name` in errors, answer `bytes` addresses from `start`.
    ///
    /// # Errors
    /// When another device answers there.
    pub fn insert(
        &mut self,
        name: &'static str,
        start: u64,
        bytes: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), OverlapError> {
        let end = start.saturating_add(bytes);
        let at = self.ranges.partition_point(|range| range.start < start);
        let before = at.checked_sub(1).is_some_and(|index| self.ranges[index].end > start);
        let after = self.ranges.get(at).is_some_and(|range| range.start < end);
        if start >= end || before || after {
            return Err(OverlapError { start, end, name });
        }
        self.ranges.insert(at, Range { start, end, device });
        Ok(())
    }

    /// The guest reads at `address`; where nothing answers it gets all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(NOTHING);
        if let Some(range) = self.find(address, data.len()) {
            range.device.lock().unwrap_or_else(PoisonError::into_inner).read(address - range.start, data);
        }
    }

    /// The guest writes at `address`; where nothing answers that is ignored.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some(range) = self.find(address, data.len()) {
            range.device.lock().unwrap_or_else(PoisonError::into_inner).write(address - range.start, data);
        }
    }

    /// The range that holds all `bytes` addresses.
    fn find(&self, address: u64, bytes: usize) -> Option<&Range> {
        let at = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(at.checked_sub(1)?)?;
        (address.checked_add(bytes as u64)? <= range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u64);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 as u8 + offset as u8);
        }

        fn write(&mut self, offset: u64, _data: &[u8]) {
            self.0 = offset;
        }
    }

    fn echo(value: u64) -> Arc<Mutex<dyn BusDevice>> {
        Arc::new(Mutex::new(Echo(value)))
    }

    #[test]
    fn overlap_is_refused_on_either_side() {
        let mut bus = Bus::default();
        bus.insert("a", 0x10, 8, echo(0)).unwrap();
        bus.insert("b", 0x18, 8, echo(0)).unwrap();
        for (start, bytes) in [(0x10, 1), (0x08, 9), (0x17, 1), (0, 0x100), (0x40, 0)] {
            assert!(bus.insert("c", start, bytes, echo(0)).is_err(), "{start:#x}");
        }
    }

    #[test]
    fn an_access_finds_its_device_or_nothing() {
        let mut bus = Bus::default();
        bus.insert("a", 0x10, 8, echo(0)).unwrap();
        let read = |address, bytes| {
            let mut data = vec![0; bytes];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x12, 2), [2, 2]);
        assert_eq!(read(0x18, 1), [0xff]);
        assert_eq!(read(0x17, 2), [0xff, 0xff]);
        assert_eq!(read(u64::MAX, 8), [0xff; 8]);
        bus.write(0x13, &[0]);
        assert_eq!(read(0x10, 1), [3]);
    }
}
