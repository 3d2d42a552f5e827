//! The icon in the desktop's tray: how many sandboxes run, and what is done most.

use std::panic::catch_unwind;

use anyhow::{Context, Result, anyhow};
use tauri::menu::{Menu, MenuEvent, MenuItem, PredefinedMenuItem};
use tauri::tray::{TrayIcon, TrayIconBuilder};
use tauri::{AppHandle, Manager, Wry};

use crate::client::Record;
use crate::{pulse, quit, window};

/// The icon and the parts of its menu that change.
pub struct Tray {
    icon: TrayIcon,
    summary: MenuItem<Wry>,
    pause: MenuItem<Wry>,
}

/// Puts the icon up. A desktop without a tray, or without the library for it, has none; everything else works.
pub fn put_up(app: &AppHandle) {
    // The library is looked up at run time, and its crate panics where it is missing.
    let made = catch_unwind(std::panic::AssertUnwindSafe(|| Tray::new(app)));
    match made.unwrap_or_else(|_| Err(anyhow!("libayatana-appindicator3 is missing"))) {
        Ok(tray) => drop(app.manage(tray)),
        Err(error) => tracing::warn!("no tray icon: {error:#}"),
    }
}

/// Says how the sandboxes are.
pub fn say(app: &AppHandle, sandboxes: &[Record]) {
    let Some(tray) = app.try_state::<Tray>() else { return };
    let running = sandboxes.iter().filter(|sandbox| sandbox.is_running()).count();
    let said = tray
        .summary
        .set_text(summary(sandboxes))
        .and_then(|()| tray.pause.set_enabled(running > 0))
        .and_then(|()| tray.icon.set_title((running > 0).then(|| running.to_string())));
    if let Err(error) = said {
        tracing::debug!("the tray's menu: {error}");
    }
}

/// `2 running, 3 paused`.
fn summary(sandboxes: &[Record]) -> String {
    let count = |state: &str| sandboxes.iter().filter(|sandbox| sandbox.state == state).count();
    let (running, paused, failed) = (count("running"), count("paused"), count("error"));
    let parts = [(running, "running"), (paused, "paused"), (failed, "failed")];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if parts.is_empty() { "No sandboxes".to_owned() } else { parts.join(", ") }
}

impl Tray {
    fn new(app: &AppHandle) -> Result<Self> {
        let summary = MenuItem::with_id(app, "summary", "No sandboxes", false, None::<&str>)?;
        let open = MenuItem::with_id(app, "open", "Open Cove", true, None::<&str>)?;
        let new = MenuItem::with_id(app, "new", "New sandbox…", true, None::<&str>)?;
        let pause = MenuItem::with_id(app, "pause", "Pause all", false, None::<&str>)?;
        let quit = MenuItem::with_id(app, "quit", "Quit", true, None::<&str>)?;
        let line = || PredefinedMenuItem::separator(app);
        let menu = Menu::with_items(app, &[&summary, &line()?, &open, &new, &pause, &line()?, &quit])?;
        let icon = TrayIconBuilder::with_id("cove")
            .icon(app.default_window_icon().context("There is no icon")?.clone())
            .menu(&menu)
            .on_menu_event(chosen)
            .build(app)?;
        Ok(Self { icon, summary, pause })
    }
}

fn chosen(app: &AppHandle, event: MenuEvent) {
    match event.id().as_ref() {
        "open" => window::show(app, None),
        "new" => {
            window::show(app, Some("#/sandboxes"));
            window::tell(app, &serde_json::json!({ "kind": "new" }));
        }
        "pause" => pulse::pause_all(app),
        "quit" => quit::ask(app),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_there_is() {
        let sandbox = |state: &str| Record {
            id: "sbx_1".into(),
            name: None,
            state: state.into(),
            persistent: true,
            paused_at: None,
        };
        assert_eq!(summary(&[]), "No sandboxes");
        let some = ["running", "paused", "running", "creating", "error"].map(sandbox);
        assert_eq!(summary(&some), "2 running, 1 paused, 1 failed");
    }
}
