//! A disk as a chain of layer files through `imago`: the base first, the writable top last.
//!
//! The chain is what the machine's spec lists. A backing path inside a file is never followed, and an external data
//! file is refused. Each file is locked while it is open: shared below, exclusive for a writable top, so that no second
//! machine writes a layer that is in use.
//!
//! A finished write, discard or write-zeroes is wholly in the host's page cache, metadata included, so a killed vmm
//! loses none; [`Disk::flush`] makes it durable against a loss of power.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use cove_protocol::vmm::{DiskSpec, LayerFormat, LayerSpec};
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use rustix::fs::{FlockOperation, flock};
use vm_memory::VolatileSlice;

use super::refcounts::{self, RefcountError, Repair};
use super::{SECTOR_BYTES, format};

/// Longest chain; the engine flattens long before.
pub const LAYERS_MAX: usize = 32;

pub(super) type Image = FormatAccess<imago::file::File>;
type Qcow2Image = Qcow2<imago::file::File>;

/// Why a chain could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The list is empty or too long.
    #[error("A disk has 1 to {LAYERS_MAX} layers, not {0}")]
    Count(usize),
    /// A raw layer on top of another one.
    #[error("Layer {0:?} is raw, which only the base may be")]
    RawOnTop(PathBuf),
    /// The file cannot be opened.
    #[error("Cannot open layer {path:?}")]
    Open {
        /// The layer's file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not a file with bytes in it.
    #[error("Layer {0:?} is not a regular file")]
    NotAFile(PathBuf),
    /// Another process has it.
    #[error("Layer {0:?} is in use by another machine")]
    Locked(PathBuf),
    /// The layer's tables are damaged.
    #[error("Layer {path:?} cannot be written")]
    Refcounts {
        /// The layer's file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: RefcountError,
    },
    /// The data would be in a file that the spec does not name.
    #[error("Layer {0:?} keeps its data in another file")]
    ExternalData(PathBuf),
    /// A change of layers would leave out one that the disk has.
    #[error("A disk's new layers must begin with those that it has")]
    OtherChain,
    /// After a change of layers that failed, the disk cannot go on with its old ones.
    #[error("A disk lost its layers")]
    Lost(#[source] Box<LayerError>),
    /// The disk has no whole sector, or more than there may be.
    #[error("The disk of layer {path:?} has {size_bytes} bytes; 512 to {max} are possible", max = format::DISK_BYTES_MAX)]
    Size {
        /// The top layer's file.
        path: PathBuf,
        /// Its disk size.
        size_bytes: u64,
    },
}

/// An open chain of layers.
#[derive(Debug)]
pub struct Disk {
    /// `None` only while the layers change.
    image: Option<Image>,
    spec: DiskSpec,
    sectors: u64,
}

impl Disk {
    /// Opens the chain that `spec` lists, and sets the refcounts of a writable qcow2 top right.
    ///
    /// # Errors
    /// [`LayerError`] naming the layer.
    pub fn open(spec: &DiskSpec) -> Result<Self, LayerError> {
        let (Some((top, below)), true) = (spec.layers.split_last(), spec.layers.len() <= LAYERS_MAX) else {
            return Err(LayerError::Count(spec.layers.len()));
        };
        let mut image: Option<Image> = None;
        for layer in below {
            image = Some(open_layer(layer, image, false)?);
        }
        let image = open_layer(top, image, !spec.read_only)?;
        let size_bytes = image.size();
        if !(SECTOR_BYTES..=format::DISK_BYTES_MAX).contains(&size_bytes) {
            return Err(LayerError::Size { path: top.path.clone(), size_bytes });
        }
        Ok(Self { image: Some(image), spec: spec.clone(), sectors: size_bytes / SECTOR_BYTES })
    }

    /// Goes on with the chain that `spec` lists instead: the present layers, and maybe more on top of them. To be called
    /// at rest and flushed.
    ///
    /// # Errors
    /// [`LayerError`] when a layer cannot be used or the disk would be another; the disk is then as it was, unless its
    /// layers cannot be opened again either ([`LayerError::Lost`]).
    pub fn change(&mut self, spec: &DiskSpec) -> Result<(), LayerError> {
        if spec.read_only != self.spec.read_only || !spec.layers.starts_with(&self.spec.layers) {
            return Err(LayerError::OtherChain);
        }
        // The old top's lock is exclusive and must go before the same file can be a lower layer.
        self.image = None;
        match Self::open(spec) {
            Ok(changed) if changed.sectors == self.sectors => {
                *self = changed;
                Ok(())
            }
            changed => {
                let size_bytes = self.sectors * SECTOR_BYTES;
                let path = spec.layers.last().map(|layer| layer.path.clone()).unwrap_or_default();
                let error = changed.err().unwrap_or(LayerError::Size { path, size_bytes });
                let old = Self::open(&self.spec).map_err(|source| LayerError::Lost(Box::new(source)))?;
                *self = old;
                Err(error)
            }
        }
    }

    /// The disk's size in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The disk takes no writes.
    pub fn read_only(&self) -> bool {
        self.spec.read_only
    }

    /// Its layers.
    pub fn spec(&self) -> &DiskSpec {
        &self.spec
    }

    fn image_mut(&mut self) -> io::Result<&mut Image> {
        self.image.as_mut().ok_or_else(lost)
    }

    /// The open chain.
    fn image(&self) -> io::Result<&Image> {
        self.image.as_ref().ok_or_else(lost)
    }

    /// Fills `buffers` from byte `offset` on.
    ///
    /// # Errors
    /// The host's error.
    pub fn read(&self, buffers: &[VolatileSlice], offset: u64) -> io::Result<()> {
        let (vector, _mapped) = IoVectorMut::from_volatile_slice(buffers);
        self.image()?.readv(vector, offset)
    }

    /// Writes `buffers` at byte `offset`.
    ///
    /// # Errors
    /// The host's error; the range then holds old and new bytes.
    pub fn write(&mut self, buffers: &[VolatileSlice], offset: u64) -> io::Result<()> {
        let (vector, _mapped) = IoVector::from_volatile_slice(buffers);
        self.image()?.writev(vector, offset)?;
        self.image()?.flush()
    }

    /// Gives the range's whole clusters back to the host; they read as zeroes. The rest stays as it is.
    ///
    /// # Errors
    /// The host's error.
    pub fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.image_mut()?.discard_to_any(offset, bytes)?;
        self.image()?.flush()
    }

    /// Makes the range read as zeroes; with `unmap` its clusters are given back where that is possible.
    ///
    /// # Errors
    /// The host's error.
    pub fn write_zeroes(&mut self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        match unmap {
            true => self.image_mut()?.discard_to_zero(offset, bytes)?,
            false => self.image()?.write_zeroes(offset, bytes)?,
        }
        self.image()?.flush()
    }

    /// Makes all finished writes durable.
    ///
    /// # Errors
    /// The host's error; nothing can then be said about writes since the last flush.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.spec.read_only {
            return Ok(());
        }
        self.image()?.flush()?;
        self.image()?.sync()
    }
}

