//! Puts a Linux kernel, its command line and its boot parameters into guest memory (Linux, Documentation/arch/x86/boot.rst,
//! 64-bit boot protocol). The kernel's file comes from the engine, so it is trusted to be the one that was meant, but
//! not to be well formed.

use std::fs::File;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::{CMDLINE_BYTES_MAX, CMDLINE_START, GAP_END, HIGH_MEMORY_START, MPTABLE_START, ZERO_PAGE_START};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const E820_RAM: u32 = 1;
const HDR_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// "Undefined" loader type.
const LOADER_TYPE: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
/// The 64-bit entry of a bzImage, from its load address.
const BZIMAGE_ENTRY_64: u64 = 0x200;
const XLF_KERNEL_64: u16 = 1;

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("Cannot read the kernel {}", path.display())]
    Read {
        /// The kernel's file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Neither a 64-bit ELF nor a bzImage, or one that does not fit.
    #[error("The kernel {} is not a 64-bit ELF vmlinux or bzImage that fits into the guest's memory", path.display())]
    Format {
        /// The kernel's file.
        path: PathBuf,
        /// What the loader says.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// A bzImage without a 64-bit entry.
    #[error("The kernel {} has no 64-bit entry", path.display())]
    Not64Bit {
        /// The kernel's file.
        path: PathBuf,
    },
    /// The command line is too long.
    #[error("The kernel command line has {bytes} bytes, {max} are allowed", max = CMDLINE_BYTES_MAX - 1)]
    CommandLine {
        /// Its length without the final zero.
        bytes: usize,
    },
    /// Guest memory is smaller than the boot data needs.
    #[error("Cannot write the boot data into the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Loads `path` with `command_line` and returns the guest address of the first instruction.
///
/// # Errors
/// See [`KernelError`].
pub fn load(memory: &GuestMemoryMmap, path: &Path, command_line: &str) -> Result<u64, KernelError> {
    let (image, entry) = load_image(memory, path)?;
    write_command_line(memory, command_line)?;
    let mut parameters = boot_params { hdr: image.setup_header.unwrap_or_default(), ..Default::default() };
    let header = &mut parameters.hdr;
    if image.setup_header.is_none() {
        header.boot_flag = BOOT_FLAG;
        header.header = HDR_MAGIC;
        header.kernel_alignment = KERNEL_ALIGNMENT;
    }
    header.type_of_loader = LOADER_TYPE;
    header.cmd_line_ptr = CMDLINE_START as u32;
    header.cmdline_size = command_line.len() as u32 + 1;
    for (slot, entry) in parameters.e820_table.iter_mut().zip(e820(memory)) {
        *slot = entry;
        parameters.e820_entries += 1;
    }
    memory.write_obj(parameters, GuestAddress(ZERO_PAGE_START))?;
    Ok(entry)
}

fn load_image(memory: &GuestMemoryMmap, path: &Path) -> Result<(KernelLoaderResult, u64), KernelError> {
    let read = |source| KernelError::Read { path: path.into(), source };
    let format = |source| KernelError::Format { path: path.into(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut magic = [0; 4];
    std::io::Read::read_exact(&mut file, &mut magic).map_err(read)?;
    let lowest = Some(GuestAddress(HIGH_MEMORY_START));
    if magic == ELF_MAGIC {
        let image = Elf::load(memory, None, &mut file, lowest).map_err(format)?;
        return Ok((image, image.kernel_load.0));
    }
    let image = BzImage::load(memory, None, &mut file, lowest).map_err(format)?;
    if image.setup_header.is_none_or(|header| header.xloadflags & XLF_KERNEL_64 == 0) {
        return Err(KernelError::Not64Bit { path: path.into() });
    }
    Ok((image, image.kernel_load.0 + BZIMAGE_ENTRY_64))
}

fn write_command_line(memory: &GuestMemoryMmap, command_line: &str) -> Result<(), KernelError> {
    if command_line.len() >= CMDLINE_BYTES_MAX {
        return Err(KernelError::CommandLine { bytes: command_line.len() });
    }
    memory.write_slice(command_line.as_bytes(), GuestAddress(CMDLINE_START))?;
    memory.write_slice(&[0], GuestAddress(CMDLINE_START + command_line.len() as u64))?;
    Ok(())
}

/// The memory map: base memory up to the MP table, then all beyond the legacy hole.
fn e820(memory: &GuestMemoryMmap) -> Vec<boot_e820_entry> {
    let ram = |start: u64, end: u64| boot_e820_entry { addr: start, size: end - start, r#type: E820_RAM };
    let mut entries = vec![ram(0, MPTABLE_START)];
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        entries.push(ram(if start < GAP_END { HIGH_MEMORY_START } else { start }, end));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 4096]).unwrap();
        let error = load(&memory(), file.path(), "").unwrap_err();
        assert!(matches!(error, KernelError::Format { .. }), "{error:?}");
        assert!(error.to_string().contains(&file.path().display().to_string()));
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        assert!(write_command_line(&memory(), &"x".repeat(CMDLINE_BYTES_MAX - 1)).is_ok());
        let error = write_command_line(&memory(), &"x".repeat(CMDLINE_BYTES_MAX)).unwrap_err();
        assert_eq!(error.to_string(), "The kernel command line has 2048 bytes, 2047 are allowed");
    }

    #[test]
    fn the_memory_map_leaves_the_legacy_hole_and_the_gap_out() {
        let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(GAP_END), 1 << 20)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let map: Vec<_> = e820(&memory).iter().map(|e| ({ e.addr }, { e.size })).collect();
        assert_eq!(map, [(0, 0x9_fc00), (0x10_0000, 1 << 20), (GAP_END, 1 << 20)]);
    }
}
