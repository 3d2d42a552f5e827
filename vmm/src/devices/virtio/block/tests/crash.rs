//! A process killed in the middle of its writes: what it had acknowledged is there, and the tables are sound.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

/// Two L2 tables' worth.
const SIZE: u64 = 36 << 20;
const BASE: u64 = 8 << 20;

/// Names the layer file for the child; its absence makes [`writer`] an ordinary, empty test.
const LAYER: &str = "COVE_TEST_CRASH_LAYER";
const SEED: &str = "COVE_TEST_CRASH_SEED";

#[derive(Clone, Copy, Debug)]
enum Act {
    Write(u8),
    Discard,
    Zero { unmap: bool },
    Flush,
}

/// The same acts for the same seed, without end (xorshift).
fn acts(seed: u64) -> impl Iterator<Item = (Act, u64, u64)> {
    let mut state = seed | 1;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    std::iter::repeat_with(move || {
        let act = match next(20) {
            0 => Act::Flush,
            1 | 2 => Act::Discard,
            3 => Act::Zero { unmap: true },
            4 => Act::Zero { unmap: false },
            _ => Act::Write(next(255) as u8 + 1),
        };
        let sectors = SIZE / SECTOR_BYTES;
        let start = next(sectors);
        let length = if next(3) == 0 { next(512) + 1 } else { next(16) + 1 };
        (act, start * SECTOR_BYTES, length.min(sectors - start) * SECTOR_BYTES)
    })
}

/// The child: writes and says after each act that it is done, until it is killed.
#[test]
fn writer() {
    let (Ok(layer), Ok(seed)) = (std::env::var(LAYER), std::env::var(SEED)) else { return };
    let top = PathBuf::from(layer);
    let base = LayerSpec { path: top.with_file_name("base.raw"), format: LayerFormat::Raw };
    let list = vec![base, LayerSpec { path: top, format: LayerFormat::Qcow2 }];
    let mut disk = Disk::open(&DiskSpec { layers: list, read_only: false }).unwrap();
    for (number, (act, offset, bytes)) in acts(seed.parse().unwrap()).enumerate() {
        match act {
            Act::Write(byte) => write(&mut disk, offset, &vec![byte; bytes as usize]),
            Act::Discard => disk.discard(offset, bytes).unwrap(),
            Act::Zero { unmap } => disk.write_zeroes(offset, bytes, unmap).unwrap(),
            Act::Flush => disk.flush().unwrap(),
        }
        println!("\ndone {number}");
        std::io::stdout().flush().unwrap();
    }
}

/// Runs the child until it has said `kill_after` times that it is done, and kills it. Returns how many acts it had done.
fn run_and_kill(layers: &Layers, seed: u64, kill_after: usize) -> usize {
    let name = format!("{}::writer", module_path!().split_once("::").unwrap().1);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(LAYER, layers.top())
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut done = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        done += usize::from(line.unwrap().starts_with("done "));
        if done == kill_after {
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success(), "the child ended by itself");
    assert!(done >= kill_after, "the child ended early, after {done}");
    done
}

