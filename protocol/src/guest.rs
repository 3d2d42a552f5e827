//! Engine to guest agent: what may be asked inside a machine.
//!
//! The agent listens on vsock port [`crate::vmm::AGENT_PORT`]. A connection carries **one operation at a time**: a
//! [`Request`], then [`Input`] frames to the agent and [`Reply`] frames from it until a *final* reply
//! ([`Reply::is_final`]). Then the connection is idle and may carry the next request, which saves the guest the price
//! of a new stream. Closing a connection cancels its operation (a running command is killed with its process group).
//!
//! ```text
//!  Exec       ► Input::{Data, End, Signal}*   ◄ Started, Output*, Exited!
//!  ReadFile   ►                               ◄ FileInfo, Data*, Done!
//!  WriteFile  ► Input::Data*, Input::End      ◄ Done!          (nothing is visible at the path before `Done`)
//!  List       ►                               ◄ Entries*, Done!
//!  Watch      ► Input::End                    ◄ Watching, Changes*, Done!
//!  Archive    ►                               ◄ Data*, Done!
//!  Connect    ► Input::{Data, End}*           ◄ Connected, Data*, End, Done!      (`End` and `Input::End` are half-closes)
//!  FollowJob  ►                               ◄ (Position, Output*)*, Job!
//!  AttachTerminal ► Input::{Data, Resize}*    ◄ Terminal, Output*, Exited!     (closing it only detaches)
//!  the others ►                               ◄ one final reply
//! ```
//!
//! When the agent is ready it also makes one connection to the host's port [`crate::vmm::READY_PORT`], writes one
//! [`Reply::Hello`] frame and closes it.

mod job;

mod terminal;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

pub use self::job::{FollowJob, JOB_NAME_BYTES_MAX, JOB_OUTPUT_BYTES_MAX, JobAction, JobInfo, StartJob};
pub use self::terminal::{AttachTerminal, COLUMNS_MAX, OpenTerminal, ROWS_MAX, TerminalInfo, WindowSize};

/// Most bytes of one [`Input::Data`], [`Reply::Output`] or [`Reply::Data`].
pub const CHUNK_BYTES_MAX: usize = 64 << 10;

/// Most entries of one [`Reply::Entries`] frame.
pub const ENTRIES_PER_FRAME_MAX: usize = 256;

/// Most changes of one [`Reply::Changes`].
pub const CHANGES_PER_FRAME_MAX: usize = 256;

/// Most listeners of one [`Reply::Listeners`].
pub const LISTENERS_MAX: usize = 256;

/// Longest [`Listener::command`].
pub const LISTENER_COMMAND_CHARS_MAX: usize = 200;

/// Where commands run when the request names no directory.
pub const DEFAULT_CWD: &str = "/workspace";

/// All that may be asked of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you. Answered by [`Reply::Hello`].
    Hello,
    /// Who the machine is from now on: clock, entropy, identity, and what every later process gets in its environment. Sent
    /// after each boot and each restore, before the sandbox is called ready; replaces what an earlier one said.
    Configure(Configure),
    /// Do now what would otherwise be done when it is first asked for: bring all memory in, warm the page cache with the
    /// usual tools, start the shells that wait. Asked before a template's snapshot is taken. Answered by [`Reply::Done`].
    Prepare,
    /// Write all dirty pages to the disks. Asked before a snapshot, so that its disks alone can be booted without loss.
    /// Answered by [`Reply::Done`].
    Sync,
    /// Run a command.
    Exec(Box<Exec>),
    /// Read a regular file from its start.
    ReadFile {
        /// Absolute path.
        path: String,
    },
    /// Write a regular file: to a temporary name in the same directory first, then renamed over `path`.
    WriteFile {
        /// Absolute path. Missing parents are made, mode 0755.
        path: String,
        /// Permission bits of a new file; an existing file keeps its own.
        mode: u32,
    },
    /// List a directory, depth first, names in byte order.
    List {
        /// Absolute path.
        path: String,
        /// Levels below `path`: 1 is its entries alone.
        depth: u32,
    },
    /// Describe one path, without following a last symbolic link. Answered by [`Reply::FileInfo`] as the final reply.
    Stat {
        /// Absolute path.
        path: String,
    },
    /// Make a directory and its missing parents; an existing directory is fine.
    MakeDir {
        /// Absolute path.
        path: String,
    },
    /// Remove a file or, if `recursive`, a directory with all in it.
    Remove {
        /// Absolute path.
        path: String,
        /// Also what is inside; without it a directory must be empty.
        recursive: bool,
    },
    /// Rename, across file systems too.
    Move {
        /// Absolute path of what there is.
        from: String,
        /// Absolute path of what there will be; missing parents are made.
        to: String,
    },
    /// Sync and power the machine off. Answered by [`Reply::Done`] once the file systems are clean, just before power-off.
    PowerOff,
    /// Connect to a TCP port of the guest's own loopback (127.0.0.1, then ::1) and relay bytes both ways. Each side may end
    /// its direction alone: the peer with [`Input::End`], the program in the guest by what becomes [`Reply::End`]. `Done`
    /// follows when both have ended; [`Reply::Error`] when nothing listens, or when the program reset the stream.
    Connect {
        /// The port, not 0.
        port: u16,
    },
    /// Who listens on TCP ports in the guest. Answered by [`Reply::Listeners`].
    Listeners,
    /// Set the machine's wall clock: the host's jumped. Answered by [`Reply::Done`].
    SetClock {
        /// The host's wall clock, microseconds since 1970.
        clock_us: u64,
    },
    /// Tell what changes in a directory until the peer sends [`Input::End`] or closes. `Done` also when the directory itself is
    /// gone.
    Watch {
        /// Absolute path of a directory.
        path: String,
        /// Also what is below its directories, new ones too. `/proc`, `/sys` and `/dev` are left out.
        recursive: bool,
    },
    /// Pack files, links and directories with all in them into one tar archive (POSIX ustar, with the extensions of GNU for
    /// long names). Devices, sockets and pipes are left out.
    Archive {
        /// Absolute paths. In the archive each is named by its last part, and all of its names begin with it.
        paths: Vec<String>,
    },
    /// Start a job. Answered by [`Reply::Job`].
    StartJob(Box<StartJob>),
    /// All jobs that run and the last ones that ended. Answered by [`Reply::Jobs`].
    ListJobs,
    /// Do something with one job. Answered by [`Reply::Job`].
    Job {
        /// Its process id.
        pid: i32,
        /// What to do.
        action: JobAction,
    },
    /// Read a job's output.
    FollowJob(FollowJob),
    /// Open a terminal session.
    OpenTerminal(Box<OpenTerminal>),
    /// All sessions, the oldest first. Answered by [`Reply::Terminals`].
    ListTerminals,
    /// Hang up a session, and kill its shell if it is still there after five seconds. Answered by [`Reply::Done`].
    CloseTerminal {
        /// Which session.
        session: u64,
    },
    /// Look at a session.
    AttachTerminal(AttachTerminal),
}

