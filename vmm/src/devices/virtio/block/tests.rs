//! The block device against a model, a hostile driver, `qemu-img` and `kill -9`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use cove_protocol::vmm::{DiskSpec, LayerFormat, LayerSpec};
use proptest::prelude::*;
use tempfile::TempDir;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

use super::format::{self, Backing, CLUSTER_BITS};
use super::layers::{self, Disk, LayerError};
use super::request::{Limits, Parts, Request, RequestError};
use super::{Block, SECTOR_BYTES};
use crate::devices::BusDevice;
use crate::devices::virtio::mock::{Buffer, DEADLINE, INDIRECT, MEMORY_END, MockDriver, NEXT, WRITE};

mod crash;
mod device;
mod model;
mod requests;

const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// A folder with layer files in it.
struct Layers {
    folder: TempDir,
    list: Vec<LayerSpec>,
}

impl Layers {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), list: Vec::new() }
    }

    /// A raw base with these bytes.
    fn raw(mut self, bytes: &[u8]) -> Self {
        let path = self.folder.path().join("base.raw");
        std::fs::write(&path, bytes).unwrap();
        self.list.push(LayerSpec { path, format: LayerFormat::Raw });
        self
    }

    /// One more qcow2 layer on top.
    fn qcow2(mut self, size_bytes: u64) -> Self {
        let path = self.folder.path().join(format!("layer{}.qcow2", self.list.len()));
        let backing = self.list.last().map(|below| Backing { path: below.path.clone(), format: below.format });
        format::create(&path, size_bytes, backing.as_ref()).unwrap();
        self.list.push(LayerSpec { path, format: LayerFormat::Qcow2 });
        self
    }

    fn spec(&self, read_only: bool) -> DiskSpec {
        DiskSpec { layers: self.list.clone(), read_only }
    }

    fn open(&self) -> Disk {
        // Another test's child has our descriptors, and so our locks, from its fork to its exec.
        let deadline = Instant::now() + DEADLINE;
        loop {
            match Disk::open(&self.spec(false)) {
                Err(LayerError::Locked(_)) if Instant::now() < deadline => std::thread::yield_now(),
                disk => return disk.unwrap(),
            }
        }
    }

    fn top(&self) -> &Path {
        &self.list.last().unwrap().path
    }

    /// `qemu-img check` finds nothing at all in any layer.
    fn assert_clean(&self) {
        for layer in self.list.iter().filter(|layer| layer.format == LayerFormat::Qcow2) {
            let (code, text) = qemu_img(&["check", "-f", "qcow2"], &layer.path);
            assert_eq!(code, 0, "{text}");
        }
    }

    /// The whole disk as `qemu-img` reads it.
    fn through_qemu(&self) -> Vec<u8> {
        let flat = self.folder.path().join("flat.raw");
        let format = match self.list.last().unwrap().format {
            LayerFormat::Raw => "raw",
            LayerFormat::Qcow2 => "qcow2",
        };
        let arguments = ["convert", "-f", format, "-O", "raw", self.top().to_str().unwrap()];
        let (code, text) = qemu_img(&arguments, &flat);
        assert_eq!(code, 0, "{text}");
        std::fs::read(flat).unwrap()
    }
}

/// Runs qemu-img with `path` as last argument.
fn qemu_img(arguments: &[&str], path: &Path) -> (i32, String) {
    let output = Command::new("qemu-img").args(arguments).arg(path).output().expect("the tests need qemu-img");
    let text = format!("{arguments:?} {path:?}\n{}{}", lossy(&output.stdout), lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(disk: &Disk, offset: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; bytes];
    disk.read(&[VolatileSlice::from(&mut buffer[..])], offset).unwrap();
    buffer
}

fn write(disk: &mut Disk, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    disk.write(&[VolatileSlice::from(&mut bytes[..])], offset).unwrap();
}

#[test]
fn a_new_layer_is_clean_and_empty_and_takes_no_room() {
    for size_bytes in [512, CLUSTER, 100 * CLUSTER + 512, 4 << 30, 32 << 30, format::DISK_BYTES_MAX] {
        let layers = Layers::new().qcow2(size_bytes);
        layers.assert_clean();
        let disk = layers.open();
        assert_eq!(disk.sectors() * SECTOR_BYTES, size_bytes);
        assert_eq!(read(&disk, size_bytes - 512, 512), [0; 512]);
        let metadata = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(layers.top()).unwrap()) * 512;
        assert!(metadata <= 96 << 10 || size_bytes > 1 << 40, "{size_bytes}: {metadata} bytes on the host");
        drop(disk);
        layers.assert_clean();
    }
}

#[test]
fn layers_show_those_below_and_keep_them_as_they_are() {
    let base: Vec<u8> = (0..3 * CLUSTER + 512).map(|at| (at / 512) as u8 + 1).collect();
    let size = 64 * CLUSTER;
    let mut layers = Layers::new().raw(&base).qcow2(size);
    write(&mut layers.open(), CLUSTER + 512, &[0xaa; 1024]);
    layers = layers.qcow2(size);
    let mut disk = layers.open();
    write(&mut disk, 2 * CLUSTER, &[0xbb; 512]);
    disk.write_zeroes(0, 512, true).unwrap();
    let mut expected = base.clone();
    expected.resize(size as usize, 0);
    expected[CLUSTER as usize + 512..][..1024].fill(0xaa);
    expected[2 * CLUSTER as usize..][..512].fill(0xbb);
    expected[..512].fill(0);
    assert_eq!(read(&disk, 0, size as usize), expected);
    disk.flush().unwrap();
    drop(disk);
    layers.assert_clean();
    assert_eq!(layers.through_qemu(), expected);
    assert_eq!(std::fs::read(&layers.list[0].path).unwrap(), base);
}

