//! The one window: made at the start, hidden when it is closed, shown again by the tray or by another start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gtk::prelude::*;
use tauri::webview::{DownloadEvent, NewWindowResponse};
use tauri::{AppHandle, Manager, Url, WebviewUrl, WebviewWindow, WebviewWindowBuilder, Window, WindowEvent};

use crate::{outside, page, quit};

/// The window's name in Tauri.
pub const LABEL: &str = "main";

/// Its size at the very first start.
const SIZE: (f64, f64) = (1240.0, 780.0);

/// Below this the page cannot be used well.
const SIZE_LEAST: (f64, f64) = (720.0, 480.0);

/// Files of one name in the downloads before we give up.
const COPIES_MAX: usize = 1000;

/// Opens the window at a place of the page, such as `#/sandboxes`.
pub fn open(app: &AppHandle, place: &str) -> Result<()> {
    let address = Url::parse(page::ADDRESS).and_then(|url| url.join(place)).context("The page's address")?;
    let for_links = app.clone();
    let window = WebviewWindowBuilder::new(app, LABEL, WebviewUrl::CustomProtocol(address))
        .title("Cove")
        .inner_size(SIZE.0, SIZE.1)
        .min_inner_size(SIZE_LEAST.0, SIZE_LEAST.1)
        .on_page_load(|window, payload| page::stay(&window, &payload))
        .on_new_window(move |url, _| {
            open_outside(&for_links, url);
            NewWindowResponse::Deny
        })
        .on_download(|webview, event| downloaded(webview.app_handle(), event))
        .build()
        .context("Cannot open the window")?;
    page::accept_cookies(&window);
    Ok(())
}

/// What a page wants to open in a window of its own goes to the browser.
fn open_outside(app: &AppHandle, url: Url) {
    let app = app.clone();
    tauri::async_runtime::spawn(async move {
        if let Err(error) = outside::open(&app, url.as_str()).await {
            tracing::warn!("{error}");
        }
    });
}

/// Downloads go to the user's folder of downloads, and the page says where.
fn downloaded(app: &AppHandle, event: DownloadEvent<'_>) -> bool {
    match event {
        DownloadEvent::Requested { url, destination } => {
            let name = destination.file_name().map(|name| name.to_string_lossy().into_owned());
            let Ok(folder) = app.path().download_dir().or_else(|_| app.path().home_dir()) else { return false };
            let Some(free) = free_path(&folder, name.as_deref().unwrap_or("download")) else { return false };
            tracing::info!(path = url.path(), to = %free.display(), "downloading");
            let _ = std::fs::create_dir_all(&folder);
            *destination = free;
            true
        }
        DownloadEvent::Finished { path, success, .. } => {
            let path = path.map(|path| path.display().to_string());
            tell(app, &serde_json::json!({ "kind": "downloaded", "path": path, "success": success }));
            true
        }
        _ => true,
    }
}

/// A path in the folder that nothing has: `name`, `name (1)`, …
fn free_path(folder: &Path, name: &str) -> Option<PathBuf> {
    let (stem, ending) = match name.split_once('.') {
        Some((stem, ending)) if !stem.is_empty() => (stem, format!(".{ending}")),
        _ => (name, String::new()),
    };
    let numbered = (1..COPIES_MAX).map(|count| format!("{stem} ({count}){ending}"));
    std::iter::once(name.to_owned()).chain(numbered).map(|name| folder.join(name)).find(|path| !path.exists())
}

/// Shows the window, in front, at a place of the page when one is given.
pub fn show(app: &AppHandle, place: Option<&str>) {
    let Some(window) = app.get_webview_window(LABEL) else { return };
    let shown = window.show().and_then(|()| window.unminimize()).and_then(|()| window.set_focus());
    if let Err(error) = shown {
        tracing::warn!("cannot show the window: {error}");
    }
    if let Some(place) = place {
        tell(app, &serde_json::json!({ "kind": "go", "place": place }));
    }
}

/// Tells the page something: it hears a DOM event `cove-host`. So it needs no right to listen to events of Tauri.
pub fn tell(app: &AppHandle, message: &serde_json::Value) {
    let Some(window) = app.get_webview_window(LABEL) else { return };
    // JSON is JavaScript.
    if let Err(error) = window.eval(format!("dispatchEvent(new CustomEvent('cove-host', {{ detail: {message} }}))")) {
        tracing::warn!("the page was not told: {error}");
    }
}

/// What the window manager wants: closing hides.
pub fn on_event(window: &Window, event: &WindowEvent) {
    if let WindowEvent::CloseRequested { api, .. } = event {
        api.prevent_close();
        close(window.app_handle().clone());
    }
}

/// Hides the window where a tray icon can bring it back, and asks where there is none.
fn close(app: AppHandle) {
    // The bus is asked on another thread: it may be slow, and the window draws on this one.
    std::thread::spawn(move || {
        let has_tray = outside::has_tray();
        let asker = app.clone();
        let _ = app.run_on_main_thread(move || {
            let Some(window) = asker.get_webview_window(LABEL) else { return };
            if has_tray {
                let _ = window.hide();
            } else {
                ask_where_to(asker, &window);
            }
        });
    });
}

/// Without a tray a hidden window would be lost to who does not know that a second start shows it.
fn ask_where_to(app: AppHandle, window: &WebviewWindow) {
    let text = "Keep Cove running in the background?";
    let more = "This desktop shows no tray icons. Sandboxes go on running either way until you quit; start Cove again to see \
                its window. Quitting pauses running sandboxes, and the next start resumes them.";
    let dialog = question(window, text, more);
    dialog.add_button("Quit", gtk::ResponseType::Reject);
    dialog.add_button("Keep running", gtk::ResponseType::Accept);
    dialog.set_default_response(gtk::ResponseType::Accept);
    let hidden = window.clone();
    dialog.connect_response(move |dialog, response| {
        dialog.close();
        match response {
            gtk::ResponseType::Accept => drop(hidden.hide()),
            gtk::ResponseType::Reject => quit::ask(&app),
            _ => {}
        }
    });
    dialog.show_all();
}

/// A question of the window in front of it.
pub fn question(window: &WebviewWindow, text: &str, more: &str) -> gtk::MessageDialog {
    let parent = window.gtk_window().ok();
    let dialog = gtk::MessageDialog::new(
        parent.as_ref(),
        gtk::DialogFlags::MODAL,
        gtk::MessageType::Question,
        gtk::ButtonsType::None,
        text,
    );
    dialog.set_secondary_text(Some(more));
    dialog.set_title("Cove");
    dialog
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_never_takes_the_place_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let next = |name: &str| {
            let path = free_path(folder.path(), name).unwrap();
            std::fs::write(&path, "").unwrap();
            path.file_name().unwrap().to_string_lossy().into_owned()
        };
        assert_eq!(
            [next("a.tar.gz"), next("a.tar.gz"), next("a.tar.gz")],
            ["a.tar.gz", "a (1).tar.gz", "a (2).tar.gz"]
        );
        assert_eq!([next(".env"), next(".env"), next("x"), next("x")], [".env", ".env (1)", "x", "x (1)"]);
    }
}