impl Request {
    /// The name for log lines.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Hello => "hello",
            Request::Configure(_) => "configure",
            Request::Prepare => "prepare",
            Request::Sync => "sync",
            Request::Exec(_) => "exec",
            Request::ReadFile { .. } => "read_file",
            Request::WriteFile { .. } => "write_file",
            Request::List { .. } => "list",
            Request::Stat { .. } => "stat",
            Request::MakeDir { .. } => "make_dir",
            Request::Remove { .. } => "remove",
            Request::Move { .. } => "move",
            Request::PowerOff => "power_off",
            Request::Connect { .. } => "connect",
            Request::Listeners => "listeners",
            Request::SetClock { .. } => "set_clock",
            Request::Watch { .. } => "watch",
            Request::Archive { .. } => "archive",
            Request::StartJob(_) => "start_job",
            Request::ListJobs => "list_jobs",
            Request::Job { .. } => "job",
            Request::FollowJob(_) => "follow_job",
            Request::OpenTerminal(_) => "open_terminal",
            Request::ListTerminals => "list_terminals",
            Request::CloseTerminal { .. } => "close_terminal",
            Request::AttachTerminal(_) => "attach_terminal",
        }
    }
}

/// See [`Request::Configure`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// The machine's host name.
    pub hostname: String,
    /// Environment of every process started from now on, over the agent's own defaults (PATH, HOME, USER ...).
    pub env: Vec<(String, String)>,
    /// The host's wall clock, microseconds since 1970; the guest's clock is set to it, before anything else.
    pub clock_us: u64,
    /// Fresh random bytes for the kernel's pool, at least 32 after a restore: two machines of one snapshot must not
    /// produce equal numbers.
    pub entropy: ByteBuf,
    /// The machine's id, 32 lower-case hexadecimal digits (machine-id(5)); empty leaves it as it is.
    pub machine_id: String,
    /// Counts the restores that led to this machine; kept in `/run/cove/generation` for programs that care.
    pub generation: u64,
}

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What to run.
    pub command: Command,
    /// Working directory; [`DEFAULT_CWD`] when absent.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub env: Vec<(String, String)>,
    /// Login name or number; root when absent.
    pub user: Option<String>,
    /// Standard input stays open for [`Input::Data`]; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Kill the process group after this many milliseconds.
    pub timeout_ms: Option<u64>,
}

/// What an [`Exec`] runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A program, looked up in PATH, and its arguments; never empty.
    Argv(Vec<String>),
    /// A line for `bash -c`.
    Shell(String),
}

impl Command {
    /// As people read it, cut off after so many characters.
    pub fn text(&self, chars_max: usize) -> String {
        let whole = match self {
            Command::Shell(line) => line.clone(),
            Command::Argv(words) => words.join(" "),
        };
        whole.chars().take(chars_max).collect()
    }
}

