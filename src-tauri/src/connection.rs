//! The commands that the page may call: where the API is and what opens it, a link for the browser, the end.

use std::sync::Arc;

use cove_engine::doctor::Check;
use serde::Serialize;
use tauri::{AppHandle, State};

use crate::server::Server;
use crate::{outside, quit};

/// What the page needs to call the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The API's root, such as `http://127.0.0.1:7333/api/v1`.
    pub base_url: String,
    /// The bearer token.
    pub token: String,
}

/// Why there is no server, and what can be done about it.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// What failed, with its causes.
    pub message: String,
    /// What `cove doctor` finds wrong.
    pub checks: Vec<Check>,
}

/// Gives the page its connection, once there is one. After a failure, or when the server that was found is gone, it is tried
/// anew: calling again is the way to try again.
#[tauri::command]
pub async fn connection(server: State<'_, Arc<Server>>) -> Result<Connection, Problem> {
    server.connection().await
}

/// Opens a page in the user's browser.
#[tauri::command]
pub async fn open_external(app: AppHandle, url: String) -> Result<(), String> {
    outside::open(&app, &url).await
}

/// Ends Cove; running sandboxes are paused before.
#[tauri::command]
pub fn quit(app: AppHandle) {
    quit::ask(&app);
}
