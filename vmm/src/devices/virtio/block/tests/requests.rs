//! The request parser: what the specification says, and any bytes at all.

use std::sync::Arc;

use super::*;
use crate::devices::virtio::Memory;
use crate::devices::virtio::block::request::{DESCRIPTORS_MAX, RANGE_SECTORS_MAX, RANGES_MAX, Range, Segment};

const LIMITS: Limits = Limits { sectors: 1000, read_only: false };
const HEADER: u64 = 0x1000;

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap())
}

fn descriptors(list: &[(u64, u32, u16)]) -> Vec<Descriptor> {
    let last = list.len().saturating_sub(1);
    let flags = |at: usize, flags: u16| if at < last { flags | NEXT } else { flags };
    list.iter()
        .enumerate()
        .map(|(at, &(address, bytes, flag))| Descriptor::new(address, bytes, flags(at, flag), 1))
        .collect()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn parse(bytes: &[u8], list: &[(u64, u32, u16)], limits: Limits) -> Result<Request, RequestError> {
    let memory = memory();
    memory.write_slice(bytes, GuestAddress(HEADER)).unwrap();
    Parts::new(descriptors(list).into_iter())?.request(&memory, limits)
}

/// One request of `kind` with `bytes` of data in a writable or readable buffer.
fn simple(kind: u32, sector: u64, bytes: u32, flag: u16) -> Result<Request, RequestError> {
    parse(&header(kind, sector), &[(HEADER, 16, 0), (0x2000, bytes, flag), (0x9000, 1, WRITE)], LIMITS)
}

fn data(bytes: u32) -> Vec<Segment> {
    vec![Segment { address: GuestAddress(0x2000), bytes }]
}

#[test]
fn reads_and_writes_are_within_the_disk() {
    // The byte before the status is cut off the status' buffer, which is then empty.
    let read = Request::Read {
        offset: 512,
        data: [data(1024), vec![Segment { address: GuestAddress(0x9000), bytes: 0 }]].concat(),
    };
    assert_eq!(simple(0, 1, 1024, WRITE), Ok(read));
    assert_eq!(simple(1, 1, 1024, 0), Ok(Request::Write { offset: 512, data: data(1024) }));
    assert!(simple(0, 998, 1024, WRITE).is_ok());
    assert_eq!(simple(0, 999, 1024, WRITE), Err(RequestError::Range { sector: 999, sectors: 2 }));
    assert_eq!(simple(1, u64::MAX, 512, 0), Err(RequestError::Range { sector: u64::MAX, sectors: 1 }));
    assert_eq!(simple(1, 1 << 55, 512, 0), Err(RequestError::Range { sector: 1 << 55, sectors: 1 }));
    for bytes in [1, 511, 513] {
        assert_eq!(simple(0, 0, bytes, WRITE), Err(RequestError::Length(bytes.into())));
    }
    assert_eq!(simple(1, 0, 32 << 20 | 512, 0), Err(RequestError::Length((32 << 20) + 512)));
}

#[test]
fn the_parts_may_be_cut_anywhere() {
    let list: Vec<_> = (0..16).map(|at| (HEADER + at, 1, 0)).chain([(0x2000, 100, 0), (0x2064, 412, 0)]).collect();
    let all = [&list[..], &[(0x9000, 1, WRITE)]].concat();
    let Ok(Request::Write { offset: 1024, data }) = parse(&header(1, 2), &all, LIMITS) else { panic!() };
    assert_eq!(data.iter().map(|segment| segment.bytes).collect::<Vec<_>>(), [100, 412]);
    // Header and data in one buffer; data and status in one buffer.
    let one = parse(&header(1, 2), &[(HEADER, 16 + 512, 0), (0x9000, 1, WRITE)], LIMITS);
    assert_eq!(
        one,
        Ok(Request::Write { offset: 1024, data: vec![Segment { address: GuestAddress(HEADER + 16), bytes: 512 }] })
    );
    let parts =
        Parts::new(descriptors(&[(HEADER, 16, 0), (0x2000, 513, WRITE), (0x9000, 0, WRITE)]).into_iter()).unwrap();
    assert_eq!(parts.status, GuestAddress(0x2000 + 512));
}

#[test]
fn chains_without_a_status_cannot_be_answered() {
    type Case<'a> = (&'a [(u64, u32, u16)], RequestError);
    let cases: [Case; 4] = [
        (&[(HEADER, 16, 0)], RequestError::NoStatus),
        (&[(HEADER, 16, 0), (0x9000, 0, WRITE)], RequestError::NoStatus),
        (&[(HEADER, 16, 0), (u64::MAX, 2, WRITE)], RequestError::NoStatus),
        (&[(HEADER, 16, 0), (0x9000, 1, WRITE), (0x2000, 512, 0)], RequestError::Chain),
    ];
    for (list, error) in cases {
        assert_eq!(parse(&header(0, 0), list, LIMITS), Err(error));
    }
    assert_eq!(parse(&[], &[], LIMITS), Err(RequestError::Chain));
    let cut = Descriptor::new(HEADER, 16, NEXT, 1);
    assert_eq!(Parts::new([cut].into_iter()), Err(RequestError::Chain));
    let endless = std::iter::repeat(Descriptor::new(0x9000, 1, NEXT | WRITE, 0));
    assert_eq!(Parts::new(endless), Err(RequestError::Chain));
    let many = vec![(0x9000, 1, WRITE); DESCRIPTORS_MAX + 1];
    assert_eq!(parse(&[], &many, LIMITS), Err(RequestError::Chain));
}

