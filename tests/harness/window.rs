//! The real window, on a display of its own, used as a person would: by roles and visible names.
//!
//! Every wait is for something to be seen, with patience, since guests and a software renderer share the processor. When it is
//! not seen, the error says what was, and a picture is kept.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::driver::{Driver, Element};
use super::{TestHost, processes, until};

/// How long something may take to be seen.
const PATIENCE: Duration = Duration::from_secs(90);

/// How much of the page's text stands in an error.
const TEXT_CHARS_MAX: usize = 3000;

/// Finds elements; see there.
const FIND: &str = include_str!("../window/find.js");

/// Of the keyboard, in WebDriver's code points.
#[allow(dead_code, reason = "no test needs all of them")]
mod key {
    pub const ENTER: &str = "\u{e007}";
    pub const CONTROL: &str = "\u{e009}";
    pub const ESCAPE: &str = "\u{e00c}";
}

/// A display without a screen.
struct Display {
    server: Child,
    name: String,
}

impl Display {
    fn start(dir: &Path) -> Result<Self> {
        // The folder on the command line lets an interrupt of the tests find it.
        fs::create_dir_all(dir)?;
        let mut command = Command::new("Xvfb");
        command
            .args(["-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp", "-noreset", "-fbdir"])
            .arg(dir);
        let mut server = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("Cannot start Xvfb")?;
        let mut number = String::new();
        BufReader::new(server.stdout.take().context("Xvfb has no output")?).read_line(&mut number)?;
        let display = Self { server, name: format!(":{}", number.trim()) };
        ensure!(number.trim().parse::<u32>().is_ok(), "Xvfb has no display: '{number}'");
        Ok(display)
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A window of a host whose own server is stopped, or runs and is found. Dropping it ends all of it.
pub struct TestWindow<'a> {
    // In this order, so that the display goes last.
    driver: Driver,
    _display: Display,
    host: &'a TestHost,
    pictures: PathBuf,
    taken: Cell<usize>,
}

#[allow(dead_code, reason = "the words of a person in front of the window; no test needs all of them")]
impl<'a> TestWindow<'a> {
    /// Opens the window; its page may not be there yet.
    pub fn open(host: &'a TestHost, name: &str) -> Result<Self> {
        let program = program()?;
        let home = host.dir().join("home");
        fs::create_dir_all(&home)?;
        let display = Display::start(&host.dir().join("display"))?;
        let log = fs::OpenOptions::new().append(true).create(true).open(host.dir().join("window.log"))?;
        let mut command = Command::new("WebKitWebDriver");
        surround(&mut command, host, &home).env("DISPLAY", &display.name).stderr(log);
        let driver = Driver::start(command, &program)?;
        let pictures = pictures(name)?;
        Ok(Self { driver, _display: display, host, pictures, taken: Cell::new(0) })
    }

    /// The elements of a role and a name that are seen now.
    pub fn all(&self, role: &str, name: &str) -> Result<Vec<Element>> {
        self.driver.elements(FIND, &[json!(role), json!(name)])
    }

    /// Waits for `what`, whose errors count as not yet.
    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let mut found = None;
        let mut last = None;
        let waited = until(what, PATIENCE, || {
            match look() {
                Ok(value) => found = value,
                Err(error) => last = Some(error),
            }
            Ok(found.is_some())
        });
        match (waited, found) {
            (Ok(_), Some(found)) => Ok(found),
            (Err(error), _) => Err(self.failure(error, last)),
            (Ok(_), None) => Err(anyhow!("{what}")),
        }
    }

    fn failure(&self, error: anyhow::Error, last: Option<anyhow::Error>) -> anyhow::Error {
        let _ = self.picture("failed");
        let text: String =
            self.text().unwrap_or_else(|error| format!("{error:#}")).chars().take(TEXT_CHARS_MAX).collect();
        let last = last.map(|last| format!("\nLast: {last:#}")).unwrap_or_default();
        anyhow!("{error:#}{last}\n--- the page says\n{text}\n--- pictures are in {}", self.pictures.display())
    }

