//! The device behind its registers, under a right and a hostile driver.

use super::*;
use crate::devices::virtio::block::state::{BlockState, RestoreError};

const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn driver(layers: &Layers, read_only: bool) -> MockDriver {
    MockDriver::started(Box::new(Block::open(0, &layers.spec(read_only)).unwrap()))
}

/// Runs one request with the data between header and status; returns status, length and the data afterwards.
fn request(driver: &mut MockDriver, kind: u32, sector: u64, data: &[Buffer], indirect: bool) -> (u8, u32, Vec<u8>) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    let header = driver.readable(&header);
    let status = driver.writable(1);
    let chain = [&[header], data, &[status]].concat();
    let head = match indirect {
        true => driver.submit_indirect(0, &chain),
        false => driver.submit(0, &chain),
    };
    driver.kick(0);
    let (used, bytes) = driver.used(0);
    assert_eq!(used, u32::from(head));
    let data = data.iter().flat_map(|&buffer| driver.contents(buffer)).collect();
    (driver.contents(status)[0], bytes, data)
}

fn read_sectors(driver: &mut MockDriver, sector: u64, bytes: u32) -> Vec<u8> {
    driver.free_all();
    let buffer = driver.writable(bytes);
    let (status, length, data) = request(driver, READ, sector, &[buffer], true);
    assert_eq!((status, length), (OK, bytes + 1));
    data
}

fn write_sectors(driver: &mut MockDriver, sector: u64, bytes: &[u8]) {
    driver.free_all();
    let buffer = driver.readable(bytes);
    assert_eq!(request(driver, WRITE_OUT, sector, &[buffer], false).0, OK);
}

fn ranges(driver: &mut MockDriver, kind: u32, list: &[(u64, u32, u32)]) -> u8 {
    let bytes: Vec<u8> =
        list.iter().flat_map(|(s, n, f)| [&s.to_le_bytes()[..], &n.to_le_bytes(), &f.to_le_bytes()].concat()).collect();
    let buffer = driver.readable(&bytes);
    request(driver, kind, 0, &[buffer], false).0
}

