//! The window: hosts the page, and the server when none runs yet. No product logic.
//!
//! Closing the window ends this process; machines go on, and the next start finds them again.
#![deny(unsafe_code)]

mod connection;
mod server;

use anyhow::{Context, Result};

/// Opens the window and returns when it was closed.
///
/// # Errors
/// When there is no display, the server cannot start, or another server's connection cannot be read.
pub fn run() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Runtime::new().context("Cannot start the runtime")?;
    let server = runtime.block_on(server::Server::find_or_start())?;
    let app = tauri::Builder::default()
        .manage(server.connection.clone())
        .invoke_handler(tauri::generate_handler![connection::connection])
        .build(tauri::generate_context!())
        .context("Cannot open the window")?;
    let ended = app.run_return(|_, _| {});
    runtime.block_on(server.stop())?;
    anyhow::ensure!(ended == 0, "The window ended with code {ended}");
    Ok(())
}
