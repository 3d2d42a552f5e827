//! What a process finds in its environment: the agent's defaults, under the sandbox's values, under the request's.
//!
//! No locale is among the defaults, as in the usual container images: a program that has one loads its files at each
//! start, which on a host that emulates the guest's kernel is 0.07 s for `LC_CTYPE` and 0.2 s for `LANG`. A template or a
//! request that wants `LC_CTYPE=C.UTF-8` says so; Python takes it by itself (PEP 538).

use std::{collections::BTreeMap, env, ffi::CString, sync::LazyLock};

use crate::{accounts::Account, failure::Failure};

/// Where programs are looked up unless the sandbox or the request says otherwise. The template's Python virtualenv is
/// first, so that `python3` and `pip` are its own.
pub const DEFAULT_PATH: &str = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the C library must know about the processor on some hosts; the vmm sets it, on the kernel's command line.
const LIBRARY_SETTINGS: &str = "GLIBC_TUNABLES";

/// Its value in our own environment.
static LIBRARY_SETTINGS_VALUE: LazyLock<Option<String>> = LazyLock::new(|| env::var(LIBRARY_SETTINGS).ok());

/// The merged environment of one process.
#[derive(Debug)]
pub struct Environment<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Environment<'a> {
    /// Merges the three levels; the last one to name a variable wins.
    ///
    /// # Errors
    /// A name that is empty or holds `=` or a zero byte, a value that holds a zero byte.
    pub fn merge(
        account: &'a Account,
        sandbox: &'a [(String, String)],
        request: &'a [(String, String)],
    ) -> Result<Self, Failure> {
        let mut merged = BTreeMap::from([
            ("PATH", DEFAULT_PATH),
            ("HOME", &account.home),
            ("USER", &account.name),
            ("LOGNAME", &account.name),
            ("SHELL", &account.shell),
        ]);
        merged.extend(LIBRARY_SETTINGS_VALUE.as_deref().map(|value| (LIBRARY_SETTINGS, value)));
        for (name, value) in sandbox.iter().chain(request) {
            check(name, value)?;
            merged.insert(name, value);
        }
        Ok(Self(merged))
    }

    /// The directories in which programs are looked up.
    pub fn path(&self) -> &'a str {
        self.0.get("PATH").copied().unwrap_or(DEFAULT_PATH)
    }

    /// As `execve` wants it.
    pub fn strings(&self) -> Vec<CString> {
        // `check` left no zero byte in the given ones, and accounts come from lines of text files.
        self.0.iter().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect()
    }
}

/// Refuses what no environment can hold.
///
/// # Errors
/// Names the variable.
pub fn check(name: &str, value: &str) -> Result<(), Failure> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Failure::request(format!("env: {name:?} is not a variable's name")));
    }
    if value.contains('\0') {
        return Err(Failure::request(format!("env: the value of {name} holds a zero byte")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_request_wins_over_the_sandbox_and_the_sandbox_over_the_defaults() {
        let (root, sandbox, request) = (Account::root(), pairs(&[("A", "1"), ("HOME", "/here")]), pairs(&[("A", "2")]));
        let merged = Environment::merge(&root, &sandbox, &request).unwrap();
        let strings: Vec<_> = merged.strings().into_iter().map(|s| s.into_string().unwrap()).collect();
        assert!(strings.contains(&"A=2".into()) && strings.contains(&"HOME=/here".into()), "{strings:?}");
        assert!(strings.contains(&"USER=root".into()) && strings.contains(&format!("PATH={DEFAULT_PATH}")));
    }

    #[test]
    fn names_and_values_no_environment_can_hold_are_refused() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
            assert!(Environment::merge(&Account::root(), &[], &pairs(&[(name, value)])).is_err(), "{name:?}={value:?}");
        }
    }
}
