//! Sandboxes that persist: what runs in one goes on through pause, snapshot, restore and fork, and forks share nothing
//! later.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Shared, TestHost, TestSandbox, exclusive, full, parallel, small, until};

/// The process whose life is watched.
const COUNTER: &str = include_str!("guest/counter.py");

/// Patience for a guest's process to get on.
const PROGRESS_MAX: Duration = Duration::from_secs(60);

/// How long the clock's pause is.
const PAUSE: Duration = Duration::from_secs(15);

/// How far a guest's clock may be from the host's.
const CLOCK_ERROR_MAX: Duration = Duration::from_millis(100);

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        parallel(shared, "lives::a_process_goes_on_through_pause_snapshot_restore_and_fork", process_goes_on),
        parallel(shared, "lives::a_paused_sandbox_costs_no_process_and_resumes_for_all_who_ask", resumes_for_all),
        exclusive(shared, "lives::the_clock_is_right_at_the_first_command_after_a_pause", clock_is_right),
        parallel(shared, "lives::forks_of_one_snapshot_share_no_number_and_no_later_byte", forks_differ),
        parallel(shared, "lives::a_live_fork_leaves_its_source_alone", live_fork),
        parallel(shared, "lives::what_changed_between_snapshots_is_told_file_by_file", compared),
        parallel(shared, "lives::pauses_and_snapshots_in_a_row_lose_nothing_and_cost_nothing", cycles),
        parallel(shared, "lives::memory_of_every_size_is_kept_whole", memory_sizes),
        parallel(shared, "lives::timeouts_pause_and_activity_counts", timeouts),
        parallel(shared, "lives::a_paused_sandbox_whose_memory_does_not_fit_boots_from_its_disk", cold_boot),
    ]
}

/// How far a counter is.
#[derive(Clone, Copy, Debug)]
struct Progress {
    count: u64,
    pid: u64,
    monotonic: f64,
}

fn progress(sandbox: &TestSandbox) -> Result<Progress> {
    let answer = sandbox.read_file("/tmp/n")?;
    ensure!(answer.status == 200, "/tmp/n: {}", String::from_utf8_lossy(&answer.body));
    let text = String::from_utf8(answer.body)?;
    let words: Vec<_> = text.split_whitespace().collect();
    let [count, pid, monotonic] = words[..] else { anyhow::bail!("/tmp/n is {text:?}") };
    Ok(Progress { count: count.parse()?, pid: pid.parse()?, monotonic: monotonic.parse()? })
}

/// Waits until the counter has gone on from `before` by a few counts, and is still the same process.
fn goes_on(sandbox: &TestSandbox, before: Progress) -> Result<Progress> {
    let mut now = before;
    until("the counter goes on", PROGRESS_MAX, || {
        now = progress(sandbox)?;
        Ok(now.count >= before.count + 3)
    })
    .with_context(|| format!("after {before:?} it is {now:?}"))?;
    ensure!(now.pid == before.pid, "{before:?} is not the process of {now:?}");
    ensure!(now.monotonic > before.monotonic, "monotonic time went back: {before:?}, {now:?}");
    Ok(now)
}

/// Starts the counter and waits until it counts.
fn start_counter(sandbox: &TestSandbox) -> Result<Progress> {
    sandbox.write_file("/workspace/counter.py", COUNTER)?;
    // It says when it counts: asking again and again would only take the processor from it.
    let line = "mkfifo /tmp/counts; setsid python3 /workspace/counter.py > /workspace/counter.log 2>&1 & read -r < /tmp/counts";
    let started = sandbox.exec(&json!({ "command": line, "timeout": PROGRESS_MAX.as_secs() }))?;
    ensure!(started.exit_code == 0, "the counter does not count: {started:?}");
    progress(sandbox)
}

/// Every count is in the half-written file, once, in order.
fn half_is_whole(sandbox: &TestSandbox) -> Result<u64> {
    let text = String::from_utf8(sandbox.read_file("/workspace/half")?.body)?;
    let lines: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>().context("a broken line")?;
    ensure!(lines.iter().copied().eq(1..=lines.len() as u64), "the file is not whole: {lines:?}");
    Ok(lines.len() as u64)
}