#[test]
fn a_backing_path_inside_a_file_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (base, top) = (folder.path().join("secret"), folder.path().join("top"));
    std::fs::write(&base, [0x55; 4096]).unwrap();
    format::create(&top, 4096, Some(&Backing { path: base.clone(), format: LayerFormat::Raw })).unwrap();
    let layer = LayerSpec { path: top, format: LayerFormat::Qcow2 };
    let alone = Disk::open(&DiskSpec { layers: vec![layer.clone()], read_only: false }).unwrap();
    assert_eq!(read(&alone, 0, 4096), [0; 4096]);
    drop(alone);
    let base = LayerSpec { path: base, format: LayerFormat::Raw };
    let chain = Disk::open(&DiskSpec { layers: vec![base, layer], read_only: false }).unwrap();
    assert_eq!(read(&chain, 0, 4096), [0x55; 4096]);
}

#[test]
fn a_layer_in_use_is_refused() {
    let layers = Layers::new().raw(&[1; 4096]).qcow2(4096);
    let _first = layers.open();
    assert!(matches!(Disk::open(&layers.spec(false)), Err(LayerError::Locked(_))));
    assert!(matches!(Disk::open(&layers.spec(true)), Err(LayerError::Locked(_))));
    assert!(matches!(layers::repair(layers.top()), Err(LayerError::Locked(_))));
    let base = DiskSpec { layers: layers.list[..1].to_vec(), read_only: true };
    let _shared = Disk::open(&base).unwrap();
    let _shared_again = Disk::open(&base).unwrap();
    assert!(matches!(Disk::open(&DiskSpec { read_only: false, ..base }), Err(LayerError::Locked(_))));
}

#[test]
fn chains_that_cannot_be_are_refused() {
    let layers = Layers::new().raw(&[1; 4096]).qcow2(4096);
    let [raw, qcow2] = &layers.list[..] else { unreachable!() };
    let open = |layers: &[&LayerSpec]| {
        let layers = layers.iter().map(|&layer| layer.clone()).collect();
        Disk::open(&DiskSpec { layers, read_only: false }).map(drop)
    };
    assert!(matches!(open(&[]), Err(LayerError::Count(0))));
    assert!(matches!(open(&vec![raw; layers::LAYERS_MAX + 1]), Err(LayerError::Count(_))));
    let twice = LayerSpec { path: qcow2.path.clone(), format: LayerFormat::Raw };
    assert!(matches!(open(&[raw, &twice]), Err(LayerError::RawOnTop(_))));
    let mistaken = LayerSpec { path: raw.path.clone(), format: LayerFormat::Qcow2 };
    assert!(matches!(open(&[&mistaken]), Err(LayerError::Refcounts { .. })));
    assert!(matches!(open(&[&mistaken, qcow2]), Err(LayerError::Open { .. })));
    let missing = LayerSpec { path: PathBuf::from("/nonexistent/layer"), format: LayerFormat::Raw };
    assert!(matches!(open(&[&missing]), Err(LayerError::Open { .. })));
    let folder = LayerSpec { path: layers.folder.path().to_owned(), format: LayerFormat::Raw };
    assert!(matches!(open(&[&folder]), Err(LayerError::NotAFile(_))));
    let empty = layers.folder.path().join("empty");
    std::fs::write(&empty, [0; 511]).unwrap();
    let empty = LayerSpec { path: empty, format: LayerFormat::Raw };
    assert!(matches!(open(&[&empty]), Err(LayerError::Size { size_bytes: 511, .. })));
}

#[test]
fn a_file_with_its_data_elsewhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outside.qcow2");
    let option = format!("data_file={}", folder.path().join("data.raw").display());
    let output = Command::new("qemu-img").args(["create", "-f", "qcow2", "-o", &option]).arg(&path).arg("1M").output();
    assert!(output.unwrap().status.success());
    let spec =
        |read_only| DiskSpec { layers: vec![LayerSpec { path: path.clone(), format: LayerFormat::Qcow2 }], read_only };
    assert!(matches!(Disk::open(&spec(true)), Err(LayerError::ExternalData(_))));
    assert!(matches!(Disk::open(&spec(false)), Err(LayerError::Refcounts { .. })));
}

#[test]
fn a_layer_that_qemu_made_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qemu.qcow2");
    let output = Command::new("qemu-img").args(["create", "-f", "qcow2"]).arg(&path).arg("64M").output();
    assert!(output.unwrap().status.success());
    let layers = Layers { folder, list: vec![LayerSpec { path, format: LayerFormat::Qcow2 }] };
    let mut disk = layers.open();
    write(&mut disk, 1 << 20, &[7; 512]);
    drop(disk);
    layers.assert_clean();
    assert_eq!(read(&layers.open(), 1 << 20, 512), [7; 512]);
}