/// Takes what was done into the model, a byte a sector. Sectors that may be one or the other, since the child was killed
/// at them or gave them up, are `None`.
fn replay(model: &mut [Option<u8>], seed: u64, done: usize) {
    for (number, (act, offset, bytes)) in acts(seed).take(done + 1).enumerate() {
        let range = &mut model[(offset / SECTOR_BYTES) as usize..][..(bytes / SECTOR_BYTES) as usize];
        match act {
            Act::Flush => {}
            _ if number == done => range.fill(None),
            Act::Write(byte) => range.fill(Some(byte)),
            Act::Discard => range.fill(None),
            Act::Zero { .. } => range.fill(Some(0)),
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_done() {
    let base: Vec<u8> = (0..BASE).map(|at| (at / 512) as u8).collect();
    let layers = Layers::new().raw(&base).qcow2(SIZE);
    let mut model = vec![Some(0); (SIZE / SECTOR_BYTES) as usize];
    base.chunks(512).zip(&mut model).for_each(|(sector, model)| *model = Some(sector[0]));
    for round in 1..=16u64 {
        let seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let done = run_and_kill(&layers, seed, [1, 7, 60, 150][round as usize % 4]);
        replay(&mut model, seed, done);

        // 3: leaked clusters and nothing worse.
        let (code, text) = qemu_img(&["check", "-f", "qcow2"], layers.top());
        assert!([0, 3].contains(&code) && !text.contains("ERROR"), "round {round}: {text}");
        let disk = layers.open();
        layers_agree(&disk, &model, round);
        drop(disk);
        layers.assert_clean();
    }
}

fn layers_agree(disk: &Disk, model: &[Option<u8>], round: u64) {
    let now = read(disk, 0, model.len() * 512);
    let differs = |(now, model): (&[u8], &Option<u8>)| model.is_some_and(|byte| *now != [byte; 512]);
    let wrong = now.chunks(512).zip(model).position(differs);
    assert_eq!(wrong, None, "round {round}: the first sector that differs");
}

/// Damage as after a loss of power: refcounts that do not fit the tables are set right, in both directions.
#[test]
fn refcounts_that_were_lost_are_set_right() {
    let layers = Layers::new().qcow2(SIZE);
    let mut disk = layers.open();
    write(&mut disk, 0, &vec![1; 10 * CLUSTER as usize]);
    drop(disk);
    let file = std::fs::OpenOptions::new().write(true).read(true).open(layers.top()).unwrap();
    let end = file.metadata().unwrap().len() / CLUSTER;
    let counts = 2 * CLUSTER;
    // The last three data clusters look free, and twenty after the end look used.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 6], counts + (end - 3) * 2).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0, 1].repeat(20), counts + end * 2).unwrap();
    let (code, text) = qemu_img(&["check", "-f", "qcow2"], layers.top());
    assert!(code == 2, "{text}");
    let found = layers::repair(layers.top()).unwrap();
    assert_eq!((found.missing, found.leaked), (3, 20));
    layers.assert_clean();
    assert_eq!(layers::repair(layers.top()).unwrap(), Default::default());
    assert_eq!(read(&layers.open(), 0, 10 * CLUSTER as usize), vec![1; 10 * CLUSTER as usize]);
}

#[test]
fn tables_that_contradict_themselves_are_refused() {
    let layers = Layers::new().qcow2(SIZE);
    let mut disk = layers.open();
    write(&mut disk, 0, &vec![1; 2 * CLUSTER as usize]);
    drop(disk);
    let original = std::fs::read(layers.top()).unwrap();
    let long = |at: usize| u64::from_be_bytes(original[at..at + 8].try_into().unwrap());
    let (l1, table) = (long(40) as usize, long(48) as usize);
    let l2 = (long(l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let first = long(l2);
    for (name, at, value) in [
        ("one cluster twice", l2 + 8, first),
        ("data in the header", l2, 1 << 63),
        ("data outside", l2, 1 << 63 | 1 << 50),
        ("data not on a cluster", l2, first + 512),
        ("data compressed", l2, 1 << 62 | first),
        ("L2 table outside", l1, 1 << 63 | 1 << 50),
        ("refcount block outside", table, 1 << 50),
        ("no refcount block", table, 0),
        ("L1 table outside", 40, 1 << 50),
        ("refcount table not on a cluster", 48, 512),
        ("refcount table of 4 Gi clusters", 56, 0xffff_ffff << 32),
        ("L1 of 4 Gi entries", 32, 0xffff_ffff),
        ("clusters of 2^63 bytes", 16, 63),
        ("a disk of 2^63 bytes", 24, 1 << 63),
        ("an incompatible feature", 72, 4),
        ("wide refcounts", 96, 6 << 32 | 104),
    ] {
        let mut damaged = original.clone();
        damaged[at..at + 8].copy_from_slice(&value.to_be_bytes());
        std::fs::write(layers.top(), &damaged).unwrap();
        let result = layers::repair(layers.top());
        let harmless = name == "data in the header" && result.is_ok();
        assert!(harmless || matches!(result, Err(LayerError::Refcounts { .. })), "{name}: {result:?}");
        assert!(harmless || std::fs::read(layers.top()).unwrap() == damaged, "{name}: the file was changed");
    }
}