fn process_goes_on(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    let first = start_counter(&sandbox)?;
    // Pause and resume: the same process, the same connection, the same file.
    ensure!(sandbox.post("/pause", &json!({}))?["state"] == "paused");
    let resumed = sandbox.post("/resume", &json!({}))?;
    ensure!(resumed["state"] == "running" && resumed["boot_path"] == "snapshot", "{resumed}");
    let second = goes_on(&sandbox, first)?;
    // Snapshot; then what comes later is undone by the restore.
    let snapshot = sandbox.post("/snapshots", &json!({ "comment": "before" }))?;
    let at = progress(&sandbox)?;
    ensure!(at.pid == second.pid && at.count >= second.count);
    sandbox.run("rm /workspace/half; echo later > /workspace/later")?;
    let late = goes_on(&sandbox, at)?;
    let id = snapshot["id"].as_str().context("the snapshot has no id")?;
    let restored = sandbox.post(&format!("/restore/{id}"), &json!({}))?;
    ensure!(restored["state"] == "running" && restored["id"] == sandbox.id.as_str(), "{restored}");
    let back = progress(&sandbox)?;
    ensure!(back.pid == at.pid && back.monotonic < late.monotonic, "memory of before: {at:?}, {late:?}, {back:?}");
    goes_on(&sandbox, back)?;
    half_is_whole(&sandbox)?;
    ensure!(sandbox.read_file("/workspace/later")?.status == 404, "A file from after the snapshot is there");
    // Fork: both go on, each for itself.
    let child = sandbox.fork(&json!({ "snapshot_id": id }))?;
    let forked = progress(&child)?;
    ensure!(forked.pid == at.pid, "{forked:?}");
    goes_on(&child, forked)?;
    child.write_file("/workspace/child", "only here")?;
    ensure!(sandbox.read_file("/workspace/child")?.status == 404, "A fork's file is in its source");
    half_is_whole(&child)?;
    goes_on(&sandbox, back)?;
    ensure!(sandbox.run("cat /workspace/counter.log")?.stdout.is_empty(), "the counter failed");
    child.destroy()?;
    sandbox.destroy()
}

fn resumes_for_all(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    sandbox.write_file("/workspace/kept", "kept")?;
    sandbox.post("/pause", &json!({}))?;
    ensure!(host.vmm_pid(&sandbox.id).is_err(), "A paused sandbox has a process");
    ensure!(sandbox.post("/pause", &json!({}))?["state"] == "paused", "a second pause changes nothing");
    // All of them wait for the one resume.
    std::thread::scope(|scope| {
        let asks: Vec<_> = (0..6).map(|_| scope.spawn(|| sandbox.read_file("/workspace/kept"))).collect();
        for ask in asks {
            let answer = ask.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
            ensure!(answer.status == 200 && answer.body == b"kept", "{}", String::from_utf8_lossy(&answer.body));
        }
        Ok(())
    })?;
    host.vmm_pid(&sandbox.id)?;
    ensure!(sandbox.run("echo awake")?.stdout == "awake\n");
    // Stop is a pause.
    ensure!(sandbox.post("/stop", &json!({}))?["state"] == "paused");
    sandbox.destroy()?;
    ensure!(sandbox.record()?["state"] == "destroyed");
    Ok(())
}

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

fn clock_is_right(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    sandbox.post("/pause", &json!({}))?;
    #[allow(clippy::disallowed_methods, reason = "the pause is what is tested")]
    std::thread::sleep(PAUSE);
    let before = now()?;
    let said = sandbox.run("echo $EPOCHREALTIME")?.stdout;
    let after = now()?;
    let guest = Duration::from_secs_f64(said.trim().parse().with_context(|| format!("not a time: {said:?}"))?);
    ensure!(
        guest + CLOCK_ERROR_MAX >= before && guest <= after + CLOCK_ERROR_MAX,
        "the guest's clock says {guest:?}, between {before:?} and {after:?} here"
    );
    sandbox.destroy()
}

