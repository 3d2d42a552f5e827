//! Packing archives, through the agent's real server; the system's own tar is the oracle.

mod harness;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use cove_protocol::guest::{ErrorKind, Reply, Request};
use harness::Agent;

fn pack(agent: &Agent, paths: &[String]) -> Result<Vec<u8>, ErrorKind> {
    let mut client = agent.connect();
    client.send(&Request::Archive { paths: paths.to_vec() });
    let mut bytes = Vec::new();
    loop {
        match client.reply().unwrap() {
            Reply::Data(data) => bytes.extend_from_slice(&data),
            Reply::Done => return Ok(bytes),
            Reply::Error { kind, .. } => return Err(kind),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_packed_comes_out_as_it_was() {
    let agent = Agent::start();
    let long = "l".repeat(180);
    for folder in ["t", "t/empty", "t/a b", &format!("t/{long}")] {
        fs::create_dir(agent.path(folder)).unwrap();
    }
    let big: Vec<u8> = (0..1_500_001u32).map(|at| (at % 251) as u8).collect();
    fs::write(agent.path("t/big"), &big).unwrap();
    fs::write(agent.path("t/a b/ü"), "x").unwrap();
    fs::write(agent.path(&format!("t/{long}/{long}")), "deep").unwrap();
    fs::write(agent.path("t/run"), "#!").unwrap();
    fs::set_permissions(agent.path("t/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("run", agent.path("t/link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, agent.path("t/pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    fs::write(agent.path("single"), "").unwrap();
    let bytes = pack(&agent, &[agent.path("t"), agent.path("single"), agent.path("t/run")]).unwrap();
    assert_eq!(bytes.len() % 512, 0);

    fs::write(agent.path("out.tar"), &bytes).unwrap();
    fs::create_dir(agent.path("out")).unwrap();
    let status = Command::new("tar").args(["xpf", &agent.path("out.tar"), "-C", &agent.path("out")]).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::read(agent.path("out/t/big")).unwrap(), big);
    assert_eq!(fs::read(agent.path("out/t/a b/ü")).unwrap(), b"x");
    assert_eq!(fs::read(agent.path(&format!("out/t/{long}/{long}"))).unwrap(), b"deep");
    assert!(fs::metadata(agent.path("out/t/empty")).unwrap().is_dir());
    assert_eq!(fs::metadata(agent.path("out/t/run")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(agent.path("out/t/link")).unwrap().to_str(), Some("run"));
    assert!(!fs::exists(agent.path("out/t/pipe")).unwrap(), "a pipe is no file");
    assert_eq!(fs::read(agent.path("out/single")).unwrap(), b"");
    assert_eq!(fs::read(agent.path("out/run")).unwrap(), b"#!");
}

#[test]
fn two_of_one_name_both_come_out() {
    let agent = Agent::start();
    for (folder, content) in [("a", "1"), ("b", "2")] {
        fs::create_dir(agent.path(folder)).unwrap();
        fs::write(agent.path(&format!("{folder}/f")), content).unwrap();
    }
    fs::write(agent.path("out.tar"), pack(&agent, &[agent.path("a/f"), agent.path("b/f")]).unwrap()).unwrap();
    let listed = Command::new("tar").args(["tf", &agent.path("out.tar")]).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), "f\nf-2\n");
}

#[test]
fn what_is_not_there_fails_before_the_first_byte() {
    let agent = Agent::start();
    fs::write(agent.path("f"), "").unwrap();
    assert_eq!(pack(&agent, &[agent.path("f"), agent.path("missing")]), Err(ErrorKind::NotFound));
    assert_eq!(pack(&agent, &["f".into()]), Err(ErrorKind::InvalidPath));
    assert_eq!(pack(&agent, &[]), Err(ErrorKind::InvalidRequest));
}

#[test]
fn a_file_without_a_size_of_its_own_is_empty_in_the_archive() {
    let agent = Agent::start();
    // Files of /proc have no size; the archive stays whole.
    fs::write(agent.path("out.tar"), pack(&agent, &["/proc/version".into(), "/proc/self/status".into()]).unwrap())
        .unwrap();
    let listed = Command::new("tar").args(["tf", &agent.path("out.tar")]).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), "version\nstatus\n");
}
