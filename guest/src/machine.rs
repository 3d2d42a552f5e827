//! The machine the agent is PID 1 of: its name, its clock, what it says of itself.
//!
//! The other [`Host`] is [`Process`], for an agent that runs as one process among others (tests): it changes nothing
//! outside itself.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use cove_protocol::guest::{Configure, Reply};
use rustix::{
    system::{sethostname, uname},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};

use crate::{
    entropy::{self, ENTROPY_BYTES_MAX},
    failure::Failure,
    generation::{self, Generation},
    server::Host,
};

/// Longest host name the kernel takes, in bytes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// Digits of a machine id (machine-id(5)).
const MACHINE_ID_DIGITS: usize = 32;

/// Where programs look for the machine's id.
const MACHINE_ID: &str = "/etc/machine-id";

/// A real machine.
#[derive(Debug)]
pub struct Machine {
    boot_us: u64,
    /// Kept open from the first use on, as `random` is: it is for while somebody waits.
    generation: Option<Generation>,
    random: Option<File>,
}

impl Machine {
    /// The machine, `boot_us` microseconds after its kernel's start.
    pub fn new(boot_us: u64) -> Self {
        Self { boot_us, generation: None, random: None }
    }

    fn add_entropy(&mut self, bytes: &[u8]) -> io::Result<()> {
        let device = match self.random.take() {
            Some(device) => device,
            None => File::open(entropy::DEVICE)?,
        };
        entropy::add(self.random.insert(device), bytes)
    }

    fn set_generation(&mut self, number: u64) -> io::Result<()> {
        if let Some(generation) = &mut self.generation
            && generation.set(number).is_ok()
        {
            return Ok(());
        }
        self.generation.insert(Generation::open(Path::new(generation::DIRECTORY))?).set(number)
    }
}

/// A process among others.
#[derive(Debug)]
pub struct Process {
    /// Microseconds from the kernel's start to readiness.
    pub boot_us: u64,
    /// A broken stream is taken for a restore, as in a machine. A unix socket breaks when its peer leaves bytes unread.
    pub resets: bool,
}

impl Host for Machine {
    fn configure(&mut self, configure: &Configure) -> Result<(), Failure> {
        check(configure)?;
        set_clock(configure.clock_us)?;
        if !configure.entropy.is_empty() {
            self.add_entropy(&configure.entropy).map_err(failed("entropy: cannot add it"))?;
        }
        if !configure.machine_id.is_empty() {
            write_machine_id(&configure.machine_id).map_err(failed("machine_id: cannot write /etc/machine-id"))?;
        }
        sethostname(configure.hostname.as_bytes())
            .map_err(|error| Failure::io(format!("hostname: cannot set {:?}", configure.hostname), &error.into()))?;
        self.set_generation(configure.generation).map_err(failed("generation: cannot write /run/cove/generation"))
    }

    fn set_clock(&mut self, clock_us: u64) -> Result<(), Failure> {
        set_clock(clock_us)
    }

    fn hello(&self) -> Reply {
        hello(self.boot_us)
    }

    fn restores_reset_streams(&self) -> bool {
        true
    }
}

impl Host for Process {
    fn configure(&mut self, configure: &Configure) -> Result<(), Failure> {
        check(configure)
    }

    fn set_clock(&mut self, _clock_us: u64) -> Result<(), Failure> {
        Ok(())
    }

    fn hello(&self) -> Reply {
        hello(self.boot_us)
    }

    fn restores_reset_streams(&self) -> bool {
        self.resets
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

/// Refuses a request with a wrong field before any of it is done.
fn check(configure: &Configure) -> Result<(), Failure> {
    let name = &configure.hostname;
    let fine = !name.is_empty()
        && name.len() <= HOSTNAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !fine {
        return Err(Failure::request(format!("hostname: {name:?} is not a host name")));
    }
    let bytes = configure.entropy.len();
    if bytes > ENTROPY_BYTES_MAX {
        return Err(Failure::request(format!("entropy: {bytes} bytes are more than {ENTROPY_BYTES_MAX}")));
    }
    let id = &configure.machine_id;
    let digits = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !(id.is_empty() || id.len() == MACHINE_ID_DIGITS && digits) {
        return Err(Failure::request(format!("machine_id: {id:?} is not {MACHINE_ID_DIGITS} hexadecimal digits")));
    }
    Ok(())
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::io(what.into(), &error)
}

fn set_clock(clock_us: u64) -> Result<(), Failure> {
    let clock = Timespec { tv_sec: (clock_us / 1_000_000) as i64, tv_nsec: (clock_us % 1_000_000 * 1000) as i64 };
    clock_settime(ClockId::Realtime, clock)
        .map_err(|error| Failure::io(format!("clock_us: cannot set {clock_us}"), &error.into()))
}

/// Writes over the old id in its place, which is a page in memory and no work for the disk; every id has the same length.
fn write_machine_id(id: &str) -> io::Result<()> {
    let line = format!("{id}\n");
    let there = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(MACHINE_ID);
    if let Ok(file) = there
        && file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == line.len() as u64)
    {
        return file.write_all_at(line.as_bytes(), 0);
    }
    replace(MACHINE_ID, &line, 0o444)
}

/// Puts a new file at `path` in one step.
fn replace(path: &str, text: &str, mode: u32) -> io::Result<()> {
    let new = format!("{path}.new");
    let write = |file: io::Result<File>| file?.write_all_at(text.as_bytes(), 0);
    write(OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new))?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configure() -> Configure {
        Configure { hostname: "a".into(), machine_id: "0123456789abcdef0123456789abcdef".into(), ..Default::default() }
    }

    #[test]
    fn a_wrong_field_is_named() {
        assert_eq!(check(&configure()), Ok(()));
        assert_eq!(check(&Configure { machine_id: String::new(), ..configure() }), Ok(()));
        let wrong = [
            ("hostname", Configure { hostname: "a b".into(), ..configure() }),
            ("entropy", Configure { entropy: vec![0; ENTROPY_BYTES_MAX + 1].into(), ..configure() }),
            ("machine_id", Configure { machine_id: "0123".into(), ..configure() }),
            ("machine_id", Configure { machine_id: "0123456789ABCDEF0123456789abcdef".into(), ..configure() }),
        ];
        for (field, configure) in wrong {
            let failure = check(&configure).unwrap_err();
            assert!(failure.message.starts_with(field), "{failure}");
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine-id").to_str().unwrap().to_owned();
        for text in ["10\n", "9\n"] {
            replace(&path, text, 0o644).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
