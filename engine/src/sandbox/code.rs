//! Code in a sandbox: runs in contexts that keep their variables from one run to the next (contract X29-X32).
//!
//! What runs is in the guest's memory and belongs to no call: it goes on through pauses, and a fork has it too. Here is only
//! who waits for whom: one run at a time in a context, an interrupt when its time is over or its caller gone, and what a
//! caller is told when the interpreter dies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_protocol::guest::{self, ErrorKind};
use serde_json::json;
use tokio::time::timeout;

use super::SandboxId;
use crate::Engine;
use crate::agent::{Agent, Answer, CodeFailure, CodeOutput, Interpreters, Language, NoAnswer, Run};
use crate::error::Error;

/// Most bytes of code in one run.
pub const CODE_BYTES_MAX: usize = 4 << 20;

/// Longest name of a context.
pub const CONTEXT_NAME_CHARS_MAX: usize = 64;

/// The context of a run that names none.
pub const DEFAULT_CONTEXT: &str = "default";

/// How long a run may take when it does not say.
pub const CODE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// The longest time that may be asked for.
pub const CODE_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// From an interrupt to the kill of what does not end.
const INTERRUPT_GRACE: Duration = Duration::from_secs(5);

/// How long the news of a kill may take.
const KILL_GRACE: Duration = Duration::from_secs(30);

/// Runs that wait for the same context.
const WAITING_MAX: usize = 32;

/// Code to run.
#[derive(Clone, Debug)]
pub struct CodeSpec {
    /// The code; a cell, as notebooks have them.
    pub code: String,
    /// What it is written in.
    pub language: Language,
    /// The context; [`DEFAULT_CONTEXT`] when absent.
    pub context: Option<String>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeResult {
    /// In which language.
    pub language: Language,
    /// In which context.
    pub context: String,
    /// It ended without an error.
    pub ok: bool,
    /// What it and its children wrote; at most a MiB.
    pub stdout: String,
    /// The same for errors, the traceback too.
    pub stderr: String,
    /// Bytes of the two that were too much.
    pub dropped_bytes: [u64; 2],
    /// The last expression's value as text; `None` when there is none.
    pub result: Option<String>,
    /// What it displayed, then its value, by media type.
    pub results: Vec<CodeOutput>,
    /// What it raised.
    pub error: Option<CodeFailure>,
    /// Runs in this context, this one too.
    pub execution_count: u64,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
    /// Its time was over, and it was interrupted.
    pub timed_out: bool,
    /// The context's variables are gone: its process ended.
    pub context_lost: bool,
}

/// What is known of the interpreters of each sandbox.
#[derive(Debug, Default)]
pub(crate) struct Codes {
    slots: Mutex<HashMap<(SandboxId, Language), Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Looked for and started by one call at a time.
    interpreters: tokio::sync::Mutex<Option<Arc<Interpreters>>>,
    /// One run at a time in each context.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Codes {
    fn slot(&self, id: &SandboxId, language: Language) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry((id.clone(), language)).or_default())
    }

    /// Forgets sandboxes that are no more.
    pub(crate) fn retain(&self, lives: impl Fn(&SandboxId) -> bool) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _), _| lives(id));
    }
}

impl Slot {
    /// The interpreters, started if they are not there and `start` is wanted.
    async fn interpreters(
        &self,
        agent: &Agent,
        language: Language,
        start: bool,
    ) -> Result<Option<Arc<Interpreters>>, Error> {
        let mut known = self.interpreters.lock().await;
        if let Some(interpreters) = known.as_ref().filter(|interpreters| interpreters.are_there()) {
            return Ok(Some(Arc::clone(interpreters)));
        }
        let found = match agent.find_interpreters(language).await? {
            Some(found) => Some(found),
            None if start => Some(agent.start_interpreters(language).await?),
            None => None,
        };
        *known = found.map(Arc::new);
        Ok(known.clone())
    }

