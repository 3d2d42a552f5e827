//! `cargo bench -p cove-vmm --bench block`: what a disk costs, without a guest. Prints one line a figure.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use cove_protocol::vmm::{DiskSpec, LayerFormat, LayerSpec};
use cove_vmm::devices::virtio::block::{Disk, format};
use vm_memory::VolatileSlice;

const DISK_BYTES: u64 = 8 << 30;
const BLOCK: u64 = 4096;
const LARGE: u64 = 1 << 20;
const COUNT: u64 = 4096;

fn main() {
    let folder = tempfile::tempdir().expect("a folder for the layers");
    let mut layers = Vec::new();
    add_layer(folder.path(), &mut layers);
    let mut disk = timed("open an empty layer", 1, || open(&layers));
    let mut small = vec![7; BLOCK as usize];
    let mut large = vec![9; LARGE as usize];
    let scattered = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (DISK_BYTES / BLOCK) * BLOCK;

    timed("first write, 4 KiB, scattered", COUNT, || {
        (0..COUNT).for_each(|number| disk.write(&[slice(&mut small)], scattered(number)).expect("write"));
    });
    timed("write again, 4 KiB, scattered", COUNT, || {
        (0..COUNT).for_each(|number| disk.write(&[slice(&mut small)], scattered(number)).expect("write"));
    });
    timed("first write, 1 MiB, in order", 1024, || {
        (0..1024).for_each(|number| disk.write(&[slice(&mut large)], number * LARGE).expect("write"));
    });
    timed("write again, 1 MiB, in order", 1024, || {
        (0..1024).for_each(|number| disk.write(&[slice(&mut large)], number * LARGE).expect("write"));
    });
    timed("flush", 1, || disk.flush().expect("flush"));
    timed("flush again", 100, || (0..100).for_each(|_| disk.flush().expect("flush")));
    drop(disk);
    let mut disk = timed("open a layer with 1 GiB in it", 1, || open(&layers));
    timed("read, 1 MiB, in order", 1024, || {
        (0..1024).for_each(|number| disk.read(&[slice(&mut large)], number * LARGE).expect("read"));
    });
    timed("read, 4 KiB, scattered, 1 layer", COUNT, || read_scattered(&disk, &mut small));
    timed("discard, 1 GiB", 1, || disk.discard(0, 1 << 30).expect("discard"));
    drop(disk);
    (0..7).for_each(|_| add_layer(folder.path(), &mut layers));
    let disk = timed("open 8 layers", 1, || open(&layers));
    timed("read, 4 KiB, scattered, 8 layers", COUNT, || read_scattered(&disk, &mut small));
    black_box(disk);
}

fn add_layer(folder: &Path, layers: &mut Vec<LayerSpec>) {
    let path = folder.join(layers.len().to_string());
    timed("make a layer", 1, || format::create(&path, DISK_BYTES, None).expect("a new layer"));
    layers.push(LayerSpec { path, format: LayerFormat::Qcow2 });
}

fn open(layers: &[LayerSpec]) -> Disk {
    Disk::open(&DiskSpec { layers: layers.to_vec(), read_only: false }).expect("the layers open")
}

fn slice(bytes: &mut [u8]) -> VolatileSlice<'_> {
    VolatileSlice::from(bytes)
}

fn read_scattered(disk: &Disk, buffer: &mut [u8]) {
    for number in 0..COUNT {
        let offset = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % ((1 << 30) / BLOCK) * BLOCK;
        disk.read(&[slice(buffer)], offset).expect("read");
    }
}

fn timed<T>(what: &str, count: u64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what:<36} {:>12.2} µs", start.elapsed().as_secs_f64() * 1e6 / count as f64);
    result
}
