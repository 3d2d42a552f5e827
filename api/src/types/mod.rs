//! The JSON shapes of the API: what `openapi.json` and the page's types are made from. Data only; routes fill them.

mod batch;
mod changes;
mod code;
mod create;
mod env;
mod event;
mod exec;
mod files;
mod life;
mod local;
mod metrics;
mod preview;
mod process;
mod run;
mod sandbox;
mod snapshot;
mod start;
mod system;
mod template;
mod terminal;

pub use batch::{BatchBody, BatchItemRecord, BatchItems, BatchRecord, CheckedBatch, OperationRecord, failure};
pub use changes::{
    ArtifactPreview, Artifacts, ArtifactsRecord, DirMade, Export, ExportBody, ExportFile, FileChange, MakeDirBody,
    MoveBody, Moved, TreeNode,
};
pub use code::{CodeBody, CodeContexts, CodeRecord, language};
pub use create::CreateBody;
pub use env::{EnvBody, EnvRemoved, EnvVariable};
pub use event::{EventRecord, GapRecord, Ticket};
pub use exec::{ChunkData, ExecBody, ExecData, ExecResult, ExitData, LineData, OutputAs};
pub use files::{
    Borrowed, FileEntry, FileFailure, FileInMany, FileWritten, Listing, PathBody, Removed, WriteBody, WriteMany,
    WriteManyBody, Written,
};
pub use life::{
    BulkBody, BulkFailure, BulkOutcome, EmptyBody, ExtendBody, Many, ResumeBody, Tags, UpdateBody, sandbox_id,
};
pub use local::{
    ActionCapability, AuthorizeBody, Catalogue, ConnectorBinding, Decision, DeviceCapabilities, DeviceExecBody,
    DeviceFile, DeviceWriteBody, Product, ProductSize, RuntimeRecord, SshInfo, SshKeyBody, SshKeyInstalled, is_file,
};
pub use metrics::{MetricsRecord, ResizeBody, ResizeCapabilities, Resized, Resources, ResourcesRecord, UsageRecord};
pub use preview::{
    ExposeBody, ListenerRecord, PreviewBody, PreviewRecord, PreviewTokenBody, PreviewTokenRecord, ShareBody,
    SharePreviewBody, ShareRecord, SharedPreview, UrlInfo,
};
pub use process::{
    COMMAND_SECONDS_MAX, CommandBody, Detached, ProcessBody, ProcessLogs, ProcessRecord, SignalBody, StdinBody,
    StdinWritten, exit_code,
};
pub use run::{RunAnswer, RunBody, RunCommand, RunRecord, RunTimings};
pub use sandbox::{DestroyedRecord, Readiness, SandboxRecord, WaitOver};
pub use snapshot::{
    Allowance, DeleteManyBody, DeletedMany, DeletedSnapshot, DiskUse, FileComparison, ForkBody, NameBody, NameRemoved,
    NamedSnapshot, NamedSnapshots, NamedWithDependents, Resource, SnapshotBody, SnapshotGroup, SnapshotGroups,
    SnapshotPage, SnapshotRecord, SnapshotUpdateBody, SnapshotWithDependents,
};
pub use start::{ProbeBody, StartBody, StartManifest, StartStep};
pub use system::{Diagnosis, Health, HostInfo, Logs, MachineFigures, SystemInfo};
pub use template::{TemplateList, TemplateRecord};
pub use terminal::{Control, TerminalBody, TerminalRecord, session_id, session_number};

use cove_engine::SandboxState;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use utoipa::ToSchema;

use crate::error::ApiError;

/// The envelope of a single resource, and of every list.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Data<T> {
    /// The resource.
    pub data: T,
}

/// Microseconds and `Z`: Python 3.9 and 3.10 read 0, 3 or 6 fraction digits and no others (contract 6.1).
const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// A sandbox's state by its name, old names too.
pub(crate) fn state_word(text: &str) -> Result<SandboxState, ApiError> {
    text.parse().map_err(|_| {
        let known = SandboxState::ALL.map(SandboxState::as_str).join(", ");
        ApiError::invalid("state", format!("state is '{text}'; the states are {known}"))
    })
}

/// `at` as the API writes times.
pub(crate) fn timestamp(at: OffsetDateTime) -> String {
    // The format has only parts that every date has.
    at.to_offset(time::UtcOffset::UTC).format(TIMESTAMP).unwrap_or_default()
}

/// The same for the guest's microseconds since 1970; a hostile guest may claim times that no date has.
pub(crate) fn timestamp_us(micros: i64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()?;
    (1..=9999).contains(&at.year()).then(|| timestamp(at))
}

#[cfg(test)]
pub(crate) mod tests {
    use time::macros::datetime;

    pub use super::sandbox::tests::sandbox;

    use super::*;

    #[test]
    fn times_have_six_fraction_digits_whatever_their_precision() {
        assert_eq!(timestamp(datetime!(2026-01-02 03:04:05 UTC)), "2026-01-02T03:04:05.000000Z");
        assert_eq!(timestamp(datetime!(2026-01-02 03:04:05.123456789 +02:00)), "2026-01-02T01:04:05.123456Z");
        assert_eq!(timestamp_us(-1).as_deref(), Some("1969-12-31T23:59:59.999999Z"));
        assert_eq!(timestamp_us(i64::MAX), None);
        assert_eq!(timestamp_us(i64::MIN), None);
    }
}
