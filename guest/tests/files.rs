//! File operations, through the agent's real server.

mod harness;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use cove_protocol::guest::{EntryKind, ErrorKind, Input, Reply, Request};
use harness::{Agent, eventually, exec};

fn kind(reply: Reply) -> ErrorKind {
    match reply {
        Reply::Error { kind, .. } => kind,
        other => panic!("{other:?}"),
    }
}

/// Bytes that repeat only after a long time.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn what_was_written_is_read_back_whatever_it_holds_and_is_called() {
    let agent = Agent::start();
    let mut client = agent.connect();
    for (name, size) in [("plain", 0), ("with space #1?.txt", 1), ("日本/ü/file", 65536), ("big", 8 << 20)] {
        let (path, bytes) = (agent.path(name), noise(size));
        assert_eq!(client.write_file(&path, &bytes), Reply::Done);
        assert!(client.read_file(&path).unwrap() == bytes, "{name}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    }
    assert_eq!(client.run(&exec("echo on")).stdout, "on\n", "the same connection carries commands too");
    assert!(agent.memory().1 < 8 << 20, "{:?}", agent.memory());
}

#[test]
fn an_existing_file_keeps_its_mode_and_owner_and_a_link_is_written_through() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let (file, link) = (agent.path("file"), agent.path("link"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o751)).unwrap();
    symlink("file", &link).unwrap();
    assert_eq!(client.write_file(&link, b"new"), Reply::Done);
    assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o751);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_dir(agent.folder.path()).unwrap().count(), 3, "file, link, socket");
}

#[test]
fn a_write_whose_connection_drops_leaves_nothing() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let path = agent.path("sub/file");
    fs::create_dir(agent.path("sub")).unwrap();
    fs::write(&path, "old").unwrap();
    client.send(&Request::WriteFile { path: path.clone(), mode: 0o644 });
    client.data(&[1; 65536]);
    let names = || fs::read_dir(agent.path("sub")).unwrap().count();
    eventually("a temporary file", || names() == 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    drop(client);
    eventually("no temporary file", || names() == 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

#[test]
fn wrong_paths_are_refused_with_the_right_kind() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let (here, missing) = (agent.path(""), agent.path("missing"));
    fs::write(agent.path("file"), "x").unwrap();
    let below_file = agent.path("file/below");
    for path in ["relative", "", "/a\0b"] {
        assert_eq!(kind(client.read_file(path).unwrap_err()), ErrorKind::InvalidPath);
        assert_eq!(kind(client.write_file(path, b"x")), ErrorKind::InvalidPath);
        assert_eq!(kind(client.list(path, 1).unwrap_err()), ErrorKind::InvalidPath);
        assert_eq!(kind(client.ask(&Request::Stat { path: path.into() })), ErrorKind::InvalidPath);
        assert_eq!(kind(client.ask(&Request::MakeDir { path: path.into() })), ErrorKind::InvalidPath);
    }
    assert_eq!(kind(client.read_file(&here).unwrap_err()), ErrorKind::InvalidPath);
    assert_eq!(kind(client.read_file("/dev/null").unwrap_err()), ErrorKind::InvalidPath);
    assert_eq!(kind(client.read_file(&missing).unwrap_err()), ErrorKind::NotFound);
    assert_eq!(kind(client.read_file(&below_file).unwrap_err()), ErrorKind::InvalidPath);
    assert_eq!(kind(client.write_file(&here, b"x")), ErrorKind::InvalidPath);
    assert_eq!(kind(client.write_file(&below_file, b"x")), ErrorKind::InvalidPath);
    assert_eq!(kind(client.list(&missing, 1).unwrap_err()), ErrorKind::NotFound);
    assert_eq!(kind(client.ask(&Request::Remove { path: "/".into(), recursive: true })), ErrorKind::InvalidPath);
    assert_eq!(kind(client.ask(&Request::Remove { path: missing, recursive: true })), ErrorKind::NotFound);
    assert_eq!(client.read_file("/proc/self/status").map(|bytes| bytes.len() > 100), Ok(true));
}

#[test]
fn a_listing_is_depth_first_in_byte_order_and_does_not_follow_links() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let root = agent.path("tree");
    fs::create_dir_all(format!("{root}/b/c")).unwrap();
    fs::write(format!("{root}/b/c/deep"), "12345").unwrap();
    fs::write(format!("{root}/a #1"), "").unwrap();
    symlink("/", format!("{root}/z")).unwrap();
    let list = |client: &mut harness::Client, depth| -> Vec<(String, EntryKind, u64)> {
        let entries = client.list(&root, depth).unwrap();
        entries.into_iter().map(|e| (e.path[root.len()..].to_owned(), e.kind, e.size)).collect()
    };
    let names = |entries: &[(String, EntryKind, u64)]| entries.iter().map(|e| e.0.clone()).collect::<Vec<_>>();
    let all = list(&mut client, 100);
    assert_eq!(names(&all), ["/a #1", "/b", "/b/c", "/b/c/deep", "/z"]);
    assert_eq!((all[3].1, all[3].2, all[4].1), (EntryKind::File, 5, EntryKind::Symlink));
    assert_eq!(names(&list(&mut client, 1)), ["/a #1", "/b", "/z"]);
    assert_eq!(names(&list(&mut client, 2)), ["/a #1", "/b", "/b/c", "/z"]);
    for number in 0..1000 {
        fs::write(format!("{root}/b/{number:04}"), "").unwrap();
    }
    assert_eq!(list(&mut client, 2).len(), 1004);
}

