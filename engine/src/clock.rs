//! The host's wall clock: when it jumps, every running guest's clock is set anew.
//!
//! It jumps when the host wakes from sleep, during which guests stood still, and when somebody sets it. A timer on the
//! wall clock that is cancelled by such a jump (`TFD_TIMER_CANCEL_ON_SET`, timerfd_create(2)) tells of both, so neither
//! logind's signal nor a look at the clock from time to time is needed. Started once by the engine.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::join_all;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use time::OffsetDateTime;
use tokio::io::unix::AsyncFd;

use crate::agent::Agent;
use crate::machine::readable;
use crate::sandbox::{SandboxId, SandboxState};
use crate::shared::Shared;

/// When the timer ends by itself: far away, since only its being cancelled matters. Seconds since 1970, in the year 2200.
const NEVER: i64 = 7_258_118_400;

/// The wall clock in microseconds since 1970, as the agent takes it.
pub(crate) fn now_us() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(0)
}

/// Sets the guests' clocks after each jump of the host's, until the engine stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let jumps = match Jumps::new() {
        Ok(jumps) => jumps,
        Err(error) => {
            tracing::warn!(%error, "the host's clock cannot be watched: guests' clocks are late after the host's sleep");
            return;
        }
    };
    loop {
        tokio::select! {
            jumped = jumps.next() => if let Err(error) = jumped {
                tracing::error!(%error, "the host's clock is no longer watched");
                return;
            },
            () = shared.stopping.cancelled() => return,
        }
        set_clocks(&shared).await;
    }
}

/// Sets the clock of every running guest.
pub(crate) async fn set_clocks(shared: &Shared) {
    let running: Vec<(SandboxId, Agent)> = shared.running_agents();
    tracing::info!(sandboxes = running.len(), "the host's clock jumped; guests' clocks are set");
    let set = running.into_iter().map(|(id, agent)| async move {
        if let Err(error) = agent.set_clock().await {
            tracing::warn!(sandbox = %id, error = &error as &dyn std::error::Error, "a guest's clock was not set");
        }
    });
    join_all(set).await;
}

impl Shared {
    fn running_agents(&self) -> Vec<(SandboxId, Agent)> {
        let agent = |handle: crate::sandbox::driver::Handle| {
            let running = handle.record.borrow().state == SandboxState::Running;
            let id = handle.record.borrow().id.clone();
            handle.live.borrow().agent.clone().filter(|_| running).map(|agent| (id, agent))
        };
        self.all().into_iter().filter_map(agent).collect()
    }
}

/// The jumps of the host's wall clock.
struct Jumps {
    timer: AsyncFd<OwnedFd>,
}

impl Jumps {
    fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let never = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: NEVER, tv_nsec: 0 } };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
        Ok(Self { timer: readable(timer)? })
    }

    /// Returns at the next jump. One that came while nobody waited counts.
    async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            match rustix::io::read(self.timer.get_ref(), &mut [0; 8]) {
                Err(Errno::CANCELED) => return Ok(()),
                Err(Errno::WOULDBLOCK) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(io::Error::other("the timer of the year 2200 ended")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::SandboxSpec;
    use crate::sandbox::driver::life_tests::Host;

    #[tokio::test]
    async fn a_clock_that_does_not_jump_is_waited_for() {
        let jumps = Jumps::new().unwrap();
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), jumps.next()).await;
        assert!(waited.is_err(), "{waited:?}");
    }

    #[tokio::test]
    async fn every_running_guest_gets_the_new_time_and_a_paused_one_stays_paused() {
        let host = Host::start().await;
        let (running, paused) =
            (host.create(SandboxSpec::default()).await.id, host.create(SandboxSpec::default()).await.id);
        host.engine.pause(&paused).await.unwrap();
        set_clocks(&host.engine.shared).await;
        assert!(host.run(&running, "memory").await.ends_with(" clock"));
        assert_eq!(host.engine.get(paused.as_str()).await.unwrap().state, SandboxState::Paused);
        assert!(!host.run(&paused, "memory").await.contains(" clock"));
        host.end().await;
    }
}
