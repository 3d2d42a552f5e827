//! Progress and failures: what is being done, how long it took, and why it failed.
//!
//! A step prints a line when it begins and one when it ends. The output of the commands in it goes to a log file, whose
//! last lines are shown when a command fails.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How much of a log's end is shown.
const LOG_TAIL_BYTES: u64 = 4096;
const LOG_TAIL_LINES: usize = 25;

/// One step of a task, from [`Step::begin`] to [`Step::done`].
pub struct Step {
    name: String,
    log: PathBuf,
    started: Instant,
}

impl Step {
    /// Announce a step whose commands log to `log`. An older log at that path is replaced.
    pub fn begin(name: impl Into<String>, log: &Path) -> Result<Step> {
        let name = name.into();
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
        eprintln!("  ... {name}");
        Ok(Step { name, log: log.to_path_buf(), started: Instant::now() })
    }

    /// Run a command to its end, output to the log. The error names step, command and the log's last lines.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let log = OpenOptions::new().append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let shown = shown(command);
        let status = command.status().with_context(|| format!("{}: cannot start `{shown}`", self.name))?;
        if !status.success() {
            bail!(
                "{} failed after {}\n  command: {shown}\n  {status}\n  log: {}\n{}",
                self.name,
                elapsed(self.started.elapsed()),
                self.log.display(),
                tail(&self.log),
            );
        }
        Ok(())
    }

    /// Announce the end, with the time it took and a remark.
    pub fn done(self, remark: &str) {
        let gap = if remark.is_empty() { "" } else { ": " };
        eprintln!("   ok {} ({}){gap}{remark}", self.name, elapsed(self.started.elapsed()));
    }
}

/// Say that a step's result was there already.
pub fn reused(name: &str, remark: &str) {
    eprintln!("   ok {name} (cached): {remark}");
}

/// The standard output of a short command, trimmed.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command as one would type it, shortened.
fn shown(command: &Command) -> String {
    const SHOWN_CHARS_MAX: usize = 400;
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    let line = words.join(" ");
    match line.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((cut, _)) => format!("{}...", &line[..cut]),
        None => line,
    }
}

fn tail(log: &Path) -> String {
    let read = || -> Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
    last.iter().map(|line| format!("  | {line}\n")).collect()
}

/// `8.3 s`, or `6 min 12 s`.
pub fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_shows_step_command_and_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let step = Step::begin("Brew", &dir.path().join("log")).unwrap();
        let error = step.run(Command::new("sh").args(["-c", "echo first; echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        for part in ["Brew failed", "sh -c echo first", "exit status: 3", "| first", "| why"] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(elapsed(Duration::from_millis(8345)), "8.3 s");
        assert_eq!(elapsed(Duration::from_secs(372)), "6 min 12 s");
    }
}
