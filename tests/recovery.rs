//! Processes are killed at bad moments; every sandbox reaches a legal state and nothing is left behind.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Shared, TestHost, TestSandbox, exclusive, parallel, signal, small, until};

/// Patience for a killed machine to be known: it takes milliseconds, but a busy test machine proves nothing.
const DEATH_NOTICED_MAX: Duration = Duration::from_secs(30);

/// Patience for a sandbox whose create or destroy was cut off: it boots to its end, or is undone.
const SETTLED_MAX: Duration = Duration::from_secs(180);

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        exclusive(shared, "recovery::a_server_killed_at_work_finds_everything_again", server_killed),
        parallel(shared, "recovery::a_killed_vmm_is_an_error_with_a_reason", vmm_killed),
        parallel(shared, "recovery::a_sandbox_can_be_destroyed_while_it_is_made", destroyed_early),
        parallel(shared, "recovery::what_is_not_persistent_goes_when_its_time_is_over", time_over),
        parallel(shared, "recovery::a_second_server_says_who_holds_the_directory", second_server),
        parallel(shared, "recovery::a_graceful_stop_lets_machines_live", graceful_stop),
    ]
}

/// Kills the server while `work` is being answered, `after` its start, and starts it again.
fn kill_during(host: &TestHost, after: Duration, work: impl FnOnce() + Send) -> Result<()> {
    thread::scope(|scope| {
        scope.spawn(work);
        let began = Instant::now();
        until("it is time", after + Duration::from_secs(1), || Ok(began.elapsed() >= after))?;
        host.kill_server()
    })?;
    host.launch()
}

/// Waits until no sandbox is on its way to another state, and gives the records.
fn settled(host: &TestHost) -> Result<Vec<Value>> {
    let mut records = Vec::new();
    until("every sandbox is settled", SETTLED_MAX, || {
        records = host.list()?;
        Ok(records.iter().all(|record| !["creating", "destroying"].iter().any(|state| record["state"] == *state)))
    })?;
    for record in &records {
        let state = record["state"].as_str().context("A record has no state")?;
        ensure!(["running", "error"].contains(&state), "{state} is no state to end in: {record}");
        let reason = &record["metadata"]["last_error"];
        ensure!(state != "error" || reason.is_string(), "An error without a reason: {record}");
    }
    Ok(records)
}

fn server_killed(_: &Shared) -> Result<()> {
    TestHost::start()?.test(scenario)
}

fn scenario(host: &TestHost) -> Result<()> {
    // During create, early and late.
    for after_ms in [50, 1500] {
        let api = host.api();
        kill_during(host, Duration::from_millis(after_ms), || {
            let _ = api.post("/sandboxes", &small());
        })?;
        let records = settled(host).with_context(|| format!("after a kill {after_ms} ms into create"))?;
        ensure!(records.len() <= 1, "One create made {} sandboxes", records.len());
        for record in records {
            let sandbox = TestSandbox::existing(host.api(), record["id"].as_str().context("no id")?);
            if record["state"] == "running" {
                ensure!(sandbox.run("echo alive")?.stdout == "alive\n");
            }
            sandbox.destroy()?;
        }
        ensure!(host.machines().is_empty(), "Machines are left: {:?}", host.machines());
    }

    // During exec: the machine lives on, and so does what was in it.
    let sandbox = host.sandbox(&small())?;
    sandbox.write_file("/workspace/kept", "before")?;
    let vmm = host.vmm_pid(&sandbox.id)?;
    let (api, path) = (host.api(), sandbox.path("/exec"));
    kill_during(host, Duration::from_millis(800), || {
        let _ = api.post(&path, &json!({ "command": "sleep 60" }));
    })?;
    let sandbox = TestSandbox::existing(host.api(), &sandbox.id);
    ensure!(sandbox.record()?["state"] == "running", "{}", sandbox.record()?);
    ensure!(host.vmm_pid(&sandbox.id)? == vmm, "It is another machine");
    ensure!(sandbox.read_file("/workspace/kept")?.body == b"before");
    let orphans = sandbox.run("pgrep -cx sleep")?;
    ensure!(orphans.stdout.trim() == "0", "The cancelled command still runs: {orphans:?}");

    // During destroy.
    let (api, path) = (host.api(), sandbox.path(""));
    kill_during(host, Duration::from_millis(3), || {
        let _ = api.delete(&path);
    })?;
    for record in settled(host)? {
        // The request may not have arrived before the kill.
        host.destroy(record["id"].as_str().context("no id")?)?.data()?;
    }
    ensure!(host.api().get(&path)?.data()?["state"] == "destroyed");
    Ok(())
}

fn vmm_killed(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    signal(host.vmm_pid(&sandbox.id)?, Signal::KILL)?;
    let took = until("the sandbox is in state error", DEATH_NOTICED_MAX, || Ok(sandbox.record()?["state"] == "error"))?;
    let record = sandbox.record()?;
    let reason = record["metadata"]["last_error"].as_str().context("No last_error")?;
    ensure!(reason.contains("signal 9"), "The reason after {} ms is '{reason}'", took.as_millis());
    let refused = host.api().post(&sandbox.path("/exec"), &json!({ "command": "true" }))?;
    ensure!(refused.status == 409 && refused.error()?.1.contains("signal 9"), "{:?}", refused.error()?);
    sandbox.destroy()?;
    ensure!(!host.runtime_dir().join(&sandbox.id).exists(), "Its sockets are left");
    ensure!(!host.data_dir().join("sandboxes").join(&sandbox.id).exists(), "Its files are left");
    Ok(())
}

fn destroyed_early(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let made = host.api().post("/sandboxes?wait=false", &small())?.data()?;
    let sandbox = TestSandbox::existing(host.api(), made["id"].as_str().context("no id")?);
    until("its machine runs", SETTLED_MAX, || Ok(host.vmm_pid(&sandbox.id).is_ok()))?;
    sandbox.destroy()?;
    ensure!(sandbox.record()?["state"] == "destroyed", "{}", sandbox.record()?);
    ensure!(host.vmm_pid(&sandbox.id).is_err(), "Its machine is left");
    Ok(())
}

fn time_over(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let mut wanted = small();
    wanted["persistent"] = false.into();
    wanted["timeout_sec"] = 1.into();
    let made = host.api().post("/sandboxes?wait=false", &wanted)?.data()?;
    let sandbox = TestSandbox::existing(host.api(), made["id"].as_str().context("no id")?);
    until("its time is over", SETTLED_MAX, || Ok(sandbox.record()?["state"] == "destroyed"))?;
    ensure!(sandbox.record()?["ready_at"].is_string(), "It was destroyed before it was ready: {}", sandbox.record()?);
    Ok(())
}

fn second_server(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let output = host.run_cove(&["serve", "--port", "0"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "It ended with {}: {said}", output.status);
    ensure!(said.contains(&format!("process {}", host.server_pid()?)), "It does not say who holds it: {said}");
    ensure!(host.list().is_ok(), "The first server is gone");
    Ok(())
}

fn graceful_stop(_: &Shared) -> Result<()> {
    TestHost::start()?.test(|host| {
        let sandbox = host.sandbox(&small())?;
        let vmm = host.vmm_pid(&sandbox.id)?;
        host.stop_server()?;
        ensure!(host.vmm_pid(&sandbox.id)? == vmm, "The machine did not outlive its server");
        host.launch()?;
        let sandbox = TestSandbox::existing(host.api(), &sandbox.id);
        ensure!(sandbox.run("echo back")?.stdout == "back\n");
        Ok(())
    })
}
