//! How long snapshots are kept (contract 8.1: `metadata.snapshot_expiration_sec`, `metadata.keep_last_snapshots`). Pure.

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{Snapshot, SnapshotId};

/// A sandbox's rule, read from its metadata, where the SDK puts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Seconds after which a snapshot goes; `None` is never.
    pub(crate) expiration_sec: Option<u64>,
    /// How many of the newest stay; `None` is all.
    pub(crate) keep_last: Option<usize>,
}

impl Retention {
    /// The rule in a sandbox's metadata. `keep_last_snapshots` is a number or an object with `count` and, if it is to
    /// differ, `expiration_sec`. Zero switches a rule off, as everywhere in the contract.
    pub(crate) fn of(metadata: &Map<String, Value>) -> Self {
        let positive = |value: Option<&Value>| value.and_then(Value::as_u64).filter(|number| *number > 0);
        let keep = metadata.get("keep_last_snapshots");
        let field = |name: &str| keep.and_then(Value::as_object).and_then(|keep| keep.get(name));
        Self {
            expiration_sec: positive(metadata.get("snapshot_expiration_sec"))
                .or_else(|| positive(field("expiration_sec")))
                .or_else(|| positive(field("expiration"))),
            keep_last: positive(keep)
                .or_else(|| positive(field("count")))
                .map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        }
    }

    /// When a snapshot taken at `now` goes. `asked` is what its caller said: seconds, 0 for never.
    pub(crate) fn expires_at(&self, asked: Option<u64>, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let seconds = asked.or(self.expiration_sec).filter(|seconds| *seconds > 0)?;
        now.checked_add(time::Duration::seconds(i64::try_from(seconds).ok()?))
    }

    /// Which of a sandbox's snapshots are too many, oldest first. Named ones stay and are not counted.
    pub(crate) fn evicted(&self, oldest_first: &[Snapshot]) -> Vec<SnapshotId> {
        let unnamed: Vec<&Snapshot> = oldest_first.iter().filter(|snapshot| snapshot.name.is_none()).collect();
        let keep = self.keep_last.unwrap_or(usize::MAX);
        unnamed[..unnamed.len().saturating_sub(keep)].iter().map(|snapshot| snapshot.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sandbox::{SandboxId, Size};
    use crate::storage::Share;

    fn of(metadata: Value) -> Retention {
        Retention::of(metadata.as_object().unwrap())
    }

    fn snapshot(name: Option<&str>) -> Snapshot {
        Snapshot {
            id: SnapshotId::generate(),
            sandbox_id: SandboxId::generate(),
            sandbox_name: None,
            parent_id: None,
            name: name.map(Into::into),
            comment: None,
            metadata: Map::new(),
            template_id: "t".into(),
            size: None,
            shape: Size::Xs.shape(),
            env: Default::default(),
            has_memory: true,
            share: Share::default(),
            generation: 0,
            paused_us: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
            updated_at: OffsetDateTime::UNIX_EPOCH,
            expires_at: None,
        }
    }

    #[test]
    fn the_rule_is_read_in_each_of_its_forms() {
        assert_eq!(of(json!({})), Retention::default());
        assert_eq!(of(json!({"keep_last_snapshots": 0, "snapshot_expiration_sec": 0})), Retention::default());
        assert_eq!(of(json!({"keep_last_snapshots": 3})).keep_last, Some(3));
        let both = of(json!({"keep_last_snapshots": {"count": 2, "expiration_sec": 60}}));
        assert_eq!(both, Retention { expiration_sec: Some(60), keep_last: Some(2) });
        assert_eq!(of(json!({"snapshot_expiration_sec": 7})).expiration_sec, Some(7));
    }

    #[test]
    fn a_snapshot_expires_as_its_caller_says_or_as_its_sandbox_does() {
        let (rule, now) = (of(json!({"snapshot_expiration_sec": 7})), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(rule.expires_at(None, now), Some(now + time::Duration::seconds(7)));
        assert_eq!(rule.expires_at(Some(9), now), Some(now + time::Duration::seconds(9)));
        assert_eq!(rule.expires_at(Some(0), now), None);
        assert_eq!(Retention::default().expires_at(Some(u64::MAX), now), None);
    }

    #[test]
    fn the_oldest_without_a_name_go_first() {
        let all = [snapshot(None), snapshot(Some("kept")), snapshot(None), snapshot(None)];
        let evicted = |keep_last| Retention { expiration_sec: None, keep_last }.evicted(&all);
        assert_eq!(evicted(Some(1)), [all[0].id.clone(), all[2].id.clone()]);
        assert_eq!(evicted(Some(3)), []);
        assert_eq!(evicted(None), []);
    }
}
