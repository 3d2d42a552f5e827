//! A sandbox, in the words of tests.

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Api};

/// A sandbox of some host.
pub struct TestSandbox {
    pub id: String,
    api: Api,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i64,
}

impl TestSandbox {
    /// Makes one and waits until it is command-ready.
    pub fn create(api: Api, wanted: &Value) -> Result<Self> {
        let record = api.post("/sandboxes", wanted)?.data()?;
        ensure!(record["state"] == "running", "It is not running: {record}");
        let id = record["id"].as_str().context("The record has no id")?.to_owned();
        Ok(Self { id, api })
    }

    /// One that is there.
    pub fn existing(api: Api, id: &str) -> Self {
        Self { id: id.to_owned(), api }
    }

    /// The path of one of its routes.
    pub fn path(&self, route: &str) -> String {
        format!("/sandboxes/{}{route}", self.id)
    }

    pub fn record(&self) -> Result<Value> {
        self.api.get(&self.path(""))?.data()
    }

    /// Runs a shell line.
    pub fn run(&self, line: &str) -> Result<Ran> {
        self.exec(&json!({ "command": line }))
    }

    /// Runs what an exec body says.
    pub fn exec(&self, body: &Value) -> Result<Ran> {
        let data = self.api.post(&self.path("/exec"), body)?.data()?;
        let text = |name: &str| data[name].as_str().map(str::to_owned).with_context(|| format!("No {name}: {data}"));
        let exit_code = data["exit_code"].as_i64().with_context(|| format!("No exit_code: {data}"))?;
        Ok(Ran { stdout: text("stdout")?, stderr: text("stderr")?, exit_code })
    }

    pub fn write_file(&self, path: &str, content: impl Into<Vec<u8>>) -> Result<()> {
        let url = self.path(&format!("/files{path}"));
        self.api.send(self.api.request(Method::PUT, &url).body(content.into()))?.data().map(drop)
    }

    pub fn read_file(&self, path: &str) -> Result<Answer> {
        self.api.send(self.api.request(Method::GET, &self.path("/fs/download")).query(&[("path", path)]))
    }

    /// Posts to one of its routes, and gives the `data`.
    pub fn post(&self, route: &str, body: &Value) -> Result<Value> {
        self.api.post(&self.path(route), body)?.data()
    }

    /// Forks it, as the body says; the fork is command-ready.
    pub fn fork(&self, body: &Value) -> Result<Self> {
        let record = self.post("/fork", body)?;
        ensure!(record["state"] == "running", "The fork is not running: {record}");
        Ok(Self { id: record["id"].as_str().context("The record has no id")?.to_owned(), api: self.api.clone() })
    }

    pub fn destroy(&self) -> Result<()> {
        self.api.delete(&self.path(""))?.data().map(drop)
    }
}
