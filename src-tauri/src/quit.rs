//! The end of Cove, and what the next start makes good of it.
//!
//! A server of our own ends with this process. Running persistent sandboxes are paused first, within a bound, and noted; the
//! next start of the window resumes those that are still as they were left. Sandboxes that are not persistent end with their
//! session, so the user is asked before. With a server that was found (`cove serve`) nothing is done: it goes on without us.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use gtk::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tauri::{AppHandle, Manager};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::client::{Client, Record};
use crate::server::Server;
use crate::{outside, pulse, window};

/// How long pausing may take together; what is not paused by then goes on without a server, and the next start finds it.
const PAUSING_TIMEOUT: Duration = Duration::from_secs(90);

/// What was paused at the end, in the data directory.
const NOTE: &str = "paused-at-quit.json";

/// The end has begun; asking once more ends at once.
static ENDING: AtomicBool = AtomicBool::new(false);

/// A sandbox that the end paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Paused {
    id: String,
    /// When: another time at the next start means that somebody used it in between.
    paused_at: Option<String>,
}

/// The user wants to quit.
pub fn ask(app: &AppHandle) {
    begin(app, true);
}

/// Ends Cove on SIGTERM and SIGINT, without questions.
pub async fn on_signals(app: AppHandle) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        begin(&app, false);
    }
}

fn begin(app: &AppHandle, may_ask: bool) {
    if ENDING.swap(true, Ordering::SeqCst) {
        tracing::warn!("asked to quit once more: ending at once");
        return app.exit(0);
    }
    let app = app.clone();
    tauri::async_runtime::spawn(async move {
        let server = Arc::clone(&app.state::<Arc<Server>>());
        if server.is_own() {
            match pause_running(&app, &server, may_ask).await {
                Ok(true) => {}
                Ok(false) => return ENDING.store(false, Ordering::SeqCst),
                Err(error) => tracing::error!("sandboxes were not paused: {error:#}"),
            }
        }
        app.exit(0);
    });
}

/// False when the user changed their mind.
async fn pause_running(app: &AppHandle, server: &Server, may_ask: bool) -> Result<bool> {
    let Some(connection) = server.ready().await else { return Ok(true) };
    let client = Client::new(connection)?;
    let deadline = Instant::now() + PAUSING_TIMEOUT;
    let live = timeout_at(deadline, client.list()).await.context("The list of sandboxes")??;
    let lost: Vec<&Record> = live.iter().filter(|sandbox| !sandbox.persistent).collect();
    if may_ask && !lost.is_empty() && !agrees(app, &lost).await {
        return Ok(false);
    }
    let running: Vec<Record> = live.into_iter().filter(|record| record.persistent && record.is_running()).collect();
    let total = running.len();
    let mut note = Vec::new();
    if total > 0 {
        progress(app, 0, total);
        let mut outcomes = pulse::pauses(&client, running);
        for done in 1..=total {
            let Ok(Some((sandbox, outcome))) = timeout_at(deadline, outcomes.next()).await else {
                tracing::error!("pausing took longer than {} s", PAUSING_TIMEOUT.as_secs());
                break;
            };
            match outcome {
                Ok(record) => note.push(Paused { id: record.id, paused_at: record.paused_at }),
                Err(error) => {
                    outside::notify(app, &format!("{} was not paused", sandbox.title()), &format!("{error:#}"));
                }
            }
            progress(app, done, total);
            // Written each time, so that an end at once loses none.
            write(&server.data_dir().join(NOTE), &note)?;
        }
    }
    Ok(true)
}

/// Says it in the page and, since that may be hidden behind others, in the window's title.
fn progress(app: &AppHandle, done: usize, total: usize) {
    window::tell(app, &json!({ "kind": "quitting", "done": done, "total": total }));
    if let Some(window) = app.get_webview_window(window::LABEL) {
        let _ = window.set_title(&format!("Cove – pausing sandboxes, {done} of {total}"));
    }
}

/// Whether the user gives up what is not kept.
async fn agrees(app: &AppHandle, lost: &[&Record]) -> bool {
    let names: Vec<&str> = lost.iter().take(5).map(|sandbox| sandbox.title()).collect();
    let more = if lost.len() > names.len() { format!(" and {} more", lost.len() - names.len()) } else { String::new() };
    let text = format!("Quit and destroy {}{more}?", names.join(", "));
    let (sender, answer) = oneshot::channel();
    let asker = app.clone();
    let asked = app.run_on_main_thread(move || {
        let Some(window) = asker.get_webview_window(window::LABEL) else { return };
        window::show(&asker, None);
        let more = "Sandboxes that are not persistent end when Cove quits, with all that is in them.";
        let dialog = window::question(&window, &text, more);
        dialog.add_button("Cancel", gtk::ResponseType::Cancel);
        dialog.add_button("Quit", gtk::ResponseType::Accept);
        dialog.set_default_response(gtk::ResponseType::Cancel);
        let sender = std::cell::Cell::new(Some(sender));
        dialog.connect_response(move |dialog, response| {
            if let Some(sender) = sender.take() {
                let _ = sender.send(response == gtk::ResponseType::Accept);
            }
            dialog.close();
        });
        dialog.show_all();
    });
    // Without a window nobody can be asked.
    asked.is_err() || answer.await.unwrap_or(true)
}

/// Resumes what the last end paused, if it is as it was left. Called when a server of our own serves.
pub async fn make_good(app: &AppHandle, server: &Server) -> Result<()> {
    let path = server.data_dir().join(NOTE);
    let noted = read(&path)?;
    if noted.is_empty() {
        return Ok(());
    }
    let Some(connection) = server.ready().await else { return Ok(()) };
    let client = Client::new(connection)?;
    let now = client.list().await?;
    for sandbox in as_left(&noted, &now) {
        tracing::info!(sandbox = sandbox.id, "resuming what the last end paused");
        if let Err(error) = client.resume(&sandbox.id).await {
            outside::notify(app, &format!("{} stays paused", sandbox.title()), &format!("{error:#}"));
        }
    }
    fs::remove_file(&path).with_context(|| format!("Cannot remove {}", path.display()))
}

/// Those that are paused since the end that noted them.
fn as_left<'a>(noted: &[Paused], now: &'a [Record]) -> Vec<&'a Record> {
    let noted =
        |record: &&Record| noted.iter().any(|paused| paused.id == record.id && paused.paused_at == record.paused_at);
    now.iter().filter(|record| record.state == "paused").filter(noted).collect()
}

fn read(path: &Path) -> Result<Vec<Paused>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is not understood", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("Cannot read {}", path.display())),
    }
}

/// In one step, so that there is never half a note.
fn write(path: &PathBuf, noted: &[Paused]) -> Result<()> {
    let part = path.with_extension("part");
    let written = fs::write(&part, serde_json::to_vec(noted)?).and_then(|()| fs::rename(&part, path));
    written.with_context(|| format!("Cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_it_was_left_is_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NOTE);
        assert!(read(&path).unwrap().is_empty());
        let noted = ["a", "b", "c", "gone"].map(|id| Paused { id: id.into(), paused_at: Some("1".into()) });
        write(&path, &noted).unwrap();
        let record = |id: &str, state: &str, paused_at: &str| Record {
            id: id.into(),
            name: None,
            state: state.into(),
            persistent: true,
            paused_at: Some(paused_at.into()),
        };
        let now = [
            record("a", "paused", "1"),
            record("b", "paused", "2"),
            record("c", "running", "1"),
            record("other", "paused", "1"),
        ];
        let left = as_left(&read(&path).unwrap(), &now);
        assert_eq!(left.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
