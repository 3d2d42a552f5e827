//! Previews: a development server in a real browser, and how previews outlive pauses and servers.
//!
//! The browser is Debian's Chromium, driven by `web/browser.mjs`; it and the development server come from npm once, into
//! the cache folder. What HTTP itself can do is tested without machines (`api/src/preview/tests`).

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::harness::{Shared, TestHost, TestSandbox, exclusive, full, parallel, small, until};
use crate::sdk::cache_dir;

/// A start of node, and of a development server in it, on a host that emulates the guest's kernel.
const DEV_SERVER_PATIENCE: Duration = Duration::from_secs(400);

/// A start of Python there.
const PYTHON_PATIENCE: Duration = Duration::from_secs(120);

/// What the development server does not need in the guest, where each file takes milliseconds.
const UNUSED: [&str; 9] =
    ["playwright-core", "@esbuild", "esbuild/bin", "@types", "*.d.ts", "*.d.cts", "*.md", "node-cjs", "vite/types"];

/// Held while the packages are installed.
static INSTALLING: Mutex<()> = Mutex::new(());

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut tests = vec![parallel(shared, "preview::it_wakes_its_sandbox_and_outlives_the_server", lives)];
    // Node alone takes minutes to start where the guest's kernel is emulated and the host has other work.
    if ["COVE_SOAK", "COVE_BROWSER"].into_iter().any(|name| std::env::var_os(name).is_some()) {
        tests.push(exclusive(shared, "preview::a_development_server_in_a_browser", browser));
    }
    tests
}

/// The page of the preview's own client, without a proxy of the environment.
fn get(url: &str) -> Result<(u16, String)> {
    let client = reqwest::blocking::Client::builder().no_proxy().timeout(DEV_SERVER_PATIENCE).build()?;
    let response = client.get(url).send()?;
    Ok((response.status().as_u16(), response.text()?))
}

fn expose(sandbox: &TestSandbox, port: u16) -> Result<String> {
    let data = sandbox.post("/expose", &json!({ "port": port }))?;
    data["url"].as_str().map(str::to_owned).with_context(|| format!("No url: {data}"))
}

fn until_it_answers(url: &str, patience: Duration) -> Result<Duration> {
    until(&format!("{url} answers"), patience, || Ok(get(url).is_ok_and(|(status, _)| status == 200)))
}

fn browser(shared: &Shared) -> Result<()> {
    let packages = packages()?;
    shared.own_host()?.test(|host| {
        let (app, other) = (host.sandbox(&small())?, host.sandbox(&small())?);
        start_dev_server(&packages, &app)?;
        let url = expose(&app, 5173)?;
        let other_url = expose(&other, 5173)?;
        ensure!(url.split(':').nth(1) != other_url.split(':').nth(1), "Both have the address of {url}");
        let took = until_it_answers(&url, DEV_SERVER_PATIENCE).with_context(|| {
            let log = app.run("cat /tmp/vite.log").map(|ran| ran.stdout).unwrap_or_default();
            format!("The development server says: {log}")
        })?;
        eprintln!("the development server answered after {} ms", took.as_millis());
        let big: Vec<u8> = (0..full(100 << 20, 4 << 20)).map(|at: u32| (at ^ at >> 9).to_le_bytes()[0]).collect();
        app.write_file("/workspace/app/public/big.bin", big.clone())?;
        let hash = app.run("sha256sum /workspace/app/public/big.bin")?.stdout;
        let profile = tempfile::tempdir()?;
        let api = host.api();
        let output = Command::new("node")
            .arg("browser.mjs")
            .current_dir(&packages)
            .env("APP_URL", &url)
            .env("OTHER_URL", &other_url)
            .env("TEXT_URL", format!("{}{}", api.base_url(), app.path("/files/workspace/app/src/text.js")))
            .env("TOKEN", &api.token)
            .env("BIG_SHA256", hash.split_whitespace().next().unwrap_or_default())
            .env("BIG_BYTES", big.len().to_string())
            .env("PROFILE", profile.path())
            .env("NO_PROXY", "*")
            .output()
            .context("Cannot run node")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        eprint!("{said}");
        Ok(())
    })
}

/// Puts the app and its packages into a sandbox and starts its development server.
fn start_dev_server(packages: &Path, sandbox: &TestSandbox) -> Result<()> {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
    let tar = Command::new("tar")
        .args(UNUSED.map(|pattern| format!("--exclude={pattern}")))
        .args(["-cf", "-", "-C"])
        .arg(packages)
        .arg("node_modules")
        .arg("-C")
        .arg(&web)
        .arg("app")
        .stdin(Stdio::null())
        .output()?;
    ensure!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    sandbox.write_file("/workspace/app.tar", tar.stdout)?;
    let line = "tar xf app.tar && mkdir -p app/public && mv node_modules app/ && cd app && \
                (UV_THREADPOOL_SIZE=1 nohup node --single-threaded --v8-pool-size=0 serve.mjs >/tmp/vite.log 2>&1 &)";
    let ran = sandbox.run(line)?;
    ensure!(ran.exit_code == 0, "{ran:?}");
    Ok(())
}

