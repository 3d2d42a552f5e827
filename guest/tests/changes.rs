//! Watching a directory, through the agent's real server.

mod harness;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
};

use cove_protocol::guest::{Change, ChangeKind, ErrorKind, Input, Reply, Request};
use harness::{Agent, Client};

/// A watch that has begun.
struct Watched {
    client: Client,
    folder: String,
}

impl Watched {
    fn begin(agent: &Agent, name: &str, recursive: bool) -> Self {
        let folder = fs::canonicalize(agent.path(name)).unwrap().to_str().unwrap().to_owned();
        let mut client = agent.connect();
        client.send(&Request::Watch { path: folder.clone(), recursive });
        match client.reply().unwrap() {
            Reply::Watching { .. } => Self { client, folder },
            other => panic!("{other:?}"),
        }
    }

    /// The next changes until there is one of the path `last`; each as kind and what follows the watched directory.
    fn until(&mut self, last: &str) -> Vec<(ChangeKind, String)> {
        let mut seen = Vec::new();
        while !seen.iter().any(|(_, path)| path == last) {
            match self.client.reply().unwrap() {
                Reply::Changes(changes) => seen.extend(changes.into_iter().map(|change| self.short(change))),
                other => panic!("{other:?}"),
            }
        }
        seen
    }

    fn short(&self, change: Change) -> (ChangeKind, String) {
        let below = |path: &str| path.strip_prefix(&self.folder).unwrap().trim_start_matches('/').to_owned();
        let old = change.old_path.map(|old| format!("{}>", below(&old))).unwrap_or_default();
        (change.kind, old + &below(&change.path))
    }
}

use ChangeKind::{Created, Deleted, Modified, Overflow, Renamed};

fn told(changes: &[(ChangeKind, &str)]) -> Vec<(ChangeKind, String)> {
    changes.iter().map(|(kind, path)| (*kind, (*path).to_owned())).collect()
}