    /// The first element of a role and a name, once there is one.
    pub fn find(&self, role: &str, name: &str) -> Result<Element> {
        self.wait(&format!("a {role} '{name}'"), || Ok(self.all(role, name)?.into_iter().next()))
    }

    /// Clicks it; what covers it for a moment, such as an animation, is waited for.
    pub fn click(&self, role: &str, name: &str) -> Result<()> {
        self.wait(&format!("a click on the {role} '{name}'"), || {
            let Some(element) = self.all(role, name)?.into_iter().next() else { return Ok(None) };
            self.driver.click(&element).map(Some)
        })
    }

    /// Clicks what is inside of something else, such as a button of the dialog that has the same word behind it.
    pub fn click_in(&self, around: &str, role: &str, name: &str) -> Result<()> {
        let inside = "return [...arguments[0]].filter((each) => arguments[1].some((outer) => outer.contains(each)))";
        self.wait(&format!("a click on the {role} '{name}' in the {around}"), || {
            let values = |elements: Vec<Element>| elements.iter().map(Element::value).collect::<Value>();
            let (inner, outer) = (values(self.all(role, name)?), values(self.all(around, "/./")?));
            let found = self.driver.elements(inside, &[inner, outer])?;
            let Some(element) = found.into_iter().next() else { return Ok(None) };
            self.driver.click(&element).map(Some)
        })
    }

    /// Replaces what stands in a field.
    pub fn fill(&self, role: &str, name: &str, text: &str) -> Result<()> {
        self.click(role, name)?;
        self.driver.chord(&[key::CONTROL, "a"])?;
        self.driver.keys(text)
    }

    /// Types where the focus is, key by key.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.driver.type_text(text)
    }

    /// Types a line into the terminal that is seen, and ends it.
    pub fn command(&self, line: &str) -> Result<()> {
        self.wait("the terminal has the focus", || {
            let screen = self.driver.elements(
                "return [...document.querySelectorAll('.xterm-screen')].filter((e) => e.offsetParent)",
                &[],
            )?;
            let Some(screen) = screen.first() else { return Ok(None) };
            self.driver.click(screen)?;
            let focused =
                self.driver.script("return document.activeElement.classList.contains('xterm-helper-textarea')", &[])?;
            Ok((focused == json!(true)).then_some(()))
        })?;
        self.driver.type_text(&format!("{line}{}", key::ENTER))
    }

    /// Keys held together.
    pub fn chord(&self, keys: &[&str]) -> Result<()> {
        self.driver.chord(keys)
    }

    /// All text that is seen.
    pub fn text(&self) -> Result<String> {
        let text = self.driver.script("return document.body.innerText", &[])?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a text is seen.
    pub fn see(&self, text: &str) -> Result<()> {
        self.wait(&format!("the text '{text}'"), || Ok(self.text()?.contains(text).then_some(())))
    }

    /// Waits until a text is not seen any more.
    pub fn gone(&self, text: &str) -> Result<()> {
        self.wait(&format!("no text '{text}'"), || Ok((!self.text()?.contains(text)).then_some(())))
    }

    /// Waits until a script of the page gives something true.
    pub fn until_script(&self, what: &str, body: &str, arguments: &[Value]) -> Result<Value> {
        self.wait(what, || {
            let value = self.driver.script(body, arguments)?;
            Ok(Some(value).filter(|value| !matches!(value, Value::Null | Value::Bool(false))))
        })
    }

    /// Runs a script in the page.
    pub fn script(&self, body: &str, arguments: &[Value]) -> Result<Value> {
        self.driver.script(body, arguments)
    }

    /// Waits until a text is seen in a frame.
    pub fn see_in_frame(&self, frame: &str, text: &str) -> Result<()> {
        let seen = self.wait(&format!("'{text}' in the frame '{frame}'"), || {
            self.driver.enter(None)?;
            let Some(element) = self.all("frame", frame)?.into_iter().next() else { return Ok(None) };
            self.driver.enter(Some(&element))?;
            let seen = self.text();
            self.driver.enter(None)?;
            Ok(seen?.contains(text).then_some(()))
        });
        // The report above may have looked into the frame.
        self.driver.enter(None)?;
        seen
    }

    /// Runs a script in a frame's document.
    pub fn script_in_frame(&self, frame: &str, body: &str) -> Result<Value> {
        let element = self.all("frame", frame)?.into_iter().next().with_context(|| format!("No frame '{frame}'"))?;
        self.driver.enter(Some(&element))?;
        let value = self.driver.script(body, &[]);
        self.driver.enter(None)?;
        value
    }

    /// Waits until a script in a frame's document gives something true.
    pub fn until_in_frame(&self, frame: &str, what: &str, body: &str) -> Result<Value> {
        self.wait(what, || {
            let value = self.script_in_frame(frame, body)?;
            Ok(Some(value).filter(|value| !matches!(value, Value::Null | Value::Bool(false))))
        })
    }

    /// Loads the page again.
    pub fn reload(&self) -> Result<()> {
        self.driver.reload()
    }

    /// Keeps a picture, numbered in the order of the test.
    pub fn picture(&self, name: &str) -> Result<()> {
        let number = self.taken.get() + 1;
        self.taken.set(number);
        fs::write(self.pictures.join(format!("{number:02}-{name}.png")), self.driver.picture()?)?;
        Ok(())
    }

    /// The window's process.
    pub fn pid(&self) -> Result<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.driver.pid()))?;
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).context("The driver has no child")
    }

    /// Asks the program to end, as the session's end does, and waits.
    pub fn quit(self) -> Result<Duration> {
        let pid = self.pid()?;
        let began = Instant::now();
        processes::signal(pid, Signal::TERM)?;
        let ended = until("the window's process has ended", PATIENCE, || {
            Ok(!fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
        });
        ended.map_err(|error| self.failure(error, None))?;
        Ok(began.elapsed())
    }

    /// The host whose window it is.
    pub fn host(&self) -> &TestHost {
        self.host
    }
}

