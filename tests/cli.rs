//! Each subcommand once, as a user types it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Shared, parallel, signal, small};

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        parallel(shared, "cli::exec_passes_everything_through", exec),
        parallel(shared, "cli::an_interrupt_ends_the_command", interrupt),
        parallel(shared, "cli::ls_shows_and_filters", ls),
        parallel(shared, "cli::cp_copies_both_ways", cp),
        parallel(shared, "cli::logs_show_the_console", logs),
        parallel(shared, "cli::observing_events_figures_and_environment", observing),
        parallel(shared, "cli::run_makes_and_removes_a_sandbox", run),
        parallel(shared, "cli::a_sandbox_is_led_through_its_life", life),
        parallel(shared, "cli::rm_destroys", rm),
        parallel(shared, "cli::doctor_finds_this_host_fit", doctor),
        parallel(shared, "cli::demo_does_the_main_job", demo),
        parallel(shared, "cli::errors_are_one_line_and_say_what_to_do", errors),
        parallel(shared, "cli::bench_exec_counts_what_it_did", bench),
    ]
}

fn cove(shared: &Shared, words: &[&str]) -> Result<Output> {
    shared.host()?.run_cove(words)
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a subcommand that must succeed and gives its output.
fn good(shared: &Shared, words: &[&str]) -> Result<String> {
    let output = cove(shared, words)?;
    ensure!(output.status.success(), "cove {words:?} ended with {}: {}", output.status, err(&output));
    Ok(out(&output))
}

fn exec(shared: &Shared) -> Result<()> {
    let id = shared.sandbox()?.id;
    let script = "echo out; echo err >&2; pwd; echo $A; id -un; exit 3";
    let words = ["exec", "--cwd", "/tmp", "--env", "A=b c", "--user", "sandbox", "-s", &id, "--", script];
    let output = cove(shared, &words)?;
    ensure!(output.status.code() == Some(3), "{} {}", output.status, err(&output));
    ensure!(out(&output) == "out\n/tmp\nb c\nsandbox\n" && err(&output) == "err\n", "{output:?}");

    ensure!(good(shared, &["exec", "shared", "--", "echo", "a b", "$HOME"])? == "a b $HOME\n", "no shell is asked for");
    let bytes = cove(shared, &["exec", &id[..10], "--", "head", "-c", "300000", "/dev/urandom"])?;
    ensure!(bytes.stdout.len() == 300_000, "{} bytes: output is not passed as it is", bytes.stdout.len());
    let killed = cove(shared, &["exec", &id, "-s", "--", "kill -9 $$"])?;
    ensure!(killed.status.code() == Some(137), "{}", killed.status);
    let late = cove(shared, &["exec", &id, "--timeout", "1", "--", "sleep", "30"])?;
    ensure!(late.status.code() == Some(124), "{}", late.status);
    let missing = cove(shared, &["exec", &id, "--", "no-such-program"])?;
    ensure!(!missing.status.success() && err(&missing).contains("no-such-program"), "{missing:?}");

    let mut child =
        shared.host()?.cove(&["exec", "-i", &id, "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(b"\x00\xff given")?;
    ensure!(child.wait_with_output()?.stdout == b"\x00\xff given", "standard input does not arrive");
    Ok(())
}

fn interrupt(shared: &Shared) -> Result<()> {
    let sandbox = shared.sandbox()?;
    let words = ["exec", &sandbox.id, "-s", "--", "echo started; exec sleep 5151"];
    let mut child = shared.host()?.cove(&words).stdout(Stdio::piped()).spawn()?;
    let mut first = [0; 8];
    std::io::Read::read_exact(&mut child.stdout.take().context("no stdout")?, &mut first)?;
    ensure!(&first == b"started\n");
    signal(child.id(), Signal::INT)?;
    ensure!(child.wait()?.code() == Some(130), "an interrupt is 130");
    let left = "for i in $(seq 50); do pgrep -f 'sleep 515[1]' >/dev/null || exit 0; sleep 0.1; done; exit 1";
    ensure!(sandbox.run(left)?.exit_code == 0, "The command runs on");
    Ok(())
}

fn ls(shared: &Shared) -> Result<()> {
    let id = shared.sandbox()?.id;
    let table = good(shared, &["ls"])?;
    ensure!(table.starts_with("ID ") && table.contains(&id) && table.contains("running"), "{table}");
    let records: Value =
        serde_json::from_str(&good(shared, &["ls", "--json", "--tag", "shared", "--state", "running"])?)?;
    ensure!(records.as_array().is_some_and(|list| list.len() == 1 && list[0]["id"] == id.as_str()), "{records}");
    ensure!(good(shared, &["ls", "-q", "--tag", "no-such-tag"])?.is_empty());
    ensure!(good(shared, &["ls", "--all"])?.contains(&id));
    Ok(())
}

fn cp(shared: &Shared) -> Result<()> {
    let sandbox = shared.sandbox()?;
    let here = tempfile::tempdir()?;
    let tree = here.path().join("tree");
    fs::create_dir_all(tree.join("sub/empty"))?;
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n * 31 % 251) as u8).collect();
    fs::write(tree.join("binary"), &bytes)?;
    fs::write(tree.join("sub/na me#ü.txt"), "text")?;
    fs::write(tree.join("sub/run.sh"), "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(tree.join("sub/run.sh"), fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::symlink("binary", tree.join("link"))?;

    let place = format!("{}:/workspace/cp", sandbox.id);
    good(shared, &["cp", &tree.to_string_lossy(), &place])?;
    ensure!(
        sandbox
            .run(
                "/workspace/cp/sub/run.sh; readlink /workspace/cp/link; test -d /workspace/cp/sub/empty && echo empty"
            )?
            .stdout
            == "ran\nbinary\nempty\n"
    );
    let back = here.path().join("back");
    let output = cove(shared, &["cp", &place, &back.to_string_lossy()])?;
    ensure!(output.status.code() == Some(1) && err(&output).contains("/workspace/cp/link"), "{output:?}");
    ensure!(fs::read(back.join("binary"))? == bytes, "a binary file comes back changed");
    ensure!(fs::read(back.join("sub/na me#ü.txt"))? == b"text");
    ensure!(fs::metadata(back.join("sub/run.sh"))?.permissions().mode() & 0o777 == 0o755);
    ensure!(back.join("sub/empty").is_dir());

    good(shared, &["cp", &tree.join("binary").to_string_lossy(), "shared:/tmp/"])?;
    good(shared, &["cp", "shared:/tmp/binary", &here.path().to_string_lossy()])?;
    ensure!(fs::read(here.path().join("binary"))? == bytes);
    let missing = cove(shared, &["cp", "shared:/no/such", "."])?;
    ensure!(missing.status.code() == Some(1) && err(&missing).contains("/no/such"), "{missing:?}");
    Ok(())
}

fn logs(shared: &Shared) -> Result<()> {
    // A restored machine's console is its own, and says nothing before someone writes to it.
    let sandbox = shared.sandbox()?;
    sandbox.run("printf 'one\\ntwo\\n' > /dev/console")?;
    let all = good(shared, &["logs", &sandbox.id])?;
    ensure!(all.lines().map(str::trim_end).collect::<Vec<_>>().ends_with(&["one", "two"]), "the console is {all:?}");
    ensure!(good(shared, &["logs", "-n", "1", &sandbox.id])?.trim() == "two");
    Ok(())
}

fn observing(shared: &Shared) -> Result<()> {
    let sandbox = shared.sandbox()?;
    let id = sandbox.id.as_str();
    ensure!(good(shared, &["env", id, "CLI_TEST=a b"])?.contains("CLI_TEST=a b\n"));
    ensure!(!good(shared, &["env", id, "--unset", "CLI_TEST"])?.contains("CLI_TEST"));
    let table = good(shared, &["top", "--once"])?;
    ensure!(table.contains("CPU %") && table.lines().any(|line| line.starts_with(id)), "{table}");

    let words = ["events", id, "--types", "sandbox.exec.*", "--json"];
    let mut child = shared.host()?.cove(&words).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let first = std::thread::spawn(move || lines.map_while(std::io::Result::ok).next());
    // It does not say when it listens.
    while !first.is_finished() && child.try_wait()?.is_none() {
        sandbox.run("true")?;
    }
    signal(child.id(), Signal::INT)?;
    child.wait()?;
    let line = first.join().ok().flatten().context("It said nothing")?;
    let event: Value = serde_json::from_str(&line)?;
    ensure!(event["sandbox_id"] == id && event["type"].as_str().is_some_and(|kind| kind.starts_with("sandbox.exec.")));
    Ok(())
}

fn run(shared: &Shared) -> Result<()> {
    let name = "cli-run";
    let words = [
        "run",
        "--cpus",
        "1",
        "--memory",
        "512",
        "--disk",
        "4096",
        "--name",
        name,
        "-e",
        "A=1",
        "-s",
        "--",
        "echo $A; exit 4",
    ];
    let output = cove(shared, &words)?;
    ensure!(output.status.code() == Some(4) && out(&output) == "1\n", "{output:?}");
    ensure!(!good(shared, &["ls"])?.contains(name), "the sandbox is left");
    let wrong = cove(shared, &["run", "--memory", "1", "--cpus", "1", "--disk", "4096", "--", "true"])?;
    ensure!(wrong.status.code() == Some(125) && err(&wrong).contains("memory_mb"), "{wrong:?}");
    Ok(())
}

fn life(shared: &Shared) -> Result<()> {
    let shape = ["--cpus", "1", "--memory", "512", "--disk", "4096"];
    good(shared, &[&["run", "--keep", "--name", "cli-life"], &shape[..], &["-s", "--", "echo old > f"]].concat())?;
    ensure!(good(shared, &["extend", "cli-life", "-t", "1800"])?.trim_end().ends_with("running"));
    ensure!(good(shared, &["pause", "cli-life"])?.trim_end().ends_with("paused"));
    ensure!(good(shared, &["ls", "--state", "paused"])?.contains("cli-life"));
    ensure!(good(shared, &["resume", "cli-life", "-e", "A=1"])?.trim_end().ends_with("running"));

    let snapshot = good(shared, &["snapshot", "create", "cli-life", "-m", "the old one"])?.trim_end().to_owned();
    good(shared, &["snapshot", "name", &snapshot, "cli-golden"])?;
    let listed = good(shared, &["snapshot", "ls", "cli-life"])?;
    ensure!(listed.contains(&snapshot) && listed.contains("cli-golden") && listed.contains("the old one"), "{listed}");
    let child = good(shared, &["fork", "cli-golden", "--name", "cli-child"])?.trim_end().to_owned();
    good(shared, &["exec", "cli-life", "-s", "--", "echo $A > f"])?;
    ensure!(good(shared, &["exec", "cli-life", "--", "cat", "f"])? == "1\n");
    ensure!(good(shared, &["restore", "cli-life", "cli-golden"])?.trim_end().ends_with("running"));
    ensure!(good(shared, &["exec", "cli-life", "--", "cat", "f"])? == "old\n");

    let tree = good(shared, &["tree", "cli-life"])?;
    let place = |text: &str| tree.find(text).with_context(|| format!("no {text} in\n{tree}"));
    ensure!(place(&snapshot)? < place("cli-life")? && place(&snapshot)? < place(&child)?, "{tree}");
    ensure!(tree.contains("└─ ● ") && tree.contains("memory"), "{tree}");

    let kept = cove(shared, &["snapshot", "rm", "cli-golden"])?;
    ensure!(kept.status.code() == Some(1) && err(&kept).contains("SNAPSHOT_IN_USE"), "{kept:?}");
    good(shared, &["snapshot", "rm", "-f", "cli-golden"])?;
    ensure!(good(shared, &["stop", "cli-life"])?.trim_end().ends_with("paused"));
    good(shared, &["rm", "cli-life", "cli-child"])?;
    ensure!(!good(shared, &["tree"])?.contains("cli-"));
    Ok(())
}

fn rm(shared: &Shared) -> Result<()> {
    let api = shared.host()?.api();
    let create = |name: &str| -> Result<String> {
        let mut wanted = small();
        wanted["name"] = name.into();
        let id = api.post("/sandboxes?wait=false", &wanted)?.data()?["id"].clone();
        id.as_str().map(str::to_owned).context("no id")
    };
    let (first, second) = (create("rm-one")?, create("rm-two")?);
    let output = cove(shared, &["rm", "rm-one", &second, "no-such-sandbox"])?;
    ensure!(output.status.code() == Some(1) && err(&output).contains("no-such-sandbox"), "{output:?}");
    ensure!(out(&output).contains(&first) && out(&output).contains(&second), "{output:?}");
    let left = good(shared, &["ls", "-q"])?;
    ensure!(!left.contains(&first) && !left.contains(&second), "{left}");
    let unsure = cove(shared, &["rm", "--all"])?;
    ensure!(unsure.status.code() == Some(1) && err(&unsure).contains("--yes"), "{unsure:?}");
    Ok(())
}

fn doctor(shared: &Shared) -> Result<()> {
    let output = cove(shared, &["doctor", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let errors: Vec<&Value> =
        report["checks"].as_array().into_iter().flatten().filter(|check| check["status"] == "error").collect();
    ensure!(output.status.success() && errors.is_empty(), "{errors:?}");
    let server = report["checks"].as_array().into_iter().flatten().find(|check| check["name"] == "server");
    let detail = server.and_then(|check| check["detail"].as_str()).context("no check of the server")?;
    ensure!(detail.contains(&shared.host()?.server_pid()?.to_string()), "{detail}");
    Ok(())
}

fn demo(shared: &Shared) -> Result<()> {
    let text = good(shared, &["demo"])?;
    for expected in ["Debian", "0, 1, 4, 9, 16, 25, 36, 49, 64, 81", "exit code 0", "ready after"] {
        ensure!(text.contains(expected), "no '{expected}' in {text}");
    }
    Ok(())
}

fn errors(shared: &Shared) -> Result<()> {
    let nowhere = shared.host()?.programs.cove().args(["--data-dir", "/nonexistent/cove", "ls"]).output()?;
    ensure!(nowhere.status.code() == Some(1) && err(&nowhere).contains("cove serve"), "{nowhere:?}");
    let began = Instant::now();
    let dead = shared.host()?.programs.cove().args(["--url", "http://127.0.0.1:9", "--token", "x", "ls"]).output()?;
    ensure!(dead.status.code() == Some(1) && err(&dead).contains("does not answer"), "{dead:?}");
    ensure!(began.elapsed() < Duration::from_secs(5));
    let url = shared.host()?.api().base_url();
    let stranger = shared.host()?.programs.cove().args(["--url", &url, "--token", "wrong", "ls"]).output()?;
    ensure!(stranger.status.code() == Some(1) && err(&stranger).contains("invalid_token"), "{stranger:?}");
    ensure!(err(&stranger).lines().count() == 1, "{stranger:?}");
    let unknown = cove(shared, &["exec", "no-such-sandbox", "--", "true"])?;
    ensure!(unknown.status.code() == Some(125) && err(&unknown).contains("no-such-sandbox"), "{unknown:?}");
    Ok(())
}

/// The figures themselves are for people: a busy machine is no failure.
fn bench(shared: &Shared) -> Result<()> {
    let id = shared.sandbox()?.id;
    let text = good(shared, &["bench", "exec", "--n", "3", "--json", "--sandbox", &id])?;
    let figures: Value = serde_json::from_str(&text)?;
    let figure = |name: &str| figures[name].as_f64().with_context(|| format!("no {name} in {figures}"));
    ensure!(figure("p50_ms")? > 0.0 && figure("p95_ms")? >= figure("p50_ms")?, "{figures}");
    ensure!(figures["host_outside_kvm_run_ms"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{figures}");
    for op in ["create", "restore", "fork", "snapshot", "pause"] {
        let text = good(shared, &["bench", op, "-n", "1", "--json"])?;
        let figures: Value = serde_json::from_str(&text)?;
        ensure!(figures["success"] == 1 && figures["failed"] == 0, "{figures}");
        ensure!(figures["p99_ms"].as_f64().is_some_and(|ms| ms > 0.0) && figures["host"]["module"].is_string());
    }
    ensure!(!good(shared, &["ls", "--json"])?.contains("cove-bench"), "the bench leaves sandboxes");
    Ok(())
}