    fn turn(&self, context: &str) -> Result<Arc<tokio::sync::Mutex<()>>, Error> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|name, turn| name == context || Arc::strong_count(turn) > 1);
        let turn = turns.entry(context.to_owned()).or_default();
        if Arc::strong_count(turn) > WAITING_MAX {
            let message = format!("{WAITING_MAX} runs wait for the context '{context}' already");
            return Err(Error::Guest { kind: ErrorKind::Busy, message });
        }
        Ok(Arc::clone(turn))
    }
}

/// A run that nobody waits for any more is interrupted.
struct Interrupt {
    interpreters: Arc<Interpreters>,
    run: Option<String>,
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let Some(run) = self.run.take() else { return };
        let interpreters = Arc::clone(&self.interpreters);
        tokio::spawn(async move {
            if let Err(error) = interpreters.interrupt(&run).await {
                tracing::debug!(%error, "a run without a caller was not interrupted");
            }
        });
    }
}

impl Engine {
    /// Runs code and waits for its end; waits its turn when the context is busy. Dropping the call interrupts it.
    ///
    /// # Errors
    /// As [`Engine::exec`]. What goes wrong in the code is no error but a result.
    pub async fn run_code(&self, id: &SandboxId, spec: CodeSpec) -> Result<CodeResult, Error> {
        let context = check_context(spec.context)?;
        if spec.code.len() > CODE_BYTES_MAX {
            let message = format!("code has {} bytes, and at most {CODE_BYTES_MAX} are possible", spec.code.len());
            return Err(Error::invalid("code", message));
        }
        let limit = spec.timeout.unwrap_or(CODE_TIMEOUT_DEFAULT);
        if limit.is_zero() || limit > CODE_TIMEOUT_MAX {
            let message = format!("timeout must be more than 0 and at most {} s", CODE_TIMEOUT_MAX.as_secs());
            return Err(Error::invalid("timeout", message));
        }
        let (agent, _active) = self.agent(id, "running code").await?;
        let env = json!(self.get(id.as_str()).await?.env);
        let slot = self.shared.codes.slot(id, spec.language);
        let turn = slot.turn(&context)?;
        let _one_at_a_time = turn.lock().await;
        let Some(interpreters) = slot.interpreters(&agent, spec.language, true).await? else {
            return Err(Error::ShuttingDown);
        };
        let run = interpreters.run(&context, spec.code, &env, guest::DEFAULT_CWD).await?;
        let (outcome, timed_out) = wait_for_end(&interpreters, run, limit).await?;
        let answer = match outcome {
            Ok(answer) => interpreters.whole(answer).await?,
            Err(NoAnswer::Ended) => Answer { died: Some(-9), ..Answer::default() },
            Err(NoAnswer::Broken) => return Err(interpreters.broken().await),
        };
        told(answer, spec.language, context, timed_out, limit)
    }

    /// The contexts of a language that there are, oldest first.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn code_contexts(&self, id: &SandboxId, language: Language) -> Result<Vec<String>, Error> {
        let (agent, _active) = self.agent(id, "looking at code contexts").await?;
        match self.shared.codes.slot(id, language).interpreters(&agent, language, false).await? {
            Some(interpreters) => interpreters.contexts().await,
            None => Ok(Vec::new()),
        }
    }

    /// Forgets a context with all its variables, or all of a language's; what runs in it is killed. One that is not there is
    /// forgotten already.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn reset_code(&self, id: &SandboxId, language: Language, context: Option<&str>) -> Result<(), Error> {
        let (agent, _active) = self.agent(id, "resetting code contexts").await?;
        match self.shared.codes.slot(id, language).interpreters(&agent, language, false).await? {
            Some(interpreters) => interpreters.reset(context).await,
            None => Ok(()),
        }
    }
}

/// Waits for a run's end; interrupts it when its time is over, and kills it when that does not help. Says whether it was.
async fn wait_for_end(
    interpreters: &Arc<Interpreters>,
    run: Run,
    limit: Duration,
) -> Result<(Result<Answer, NoAnswer>, bool), Error> {
    let Run { id, mut answer } = run;
    let mut guard = Interrupt { interpreters: Arc::clone(interpreters), run: Some(id.clone()) };
    let mut outcome = timeout(limit, &mut answer).await;
    let timed_out = outcome.is_err();
    if timed_out {
        interpreters.interrupt(&id).await?;
        outcome = timeout(INTERRUPT_GRACE, &mut answer).await;
    }
    if outcome.is_err() {
        interpreters.kill(&id).await?;
        outcome = timeout(KILL_GRACE, &mut answer).await;
    }
    guard.run = None;
    Ok((outcome.unwrap_or(Ok(Err(NoAnswer::Broken))).unwrap_or(Err(NoAnswer::Broken)), timed_out))
}