#[test]
fn directories_are_made_moved_and_removed() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let [deep, top, moved] = ["a/b/c", "a", "x/y/a"].map(|name| agent.path(name));
    for _ in 0..2 {
        assert_eq!(client.ask(&Request::MakeDir { path: deep.clone() }), Reply::Done);
    }
    fs::write(format!("{deep}/file"), "x").unwrap();
    symlink("/etc", format!("{deep}/etc")).unwrap();
    assert_eq!(client.ask(&Request::Move { from: top.clone(), to: moved.clone() }), Reply::Done);
    assert!(!fs::exists(&top).unwrap() && fs::exists(format!("{moved}/b/c/file")).unwrap());
    assert_eq!(kind(client.ask(&Request::Remove { path: moved.clone(), recursive: false })), ErrorKind::InvalidPath);
    assert_eq!(client.ask(&Request::Remove { path: moved.clone(), recursive: true }), Reply::Done);
    assert!(!fs::exists(&moved).unwrap() && fs::exists("/etc/passwd").unwrap());
    let link = agent.path("link");
    symlink("/etc", &link).unwrap();
    assert_eq!(client.ask(&Request::Remove { path: link.clone(), recursive: true }), Reply::Done);
    assert!(fs::symlink_metadata(&link).is_err() && fs::exists("/etc/passwd").unwrap());
    let Reply::FileInfo(entry) = client.ask(&Request::Stat { path: "/dev/null".into() }) else { panic!() };
    assert_eq!(entry.kind, EntryKind::Other);
}

/// A small file system of its own.
struct Tmpfs(String);

impl Tmpfs {
    fn mount(path: String) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", path.as_str(), "tmpfs", flags, Some(c"size=256k")).ok().map(|()| Self(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.as_str(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_file_system_says_so_and_shows_nothing_half_done() {
    let agent = Agent::start();
    let Some(small) = Tmpfs::mount(agent.path("small")) else { return };
    let mut client = agent.connect();
    let path = format!("{}/file", small.0);
    assert_eq!(kind(client.write_file(&path, &noise(2 << 20))), ErrorKind::NoSpace);
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0);
    assert_eq!(client.write_file(&path, b"fits"), Reply::Done, "the connection and the room are there again");
}

#[test]
fn a_move_goes_across_file_systems() {
    let agent = Agent::start();
    let Some(small) = Tmpfs::mount(agent.path("small")) else { return };
    let mut client = agent.connect();
    let (from, to) = (agent.path("tree"), format!("{}/to/tree", small.0));
    fs::create_dir_all(format!("{from}/locked")).unwrap();
    fs::write(format!("{from}/locked/file"), "x").unwrap();
    symlink("file", format!("{from}/locked/link")).unwrap();
    fs::set_permissions(format!("{from}/locked"), fs::Permissions::from_mode(0o500)).unwrap();
    assert_eq!(client.ask(&Request::Move { from: from.clone(), to: to.clone() }), Reply::Done);
    assert!(!fs::exists(&from).unwrap());
    assert_eq!(fs::read_to_string(format!("{to}/locked/link")).unwrap(), "x");
    assert_eq!(fs::metadata(format!("{to}/locked")).unwrap().mode() & 0o7777, 0o500);
    fs::write(agent.path("big"), noise(1 << 20)).unwrap();
    let full = client.ask(&Request::Move { from: agent.path("big"), to: format!("{}/big", small.0) });
    assert_eq!(kind(full), ErrorKind::NoSpace);
    assert!(fs::exists(agent.path("big")).unwrap() && fs::read_dir(&small.0).unwrap().count() == 1);
}

#[test]
fn a_blocked_file_operation_does_not_stop_commands() {
    let agent = Agent::start();
    let mut stuck = agent.connect();
    // The worker waits for content that does not come, as it would for a file system that does not answer.
    stuck.send(&Request::WriteFile { path: agent.path("file"), mode: 0o600 });
    assert_eq!(agent.sh("echo on").stdout, "on\n");
    let mut third = agent.connect();
    assert_eq!(third.write_file(&agent.path("other"), b"x"), Reply::Done);
    stuck.input(&Input::End);
    assert_eq!(stuck.reply(), Some(Reply::Done));
}