fn forks_differ(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    let snapshot = sandbox.post("/snapshots", &json!({}))?;
    let (forks, wave) = (full(100, 6), 3);
    let mut seen = HashSet::new();
    for first in (0..forks).step_by(wave) {
        let children = std::thread::scope(|scope| {
            let fork = || sandbox.fork(&json!({ "snapshot_id": snapshot["id"] }));
            let forks: Vec<_> = (first..forks.min(first + wave)).map(|_| scope.spawn(fork)).collect();
            let joined = forks.into_iter().map(|fork| fork.join().map_err(|_| anyhow::anyhow!("a fork panicked"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        for child in &children {
            let line = "read -r u < /proc/sys/kernel/random/uuid; read -r m < /etc/machine-id; read -rN 24 r < <(base64 -w0 /dev/urandom); \
                        echo $u $m $r $HOSTNAME; test ! -e /workspace/mine && echo $u > /workspace/mine";
            let ran = child.run(line)?;
            ensure!(ran.exit_code == 0, "it saw another's file: {ran:?}");
            let words: Vec<_> = ran.stdout.split_whitespace().map(str::to_owned).collect();
            ensure!(words.len() == 4, "{ran:?}");
            for word in words {
                ensure!(seen.insert(word.clone()), "{word} came twice");
            }
        }
        children.iter().try_for_each(TestSandbox::destroy)?;
    }
    ensure!(sandbox.read_file("/workspace/mine")?.status == 404, "A fork wrote into its source");
    sandbox.destroy()
}

fn live_fork(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    let vmm = host.vmm_pid(&sandbox.id)?;
    std::thread::scope(|scope| {
        // A command that runs through the fork: its connection must survive.
        let running = scope.spawn(|| sandbox.run("read -r line < <(sleep 3; echo done); echo $line"));
        until("the command runs", PROGRESS_MAX, || Ok(sandbox.record()?["state"] == "running"))?;
        let child = sandbox.fork(&json!({}))?;
        ensure!(child.id != sandbox.id && child.run("echo child")?.stdout == "child\n");
        let ran = running.join().map_err(|_| anyhow::anyhow!("the command panicked"))??;
        ensure!(ran.stdout == "done\n", "{ran:?}");
        ensure!(host.vmm_pid(&sandbox.id)? == vmm, "the source is another machine");
        child.destroy()
    })?;
    sandbox.destroy()
}

/// What a process holds.
fn held(pid: u32) -> Result<(usize, usize, u64)> {
    let count = |what: &str| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
    let (rss, _) = crate::harness::resident_kib(pid)?;
    Ok((count("fd")?, count("task")?, rss))
}

fn compared(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let sandbox = host.sandbox(&small())?;
    let snapshot = || -> Result<String> {
        Ok(sandbox.post("/snapshots", &json!({}))?["id"].as_str().context("no id")?.to_owned())
    };
    let changes = |from: &str, with: &str| -> Result<Vec<String>> {
        let found = host.api().get(&format!("/snapshots/{from}/compare?with={with}"))?.data()?;
        ensure!(found["more"] == 0, "{found}");
        let told = |it: &serde_json::Value| format!("{} {}", it["change"], it["path"]).replace('"', "");
        Ok(found["differences"].as_array().context("no list")?.iter().map(told).collect())
    };
    for (name, text) in [("gone", "1"), ("grown", "1"), ("same", "1"), ("turned", "1"), ("script", "1")] {
        sandbox.write_file(&format!("/workspace/d/{name}"), text)?;
    }
    let first = snapshot()?;
    ensure!(changes(&first, &first)?.is_empty(), "it differs from itself");
    // `same` is written anew with the same byte, `turned` with another one.
    for (name, text) in [("grown", "22"), ("same", "1"), ("turned", "2"), ("new", "1")] {
        sandbox.write_file(&format!("/workspace/d/{name}"), text)?;
    }
    let ran = sandbox.run("rm /workspace/d/gone && chmod 755 /workspace/d/script")?;
    ensure!(ran.exit_code == 0, "{ran:?}");
    let expected = [
        "removed /workspace/d/gone",
        "modified /workspace/d/grown",
        "added /workspace/d/new",
        "permissions /workspace/d/script",
        "modified /workspace/d/turned",
    ];
    let now = changes(&first, &sandbox.id)?;
    ensure!(now == expected, "now: {now:?}");
    let second = snapshot()?;
    sandbox.write_file("/workspace/d/later", "1")?;
    let then = changes(&first, &second)?;
    ensure!(then == expected, "then: {then:?}");
    sandbox.destroy()
}

fn cycles(shared: &Shared) -> Result<()> {
    // A host of its own: what the server holds is compared.
    shared.own_host()?.test(|host| {
        let sandbox = host.sandbox(&small())?;
        let payload: Vec<u8> = (0..1 << 20).map(|byte: u32| (byte.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let round = |sandbox: &TestSandbox, number: usize| -> Result<()> {
            let path = format!("/tmp/bytes{}", number % 2);
            sandbox.write_file(&path, payload.clone())?;
            ensure!(sandbox.read_file(&path)?.body == payload, "bytes were lost in round {number}");
            Ok(())
        };
        // The first ones fill caches and pools.
        for number in 0..2 {
            round(&sandbox, number)?;
            sandbox.post("/pause", &json!({}))?;
        }
        round(&sandbox, 0)?;
        let before = held(host.server_pid()?)?;
        let vmm_before = held(host.vmm_pid(&sandbox.id)?)?;
        for number in 0..full(200, 4) {
            sandbox.post("/pause", &json!({}))?;
            round(&sandbox, number)?;
        }
        for number in 0..full(50, 3) {
            let snapshot = sandbox.post("/snapshots", &json!({}))?;
            let id = snapshot["id"].as_str().context("no id")?;
            round(&sandbox, number)?;
            sandbox.post(&format!("/restore/{id}"), &json!({}))?;
            round(&sandbox, number)?;
            let deleted = host.api().delete(&sandbox.path(&format!("/snapshots/{id}")))?;
            ensure!(deleted.status == 204, "{}", deleted.status);
        }
        // Each of those gave the machine a new process; these do not.
        let vmm = host.vmm_pid(&sandbox.id)?;
        for number in 0..full(20, 2) {
            let snapshot = sandbox.post("/snapshots", &json!({}))?;
            round(&sandbox, number)?;
            let id = snapshot["id"].as_str().context("no id")?;
            let deleted = host.api().delete(&sandbox.path(&format!("/snapshots/{id}")))?;
            ensure!(deleted.status == 204, "{}", deleted.status);
        }
        ensure!(host.vmm_pid(&sandbox.id)? == vmm, "a snapshot changed the process");
        round(&sandbox, 0)?;
        let (after, vmm_after) = (held(host.server_pid()?)?, held(vmm)?);
        eprintln!("server before {before:?}, after {after:?} (descriptors, threads, KiB resident)");
        eprintln!("vmm before {vmm_before:?}, after {vmm_after:?}, with the guest's memory");
        ensure!(after.0 <= before.0 + 4 && after.1 <= before.1 + 4, "grown from {before:?} to {after:?}");
        ensure!(after.2 <= before.2 + (16 << 10), "grown from {before:?} to {after:?}");
        // A descriptor for each layer of its disk, and those of the guest's streams.
        ensure!(vmm_after.0 <= vmm_before.0 + full(20, 2) + 6, "grown from {vmm_before:?} to {vmm_after:?}");
        ensure!(vmm_after.1 == vmm_before.1, "grown from {vmm_before:?} to {vmm_after:?}");
        ensure!(host.machines().len() == 1, "{:?}", host.machines());
        sandbox.destroy()
    })
}

/// Sizes in MiB: below the gap under 4 GiB, around it, and far above. The kernel gives out the highest memory first.
const SIZES: [u32; 3] = [3072, 4096, 8192];

/// How long an emulated kernel may take until it was given all its memory: 30 us a page, with the processor to itself.
const ALL_MEMORY_MAX: Duration = Duration::from_secs(300);

fn memory_sizes(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    for memory in &SIZES[..full(SIZES.len(), 1)] {
        let mut wanted = small();
        wanted["memory_mb"] = json!(memory);
        let sandbox = host.sandbox(&wanted)?;
        // The agent adds what the kernel did not get at boot, and the kernel keeps some for itself.
        let all = u64::from(memory - memory / 16 - 128) << 10;
        let wait = format!(
            "while read -r _ kib _ < /proc/meminfo; (( kib < {all} )); do read -t 0.5 <> <(:); done; echo $kib"
        );
        let waited = json!({ "command": wait, "timeout": ALL_MEMORY_MAX.as_secs() });
        let total = sandbox.exec(&waited)?;
        ensure!(total.exit_code == 0, "{memory} MiB: {total:?}");
        let written = sandbox.run("yes $RANDOM | head -c 40M > /dev/shm/large && sha256sum < /dev/shm/large")?.stdout;
        sandbox.post("/pause", &json!({}))?;
        let look = "sha256sum < /dev/shm/large";
        ensure!(sandbox.run(look)?.stdout == written, "{memory} MiB: after the resume");
        let child = sandbox.fork(&json!({}))?;
        ensure!(child.run(look)?.stdout == written, "{memory} MiB: in a fork");
        child.destroy()?;
        sandbox.destroy()?;
    }
    Ok(())
}

fn timeouts(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let mut wanted = small();
    wanted["idle_timeout_sec"] = json!(2);
    let sandbox = host.sandbox(&wanted)?;
    // Busy for longer than that, then idle.
    ensure!(sandbox.run("read -t 4 < <(sleep 9); echo $?")?.exit_code == 0);
    ensure!(sandbox.record()?["state"] == "running", "it was paused under a command: {}", sandbox.record()?);
    until("it is paused for idleness", PROGRESS_MAX, || Ok(sandbox.record()?["state"] == "paused"))?;
    ensure!(sandbox.run("echo back")?.stdout == "back\n");
    let extended = sandbox.post("/extend", &json!({ "timeout_sec": 7200 }))?;
    ensure!(extended["timeout_sec"] == 7200, "{extended}");
    sandbox.destroy()?;

    wanted["idle_timeout_sec"] = json!(0);
    wanted["timeout_sec"] = json!(2);
    let sandbox = host.sandbox(&wanted)?;
    until("it is paused at its timeout", PROGRESS_MAX, || Ok(sandbox.record()?["state"] == "paused"))?;
    sandbox.destroy()?;
    wanted["always_on"] = json!(true);
    let sandbox = host.sandbox(&wanted)?;
    #[allow(clippy::disallowed_methods, reason = "that nothing happens needs time to pass")]
    std::thread::sleep(Duration::from_secs(4));
    ensure!(sandbox.record()?["state"] == "running", "always_on is paused all the same");
    sandbox.destroy()
}

/// Damages the memory of a paused sandbox: it must come back, from its disk, and say so.
fn cold_boot(shared: &Shared) -> Result<()> {
    shared.own_host()?.test(|host: &TestHost| {
        let sandbox = host.sandbox(&small())?;
        sandbox.write_file("/workspace/kept", "kept")?;
        let known = states(host)?;
        sandbox.post("/pause", &json!({}))?;
        let new: Vec<_> = states(host)?.difference(&known).cloned().collect();
        ensure!(new.len() == 1, "a pause makes one image: {new:?}");
        let mut bytes = std::fs::read(&new[0])?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&new[0], bytes)?;
        let record = sandbox.post("/resume", &json!({}))?;
        ensure!(record["state"] == "running" && record["boot_path"] == "cold", "{record}");
        ensure!(sandbox.read_file("/workspace/kept")?.body == b"kept", "the disk lost a file");
        sandbox.destroy()
    })
}

/// The state files of all images.
fn states(host: &TestHost) -> Result<HashSet<std::path::PathBuf>> {
    let files = crate::harness::all_files(&host.data_dir().join("images"))?;
    Ok(files.into_iter().filter(|file| file.file_name().is_some_and(|name| name == "state")).collect())
}
