//! What a machine does from its start to each of its ends. These tests
//! fail on a host without KVM, and say so.

use std::io::Write;
use std::os::unix::net::UnixStream;

use crate::harness::{Guest, Vmm};
use cove_protocol::vmm::{ErrorKind, ExitReason, HostProbe, Reply, Request};
use rustix::process::{Pid, Signal, kill_process};

/// VMM overhead beyond guest memory, in KiB.
const OVERHEAD_KIB_MAX: u64 = 10 << 10;

#[test]
fn a_guest_makes_system_calls_takes_faults_and_powers_off() {
    let mut vmm = Vmm::spawn();
    let mut events = vmm.connect().subscribe();
    vmm.connect().start(vmm.spec(&Guest::new("assist", &[]).path));
    assert_eq!(events.ended(), ExitReason::PowerOff);
    assert!(vmm.wait().success());
    // Letter by letter: tests/guests/assist.S.
    assert_eq!(vmm.console(), "KBPCFSJSJ\n");
}

#[test]
fn a_storm_of_pauses_changes_nothing_for_the_guest() {
    let mut vmm = Vmm::spawn();
    let mut events = vmm.connect().subscribe();
    let mut control = vmm.connect();
    control.start(vmm.spec(&Guest::new("assist", &["MANY"]).path));
    let mut pauses = 0;
    for request in [Request::Pause, Request::Resume].iter().cycle() {
        match control.try_ask(request) {
            Some(Reply::Done) => pauses += 1,
            Some(Reply::Error { message, .. }) if message == "The machine has ended" => break,
            Some(reply) => panic!("{reply:?}"),
            None => break,
        }
    }
    assert!(pauses > 100, "only {pauses} pauses and resumes");
    assert_eq!(events.ended(), ExitReason::PowerOff);
    assert!(vmm.wait().success());
    assert_eq!(vmm.console(), "KBPCFSJSJ\n", "after {pauses} pauses");
}

#[test]
fn a_control_socket_may_be_handed_over_and_takes_connections_before_the_vmm_does() {
    let mut vmm = Vmm::spawn_on_socket();
    let mut events = vmm.connect().subscribe();
    vmm.connect().start(vmm.spec(&Guest::new("simple", &["RESET"]).path));
    assert_eq!(events.ended(), ExitReason::Reset);
    assert!(vmm.wait().success());
}

#[test]
fn a_guest_that_resets_ends_its_machine() {
    let mut vmm = Vmm::spawn();
    let mut events = vmm.connect().subscribe();
    vmm.connect().start(vmm.spec(&Guest::new("simple", &["RESET"]).path));
    assert_eq!(events.ended(), ExitReason::Reset);
    assert!(vmm.wait().success());
    assert_eq!(vmm.console(), "hi\n");
}

#[test]
fn a_triple_fault_is_the_guests_fault() {
    let mut vmm = Vmm::spawn();
    let mut events = vmm.connect().subscribe();
    vmm.connect().start(vmm.spec(&Guest::new("simple", &["FAULT"]).path));
    let reason = events.ended();
    assert!(matches!(&reason, ExitReason::GuestFault(text) if text.contains("triple fault")), "{reason:?}");
    assert!(!vmm.wait().success());
}

#[test]
fn a_paused_machine_stands_still_and_a_stopped_one_is_gone() {
    let mut vmm = Vmm::spawn();
    let mut events = vmm.connect().subscribe();
    let mut control = vmm.connect();
    control.start(vmm.spec(&Guest::new("simple", &[]).path));
    control.done(&Request::Pause);
    control.done(&Request::Pause);
    let (first, second) = (control.stats(), control.stats());
    assert!(first.paused);
    assert_eq!(first.vcpus, second.vcpus);
    control.done(&Request::Resume);
    let running = control.stats();
    assert!(!running.paused);
    assert!(running.uptime_us > second.uptime_us);
    assert_eq!(running.devices.last().unwrap().0, "serial");
    assert!(running.memory_resident_bytes.is_some_and(|bytes| bytes > 0 && bytes < 64 << 20));
    control.done(&Request::Stop);
    assert_eq!(events.ended(), ExitReason::Stopped);
    assert!(vmm.wait().success());
}

