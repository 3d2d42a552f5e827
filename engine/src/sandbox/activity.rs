//! What keeps a sandbox from being idle: commands, file operations, preview traffic, terminal input.
//!
//! Whoever does one of these holds an [`Active`] while it lasts, or touches the clock. The driver asks [`Activity::idle`]
//! when the idle timeout may be over, and is woken when the last [`Active`] ends.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// A sandbox's idle clock; clones share it.
#[derive(Clone, Debug)]
pub struct Activity {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Mutex<Clock>,
    ended: Notify,
    begun: Notify,
}

#[derive(Debug)]
struct Clock {
    running: usize,
    last: Instant,
}

/// Something goes on in the sandbox as long as this lives.
#[derive(Debug)]
pub struct Active {
    activity: Activity,
}

impl Activity {
    pub(crate) fn new() -> Self {
        let clock = Clock { running: 0, last: Instant::now() };
        Self { shared: Arc::new(Shared { clock: Mutex::new(clock), ended: Notify::new(), begun: Notify::new() }) }
    }

    /// Something happened just now.
    pub fn touch(&self) {
        self.clock().last = Instant::now();
        self.shared.begun.notify_one();
    }

    /// Something begins that lasts.
    pub fn begin(&self) -> Active {
        self.clock().running += 1;
        self.shared.begun.notify_one();
        Active { activity: self.clone() }
    }

    /// Since when nothing happens; `None` while something does.
    pub(crate) fn idle(&self) -> Option<Instant> {
        let clock = self.clock();
        (clock.running == 0).then_some(clock.last)
    }

    /// Returns when something that lasted ended, also when it ended just before.
    pub(crate) async fn ended(&self) {
        self.shared.ended.notified().await;
    }

    /// Returns when something began or happened, also when it did just before. For one waiter.
    pub(crate) async fn begun(&self) {
        self.shared.begun.notified().await;
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        self.shared.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut clock = self.activity.clock();
        clock.running -= 1;
        clock.last = Instant::now();
        if clock.running == 0 {
            drop(clock);
            self.activity.shared.ended.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_clock_stands_while_something_goes_on() {
        let activity = Activity::new();
        let begun = activity.idle().unwrap();
        activity.touch();
        assert!(activity.idle() >= Some(begun));
        let (first, second) = (activity.begin(), activity.begin());
        drop(first);
        assert_eq!(activity.idle(), None);
        let before = Instant::now();
        drop(second);
        // Told, though nobody waited at that moment.
        tokio::time::timeout(Duration::from_secs(10), activity.ended()).await.unwrap();
        assert!(activity.idle() >= Some(before));
    }
}