#[test]
fn short_headers_and_foreign_types_are_told_apart() {
    let short = parse(&header(0, 0), &[(HEADER, 15, 0), (0x9000, 513, WRITE)], LIMITS);
    assert_eq!(short, Err(RequestError::Unreadable));
    let outside = parse(&[], &[(0x10_0000 - 8, 16, 0), (0x9000, 513, WRITE)], LIMITS);
    assert_eq!(outside, Err(RequestError::Unreadable));
    for kind in [2, 3, 5, 9, 14, 15, u32::MAX] {
        assert_eq!(simple(kind, 0, 512, WRITE), Err(RequestError::Type(kind)));
        assert!(RequestError::Type(kind).is_unsupported());
    }
}

#[test]
fn a_read_only_disk_takes_no_change() {
    let limits = Limits { read_only: true, ..LIMITS };
    for kind in [1, 11, 13] {
        let request = parse(&header(kind, 0), &[(HEADER, 16, 0), (0x2000, 512, 0), (0x9000, 1, WRITE)], limits);
        assert_eq!(request, Err(RequestError::ReadOnly));
    }
    assert_eq!(parse(&header(4, 0), &[(HEADER, 16, 0), (0x9000, 1, WRITE)], limits), Ok(Request::Flush));
}

/// A discard (11) or write-zeroes (13) of `(sector, sectors, flags)`.
fn ranged(kind: u32, ranges: &[(u64, u32, u32)]) -> Result<Request, RequestError> {
    let mut bytes = header(kind, 0);
    for (sector, sectors, flags) in ranges {
        bytes.extend([&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat());
    }
    parse(&bytes, &[(HEADER, bytes.len() as u32, 0), (0x9000, 1, WRITE)], LIMITS)
}

#[test]
fn ranges_are_within_the_disk_and_the_limits() {
    let range = |sector: u64, sectors: u64, unmap| Range { offset: sector * 512, bytes: sectors * 512, unmap };
    assert_eq!(
        ranged(11, &[(0, 1000, 0), (7, 0, 0)]),
        Ok(Request::Discard(vec![range(0, 1000, false), range(7, 0, false)]))
    );
    assert_eq!(ranged(13, &[(1, 2, 1)]), Ok(Request::WriteZeroes(vec![range(1, 2, true)])));
    assert_eq!(ranged(11, &[(0, 1, 1)]), Err(RequestError::Flags(1)));
    assert_eq!(ranged(13, &[(0, 1, 2)]), Err(RequestError::Flags(2)));
    assert_eq!(ranged(11, &[]), Err(RequestError::Length(0)));
    assert_eq!(ranged(11, &[(0, 1, 0); RANGES_MAX + 1]), Err(RequestError::Length(33 * 16)));
    assert!(ranged(11, &[(0, 1, 0); RANGES_MAX]).is_ok());
    for (sector, sectors) in [(1000, 1), (u64::MAX, 2), (0, 1001), (0, RANGE_SECTORS_MAX + 1)] {
        assert_eq!(ranged(11, &[(sector, sectors, 0)]), Err(RequestError::Range { sector, sectors: sectors.into() }));
    }
    let mut torn = header(11, 0);
    torn.extend([0; 17]);
    assert_eq!(parse(&torn, &[(HEADER, 33, 0), (0x9000, 1, WRITE)], LIMITS), Err(RequestError::Length(17)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any bytes in any chain: a request that keeps to the limits, or an error; never a panic.
    #[test]
    fn any_bytes_are_a_request_or_an_error(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..1100, any::<u64>()],
        rest in prop::collection::vec(any::<u8>(), 0..200),
        chain in prop::collection::vec(
            (prop_oneof![Just(HEADER), 0u64..0x10_2000, any::<u64>()], prop_oneof![0u32..700, any::<u32>()], 0u16..8),
            0..20,
        ),
        ordered in any::<bool>(),
        read_only in any::<bool>(),
    ) {
        let mut chain = chain;
        if ordered {
            chain.sort_by_key(|(_, _, flags)| flags & WRITE);
            chain.insert(0, (HEADER, 16 + rest.len() as u32, 0));
        }
        let bytes = [header(kind, sector), rest].concat();
        let limits = Limits { read_only, ..LIMITS };
        let within = |offset: u64, bytes: u64| offset + bytes <= LIMITS.sectors * 512;
        let sum = |data: &[Segment]| data.iter().map(|segment| u64::from(segment.bytes)).sum::<u64>();
        match parse(&bytes, &chain, limits) {
            Ok(Request::Read { offset, data }) => prop_assert!(within(offset, sum(&data))),
            Ok(Request::Write { offset, data }) => prop_assert!(!read_only && within(offset, sum(&data))),
            Ok(Request::Discard(ranges) | Request::WriteZeroes(ranges)) => {
                prop_assert!(!read_only && !ranges.is_empty() && ranges.len() <= RANGES_MAX);
                prop_assert!(ranges.iter().all(|range| within(range.offset, range.bytes)));
            }
            Ok(Request::Flush | Request::GetId { .. }) | Err(_) => {}
        }
    }
}
