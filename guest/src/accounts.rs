//! Users by name or number, from `/etc/passwd` and `/etc/group`: the files alone, since a static agent has no NSS.

use std::{
    fs::File,
    io::{self, Read},
};

use crate::{failure::Failure, process::Identity};

/// Largest passwd or group file that is read, in bytes.
const ACCOUNT_FILE_BYTES_MAX: u64 = 1 << 20;

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// What the process is given; `None` for root, which the agent is already.
    pub identity: Option<Identity>,
}

impl Account {
    /// The agent's own user.
    pub fn root() -> Self {
        Self { name: "root".into(), home: "/root".into(), shell: "/bin/bash".into(), identity: None }
    }

    /// Finds a user by login name or number. Root is known without reading a file.
    ///
    /// # Errors
    /// A name that is in no line of `/etc/passwd`, or a file that cannot be read.
    pub fn find(user: Option<&str>) -> Result<Self, Failure> {
        match user {
            None | Some("root" | "0") => Ok(Self::root()),
            Some(user) => {
                let read = |path| read(path).map_err(|error| Failure::io(format!("Cannot read {path}"), &error));
                Self::find_in(&read("/etc/passwd")?, &read("/etc/group")?, user)
            }
        }
    }

    fn find_in(passwd: &str, group: &str, user: &str) -> Result<Self, Failure> {
        let number: Option<u32> = user.parse().ok();
        let found = passwd.lines().filter_map(Line::parse).find(|line| line.name == user || Some(line.uid) == number);
        match (found, number) {
            (Some(line), _) => Ok(Self {
                name: line.name.into(),
                home: line.home.into(),
                shell: if line.shell.is_empty() { "/bin/sh".into() } else { line.shell.into() },
                identity: Some(Identity { uid: line.uid, gid: line.gid, groups: groups(group, line.name, line.gid) }),
            }),
            // A number needs no entry: files of an image may belong to users it does not name.
            (None, Some(uid)) if uid != u32::MAX => Ok(Self {
                name: user.into(),
                home: "/".into(),
                shell: "/bin/sh".into(),
                identity: Some(Identity { uid, gid: uid, groups: vec![] }),
            }),
            _ => Err(Failure::request(format!("user: there is no user {user:?} in /etc/passwd"))),
        }
    }
}

/// A line of `/etc/passwd` (passwd(5)).
struct Line<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let mut next = || fields.next();
        let (name, _password, uid, gid, _comment) = (next()?, next()?, next()?, next()?, next()?);
        let (home, shell) = (next()?, next().unwrap_or(""));
        Some(Self { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home, shell })
    }
}

/// The groups whose member list names `user` (group(5)), with `primary` first.
fn groups(group: &str, user: &str, primary: u32) -> Vec<u32> {
    let member = group.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let (gid, members) = (fields.next()?.parse().ok()?, fields.next()?);
        (gid != primary && members.split(',').any(|member| member == user)).then_some(gid)
    });
    [primary].into_iter().chain(member).collect()
}

fn read(path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(ACCOUNT_FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nsandbox:x:1000:1000::/home/sandbox:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:ann,sandbox\nsandbox:x:1000:\naudio:x:29:sandbox\n";

    #[test]
    fn a_user_is_found_by_name_or_number_with_all_groups() {
        for user in ["sandbox", "1000"] {
            let account = Account::find_in(PASSWD, GROUP, user).unwrap();
            assert_eq!((account.name.as_str(), account.home.as_str()), ("sandbox", "/home/sandbox"));
            assert_eq!(account.shell, "/bin/sh");
            assert_eq!(account.identity, Some(Identity { uid: 1000, gid: 1000, groups: vec![1000, 27, 29] }));
        }
    }

    #[test]
    fn a_number_needs_no_entry_but_a_name_does() {
        let account = Account::find_in(PASSWD, GROUP, "4242").unwrap();
        assert_eq!(account.identity, Some(Identity { uid: 4242, gid: 4242, groups: vec![] }));
        for unknown in ["nobody-here", "", "-1", "4294967295", "broken"] {
            assert!(Account::find_in(PASSWD, GROUP, unknown).is_err(), "{unknown:?}");
        }
    }
}
