//! Snapshots of small guests through the `vmm` binary and real KVM: a guest that counts goes on from where it stood, and
//! whatever is wrong with a snapshot is said and leaves the machine as it was.

use std::path::{Path, PathBuf};

use crate::harness::{Connection, Guest, Vmm};
use cove_protocol::vmm::{
    DiskSpec, ErrorKind, LayerFormat, LayerSpec, MachineSpec, Reply, Request, RestoreSpec, SnapshotFigures,
    SnapshotSpec,
};
use cove_vmm::devices::virtio::block::format::create;

/// Letters after which a test goes on.
const LETTERS: u64 = 5;

/// A snapshot's folder, and the guest it is of.
struct Kept {
    folder: tempfile::TempDir,
    guest: Guest,
}

impl Kept {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), guest: Guest::new("simple", &["COUNT"]) }
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

fn snapshot(folder: &Path, resume: bool) -> Request {
    Request::Snapshot(Box::new(SnapshotSpec { folder: folder.into(), disks: Vec::new(), resume, durable: true }))
}

fn captured(reply: Reply) -> SnapshotFigures {
    match reply {
        Reply::Snapshot(figures) => figures,
        reply => panic!("{reply:?}"),
    }
}

fn restore(machine: MachineSpec, folder: &Path) -> Request {
    Request::Restore(Box::new(RestoreSpec { machine, snapshot: folder.into(), resume: true }))
}

fn refused(reply: Reply) -> (ErrorKind, String) {
    match reply {
        Reply::Error { kind, message } => (kind, message),
        reply => panic!("{reply:?}"),
    }
}

/// Waits, on what the machine itself tells, until the guest has said some letters.
fn letters(control: &mut Connection) -> String {
    while control.stats().devices.last().unwrap().1.write_bytes < 3 + LETTERS {}
    control.done(&Request::Pause);
    console(control)
}

fn console(control: &mut Connection) -> String {
    let Reply::Console(tail) = control.ask(&Request::ConsoleTail { bytes_max: 4096 }) else { panic!("no tail") };
    String::from_utf8(tail).unwrap().trim_start_matches("hi\n").to_owned()
}

/// Asserts that `text` is the alphabet, over and over, from the letter after `before` on.
fn assert_goes_on(before: Option<char>, text: &str) {
    let mut last = before;
    for letter in text.chars() {
        let expected = last.map_or('a', |last| if last == 'z' { 'a' } else { char::from(last as u8 + 1) });
        assert_eq!(letter, expected, "after {before:?}: {text}");
        last = Some(letter);
    }
}

#[test]
fn two_machines_of_one_snapshot_count_on_from_where_it_stood() {
    let kept = Kept::new();
    let folder = kept.make("first");
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(vmm.spec(&kept.guest.path));
    let said = letters(&mut control);
    assert_goes_on(None, &said);
    let figures = captured(control.ask(&snapshot(&folder, false)));
    assert!(figures.written_bytes > 0 && figures.data_bytes < 1 << 20, "{figures:?}");
    assert_eq!(figures.paused_us, 0, "it stood still already");
    assert!(control.stats().paused);
    control.done(&Request::Stop);
    vmm.wait();
    for _ in 0..2 {
        let mut vmm = Vmm::spawn();
        let mut control = vmm.connect();
        let reply = control.ask(&restore(vmm.spec(&kept.guest.path), &folder));
        assert!(matches!(reply, Reply::Started { vcpus: 1, .. }), "{reply:?}");
        while control.stats().devices.last().unwrap().1.write_bytes < LETTERS {}
        control.done(&Request::Pause);
        let more = console(&mut control);
        assert_goes_on(said.chars().last(), &more);
        // Of a restored machine only what it wrote is its own.
        let own = control.stats().memory_resident_bytes.unwrap();
        assert!((1..=64 << 10).contains(&own), "{own}");
        control.done(&Request::Stop);
        vmm.wait();
    }
}

