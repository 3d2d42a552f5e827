//! The window: hosts the page, and the server when none runs yet. No product logic.
//!
//! Closing the window hides it: sandboxes go on, and the tray or another start shows it again. Quitting pauses what runs
//! (`quit`), and the next start resumes it. The page gets three commands (`connection`) and nothing of Tauri's own.
#![deny(unsafe_code)]

mod client;
mod connection;
mod instance;
mod link;
mod log;
mod outside;
mod page;
mod pulse;
mod quit;
mod server;
mod tray;
mod window;

use std::sync::Arc;

use anyhow::{Context, Result};
use cove_engine::EngineConfig;
use instance::Instance;
use server::Server;
use tauri::{AppHandle, Manager, RunEvent};
use tauri_plugin_window_state::StateFlags;

/// Opens the window and returns when Cove ended; at once when another one has the window already.
///
/// # Errors
/// When there is no display, or the data directory cannot be used at all.
pub fn run() -> Result<()> {
    // Before anything is made, so that nothing is ever open to others.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let data_dir = EngineConfig::default().places().context("Cannot start")?.data_dir;
    let link = std::env::args().nth(1);
    let place = link.as_deref().and_then(link::place);
    let Instance::First(mut first) = Instance::claim(&data_dir, link.as_deref())? else { return Ok(()) };
    let log = log::init(&data_dir)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), log = %log.display(), "starting");
    let runtime = tokio::runtime::Runtime::new().context("Cannot start the runtime")?;
    tauri::async_runtime::set(runtime.handle().clone());
    let server = Arc::new(Server::new(&data_dir));
    let app = tauri::Builder::default()
        .plugin(
            tauri_plugin_window_state::Builder::new().with_state_flags(StateFlags::all() - StateFlags::VISIBLE).build(),
        )
        .manage(Arc::clone(&server))
        .invoke_handler(tauri::generate_handler![connection::connection, connection::open_external, connection::quit])
        .register_uri_scheme_protocol(page::SCHEME, |context, request| page::file(context.app_handle(), &request))
        .on_window_event(window::on_event)
        .setup(move |app| {
            window::open(app.handle(), place.as_deref().unwrap_or("#/sandboxes"))?;
            tray::put_up(app.handle());
            begin(app.handle());
            let shown = app.handle().clone();
            first.listen(move |link| window::show(&shown, link.as_deref().and_then(link::place).as_deref()));
            // Kept until the end.
            app.manage(first);
            Ok(())
        })
        .build(tauri::generate_context!())
        .context("Cannot open the window")?;
    let ended = app.run_return(|_, event| {
        // Without a window there is still the tray; `quit` gives a code.
        if let RunEvent::ExitRequested { code: None, api, .. } = event {
            api.prevent_exit();
        }
    });
    runtime.block_on(server.stop())?;
    tracing::info!("ended");
    anyhow::ensure!(ended == 0, "The window ended with code {ended}");
    Ok(())
}

/// Starts what goes on beside the window.
fn begin(app: &AppHandle) {
    let server = Arc::clone(&app.state::<Arc<Server>>());
    let handle = app.clone();
    tauri::async_runtime::spawn(async move {
        server.find_or_start().await;
        if server.is_own()
            && let Err(error) = quit::make_good(&handle, &server).await
        {
            tracing::error!("what the last end paused stays paused: {error:#}");
        }
    });
    tauri::async_runtime::spawn(pulse::follow(app.clone()));
    tauri::async_runtime::spawn(quit::on_signals(app.clone()));
}
