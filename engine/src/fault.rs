//! Fault points: named places between two steps of an operation, where a test can make the server or a machine die.
//!
//! `COVE_FAULT=<point>:<what>` with `what` one of `kill` (this process, as by SIGKILL), `kill-vmm` (the operation's machine)
//! and `kill-all` (the machine, then this process). It happens once: a server that lives on goes on without faults.

use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::{Signal, getpid, kill_process};

use crate::machine::Machine;

/// The variable that names a point.
const VARIABLE: &str = "COVE_FAULT";

#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    point: String,
    server: bool,
    machine: bool,
}

/// Passes a point. `machine` is the operation's, if it has one here.
pub(crate) async fn point(name: &str, machine: Option<&Machine>) {
    static FAULT: OnceLock<Mutex<Option<Fault>>> = OnceLock::new();
    let fault = FAULT.get_or_init(|| Mutex::new(std::env::var(VARIABLE).ok().and_then(|text| parse(&text))));
    let asked = fault.lock().unwrap_or_else(PoisonError::into_inner).take_if(|fault| fault.point == name);
    if let Some(fault) = asked {
        tracing::error!(point = name, server = fault.server, machine = fault.machine, "a fault was asked for");
        if let Some(machine) = machine.filter(|_| fault.machine)
            && let Err(error) = machine.kill().await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "the fault failed");
        }
        if fault.server {
            // Nothing comes after it but a failed kill, and that cannot be for one's own process.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

fn parse(text: &str) -> Option<Fault> {
    let (point, what) = text.split_once(':')?;
    let (server, machine) = match what {
        "kill" => (true, false),
        "kill-vmm" => (false, true),
        "kill-all" => (true, true),
        _ => return None,
    };
    Some(Fault { point: point.to_owned(), server, machine })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_point_and_who_dies() {
        let fault = parse("pause.saved:kill-all").unwrap();
        assert_eq!(fault, Fault { point: "pause.saved".into(), server: true, machine: true });
        assert!(parse("pause.saved").is_none() && parse("pause.saved:explode").is_none());
    }
}