#[test]
fn a_snapshot_of_a_restored_machine_writes_only_what_changed() {
    let kept = Kept::new();
    let (first, second) = (kept.make("first"), kept.make("second"));
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(vmm.spec(&kept.guest.path));
    let mut said = letters(&mut control);
    control.done(&Request::Resume);
    // A live one: the machine goes on by itself.
    let live = captured(control.ask(&snapshot(&first, true)));
    assert!(live.paused_us > 0 && live.paused_us <= live.total_us, "{live:?}");
    assert!(!control.stats().paused);
    control.done(&Request::Stop);
    vmm.wait();

    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.ask(&restore(vmm.spec(&kept.guest.path), &first));
    while control.stats().devices.last().unwrap().1.write_bytes < LETTERS {}
    let figures = captured(control.ask(&snapshot(&second, false)));
    assert!(figures.written_bytes > 0 && figures.written_bytes < live.written_bytes, "{figures:?} after {live:?}");
    said.push_str(&console(&mut control));
    control.done(&Request::Stop);
    vmm.wait();
    // Nothing of the first is needed any more.
    std::fs::remove_dir_all(&first).unwrap();

    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.ask(&restore(vmm.spec(&kept.guest.path), &second));
    while control.stats().devices.last().unwrap().1.write_bytes < LETTERS {}
    control.done(&Request::Pause);
    assert_goes_on(said.chars().last(), &console(&mut control));
    control.done(&Request::Stop);
    vmm.wait();
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_and_the_machine_can_still_boot() {
    let kept = Kept::new();
    let folder = kept.make("first");
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(vmm.spec(&kept.guest.path));
    captured(control.ask(&snapshot(&folder, false)));
    control.done(&Request::Stop);
    vmm.wait();

    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    let mut ask = |machine: MachineSpec| refused(control.ask(&restore(machine, &folder)));
    let larger = MachineSpec { memory_mib: 1024, ..vmm.spec(&kept.guest.path) };
    let (kind, message) = ask(larger);
    assert_eq!(kind, ErrorKind::Snapshot);
    assert!(message.contains("with 536870912 bytes of memory, not 1073741824"), "{message}");
    let disk = DiskSpec {
        layers: vec![LayerSpec { path: kept.guest.path.clone(), format: LayerFormat::Raw }],
        read_only: true,
    };
    let (kind, message) = ask(MachineSpec { disks: vec![disk], ..vmm.spec(&kept.guest.path) });
    assert_eq!(kind, ErrorKind::Snapshot);
    assert!(message.contains("2 devices, and not the 3"), "{message}");

    let state = folder.join("state");
    let whole = std::fs::read(&state).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&state, damaged).unwrap();
    let (kind, message) = ask(vmm.spec(&kept.guest.path));
    assert_eq!((kind, message.contains("its checksum does not fit")), (ErrorKind::Snapshot, true), "{message}");
    std::fs::write(&state, whole).unwrap();
    let memory = std::fs::OpenOptions::new().write(true).open(folder.join("memory")).unwrap();
    memory.set_len(1 << 20).unwrap();
    let (kind, message) = ask(vmm.spec(&kept.guest.path));
    assert_eq!(
        (kind, message.contains("1048576 bytes instead of 536870912")),
        (ErrorKind::Snapshot, true),
        "{message}"
    );
    std::fs::remove_file(folder.join("manifest.json")).unwrap();
    let (kind, message) = ask(vmm.spec(&kept.guest.path));
    assert_eq!((kind, message.contains("no manifest")), (ErrorKind::Snapshot, true), "{message}");

    control.start(vmm.spec(&kept.guest.path));
    assert_goes_on(None, &letters(&mut control));
    control.done(&Request::Stop);
    vmm.wait();
}

