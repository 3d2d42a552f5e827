//! What is shown outside of the window: links in the user's browser, notifications of the desktop. Both go through GLib,
//! which GTK stands on, so that no second library speaks to the session bus.

use gtk::gio;
use gtk::glib::{ToVariant, Variant};
use tauri::{AppHandle, Manager, Url};
use tokio::sync::oneshot;

use crate::window;

/// How long the bus may take; where there is no bus it fails at once.
const BUS_TIMEOUT_MS: i32 = 2_000;

/// The longest text of a notification; daemons cut sooner.
const BODY_CHARS_MAX: usize = 400;

/// Opens an http or https address with the desktop's browser. Anything else is refused: such an address could start any
/// program that the desktop knows.
pub async fn open(app: &AppHandle, url: &str) -> Result<(), String> {
    let url = web_address(url)?;
    let (sender, receiver) = oneshot::channel();
    let shown = url.to_string();
    let opening = app.run_on_main_thread(move || {
        let opened = gio::AppInfo::launch_default_for_uri(url.as_str(), gio::AppLaunchContext::NONE);
        // Nobody listens when the page went away; then nobody has to be told.
        let _ = sender.send(opened.map_err(|error| format!("{url} cannot be opened: {error}")));
    });
    opening.map_err(|error| format!("{shown} cannot be opened: {error}"))?;
    receiver.await.unwrap_or_else(|_| Err(format!("{shown} cannot be opened: Cove is ending")))
}

/// An address that a browser may be given.
fn web_address(url: &str) -> Result<Url, String> {
    match Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => Ok(parsed),
        _ => Err(format!("'{url}' is no address of a web page")),
    }
}

/// Tells the user something, unless the window is in front and shows it anyway.
pub fn notify(app: &AppHandle, title: &str, body: &str) {
    let in_front = app.get_webview_window(window::LABEL).is_some_and(|window| window.is_focused().unwrap_or(false));
    if in_front {
        return;
    }
    let (title, body) = (title.to_owned(), body.chars().take(BODY_CHARS_MAX).collect::<String>());
    // The bus may be slow, and the caller must not wait for it.
    std::thread::spawn(move || {
        if let Err(error) = send(&title, &body) {
            tracing::debug!(title, "no notification: {error}");
        }
    });
}

/// `Notify` of the Desktop Notifications Specification.
fn send(title: &str, body: &str) -> Result<(), gtk::glib::Error> {
    let hints = std::collections::HashMap::from([("desktop-entry".to_owned(), "cove".to_variant())]);
    let nothing: Vec<String> = Vec::new();
    // Daemons may read markup.
    let body = body.replace('&', "&amp;").replace('<', "&lt;");
    let message = ("Cove", 0_u32, "cove", title, body, nothing, hints, -1_i32).to_variant();
    call("org.freedesktop.Notifications", "/org/freedesktop/Notifications", "Notify", &message).map(drop)
}

/// True when the desktop has a place for tray icons. Asks the bus, so not for the main thread.
pub fn has_tray() -> bool {
    let name = ("org.kde.StatusNotifierWatcher",).to_variant();
    let answer = call("org.freedesktop.DBus", "/org/freedesktop/DBus", "NameHasOwner", &name);
    answer.ok().and_then(|answer| answer.get::<(bool,)>()).is_some_and(|(has,)| has)
}

/// A call of a method whose interface has the name of the service.
fn call(service: &str, path: &str, method: &str, parameters: &Variant) -> Result<Variant, gtk::glib::Error> {
    let bus = gio::bus_get_sync(gio::BusType::Session, gio::Cancellable::NONE)?;
    bus.call_sync(
        Some(service),
        path,
        service,
        method,
        Some(parameters),
        None,
        gio::DBusCallFlags::NONE,
        BUS_TIMEOUT_MS,
        gio::Cancellable::NONE,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_pages_are_opened() {
        for url in ["http://127.83.0.5:3000/a?b#c", "https://example.com"] {
            assert!(web_address(url).is_ok(), "{url}");
        }
        for url in ["file:///etc/passwd", "javascript:alert(1)", "mailto:a@b.c", "cove://sandbox/x", "http:", "x", ""] {
            assert!(web_address(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_notification_has_the_types_of_the_specification() {
        let hints = std::collections::HashMap::from([("desktop-entry".to_owned(), "cove".to_variant())]);
        let nothing: Vec<String> = Vec::new();
        let message = ("Cove", 0_u32, "cove", "t", "b".to_owned(), nothing, hints, -1_i32).to_variant();
        assert_eq!(message.type_().as_str(), "(susssasa{sv}i)");
    }
}