/// What follows a [`Request`] on its connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Bytes for standard input or the file.
    Data(ByteBuf),
    /// No more data: standard input closes, the file is complete.
    End,
    /// Send this signal number to the command's process group.
    Signal(i32),
    /// The terminal has this size now.
    Resize(WindowSize),
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Who answers.
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u32,
        /// Microseconds from the kernel's start to the agent's readiness, by the guest's own clock.
        boot_us: u64,
        /// The guest kernel's release.
        kernel: String,
    },
    /// The command runs.
    Started {
        /// Its process id in the guest.
        pid: i32,
    },
    /// Bytes the command wrote. Order is kept within a stream.
    Output {
        /// Which stream.
        stream: Stream,
        /// At most [`CHUNK_BYTES_MAX`].
        data: ByteBuf,
    },
    /// The command ended, and all it wrote before its end was sent.
    Exited(Exit),
    /// Bytes of a file.
    Data(ByteBuf),
    /// Entries of a listing.
    Entries(Vec<Entry>),
    /// One file, directory or link.
    FileInfo(Entry),
    /// It is done.
    Done,
    /// It failed; nothing half-done is visible.
    Error {
        /// What kind of failure.
        kind: ErrorKind,
        /// A sentence with the values.
        message: String,
    },
    /// The stream of a [`Request::Connect`] stands.
    Connected,
    /// The program at the other end of a [`Request::Connect`] sends no more.
    End,
    /// The listening TCP sockets, by port; at most [`LISTENERS_MAX`].
    Listeners(Vec<Listener>),
    /// What happens from now on in the directory of a [`Request::Watch`] will be told.
    Watching {
        /// How many directories are looked at.
        directories: u64,
    },
    /// What happened, in this order; at most [`CHANGES_PER_FRAME_MAX`].
    Changes(Vec<Change>),
    /// One job.
    Job(JobInfo),
    /// Several.
    Jobs(Vec<JobInfo>),
    /// The cursor of the output that comes next: the first reply to [`Request::FollowJob`], and again wherever output was
    /// overwritten before it could be sent.
    Position {
        /// As [`FollowJob::from`].
        at: u64,
    },
    /// One terminal session.
    Terminal(TerminalInfo),
    /// Several.
    Terminals(Vec<TerminalInfo>),
}

impl Reply {
    /// True when this reply ends the operation that `request` began, so that the connection is idle again.
    pub fn is_final(&self, request: &Request) -> bool {
        match self {
            Reply::Hello { .. } | Reply::Exited(_) | Reply::Done | Reply::Error { .. } | Reply::Listeners(_) => true,
            Reply::FileInfo(_) => matches!(request, Request::Stat { .. }),
            Reply::Job(_) | Reply::Jobs(_) | Reply::Terminals(_) => true,
            Reply::Terminal(_) => !matches!(request, Request::AttachTerminal(_)),
            Reply::Started { .. }
            | Reply::Output { .. }
            | Reply::Data(_)
            | Reply::Entries(_)
            | Reply::Connected
            | Reply::End
            | Reply::Watching { .. }
            | Reply::Changes(_)
            | Reply::Position { .. } => false,
        }
    }
}

/// An output stream of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, or what ended it.
    pub status: ExitStatus,
    /// Microseconds from start to end, by the guest's clock.
    pub duration_us: u64,
}

/// What ended a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(i32),
    /// Its time ran out and the agent killed its process group.
    TimedOut,
}

/// A listening TCP socket in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its port.
    pub port: u16,
    /// Where it listens: a loopback address, or all (`0.0.0.0`, `::`).
    pub address: IpAddr,
    /// A process that has it, when one was found.
    pub pid: Option<i32>,
    /// That process's command line, words joined by spaces, at most [`LISTENER_COMMAND_CHARS_MAX`] characters.
    pub command: Option<String>,
}

/// Something that happened below a watched directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What.
    pub kind: ChangeKind,
    /// Absolute path. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// The path before a [`ChangeKind::Renamed`].
    pub old_path: Option<String>,
    /// It is a directory.
    pub is_dir: bool,
    /// How many: of the lost changes for [`ChangeKind::Overflow`], `None` when the kernel lost them and does not say; of
    /// directories for [`ChangeKind::Unwatched`].
    pub count: Option<u64>,
}

/// What a [`Change`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It is new here.
    Created,
    /// Its content or its permissions changed.
    Modified,
    /// It is not here any more.
    Deleted,
    /// It has another path.
    Renamed,
    /// Changes were lost here, because they came faster than they were taken. `path` is the watched directory.
    Overflow,
    /// Directories, of which `path` is one, are not looked at: there are too many.
    Unwatched,
}

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Absolute path. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last change of the content, microseconds since 1970.
    pub modified_us: i64,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// No such file, directory or program.
    NotFound,
    /// The path is not absolute, is of the wrong kind, or holds a zero byte.
    InvalidPath,
    /// Another field is wrong: an unknown user, a bad environment name, an empty command.
    InvalidRequest,
    /// The file system has no room.
    NoSpace,
    /// The guest's kernel said no.
    Permission,
    /// Anything else the guest's kernel reports.
    Io,
    /// Nothing listens on the port, or it took no connection in time.
    Refused,
    /// A bound is reached; it works once something else ended.
    Busy,
}