#[test]
fn a_stop_while_paused_and_a_termination_signal_end_the_machine_too() {
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(vmm.spec(&Guest::new("simple", &[]).path));
    control.done(&Request::Pause);
    control.done(&Request::Stop);
    assert!(vmm.wait().success());

    let mut vmm = Vmm::spawn();
    let mut events = vmm.connect().subscribe();
    vmm.connect().start(vmm.spec(&Guest::new("simple", &[]).path));
    kill_process(Pid::from_raw(vmm.pid() as i32).unwrap(), Signal::TERM).unwrap();
    assert_eq!(events.ended(), ExitReason::Stopped);
    assert!(vmm.wait().success());
}

#[test]
fn a_flood_of_output_stays_within_the_logs_limit() {
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    let guest = Guest::new("simple", &["FLOOD"]);
    let spec = vmm.spec(&guest.path);
    let bytes_max = spec.console.bytes_max;
    control.start(spec);
    // Waits on what the machine itself tells, not on a clock: more than the log holds has been written.
    while control.stats().devices.last().unwrap().1.write_bytes < 2 * bytes_max {}
    let Reply::Console(tail) = control.ask(&Request::ConsoleTail { bytes_max: 1000 }) else { panic!("no tail") };
    assert_eq!(tail.len(), 1000);
    assert!(tail.ends_with(b"x\n") || tail.ends_with(b"x"));
    control.done(&Request::Stop);
    vmm.wait();
    let size = |name: &str| std::fs::metadata(vmm.folder().join(name)).unwrap().len();
    let kept = size("console.log") + size("console.log.old");
    assert!((bytes_max / 2..=bytes_max).contains(&kept), "{kept}");
}

#[test]
fn a_wrong_request_is_refused_with_a_reason_and_changes_nothing() {
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    let refused = |reply: Reply| match reply {
        Reply::Error { kind: ErrorKind::Invalid, message } => message,
        reply => panic!("{reply:?}"),
    };
    let guest = Guest::new("simple", &[]);
    let mut wrong = vmm.spec(&guest.path);
    wrong.vcpus = 0;
    assert_eq!(refused(control.ask(&Request::Start(Box::new(wrong)))), "vcpus must be 1 to 16, not 0");
    let mut wrong = vmm.spec(&guest.path);
    wrong.kernel = "/nonexistent".into();
    let message = refused(control.ask(&Request::Start(Box::new(wrong))));
    assert!(message.starts_with("Cannot read the kernel /nonexistent: "), "{message}");
    assert_eq!(refused(control.ask(&Request::Pause)), "The machine has not been started");
    control.start(vmm.spec(&guest.path));
    let again = Request::Start(Box::new(vmm.spec(&guest.path)));
    assert_eq!(refused(control.ask(&again)), "The machine has been started already");
    let tail = Request::ConsoleTail { bytes_max: 1 << 20 };
    assert_eq!(refused(control.ask(&tail)), "bytes_max must be 262144 or less, not 1048576");
    // Nonsense on one connection does not touch the others.
    let mut stranger = UnixStream::connect(vmm.folder().join("control")).unwrap();
    stranger.write_all(&[0xff; 4096]).unwrap();
    assert!(!control.stats().paused);
    control.done(&Request::Stop);
    assert!(vmm.wait().success());
}

