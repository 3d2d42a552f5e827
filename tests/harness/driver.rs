//! The W3C WebDriver protocol, as far as the tests of the window need it, spoken to WebKitWebDriver.
//!
//! One session is one start of the program: it ends with the session, and with the driver's process.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use super::until;

/// The driver answers once the program's window is there.
const SESSION_TIMEOUT: Duration = Duration::from_secs(120);

/// What an element is called in answers (WebDriver, 11.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// An element of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element(String);

impl Element {
    fn of(value: &Value) -> Option<Self> {
        value[ELEMENT].as_str().map(|id| Self(id.to_owned()))
    }

    /// As an argument of a script.
    pub fn value(&self) -> Value {
        json!({ ELEMENT: self.0 })
    }
}

/// A driver's process, and its one session. Dropping it ends both.
pub struct Driver {
    process: Child,
    http: Client,
    url: String,
}

#[allow(dead_code, reason = "the words of a person in front of the window; no test needs all of them")]
impl Driver {
    /// Starts the driver with an environment that the program inherits, and the program with it.
    pub fn start(mut command: Command, program: &std::path::Path) -> Result<Self> {
        // The driver takes no port 0; between this and its start nobody else asks for one.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        command.args([&format!("--port={port}"), "--host=127.0.0.1"]).stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.spawn().context("Cannot start WebKitWebDriver (Debian: webkit2gtk-driver)")?;
        let http = Client::builder().no_proxy().timeout(SESSION_TIMEOUT).build()?;
        let mut driver = Self { process, http, url: format!("http://127.0.0.1:{port}") };
        until("the driver answers", SESSION_TIMEOUT, || {
            Ok(driver.http.get(format!("{}/status", driver.url)).send().is_ok())
        })?;
        let options = json!({ "binary": program, "args": [] });
        let wanted = json!({ "alwaysMatch": { "browserName": "wry", "webkitgtk:browserOptions": options } });
        let session = driver.call(Method::POST, "/session", &json!({ "capabilities": wanted }))?;
        let id = session["sessionId"].as_str().with_context(|| format!("No session: {session}"))?;
        driver.url = format!("{}/session/{id}", driver.url);
        Ok(driver)
    }

    fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url));
        if method == Method::POST {
            request = request.json(body);
        }
        let answer: Value = request.send()?.json()?;
        let value = answer.get("value").with_context(|| format!("No value: {answer}"))?;
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            bail!("{method} {path}: {error}: {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value.clone())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, body)
    }

    /// Runs the body of a function in the page.
    pub fn script(&self, body: &str, arguments: &[Value]) -> Result<Value> {
        self.post("/execute/sync", &json!({ "script": body, "args": arguments }))
    }

    /// The elements that a script gives.
    pub fn elements(&self, body: &str, arguments: &[Value]) -> Result<Vec<Element>> {
        let found = self.script(body, arguments)?;
        Ok(found.as_array().into_iter().flatten().filter_map(Element::of).collect())
    }

    /// A click of the mouse where the element is.
    pub fn click(&self, element: &Element) -> Result<()> {
        self.post(&format!("/element/{}/click", element.0), &json!({})).map(drop)
    }

    /// Keys pressed in the element that has the focus.
    pub fn keys(&self, text: &str) -> Result<()> {
        let active = self.call(Method::GET, "/element/active", &Value::Null)?;
        let active = Element::of(&active).with_context(|| format!("Nothing has the focus: {active}"))?;
        self.post(&format!("/element/{}/value", active.0), &json!({ "text": text })).map(drop)
    }

    /// Characters typed one after the other, wherever the focus is.
    pub fn type_text(&self, text: &str) -> Result<()> {
        let press = |key: char| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }));
        let steps: Vec<Value> = text.chars().flat_map(press).collect();
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": steps }] }))?;
        Ok(())
    }

    /// Keys held together, such as a modifier and a letter.
    pub fn chord(&self, keys: &[&str]) -> Result<()> {
        let down = keys.iter().map(|key| json!({ "type": "keyDown", "value": key }));
        let up = keys.iter().rev().map(|key| json!({ "type": "keyUp", "value": key }));
        let steps: Vec<Value> = down.chain(up).collect();
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": steps }] }))?;
        Ok(())
    }

    /// What follows is about the document in a frame; `None` for the page itself.
    pub fn enter(&self, frame: Option<&Element>) -> Result<()> {
        self.post("/frame", &json!({ "id": frame.map(Element::value) })).map(drop)
    }

    /// Loads the page again.
    pub fn reload(&self) -> Result<()> {
        self.post("/refresh", &json!({})).map(drop)
    }

    /// A picture of the page, as PNG.
    pub fn picture(&self) -> Result<Vec<u8>> {
        use base64::Engine;
        let encoded = self.call(Method::GET, "/screenshot", &Value::Null)?;
        let encoded = encoded.as_str().context("The picture is no text")?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded)?;
        ensure!(bytes.starts_with(b"\x89PNG"), "The picture is no PNG");
        Ok(bytes)
    }

    /// The driver's process; the program is its child.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