#[test]
fn a_capture_that_fails_leaves_the_machine_running_as_before() {
    let kept = Kept::new();
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(vmm.spec(&kept.guest.path));
    let (kind, message) = refused(control.ask(&snapshot(&kept.folder.path().join("none"), true)));
    assert_eq!(kind, ErrorKind::Host);
    assert!(message.starts_with("Cannot write the snapshot "), "{message}");
    // The memory file is there already: after the pause nothing but the state is refused.
    let folder = kept.make("taken");
    std::fs::write(folder.join("state"), "").unwrap();
    let (kind, _) = refused(control.ask(&snapshot(&folder, false)));
    assert_eq!(kind, ErrorKind::Host);
    assert!(!folder.join("manifest.json").exists());
    assert!(!control.stats().paused, "it ran before");
    assert_goes_on(None, &letters(&mut control));
    control.done(&Request::Stop);
    vmm.wait();
}

#[test]
fn a_live_machine_goes_on_with_a_new_layer_and_the_old_one_is_frozen() {
    const DISK_BYTES: u64 = 8 << 20;
    let kept = Kept::new();
    let layer = |name: &str| LayerSpec { path: kept.folder.path().join(name), format: LayerFormat::Qcow2 };
    for name in ["base", "top", "other"] {
        create(&layer(name).path, DISK_BYTES, None).unwrap();
    }
    create(&layer("small").path, DISK_BYTES / 2, None).unwrap();
    let chain = |names: &[&str]| DiskSpec { layers: names.iter().map(|name| layer(name)).collect(), read_only: false };
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(MachineSpec { disks: vec![chain(&["base"])], ..vmm.spec(&kept.guest.path) });
    let capture = |name: &str, disks: Vec<DiskSpec>| {
        let folder = kept.make(name);
        Request::Snapshot(Box::new(SnapshotSpec { folder, disks, resume: true, durable: false }))
    };
    // Another chain, another size, another number of disks.
    for (name, disks) in [
        ("a", vec![chain(&["other", "top"])]),
        ("b", vec![chain(&["base", "small"])]),
        ("c", vec![chain(&["base"]), chain(&["other"])]),
    ] {
        let (kind, message) = refused(control.ask(&capture(name, disks)));
        assert_eq!(kind, ErrorKind::Invalid, "{message}");
        assert!(!kept.folder.path().join(name).join("manifest.json").exists());
        assert_eq!(control.stats().tops, [layer("base").path]);
        assert!(!control.stats().paused);
    }
    captured(control.ask(&capture("d", vec![chain(&["base", "top"])])));
    assert_eq!(control.stats().tops, [layer("top").path]);
    // The frozen layer serves a machine of the snapshot at the same time.
    let mut second = Vmm::spawn();
    let mut restored = second.connect();
    let spec = MachineSpec { disks: vec![chain(&["base", "other"])], ..second.spec(&kept.guest.path) };
    let reply = restored.ask(&restore(spec, &kept.folder.path().join("d")));
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    for (control, vmm) in [(&mut control, &mut vmm), (&mut restored, &mut second)] {
        control.done(&Request::Stop);
        assert!(vmm.wait().success());
    }
}

#[test]
fn memory_on_both_sides_of_the_gap_is_kept() {
    let kept = Kept::new();
    let folder = kept.make("first");
    let spec = |vmm: &Vmm| MachineSpec { memory_mib: 5 << 10, ..vmm.spec(&kept.guest.path) };
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(spec(&vmm));
    let said = letters(&mut control);
    captured(control.ask(&snapshot(&folder, false)));
    control.done(&Request::Stop);
    vmm.wait();
    assert_eq!(std::fs::metadata(folder.join("memory")).unwrap().len(), 5 << 30);
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.ask(&restore(spec(&vmm), &folder));
    while control.stats().devices.last().unwrap().1.write_bytes < LETTERS {}
    control.done(&Request::Pause);
    assert_goes_on(said.chars().last(), &console(&mut control));
    control.done(&Request::Stop);
    vmm.wait();
}