#[test]
fn a_driver_reads_writes_and_flushes() {
    let base: Vec<u8> = (0..4 * CLUSTER).map(|at| (at / 512) as u8).collect();
    let layers = Layers::new().raw(&base).qcow2(1 << 20);
    let mut driver = driver(&layers, false);
    assert_eq!(read_sectors(&mut driver, 3, 1024), base[1536..2560]);
    write_sectors(&mut driver, 4, &[0x77; 512]);
    assert_eq!(read_sectors(&mut driver, 3, 1536), [&base[1536..2048], &[0x77; 512], &base[2560..3072]].concat());
    assert_eq!(read_sectors(&mut driver, 2047, 512), [0; 512]);
    assert_eq!(request(&mut driver, FLUSH, 0, &[], false).0, OK);
    let (first, second) = (driver.writable(100), driver.writable(412));
    let (status, _, data) = request(&mut driver, READ, 5, &[first, second], true);
    assert_eq!((status, data), (OK, base[2560..3072].to_vec()));
    let stats = driver.stats_at_rest();
    assert_eq!((stats.read_bytes, stats.write_bytes, stats.requests, stats.errors), (3584, 512, 6, 0));
    drop(driver);
    layers.assert_clean();
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let layers = Layers::new().qcow2(3 << 20);
    let mut driver = driver(&layers, false);
    let mut config = [0; 64];
    driver.transport.read(0x100, &mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!([word(0), word(4), word(12), word(20)], [6144, 0, 126, 512]);
    assert!(u64::from(word(8)) * 126 <= super::super::request::DATA_BYTES_MAX);
    assert_eq!(word(60), 0);
    driver.transport.write(0x100, &[0xff; 8]);
    let mut again = [0; 8];
    driver.transport.read(0x100, &mut again);
    assert_eq!(again, config[..8]);
    assert_eq!(driver.offered() & (1 << 5 | 1 << 9 | 1 << 13 | 1 << 14), 1 << 9 | 1 << 13 | 1 << 14);
}

#[test]
fn the_id_is_the_name() {
    let layers = Layers::new().qcow2(4096);
    let mut driver = driver(&layers, false);
    let mut id = [0; 20];
    id[..6].copy_from_slice(b"block0");
    let buffer = driver.writable(20);
    assert_eq!(request(&mut driver, GET_ID, 0, &[buffer], false), (OK, 21, id.to_vec()));
    let (small, empty) = (driver.writable(3), driver.writable(0));
    assert_eq!(request(&mut driver, GET_ID, 0, &[small, empty], false), (OK, 4, b"blo".to_vec()));
    let outside = Buffer { address: MEMORY_END - 4, bytes: 20, writable: true };
    driver.descriptor(0, 100, outside.address, 20, WRITE, 0);
    let header = driver.readable(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let status = driver.writable(1);
    driver.run(0, &[header, outside, status]);
    assert_eq!(driver.contents(status), [IOERR]);
}

#[test]
fn discards_and_zeroes_reach_the_layers() {
    let base = vec![0x33; 4 * CLUSTER as usize];
    let layers = Layers::new().raw(&base).qcow2(4 * CLUSTER);
    let mut driver = driver(&layers, false);
    let cluster = (CLUSTER / 512) as u32;
    assert_eq!(ranges(&mut driver, DISCARD, &[(0, cluster, 0), (u64::from(cluster) * 3, 1, 0)]), OK);
    assert_eq!(ranges(&mut driver, WRITE_ZEROES, &[(u64::from(cluster), 2, 1), (u64::from(cluster) + 4, 1, 0)]), OK);
    assert_eq!(ranges(&mut driver, DISCARD, &[(0, 1, 1)]), UNSUPP);
    assert_eq!(ranges(&mut driver, WRITE_ZEROES, &[(0, 1, 4)]), UNSUPP);
    assert_eq!(ranges(&mut driver, WRITE_ZEROES, &[(u64::from(cluster) * 4, 1, 0)]), IOERR);
    let disk = read_sectors(&mut driver, 0, 4 * CLUSTER as u32);
    let zero = |from: u64, to: u64| disk[from as usize..to as usize].iter().all(|&byte| byte == 0);
    assert!(zero(0, CLUSTER + 1024) && zero(CLUSTER + 2048, CLUSTER + 2560));
    assert_eq!(disk[CLUSTER as usize + 1024..][..1024], [0x33; 1024]);
    assert_eq!(disk[3 * CLUSTER as usize..], base[3 * CLUSTER as usize..]);
    drop(driver);
    layers.assert_clean();
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let layers = Layers::new().raw(&[5; 8192]);
    let mut driver = driver(&layers, true);
    assert_eq!(driver.offered() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    let buffer = driver.readable(&[9; 512]);
    assert_eq!(request(&mut driver, WRITE_OUT, 0, &[buffer], false).0, IOERR);
    assert_eq!(ranges(&mut driver, DISCARD, &[(0, 1, 0)]), IOERR);
    assert_eq!(ranges(&mut driver, WRITE_ZEROES, &[(0, 1, 0)]), IOERR);
    assert_eq!(request(&mut driver, FLUSH, 0, &[], false).0, OK);
    assert_eq!(read_sectors(&mut driver, 0, 8192), [5; 8192]);
    drop(driver);
    assert_eq!(std::fs::read(layers.top()).unwrap(), [5; 8192]);
}

#[test]
fn hostile_requests_get_an_error_and_the_next_one_works() {
    let layers = Layers::new().qcow2(1 << 20);
    let mut driver = driver(&layers, false);
    write_sectors(&mut driver, 0, &[0x42; 4096]);
    let outside = |writable| Buffer { address: MEMORY_END - 512, bytes: 1024, writable };
    let far = |writable| Buffer { address: u64::MAX - 511, bytes: 1024, writable };
    for (kind, writable) in [(READ, true), (WRITE_OUT, false)] {
        for buffer in [outside(writable), far(writable)] {
            assert_eq!(request(&mut driver, kind, 0, &[buffer], true).0, IOERR);
        }
        let beyond = Buffer { writable, ..driver.writable(512) };
        for sector in [2048, 1 << 54, u64::MAX] {
            assert_eq!(request(&mut driver, kind, sector, &[beyond], false).0, IOERR);
        }
        let odd = Buffer { writable, ..driver.writable(511) };
        assert_eq!(request(&mut driver, kind, 0, &[odd], false).0, IOERR);
    }
    for kind in [2, 7, 99, u32::MAX] {
        assert_eq!(request(&mut driver, kind, 0, &[], false).0, UNSUPP);
    }
    assert_eq!(read_sectors(&mut driver, 0, 4096), [0x42; 4096]);
    assert_eq!(driver.stats_at_rest().errors, 16);
    assert!(driver.faults.lock().unwrap().is_empty());
}

#[test]
fn hostile_chains_come_back_and_the_next_one_works() {
    let layers = Layers::new().qcow2(1 << 20);
    let mut driver = driver(&layers, false);
    let header = driver.readable(&[0; 16]);
    let data = driver.writable(512).address;
    let table = driver.allocate(4096);
    let mut run = |lay: &dyn Fn(&mut MockDriver)| {
        lay(&mut driver);
        driver.offer(0, 0);
        driver.kick(0);
        assert_eq!(driver.used(0), (0, 0));
    };
    let head = header.address;
    // No status, a loop, readable after writable, a cut chain.
    run(&|d| d.descriptor(0, 0, head, 16, 0, 0));
    run(&|d| d.descriptor(0, 0, head, 16, NEXT, 0));
    run(&|d| d.descriptor(0, 0, data, 16, NEXT | WRITE, 0));
    run(&|d| {
        d.descriptor(0, 0, data, 1, NEXT | WRITE, 1);
        d.descriptor(0, 1, head, 16, 0, 0);
    });
    run(&|d| d.descriptor(0, 0, head, 16, NEXT, 500));
    // A status outside of memory, and one at the end of all addresses.
    for status in [MEMORY_END, u64::MAX] {
        run(&|d| {
            d.descriptor(0, 0, head, 16, NEXT, 1);
            d.descriptor(0, 1, status, 1, WRITE, 0);
        });
    }
    // Indirect: in itself, looping, longer than any request, not a whole number of descriptors.
    run(&|d| {
        d.descriptor_at(table, table, 4096, INDIRECT, 0);
        d.descriptor(0, 0, table, 4096, INDIRECT, 0);
    });
    run(&|d| {
        d.descriptor_at(table, data, 1, NEXT | WRITE, 0);
        d.descriptor(0, 0, table, 4096, INDIRECT, 0);
    });
    run(&|d| d.descriptor(0, 0, 0, 65535 * 16, INDIRECT, 0));
    run(&|d| d.descriptor(0, 0, table, 4095, INDIRECT, 0));
    assert_eq!(driver.stats_at_rest().errors, 11);
    write_sectors(&mut driver, 1, &[3; 512]);
    assert_eq!(read_sectors(&mut driver, 1, 512), [3; 512]);
}

#[test]
fn a_full_queue_is_worked_off_in_order_by_one_kick() {
    let base: Vec<u8> = (0..128 * 512).map(|at| (at / 512) as u8).collect();
    let layers = Layers::new().raw(&base).qcow2(1 << 20);
    let mut driver = driver(&layers, false);
    for _ in 0..3 {
        driver.free_all();
        let requests: Vec<_> = (0..128u8)
            .map(|sector| {
                let mut header = [0; 16];
                header[8] = sector;
                let chain = [driver.readable(&header), driver.writable(512), driver.writable(1)];
                (driver.submit_indirect(0, &chain), sector, chain)
            })
            .collect();
        driver.kick(0);
        for (head, sector, [_, data, status]) in requests {
            assert_eq!(driver.used(0), (head.into(), 513));
            assert_eq!((driver.contents(data), driver.contents(status)), (vec![sector; 512], vec![OK]));
        }
    }
    assert_eq!(driver.stats_at_rest().requests, 384);
}

#[test]
fn a_driver_that_comes_back_finds_its_disk() {
    let layers = Layers::new().qcow2(1 << 20);
    let mut driver = driver(&layers, false);
    let features = driver.offered();
    for round in 1..20u8 {
        write_sectors(&mut driver, round.into(), &[round; 512]);
        match round % 3 {
            0 => driver.start(features),
            1 => driver.start(MockDriver::plain_features()),
            _ => {
                driver.transport.pause();
                let (code, text) = qemu_img(&["check", "-f", "qcow2"], layers.top());
                assert_eq!(code, 0, "{text}");
                driver.transport.resume();
            }
        }
    }
    for round in 1..20u8 {
        assert_eq!(read_sectors(&mut driver, round.into(), 512), [round; 512]);
    }
}

#[test]
fn a_restored_disk_is_the_saved_one() {
    let layers = Layers::new().qcow2(1 << 20);
    let mut driver = driver(&layers, false);
    write_sectors(&mut driver, 5, &[0x11; 512]);
    driver.transport.pause();
    let (_, state) = driver.transport.save().unwrap();
    let block = BlockState { sectors: 2048, read_only: false };
    // The old device must let go of its layers first, as a process that is gone has.
    let other = Layers::new().qcow2(2 << 20);
    driver.transport = MockDriver::new(Box::new(Block::open(9, &other.spec(false)).unwrap())).transport;
    let restored = Block::restore(0, &layers.spec(false), &block).unwrap();
    assert_eq!(restored.disk_state(), block);
    driver.move_to(Box::new(restored), &state).unwrap();
    assert_eq!(read_sectors(&mut driver, 5, 512), [0x11; 512]);
    assert!(matches!(Block::restore(0, &other.spec(true), &block), Err(RestoreError::Disk { .. })));
    assert!(matches!(Block::restore(0, &layers.spec(false), &block), Err(RestoreError::Layer(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any header, any buffers: each request comes back, and sector 0 is what the last right write left.
    #[test]
    fn any_request_comes_back(
        requests in prop::collection::vec((0u32..16, 0u64..2050, prop::collection::vec((0u32..3000, any::<bool>()), 0..5), any::<bool>()), 1..40),
    ) {
        let layers = Layers::new().qcow2(1 << 20);
        let mut driver = driver(&layers, false);
        for (kind, sector, buffers, indirect) in requests {
            driver.free_all();
            let buffers: Vec<_> = buffers.iter().map(|&(bytes, writable)| Buffer { writable, ..driver.writable(bytes) }).collect();
            let mut header = [0; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&sector.to_le_bytes());
            let header = driver.readable(&header);
            let status = driver.writable(1);
            let chain = [&[header], &buffers[..], &[status]].concat();
            let head = if indirect { driver.submit_indirect(0, &chain) } else { driver.submit(0, &chain) };
            driver.kick(0);
            prop_assert_eq!(driver.used(0).0, u32::from(head));
        }
        write_sectors(&mut driver, 0, &[1; 512]);
        prop_assert_eq!(read_sectors(&mut driver, 0, 512), [1; 512]);
        prop_assert!(driver.faults.lock().unwrap().is_empty());
        drop(driver);
        layers.assert_clean();
    }
}
