//! The one command of the page's host: where the API is, and what opens it.

use serde::Serialize;
use tauri::State;

/// What the page needs to call the API.
#[derive(Clone, Serialize)]
pub struct Connection {
    /// The API's root, such as `http://127.0.0.1:7333/api/v1`.
    pub base_url: String,
    /// The bearer token.
    pub token: String,
}

/// Gives the page its connection.
#[tauri::command]
pub fn connection(state: State<'_, Connection>) -> Connection {
    state.inner().clone()
}
