//! Jobs: commands that the agent runs for nobody in particular. They outlive their connection, the server, and a restore of
//! the machine; their last output and their end are kept.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Exec, Exit};

/// Most bytes of a job's output that are kept while it runs, counting some for each piece.
pub const JOB_OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Longest name of a job, in bytes.
pub const JOB_NAME_BYTES_MAX: usize = 200;

/// A command to start and leave alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartJob {
    /// What runs. With `stdin` its standard input stays open for [`super::Request::WriteJob`].
    pub exec: Exec,
    /// For people; at most [`JOB_NAME_BYTES_MAX`].
    pub name: Option<String>,
}

/// What is asked of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobAction {
    /// How is it.
    Describe,
    /// Send this signal number to its process group. A job that ended is left alone.
    Signal(i32),
    /// Send SIGTERM, and SIGKILL to what is still there after so many milliseconds.
    Stop {
        /// From SIGTERM to SIGKILL.
        grace_ms: u32,
    },
    /// Write to its standard input, as far as there is room for all of it; [`super::ErrorKind::Busy`] otherwise.
    Write(ByteBuf),
    /// Close its standard input.
    CloseStdin,
}

/// Read a job's output. Answered by [`super::Reply::Position`] and [`super::Reply::Output`] in turn, then by
/// [`super::Reply::Job`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowJob {
    /// Which job.
    pub pid: i32,
    /// The cursor: how many bytes of output, both streams together, the reader has. What is not kept any more is left out,
    /// which a [`super::Reply::Position`] above the cursor tells.
    pub from: u64,
    /// Go on until the job's end, and not only to the end of what there is.
    pub follow: bool,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its process id in the guest, which names it.
    pub pid: i32,
    /// For people.
    pub name: Option<String>,
    /// What runs, cut off after some hundred characters.
    pub command: String,
    /// When it was started, microseconds since 1970 by the guest's clock.
    pub started_us: u64,
    /// How it ended, once it did.
    pub exit: Option<Exit>,
    /// The cursor of the first byte that is kept.
    pub output_from: u64,
    /// The cursor behind the last byte that it wrote.
    pub output_to: u64,
    /// It can be written to.
    pub stdin_open: bool,
}
