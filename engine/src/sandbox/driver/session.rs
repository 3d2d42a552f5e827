//! The clocks of a session: its timeout, its idle timeout, and what a caller may change about them.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Driver, log_failure};
use crate::error::Error;
use crate::events::EventKind;
use crate::sandbox::{Sandbox, SandboxState, SandboxUpdate, start};

/// After a pause at a timeout failed, as on a full disk, it is tried again so much later.
const PAUSE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Timeout,
    Idle,
}

impl Driver {
    /// When the clocks are to be looked at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let ends = [self.session_end(), self.idle_end()].into_iter().flatten();
        let first = ends.min()?;
        Some(self.not_before.map_or(first, |not_before| first.max(not_before)))
    }

    fn session_end(&self) -> Option<Instant> {
        let remaining = self.record.borrow().timeout_remaining_ms(OffsetDateTime::now_utc())?;
        Instant::now().checked_add(Duration::from_millis(remaining))
    }

    /// When it will have been idle for too long; `None` while something goes on in it.
    fn idle_end(&self) -> Option<Instant> {
        let record = self.record.borrow();
        if record.state != SandboxState::Running || record.always_on || record.idle_timeout_sec == 0 {
            return None;
        }
        self.activity.idle()?.checked_add(Duration::from_secs(record.idle_timeout_sec.into()))
    }

    /// Ends the session if a clock says so: a persistent sandbox is paused, another one destroyed. True when it is gone.
    pub(super) async fn look_at_clocks(&mut self) -> bool {
        if self.not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return false;
        }
        // The clock is read after the ends, which count from it.
        let (timeout, idle) = (self.session_end(), self.idle_end());
        let now = Instant::now();
        let over = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        let over = match (over(timeout), over(idle)) {
            (true, _) => Over::Timeout,
            (false, true) => Over::Idle,
            (false, false) => return false,
        };
        let persistent = self.record.borrow().persistent;
        tracing::info!(?over, persistent, "session ended");
        if over == Over::Idle {
            self.tell(EventKind::Idle);
        }
        if !persistent {
            return self.destroy_logged(None).await;
        }
        self.not_before = None;
        if let Err(error) = self.pause().await {
            tracing::error!(error = &error as &dyn std::error::Error, "the pause at the session's end failed");
            self.not_before = Some(Instant::now() + PAUSE_AGAIN_AFTER);
        }
        false
    }

    /// Changes what a caller may change; with `extend` the session's clock starts anew.
    pub(super) async fn update(&mut self, update: SandboxUpdate, extend: bool) -> Result<Sandbox, Error> {
        let before = self.record.borrow().clone();
        if matches!(before.state, SandboxState::Destroying | SandboxState::Destroyed) {
            return Err(Error::SandboxDestroyed(before.id));
        }
        let mut changed = update.check(before.clone())?;
        if extend {
            changed.extended_at = Some(OffsetDateTime::now_utc());
        }
        if !self.shared.db.update_sandbox(&changed).await? {
            let name = changed.name.unwrap_or_default();
            let holder = self.shared.db.sandbox_by_name(&name).await?.map_or(before.id, |holder| holder.id);
            return Err(Error::NameTaken { name, holder });
        }
        let env_changed = changed.env != before.env;
        self.record.send_replace(changed.clone());
        self.shared.events.tell(&changed.id, EventKind::Updated);
        if env_changed && let Some((_, agent)) = self.machine() {
            let told = start::configure(&agent, &changed, false).await;
            log_failure("the guest was not told its new environment", told);
        }
        Ok(changed)
    }
}
