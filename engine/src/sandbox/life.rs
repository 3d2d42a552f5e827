//! What is asked of a sandbox as a whole: pause, resume, stop, extend, change.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::driver::{Handle, Reply, Request};
use super::{Activity, Sandbox, SandboxId, SandboxState, SandboxUpdate, spec};
use crate::Engine;
use crate::error::Error;

impl Engine {
    /// Saves memory and disk and ends the machine; a sandbox that is paused stays so. Returns when it is saved.
    ///
    /// # Errors
    /// [`Error::WrongState`]; [`Error::NoSpace`] when the host's disk is full: the sandbox runs on; [`Error::Machine`] for
    /// another failure of the capture: it runs on then too, if its machine does.
    pub async fn pause(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        self.ask(id, Request::Pause).await
    }

    /// Lets a paused sandbox go on where it was; one that runs stays so. `env` is laid over its environment, for processes
    /// started from then on. Returns when it is command-ready; its record's `boot_path` says whether it went on from its
    /// memory (`Snapshot`) or had to be booted from its disk (`Cold`).
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::WrongState`], [`Error::HostNotReady`], [`Error::Admission`], [`Error::Machine`]: it
    /// stays paused then.
    pub async fn resume(&self, id: &SandboxId, env: BTreeMap<String, String>) -> Result<Sandbox, Error> {
        spec::check_env("env", env.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        self.ask(id, |reply| Request::Resume { env, reply }).await
    }

    /// Ends a session: a persistent sandbox is paused, another one destroyed.
    ///
    /// # Errors
    /// As [`Engine::pause`] and [`Engine::destroy`].
    pub async fn stop(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        let record = self.get(id.as_str()).await?;
        if record.persistent || record.state == SandboxState::Destroyed {
            return self.pause(id).await;
        }
        self.destroy(id).await
    }

    /// Starts the session's clock anew, with `timeout_sec` from now on if it is given.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::SandboxNotFound`], [`Error::SandboxDestroyed`].
    pub async fn extend(&self, id: &SandboxId, timeout_sec: Option<u32>) -> Result<Sandbox, Error> {
        let update = SandboxUpdate { timeout_sec, ..SandboxUpdate::default() };
        self.ask(id, |reply| Request::Update { update: Box::new(update), extend: true, reply }).await
    }

    /// Changes what a caller may change.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NameTaken`], [`Error::SandboxNotFound`], [`Error::SandboxDestroyed`].
    pub async fn update(&self, id: &SandboxId, update: SandboxUpdate) -> Result<Sandbox, Error> {
        self.ask(id, |reply| Request::Update { update: Box::new(update), extend: false, reply }).await
    }

    /// The idle clock of a sandbox, for what the engine does not see itself: preview traffic and terminal input. Commands
    /// and file operations keep it by themselves.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::SandboxDestroyed`].
    pub async fn activity(&self, id: &SandboxId) -> Result<Activity, Error> {
        Ok(self.handle(id).await?.activity)
    }

    /// Asks the driver of a sandbox.
    pub(crate) async fn ask<T>(&self, id: &SandboxId, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let handle = self.handle(id).await?;
        match ask(&handle, request).await {
            Some(answer) => answer,
            // The driver is gone: so is the sandbox, or the server stops.
            None => Err(self.handle(id).await.err().unwrap_or(Error::ShuttingDown)),
        }
    }
}

/// A driver's answer; `None` when there is no driver any more.
pub(crate) async fn ask<T>(handle: &Handle, request: impl FnOnce(Reply<T>) -> Request) -> Option<Result<T, Error>> {
    let (reply, answer) = oneshot::channel();
    handle.requests.send(request(reply)).await.ok()?;
    answer.await.ok()
}