fn lost() -> io::Error {
    io::Error::other("the disk has lost its layers")
}

/// Sets the refcounts of the qcow2 layer at `path` right, as opening it for writing does.
///
/// # Errors
/// [`LayerError`] when it is in use, or damaged beyond its refcounts.
pub fn repair(path: &Path) -> Result<Repair, LayerError> {
    let file = open_locked(path, true)?;
    refcounts::repair(&file).map_err(|source| LayerError::Refcounts { path: path.to_owned(), source })
}

pub(super) fn open_layer(layer: &LayerSpec, backing: Option<Image>, write: bool) -> Result<Image, LayerError> {
    let path = &layer.path;
    let open = |source| LayerError::Open { path: path.clone(), source };
    let file = open_locked(path, write)?;
    if write && layer.format == LayerFormat::Qcow2 {
        let found = refcounts::repair(&file).map_err(|source| LayerError::Refcounts { path: path.clone(), source })?;
        if found != Repair::default() {
            tracing::warn!(?path, found.leaked, found.missing, "A layer's refcounts were set right");
        }
    }
    let options = StorageOpenOptions::new().filename(path).write(write);
    let storage = imago::file::File::from_open_file(file, options).map_err(open)?;
    match layer.format {
        LayerFormat::Raw if backing.is_some() => Err(LayerError::RawOnTop(path.clone())),
        LayerFormat::Raw => {
            let raw = Raw::builder(storage).write(write).open(DenyImplicitOpenGate::default());
            raw.map(FormatAccess::new).map_err(open)
        }
        LayerFormat::Qcow2 => {
            // Both set by us: the gate is never asked to open what the file names.
            let builder = Qcow2Image::builder(storage).write(write).backing(backing).data_file(None);
            let qcow2 = builder.open(DenyImplicitOpenGate::default()).map_err(open)?;
            if qcow2.requires_external_data_file() {
                return Err(LayerError::ExternalData(path.clone()));
            }
            Ok(FormatAccess::new(qcow2))
        }
    }
}

/// Opens the file and takes its lock, which ends with the descriptor.
fn open_locked(path: &Path, write: bool) -> Result<File, LayerError> {
    let open = |source| LayerError::Open { path: path.to_owned(), source };
    // Looked at before opening, since opening a pipe would wait; and again after, since it may have been swapped.
    let file = match std::fs::metadata(path).map_err(open)?.is_file() {
        true => OpenOptions::new().read(true).write(write).open(path).map_err(open)?,
        false => return Err(LayerError::NotAFile(path.to_owned())),
    };
    if !file.metadata().map_err(open)?.is_file() {
        return Err(LayerError::NotAFile(path.to_owned()));
    }
    let lock = if write { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    match flock(&file, lock) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LayerError::Locked(path.to_owned())),
        Err(error) => Err(open(error.into())),
    }
}