fn told(
    answer: Answer,
    language: Language,
    context: String,
    timed_out: bool,
    limit: Duration,
) -> Result<CodeResult, Error> {
    if let Some(why) = &answer.refused {
        let message = match why.as_str() {
            "busy" => format!("The context '{context}' still runs code of an earlier call"),
            _ => "There are too many contexts; reset one first".to_owned(),
        };
        return Err(Error::Guest { kind: ErrorKind::Busy, message });
    }
    let mut result = CodeResult {
        language,
        context,
        ok: answer.ok && !timed_out,
        stdout: answer.stdout,
        stderr: answer.stderr,
        dropped_bytes: [answer.stdout_dropped_bytes, answer.stderr_dropped_bytes],
        result: answer.result,
        results: answer.results,
        error: answer.error,
        execution_count: answer.execution_count,
        duration_ms: answer.duration_ms,
        timed_out,
        context_lost: answer.died.is_some(),
    };
    let seconds = limit.as_secs_f64();
    if let Some(status) = answer.died {
        let how = if timed_out {
            format!("was killed: it ran longer than {seconds} s and did not let itself be interrupted")
        } else if status < 0 {
            format!("was killed by signal {}", -status)
        } else {
            format!("ended with exit code {status}")
        };
        let value = format!("The interpreter of context '{}' {how}; its variables are gone", result.context);
        result.stderr.push_str(&format!("{value}\n"));
        result.error = Some(CodeFailure { name: "InterpreterDied".to_owned(), value, traceback: String::new() });
    } else if timed_out {
        let value = format!("The code ran longer than {seconds} s and was interrupted; the context is still there");
        result.stderr.push_str(&format!("{value}\n"));
        let traceback = result.error.take().map(|error| error.traceback).unwrap_or_default();
        result.error = Some(CodeFailure { name: "Timeout".to_owned(), value, traceback });
    }
    Ok(result)
}

fn check_context(context: Option<String>) -> Result<String, Error> {
    let context = context.unwrap_or_else(|| DEFAULT_CONTEXT.to_owned());
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if context.is_empty() || context.len() > CONTEXT_NAME_CHARS_MAX || !context.chars().all(fine) {
        let message = format!(
            "context must be 1 to {CONTEXT_NAME_CHARS_MAX} letters, digits, and any of - _ . :, and is '{}'",
            context.escape_debug().take(80).collect::<String>()
        );
        return Err(Error::invalid("context", message));
    }
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_has_a_name_that_needs_no_escaping() {
        assert_eq!(check_context(None).unwrap(), "default");
        assert_eq!(check_context(Some("a-1_b.c:d".into())).unwrap(), "a-1_b.c:d");
        for wrong in ["", "a b", "a/b", "é", &"x".repeat(65)] {
            assert_eq!(check_context(Some(wrong.into())).unwrap_err().field(), Some("context"), "{wrong}");
        }
    }

    #[test]
    fn a_dead_interpreter_and_a_timeout_are_results() {
        let limit = Duration::from_secs(2);
        let of = |answer, timed_out| told(answer, Language::Python, "a".into(), timed_out, limit).unwrap();
        let died = of(Answer { died: Some(-9), ..Answer::default() }, false);
        assert!(!died.ok && died.context_lost);
        assert!(died.stderr.contains("killed by signal 9"), "{}", died.stderr);
        // It caught the interrupt and went on to its end.
        let late = of(Answer { ok: true, ..Answer::default() }, true);
        assert!(!late.ok && late.timed_out && !late.context_lost);
        assert_eq!(late.error.unwrap().name, "Timeout");
        let busy = Answer { refused: Some("busy".into()), ..Answer::default() };
        assert!(told(busy, Language::Python, "a".into(), false, limit).is_err());
    }
}