#[test]
fn what_happens_to_files_is_told_in_order() {
    let agent = Agent::start();
    fs::create_dir(agent.path("w")).unwrap();
    fs::write(agent.path("w/old"), "1").unwrap();
    let mut watched = Watched::begin(&agent, "w", true);
    fs::write(agent.path("w/a"), "1").unwrap();
    fs::rename(agent.path("w/a"), agent.path("w/b")).unwrap();
    fs::set_permissions(agent.path("w/old"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(agent.path("w/b")).unwrap();
    let seen = watched.until("b");
    let expected = [(Created, "a"), (Modified, "a"), (Renamed, "a>b"), (Modified, "old"), (Deleted, "b")];
    assert_eq!(seen, told(&expected));
}

#[test]
fn new_directories_are_followed_without_a_race() {
    let agent = Agent::start();
    fs::create_dir(agent.path("w")).unwrap();
    let mut watched = Watched::begin(&agent, "w", true);
    let mut expected = BTreeSet::new();
    for number in 0..60 {
        let deep = format!("d{number}/e/f");
        fs::create_dir_all(agent.path(&format!("w/{deep}"))).unwrap();
        fs::write(agent.path(&format!("w/{deep}/file")), "x").unwrap();
        for path in [format!("d{number}"), format!("d{number}/e"), deep.clone(), format!("{deep}/file")] {
            expected.insert(path);
        }
    }
    fs::write(agent.path("w/end"), "").unwrap();
    let seen = watched.until("end");
    let mut created = BTreeMap::new();
    for (kind, path) in seen {
        if kind == Created {
            *created.entry(path).or_insert(0) += 1;
        }
    }
    created.remove("end");
    assert!(created.values().all(|count| *count == 1), "told twice: {created:?}");
    assert_eq!(created.into_keys().collect::<BTreeSet<_>>(), expected);
    // They are watched, and stay so under another name.
    fs::rename(agent.path("w/d7"), agent.path("w/moved")).unwrap();
    fs::write(agent.path("w/moved/e/f/file"), "again").unwrap();
    let seen = watched.until("moved/e/f/file");
    assert_eq!(seen.first(), told(&[(Renamed, "d7>moved")]).first(), "{seen:?}");
}

#[test]
fn what_leaves_and_what_comes_is_deleted_and_created() {
    let agent = Agent::start();
    for folder in ["w", "w/in", "away", "away/sub"] {
        fs::create_dir(agent.path(folder)).unwrap();
    }
    fs::write(agent.path("away/sub/file"), "").unwrap();
    let mut watched = Watched::begin(&agent, "w", true);
    fs::rename(agent.path("w/in"), agent.path("away/in")).unwrap();
    fs::write(agent.path("away/in/unseen"), "").unwrap();
    fs::rename(agent.path("away/sub"), agent.path("w/sub")).unwrap();
    assert_eq!(watched.until("sub/file"), told(&[(Deleted, "in"), (Created, "sub"), (Created, "sub/file")]));
    fs::write(agent.path("w/sub/more"), "").unwrap();
    assert_eq!(watched.until("sub/more"), told(&[(Created, "sub/more")]));
}

#[test]
fn a_write_of_the_agents_own_is_one_change() {
    let agent = Agent::start();
    fs::create_dir(agent.path("w")).unwrap();
    let mut watched = Watched::begin(&agent, "w", true);
    for content in ["one", "two"] {
        let mut client = agent.connect();
        client.send(&Request::WriteFile { path: agent.path("w/file"), mode: 0o644 });
        client.input(&Input::Data(content.as_bytes().to_vec().into()));
        client.input(&Input::End);
        assert_eq!(client.reply().unwrap(), Reply::Done);
    }
    fs::write(agent.path("w/end"), "").unwrap();
    assert_eq!(watched.until("end"), told(&[(Created, "file"), (Modified, "file"), (Created, "end")]));
}

#[test]
fn a_watch_ends_with_its_directory_and_when_the_peer_wants_no_more() {
    let agent = Agent::start();
    fs::create_dir(agent.path("w")).unwrap();
    let mut watched = Watched::begin(&agent, "w", false);
    fs::create_dir(agent.path("w/d")).unwrap();
    fs::write(agent.path("w/d/unseen"), "").unwrap();
    fs::remove_dir_all(agent.path("w")).unwrap();
    assert_eq!(watched.until(""), told(&[(Created, "d"), (Deleted, "d"), (Deleted, "")]));
    assert_eq!(watched.client.reply().unwrap(), Reply::Done);
    // The connection carries the next request.
    fs::create_dir(agent.path("v")).unwrap();
    watched.client.send(&Request::Watch { path: agent.path("v"), recursive: true });
    assert_eq!(watched.client.reply().unwrap(), Reply::Watching { directories: 1 });
    watched.client.input(&Input::End);
    assert_eq!(watched.client.reply().unwrap(), Reply::Done);
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let agent = Agent::start();
    fs::write(agent.path("file"), "").unwrap();
    for (path, wanted) in [
        (agent.path("missing"), ErrorKind::NotFound),
        (agent.path("file"), ErrorKind::InvalidPath),
        ("relative".to_owned(), ErrorKind::InvalidPath),
    ] {
        let mut client = agent.connect();
        client.send(&Request::Watch { path, recursive: true });
        match client.reply().unwrap() {
            Reply::Error { kind, .. } => assert_eq!(kind, wanted),
            other => panic!("{other:?}"),
        }
    }
    fs::create_dir(agent.path("w")).unwrap();
    let watches: Vec<Watched> = (0..16).map(|_| Watched::begin(&agent, "w", true)).collect();
    let mut client = agent.connect();
    client.send(&Request::Watch { path: agent.path("w"), recursive: true });
    assert!(matches!(client.reply().unwrap(), Reply::Error { kind: ErrorKind::InvalidRequest, .. }));
    drop(watches);
    harness::eventually("an ended watch", || {
        let mut client = agent.connect();
        client.send(&Request::Watch { path: agent.path("w"), recursive: true });
        matches!(client.reply().unwrap(), Reply::Watching { .. })
    });
}

#[test]
fn a_peer_that_does_not_read_is_told_exactly_what_it_missed() {
    let agent = Agent::start();
    fs::create_dir(agent.path("w")).unwrap();
    let mut watched = Watched::begin(&agent, "w", true);
    // Long names, so that the queue of 8 MiB is full before the kernel's of 16384 events is: the agent empties that one.
    let (name, count) = ("n".repeat(245), 40_000);
    for number in 0..count {
        let path = agent.path(&format!("w/{name}{number}"));
        fs::create_dir(path).unwrap();
    }
    fs::remove_dir(agent.path(&format!("w/{name}0"))).unwrap();
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < count + 1 {
        match watched.client.reply().unwrap() {
            Reply::Changes(changes) => {
                for change in changes {
                    match change.kind {
                        Overflow => lost += change.count.expect("the kernel lost something"),
                        _ => seen += 1,
                    }
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0 && seen + lost == count + 1, "{seen} {lost}");
}

/// Numbers that look random and are the same in each run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Every path below a directory.
fn all_below(root: &std::path::Path) -> BTreeSet<String> {
    let (mut found, mut waiting) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            found.insert(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    found
}

/// Does something to the tree at `root`: makes, writes, renames, removes, or moves out and in.
fn disturb(root: &std::path::Path, away: &std::path::Path, numbers: &mut Numbers) {
    let paths: Vec<String> = all_below(root).into_iter().collect();
    let some = |numbers: &mut Numbers| paths.get(numbers.below(paths.len().max(1))).map(|path| root.join(path));
    let fresh = |numbers: &mut Numbers, within: &std::path::Path| {
        let directory = some(numbers).filter(|path| path.is_dir() && numbers.below(4) > 0);
        directory.unwrap_or_else(|| within.to_owned()).join(["a", "b", "c", "d", "e"][numbers.below(5)])
    };
    let target = fresh(numbers, root);
    // What cannot be (a directory into itself, over another one) is no change.
    let _ = match numbers.below(8) {
        0 | 1 => fs::create_dir_all(target.join("x/y")),
        2 => fs::create_dir(target),
        3 | 4 => fs::write(target, "text"),
        5 => some(numbers).map_or(Ok(()), |from| fs::rename(from, target)),
        6 => some(numbers)
            .map_or(Ok(()), |path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }),
        _ => {
            let outside = away.join("parked");
            if outside.exists() {
                fs::rename(outside, target)
            } else {
                some(numbers).map_or(Ok(()), |path| fs::rename(path, outside))
            }
        }
    };
}

/// What a client that only listens believes to be there.
fn believe(tree: &mut BTreeSet<String>, kind: ChangeKind, path: &str) {
    let below =
        |path: &str, other: &str| other == path || other.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    match kind {
        Created => {
            tree.retain(|other| !below(path, other));
            tree.insert(path.to_owned());
        }
        Deleted => tree.retain(|other| !below(path, other)),
        Renamed => {
            let (old, new) = path.split_once('>').unwrap();
            let moved: Vec<String> = tree.iter().filter(|other| below(old, other)).cloned().collect();
            tree.retain(|other| !below(new, other) && !below(old, other));
            tree.extend(moved.into_iter().map(|other| format!("{new}{}", &other[old.len()..])));
        }
        Modified => {}
        Overflow | ChangeKind::Unwatched => panic!("{kind:?} {path}"),
    }
}

#[test]
fn a_tree_that_is_made_of_what_is_told_is_the_tree_that_is_there() {
    for seed in 1..=3 {
        let agent = Agent::start();
        fs::create_dir(agent.path("w")).unwrap();
        fs::create_dir(agent.path("away")).unwrap();
        let mut watched = Watched::begin(&agent, "w", true);
        let (root, away) = (agent.folder.path().join("w"), agent.folder.path().join("away"));
        let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let mut believed = BTreeSet::new();
        for step in 0..40 {
            disturb(&root, &away, &mut numbers);
            // What comes faster than it is looked at may have to be told as an overflow; here each is looked at.
            let mark = format!("step {step}");
            fs::write(root.join(&mark), "").unwrap();
            for (kind, path) in watched.until(&mark) {
                believe(&mut believed, kind, &path);
            }
            fs::remove_file(root.join(&mark)).unwrap();
            believed.remove(&mark);
            assert_eq!(believed, all_below(&root), "seed {seed}, step {step}");
        }
    }
}
