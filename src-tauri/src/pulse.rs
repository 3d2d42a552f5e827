//! What goes on among the sandboxes, for the tray and for notifications; also while the window is hidden.
//!
//! One stream of events is followed, and the list is asked again when one of them changes it. When the stream ends, the server
//! may be going through a restart: it is looked for, but none is started here, so that whoever restarts it comes first.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::{Stream, StreamExt, stream};
use tauri::{AppHandle, Manager};
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, Event, Record};
use crate::server::Server;
use crate::{outside, tray};

/// Between the end of a stream and the next attempt.
const AGAIN_AFTER: Duration = Duration::from_secs(3);

/// Pauses at one time: each writes a machine's memory.
const PAUSES_AT_ONCE: usize = 4;

/// Follows as long as the process lives.
pub async fn follow(app: AppHandle) {
    let server = Arc::clone(&app.state::<Arc<Server>>());
    while let Some(connection) = server.ready().await {
        match Client::new(connection) {
            Ok(client) => {
                if let Err(error) = follow_one(&app, &client).await {
                    tracing::debug!("the events of the server: {error:#}");
                }
            }
            Err(error) => return tracing::error!("{error:#}"),
        }
        sleep_until(Instant::now() + AGAIN_AFTER).await;
        server.look_again();
    }
}

async fn follow_one(app: &AppHandle, client: &Client) -> Result<()> {
    tray::say(app, &client.list().await?);
    let mut events = client.events().await?;
    while let Some(event) = events.next().await? {
        if changes_the_list(&event) {
            let sandboxes = client.list().await?;
            tray::say(app, &sandboxes);
            warn(app, &event, &sandboxes);
        }
    }
    Ok(())
}

/// Commands and previews, which are most events, change no state.
fn changes_the_list(event: &Event) -> bool {
    let inside = ["sandbox.exec.", "sandbox.preview.", "sandbox.port.", "sandbox.share.", "sandbox.snapshot."];
    !inside.iter().any(|kind| event.kind.starts_with(kind))
}

/// A sandbox that failed is something to know also when nobody looks.
fn warn(app: &AppHandle, event: &Event, sandboxes: &[Record]) {
    if event.kind == "sandbox.error" {
        let id = event.sandbox_id.as_deref().unwrap_or_default();
        let title = sandboxes.iter().find(|sandbox| sandbox.id == id).map_or(id, Record::title);
        outside::notify(app, &format!("{title} failed"), event.error.as_deref().unwrap_or("It does not say why."));
    }
}

/// Pauses every running sandbox, and says what could not be paused.
pub fn pause_all(app: &AppHandle) {
    let app = app.clone();
    tauri::async_runtime::spawn(async move {
        let server = Arc::clone(&app.state::<Arc<Server>>());
        let paused = async {
            let Some(connection) = server.ready().await else { return Ok(()) };
            let client = Client::new(connection)?;
            let running: Vec<Record> = client.list().await?.into_iter().filter(Record::is_running).collect();
            let mut outcomes = pauses(&client, running);
            while let Some((sandbox, outcome)) = outcomes.next().await {
                if let Err(error) = outcome {
                    let title = format!("{} was not paused", sandbox.title());
                    outside::notify(&app, &title, &format!("{error:#}"));
                }
            }
            anyhow::Ok(())
        };
        if let Err(error) = paused.await {
            outside::notify(&app, "Sandboxes were not paused", &format!("{error:#}"));
        }
    });
}

/// Pauses sandboxes, a few at a time; each outcome as it comes.
pub fn pauses(client: &Client, running: Vec<Record>) -> Pin<Box<dyn Stream<Item = (Record, Result<Record>)> + Send>> {
    let client = client.clone();
    let pause = move |sandbox: Record| {
        let client = client.clone();
        async move {
            let outcome = client.pause(&sandbox.id).await;
            (sandbox, outcome)
        }
    };
    stream::iter(running).map(pause).buffer_unordered(PAUSES_AT_ONCE).boxed()
}
