//! Random reads, writes, discards, zeroes and flushes against a plain vector, through chains of layers.

use super::*;

/// Disk of the model: not a whole number of clusters, and larger than the base.
const SIZE: u64 = 40 * CLUSTER + 5 * SECTOR_BYTES;
const BASE: u64 = 17 * CLUSTER + 3 * SECTOR_BYTES;

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8),
    Discard,
    Zero {
        unmap: bool,
    },
    Flush,
    /// Close and open, on the same layers or with one more.
    Reopen {
        freeze: bool,
    },
}

fn step() -> impl Strategy<Value = (Step, u64, u64)> {
    let kind = prop_oneof![
        4 => Just(Step::Read),
        8 => any::<u8>().prop_map(Step::Write),
        3 => Just(Step::Discard),
        3 => any::<bool>().prop_map(|unmap| Step::Zero { unmap }),
        1 => Just(Step::Flush),
        1 => prop::bool::weighted(0.3).prop_map(|freeze| Step::Reopen { freeze }),
    ];
    // Ranges that start and end anywhere, on clusters, or reach the disk's end.
    let sectors = SIZE / SECTOR_BYTES;
    let start = prop_oneof![0..sectors, (0..40u64).prop_map(|cluster| cluster * CLUSTER / SECTOR_BYTES)];
    let length =
        prop_oneof![1..8u64, 1..200u64, (1..6u64).prop_map(|count| count * CLUSTER / SECTOR_BYTES), Just(sectors)];
    (kind, start, length)
        .prop_map(move |(kind, start, length)| (kind, start * SECTOR_BYTES, length.min(sectors - start) * SECTOR_BYTES))
}

/// Does one step on both; a discard leaves each sector as it was or zero, which the model then takes over.
fn apply(disk: &mut Disk, model: &mut [u8], step: &Step, offset: u64, bytes: u64) {
    let range = &mut model[offset as usize..][..bytes as usize];
    match step {
        Step::Read => assert!(read(disk, offset, range.len()) == *range, "{bytes} bytes at {offset:#x} differ"),
        Step::Write(seed) => {
            range.iter_mut().enumerate().for_each(|(at, byte)| *byte = seed.wrapping_add((at / 97) as u8) | 1);
            // In two buffers of odd length, as a guest may.
            let cut = range.len() / 3;
            let mut data = range.to_vec();
            let (first, second) = data.split_at_mut(cut);
            disk.write(&[VolatileSlice::from(first), VolatileSlice::from(second)], offset).unwrap();
        }
        Step::Discard => {
            disk.discard(offset, bytes).unwrap();
            let now = read(disk, offset, range.len());
            for (old, new) in range.chunks_mut(512).zip(now.chunks(512)) {
                assert!(*old == *new || new.iter().all(|&byte| byte == 0), "a discard brought other bytes");
                old.copy_from_slice(new);
            }
        }
        Step::Zero { unmap } => {
            disk.write_zeroes(offset, bytes, *unmap).unwrap();
            range.fill(0);
        }
        Step::Flush => disk.flush().unwrap(),
        Step::Reopen { .. } => {}
    }
}

fn check(mut layers: Layers, base: &[u8], steps: &[(Step, u64, u64)]) {
    let mut model = vec![0; layers.open().sectors() as usize * 512];
    model[..base.len()].copy_from_slice(base);
    let mut disk = layers.open();
    for (step, offset, bytes) in steps {
        apply(&mut disk, &mut model, step, *offset, *bytes);
        if let Step::Reopen { freeze } = step {
            drop(disk);
            layers.assert_clean();
            if *freeze && layers.list.len() < 5 && layers.list.last().unwrap().format == LayerFormat::Qcow2 {
                layers = layers.qcow2(SIZE);
            }
            disk = layers.open();
        }
    }
    assert!(read(&disk, 0, model.len()) == model, "the disk differs from the model");
    drop(disk);
    layers.assert_clean();
    assert!(layers.through_qemu() == model, "qemu-img reads something else");
}

fn base() -> Vec<u8> {
    (0..BASE).map(|at| (at / 511) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_layer_over_a_raw_base_is_as_the_model(steps in prop::collection::vec(step(), 1..60)) {
        check(Layers::new().raw(&base()).qcow2(SIZE), &base(), &steps);
    }

    #[test]
    fn a_layer_alone_is_as_the_model(steps in prop::collection::vec(step(), 1..60)) {
        check(Layers::new().qcow2(SIZE), &[], &steps);
    }

    #[test]
    fn a_raw_disk_is_as_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut bytes = base();
        bytes.resize(SIZE as usize, 0);
        check(Layers::new().raw(&bytes), &bytes, &steps);
    }
}