/// What the program sees of the computer: the host's directories, a fresh home, no session bus.
fn surround<'c>(command: &'c mut Command, host: &TestHost, home: &Path) -> &'c mut Command {
    for name in ["WAYLAND_DISPLAY", "COVE_URL", "COVE_TOKEN", "COVE_PORT", "COVE_KVM", "XDG_RUNTIME_DIR", "GTK_THEME"] {
        command.env_remove(name);
    }
    let xdg =
        ["CONFIG", "DATA", "CACHE", "STATE"].map(|kind| (format!("XDG_{kind}_HOME"), home.join(kind.to_lowercase())));
    command
        .envs(xdg)
        .env("HOME", home)
        .env("COVE_DATA_DIR", host.data_dir())
        .env("COVE_RUNTIME_DIR", host.runtime_dir())
        .env("COVE_VMM", &host.programs.vmm)
        .env("COVE_GUEST_DIR", &host.programs.guest_dir)
        .env("COVE_LOG", "info,cove_engine=debug,cove_api=debug")
        .envs([("TAURI_AUTOMATION", "true"), ("TAURI_WEBVIEW_AUTOMATION", "true")])
        .envs([("DBUS_SESSION_BUS_ADDRESS", "disabled:"), ("GDK_BACKEND", "x11"), ("GSETTINGS_BACKEND", "memory")])
        .envs([("NO_AT_BRIDGE", "1"), ("GTK_A11Y", "none"), ("LANG", "C.UTF-8"), ("TZ", "UTC")])
}

/// In `COVE_TEST_WINDOW`, or the newer of cargo's builds.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("COVE_TEST_WINDOW") {
        return Ok(PathBuf::from(path));
    }
    let target = super::host::target_dir()?;
    let built = |profile: &str| {
        let path = target.join(profile).join("cove-desktop");
        Some((fs::metadata(&path).ok()?.modified().ok()?, path))
    };
    let newest = ["release", "debug"].into_iter().filter_map(built).max();
    newest.map(|(_, path)| path).context("There is no cove-desktop: `cargo build -p cove-desktop` builds it")
}

/// A fresh folder for the pictures of a test: `window-shots/<test>` in cargo's target folder.
fn pictures(name: &str) -> Result<PathBuf> {
    let dir = super::host::target_dir()?.join("window-shots").join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
