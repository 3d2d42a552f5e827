//! `/run/cove/generation`: how many restores led to this machine, for programs that care.
//!
//! Its content changes in one step, so that it can be read at any time and its directory watched. It is written after each
//! restore, while somebody waits: so two files are kept open and change places, which takes a quarter of what a new file
//! takes. Called by `machine`.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};

const NAME: &str = "generation";

/// The file it changes places with; it holds what was true before.
const SPARE: &str = ".generation.last";

/// The directory in a machine.
pub const DIRECTORY: &str = "/run/cove";

/// The two files.
#[derive(Debug)]
pub struct Generation {
    directory: OwnedFd,
    spare: File,
    current: File,
}

impl Generation {
    /// Opens both, and makes what is missing.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let file = |name: &str| OpenOptions::new().write(true).create(true).truncate(false).open(directory.join(name));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self { spare: file(SPARE)?, current: file(NAME)?, directory: openat(CWD, directory, flags, Mode::empty())? })
    }

    /// Sets the number.
    ///
    /// # Errors
    /// Somebody took a file away: open them again.
    pub fn set(&mut self, generation: u64) -> io::Result<()> {
        let text = format!("{generation}\n");
        self.spare.set_len(text.len() as u64)?;
        self.spare.write_all_at(text.as_bytes(), 0)?;
        renameat_with(&self.directory, SPARE, &self.directory, NAME, RenameFlags::EXCHANGE)?;
        std::mem::swap(&mut self.spare, &mut self.current);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_number_is_in_the_file_whatever_was_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), "of another program, and longer").unwrap();
        let mut generation = Generation::open(folder.path()).unwrap();
        for number in [10, 9, 11] {
            generation.set(number).unwrap();
            assert_eq!(fs::read_to_string(folder.path().join(NAME)).unwrap(), format!("{number}\n"));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_taken_away_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut generation = Generation::open(folder.path()).unwrap();
        fs::remove_file(folder.path().join(NAME)).unwrap();
        assert!(generation.set(1).is_err());
        Generation::open(folder.path()).unwrap().set(2).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join(NAME)).unwrap(), "2\n");
    }
}