/// The folder with the packages and the browser's script; made when it is not there.
fn packages() -> Result<PathBuf> {
    const FILES: [(&str, &str); 3] = [
        ("package.json", include_str!("web/package.json")),
        ("package-lock.json", include_str!("web/package-lock.json")),
        ("browser.mjs", include_str!("web/browser.mjs")),
    ];
    let _one_thread = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut hasher = DefaultHasher::new();
    FILES[1].1.hash(&mut hasher);
    let dir = cache_dir()?.join(format!("test-web-{:016x}", hasher.finish()));
    fs::create_dir_all(&dir)?;
    let lock = fs::File::create(dir.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    for (name, content) in FILES {
        fs::write(dir.join(name), content)?;
    }
    let done = dir.join("complete");
    if !done.exists() {
        let install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
        let output = Command::new("npm").args(install).current_dir(&dir).output().context("Cannot run npm")?;
        if !output.status.success() {
            bail!("npm ci ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        fs::write(&done, "")?;
    }
    Ok(dir)
}

fn lives(shared: &Shared) -> Result<()> {
    shared.own_host()?.test(|host| {
        let mut wanted = small();
        wanted["slug"] = "lives".into();
        let sandbox = host.sandbox(&wanted)?;
        let events = follow(host)?;
        sandbox.write_file("/workspace/app.py", include_str!("guest/app.py"))?;
        sandbox.run("nohup python3 -S -E app.py >/tmp/app.log 2>&1 &")?;
        let url = expose(&sandbox, 3000)?;
        until_it_answers(&url, PYTHON_PATIENCE)?;
        told(&events, "sandbox.preview.ready", 3000)?;
        let opened = told(&events, "sandbox.port.opened", 3000)?;
        ensure!(opened["command"] == "python3 -S -E app.py" && opened["address"] == "0.0.0.0", "{opened}");

        let ports = host.api().get(&sandbox.path("/ports"))?.data()?;
        let listed = ports.as_array().context("No list")?.iter().find(|listener| listener["port"] == 3000);
        ensure!(listed.is_some_and(|listener| listener["url"] == json!(url)), "{ports}");
        aliased(host, &sandbox)?;
        for (words, expected) in [
            (&["expose", &sandbox.id, "3000"][..], url.trim_end_matches('/')),
            (&["previews", &sandbox.id], &url),
            (&["ports", &sandbox.id], "python3 -S -E app.py"),
        ] {
            let output = host.run_cove(words)?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success() && said.contains(expected), "cove {words:?}: {output:?}");
        }

        sandbox.post("/pause", &json!({}))?;
        ensure!(get(&url)?.0 == 200, "A request wakes it");
        ensure!(sandbox.record()?["state"] == "running");

        host.stop_server()?;
        ensure!(get(&url).is_err(), "Nobody listens while no server runs");
        host.launch()?;
        until_it_answers(&url, PYTHON_PATIENCE).context("After a restart")?;
        host.kill_server()?;
        host.launch()?;
        until_it_answers(&url, PYTHON_PATIENCE).context("After a crash")?;

        let sandbox = TestSandbox::existing(host.api(), &sandbox.id);
        sandbox.destroy()?;
        ensure!(get(&url).is_err(), "The listener of a destroyed sandbox is closed");
        Ok(())
    })
}

/// A browser resolves the alias by itself; here it is told where it is.
fn aliased(host: &TestHost, sandbox: &TestSandbox) -> Result<()> {
    let data = sandbox.post("/expose", &json!({ "port": 3000 }))?;
    let alias = data["alias_url"].as_str().with_context(|| format!("No alias: {data}"))?;
    let name = alias.trim_start_matches("http://").trim_end_matches('/');
    ensure!(name.starts_with("3000-lives.localhost:"), "{alias}");
    let port: u16 = name.rsplit(':').next().unwrap_or_default().parse()?;
    let request = |host: &str| format!("GET /alias HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = crate::harness::raw_request(port, &request(name))?;
    ensure!(
        answer.status() == Some(200) && answer.body.ends_with(format!("host={name}").as_bytes()),
        "{}",
        answer.head
    );
    let foreign = crate::harness::raw_request(port, &request(&format!("evil.example:{port}")))?;
    ensure!(foreign.status() == Some(421) && foreign.head.contains("HOST_NOT_ALLOWED"), "{}", foreign.head);
    // The API's own port is no preview, and no name of a preview is the API's.
    let api_port: u16 = host.api().origin.rsplit(':').next().unwrap_or_default().parse()?;
    let confused =
        crate::harness::raw_request(api_port, &request(&name.replace(&port.to_string(), &api_port.to_string())))?;
    ensure!(confused.status() == Some(421), "{}", confused.head);
    Ok(())
}

/// Follows all events from now on.
fn follow(host: &TestHost) -> Result<mpsc::Receiver<Value>> {
    let client = reqwest::blocking::Client::builder().no_proxy().timeout(None).build()?;
    let url = format!("{}/events/stream", host.api().base_url());
    let response = client.get(url).bearer_auth(host.api().token).send()?.error_for_status()?;
    let (sender, events) = mpsc::channel();
    // Ends with its server.
    std::thread::spawn(move || {
        for line in BufReader::new(response).lines().map_while(Result::ok) {
            if let Some(event) = line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok()) {
                let _ = sender.send(event);
            }
        }
    });
    Ok(events)
}

/// The next event of a kind and a port.
fn told(events: &mpsc::Receiver<Value>, kind: &str, port: u16) -> Result<Value> {
    loop {
        let event = events.recv_timeout(PYTHON_PATIENCE).with_context(|| format!("No {kind}"))?;
        if event["type"] == kind && event["port"] == port {
            return Ok(event);
        }
    }
}
