//! The machine the agent is PID 1 of: its name, its clock, what it says of itself.
//!
//! The other [`Host`] is [`Process`], for an agent that runs as one process among others (tests): it changes nothing
//! outside itself.

use cove_protocol::guest::{Configure, Reply};
use rustix::{
    system::{sethostname, uname},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};

use crate::{failure::Failure, server::Host};

/// Longest host name the kernel takes, in bytes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// A real machine.
#[derive(Debug)]
pub struct Machine {
    /// Microseconds from the kernel's start to readiness.
    pub boot_us: u64,
}

/// A process among others.
#[derive(Debug)]
pub struct Process {
    /// Microseconds from the kernel's start to readiness.
    pub boot_us: u64,
}

impl Host for Machine {
    fn configure(&mut self, configure: &Configure) -> Result<(), Failure> {
        check_hostname(&configure.hostname)?;
        sethostname(configure.hostname.as_bytes())
            .map_err(|error| Failure::io(format!("hostname: cannot set {:?}", configure.hostname), &error.into()))?;
        let clock = Timespec {
            tv_sec: (configure.clock_us / 1_000_000) as i64,
            tv_nsec: (configure.clock_us % 1_000_000 * 1000) as i64,
        };
        clock_settime(ClockId::Realtime, clock)
            .map_err(|error| Failure::io(format!("clock_us: cannot set {}", configure.clock_us), &error.into()))
    }

    fn hello(&self) -> Reply {
        hello(self.boot_us)
    }
}

impl Host for Process {
    fn configure(&mut self, configure: &Configure) -> Result<(), Failure> {
        check_hostname(&configure.hostname)
    }

    fn hello(&self) -> Reply {
        hello(self.boot_us)
    }
}

/// Microseconds since the kernel's start.
pub fn uptime_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

fn hello(boot_us: u64) -> Reply {
    let kernel = uname().release().to_string_lossy().into_owned();
    Reply::Hello { version: cove_protocol::VERSION, boot_us, kernel }
}

fn check_hostname(name: &str) -> Result<(), Failure> {
    let fine = !name.is_empty()
        && name.len() <= HOSTNAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if fine { Ok(()) } else { Err(Failure::request(format!("hostname: {name:?} is not a host name"))) }
}
