//! The real window: WebKitGTK on a display of its own, driven as a person would. Pictures of each step are kept in
//! `window-shots` of cargo's target folder.
//!
//! It is the debug build of `cove-desktop`, with its server in its own process; the machines are those of all tests.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Shared, TestHost, TestWindow, exclusive, until};

/// How long WebKit's helpers may take to end after their window.
const PROCESSES_PATIENCE: Duration = Duration::from_secs(20);

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![exclusive(shared, "window::it_opens_where_it_is_led_and_keeps_to_itself", seclusion)]
}

/// A host whose own server is stopped, so that the window starts one on its data.
fn stopped(shared: &Shared) -> Result<TestHost> {
    let host = shared.own_host()?;
    host.stop_server()?;
    Ok(host)
}

/// Runs a test on a window, and makes sure that nothing is left. An error carries the report.
fn on_window(shared: &Shared, name: &str, test: impl FnOnce(&TestWindow<'_>) -> Result<()>) -> Result<()> {
    let host = stopped(shared)?;
    let tested = || {
        let window = TestWindow::open(&host, name)?;
        test(&window)?;
        window.quit()?;
        // WebKit's processes end a moment after the window's.
        let gone = until("all processes are gone", PROCESSES_PATIENCE, || Ok(host.nothing_is_left().is_ok()));
        gone.or_else(|_| host.nothing_is_left().map(|()| Default::default())).map(drop)
    };
    tested().map_err(|error| anyhow::anyhow!("{error:#}\n{}", host.report()))
}

/// What a page in a frame finds of Tauri. (WebKit's own channel to the host is in every frame, but speaking on it needs the key
/// that only the page was given.)
const REACH: &str = "return [typeof window.__TAURI_INTERNALS__, typeof window.isTauri, typeof window.ipc].join()";

/// A frame that asks the host for the token without the key.
const ASK: &str = "window.got = null; fetch('ipc://localhost/connection', { method: 'POST', body: '{}', headers: \
                   { 'Tauri-Invoke-Key': 'guess', 'Tauri-Callback': '1', 'Tauri-Error': '2' } }) \
                   .then(async (answer) => (window.got = await answer.text()), (error) => (window.got = 'refused: ' + error)); \
                   window.webkit?.messageHandlers?.ipc?.postMessage(JSON.stringify({ cmd: 'connection', callback: 1, error: 2, \
                   payload: {}, options: { headers: {} }, __TAURI_INVOKE_KEY__: 'guess' }))";

fn seclusion(shared: &Shared) -> Result<()> {
    on_window(shared, "seclusion", |window| {
        window.see("No sandboxes yet")?;
        window.picture("first-start")?;
        let origin = window.script("return location.origin", &[])?;
        ensure!(origin == json!("cove://app.shell"), "{origin}");

        // The page has its three commands and nothing of Tauri's own.
        let refused = "const done = arguments[0]; const ipc = window.__TAURI_INTERNALS__; const out = {}; window.tried = out; \
                       for (const name of ['connection', 'plugin:event|listen', 'plugin:window|close', 'plugin:app|version']) \
                       ipc.invoke(name, {}).then(() => (out[name] = 'allowed'), (error) => (out[name] = String(error)));";
        window.script(refused, &[])?;
        let tried = window.until_script(
            "four answers",
            "return Object.keys(window.tried).length === 4 && window.tried",
            &[],
        )?;
        ensure!(tried["connection"] == "allowed", "{tried}");
        for name in ["plugin:event|listen", "plugin:window|close", "plugin:app|version"] {
            ensure!(tried[name].as_str().is_some_and(|text| text.contains("not allowed")), "{name}: {tried}");
        }

        // A frame from elsewhere finds nothing of the host, and cannot get out of the window's place either.
        let other = shared.host()?;
        let place = format!("{}/healthz", other.api().origin);
        let add = "const frame = document.createElement('iframe'); frame.src = arguments[0]; frame.title = 'elsewhere'; \
                   frame.style = 'position: fixed; inset: 0 0 auto auto; width: 300px; height: 100px'; \
                   document.body.append(frame)";
        window.script(add, &[json!(place)])?;
        window.see_in_frame("elsewhere", "ok")?;
        let reach = window.script_in_frame("elsewhere", REACH)?;
        ensure!(reach == json!("undefined,undefined,undefined"), "A frame finds {reach}");
        window.script_in_frame("elsewhere", ASK)?;
        let got = window.until_in_frame("elsewhere", "an answer", "return window.got")?;
        ensure!(got.as_str().is_some_and(|text| !text.contains("base_url")), "A frame was answered {got}");
        window.script("document.querySelector('iframe[title=elsewhere]').remove()", &[])?;
        window.script("location.href = arguments[0]", &[json!(place)])?;
        window.see("No sandboxes yet").context("Led away, it comes back")?;

        // Scripts that are not the page's own do not run.
        window.script(
            "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.head.append(s)",
            &[],
        )?;
        ensure!(window.script("return typeof window.ran", &[])? == json!("undefined"), "An inline script ran");

        // Another start hands its link over and ends.
        let began = Instant::now();
        let status = second_start(window, &["cove://sandbox/sbx_unknown"])?.status()?;
        ensure!(status.success(), "The second start ended with {status}");
        window.until_script("the link's place", "return location.hash === '#/sandboxes/sbx_unknown'", &[])?;
        window.see("This sandbox is gone")?;
        eprintln!("a link was opened after {} ms", began.elapsed().as_millis());
        window.picture("a-link-to-a-sandbox-that-is-gone")
    })
}

/// A start of the program beside the window.
fn second_start(window: &TestWindow<'_>, words: &[&str]) -> Result<Command> {
    let pid = window.pid()?;
    let mut command = Command::new(std::fs::read_link(format!("/proc/{pid}/exe"))?);
    let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
    let variables =
        environment.split(|byte| *byte == 0).filter_map(|line| std::str::from_utf8(line).ok()?.split_once('='));
    command.args(words).env_clear().envs(variables);
    Ok(command)
}