#[test]
fn memory_beyond_the_gap_is_at_4_gib() {
    let mut vmm = Vmm::spawn();
    let mut events = vmm.connect().subscribe();
    let guest = Guest::new("simple", &["HIGH"]);
    let mut spec = vmm.spec(&guest.path);
    spec.memory_mib = 5 << 10;
    vmm.connect().start(spec);
    assert_eq!(events.ended(), ExitReason::Reset);
    vmm.wait();
    assert_eq!(vmm.console(), "hi\ny");
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry() {
    // mov dx, 0x3f8; mov al, 'b'; out dx, al; mov al, 0xfe; out 0x64, al; hlt
    const CODE: [u8; 12] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'b', 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    const SETUP_SECTORS: usize = 1;
    let setup_bytes = (SETUP_SECTORS + 1) * 512;
    let mut image = vec![0; setup_bytes + 0x200];
    // Header fields: Linux, Documentation/arch/x86/boot.rst.
    image[0x1f1] = SETUP_SECTORS as u8;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20cu16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x236] = 1;
    image.extend(CODE);
    let mut vmm = Vmm::spawn();
    let kernel = vmm.folder().join("bzImage");
    std::fs::write(&kernel, image).unwrap();
    let mut events = vmm.connect().subscribe();
    vmm.connect().start(vmm.spec(&kernel));
    assert_eq!(events.ended(), ExitReason::Reset);
    vmm.wait();
    assert_eq!(vmm.console(), "b");
}

#[test]
fn the_process_keeps_nothing_that_it_does_not_need() {
    // A descriptor that a parent forgot to close on exec.
    let secret = tempfile::NamedTempFile::new().unwrap();
    rustix::io::fcntl_setfd(secret.as_file(), rustix::io::FdFlags::empty()).unwrap();
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(vmm.spec(&Guest::new("simple", &[]).path));
    let open = std::fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap();
    let targets: Vec<_> = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(!targets.iter().any(|target| target == secret.path()), "{targets:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let socket = std::fs::metadata(vmm.folder().join("control")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&socket.permissions()) & 0o077, 0);
    control.done(&Request::Stop);
    assert!(vmm.wait().success());
}

#[test]
fn the_vcpus_that_were_granted_are_said() {
    let mut vmm = Vmm::spawn();
    let probe = std::process::Command::new(env!("CARGO_BIN_EXE_vmm")).arg("probe").output().unwrap();
    let probe: HostProbe = serde_json::from_slice(&probe.stdout).unwrap();
    assert_eq!(probe.problem, None);
    let guest = Guest::new("simple", &[]);
    let mut control = vmm.connect();
    let mut spec = vmm.spec(&guest.path);
    spec.vcpus = 16;
    match control.ask(&Request::Start(Box::new(spec))) {
        Reply::Started { version, vcpus, assist } => {
            assert_eq!((version, vcpus, assist), (cove_protocol::VERSION, probe.vcpus_max, probe.assist));
        }
        reply => panic!("{reply:?}"),
    }
    assert_eq!(control.stats().vcpus.len(), usize::from(probe.vcpus_max));
    control.done(&Request::Stop);
    assert!(vmm.wait().success());
}

#[test]
fn without_kvm_the_start_says_what_is_missing() {
    let mut vmm = Vmm::spawn_with(&[("COVE_KVM", "/nonexistent")]);
    let mut control = vmm.connect();
    let spec = vmm.spec(&Guest::new("simple", &[]).path);
    match control.ask(&Request::Start(Box::new(spec))) {
        Reply::Error { kind: ErrorKind::Host, message } => {
            assert!(message.starts_with("There is no /nonexistent: this host offers no KVM."), "{message}");
        }
        reply => panic!("{reply:?}"),
    }
    control.done(&Request::Stop);
    assert!(vmm.wait().success());
}

#[test]
fn the_vmm_takes_little_memory_for_itself() {
    let mut vmm = Vmm::spawn();
    let mut control = vmm.connect();
    control.start(vmm.spec(&Guest::new("simple", &[]).path));
    let guest_kib = control.stats().memory_resident_bytes.unwrap() / 1024;
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss_kib: u64 = rss.split_whitespace().next().unwrap().parse().unwrap();
    assert!(rss_kib - guest_kib <= OVERHEAD_KIB_MAX, "{rss_kib} KiB resident, of it the guest's {guest_kib} KiB");
    control.done(&Request::Stop);
    vmm.wait();
}
