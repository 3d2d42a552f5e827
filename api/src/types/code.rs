//! Code runs on the wire (contract X29-X32).

use std::time::Duration;

use cove_engine::{CodeFailure, CodeOutput, CodeResult, CodeSpec, Language};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;

/// Code to run in a context that keeps its variables.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"code": "x = 20\nx + 1", "language": "python", "context": "default", "timeout": 30}))]
pub struct CodeBody {
    /// A cell, as notebooks have them: statements, and a last expression whose value is the result. `await` is fine.
    pub code: String,
    /// `python` (the default) or `javascript`.
    pub language: Option<String>,
    /// Names a namespace of its own; `default` when absent. Made when it is first used.
    pub context: Option<String>,
    /// Seconds, after which the code is interrupted; 300 when absent.
    pub timeout: Option<f64>,
}

impl CodeBody {
    /// The engine's form.
    pub fn into_spec(self) -> Result<CodeSpec, ApiError> {
        let language = language(self.language.as_deref())?;
        let timeout = self.timeout.map(|seconds| {
            let wrong = || ApiError::invalid("timeout", format!("timeout is {seconds}, and must be more than 0"));
            Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
        });
        Ok(CodeSpec { code: self.code, language, context: self.context, timeout: timeout.transpose()? })
    }
}

/// A language by its name.
pub fn language(name: Option<&str>) -> Result<Language, ApiError> {
    match name {
        None | Some("" | "python" | "python3" | "py") => Ok(Language::Python),
        Some("javascript" | "js" | "node") => Ok(Language::Javascript),
        Some(other) => {
            let message = format!("language is '{}'; the languages are python and javascript", other.escape_debug());
            Err(ApiError::invalid("language", message))
        }
    }
}

/// What came of a run. An error in the code is no error of the call: `ok` is false then.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CodeRecord {
    /// The code ended without an error.
    pub ok: bool,
    /// What it and the programs that it started wrote; the first MiB.
    pub stdout: String,
    /// The same for standard error, the traceback too.
    pub stderr: String,
    /// The value of the last expression as text; `null` when there is none.
    pub result: Option<String>,
    /// What the code displayed and its value, in order.
    pub results: Vec<CodeShown>,
    /// What it raised; `Timeout` when its time was over, `InterpreterDied` when its process ended.
    pub error: Option<CodeError>,
    /// As asked for.
    pub language: &'static str,
    /// As asked for.
    pub context: String,
    /// Runs in this context, this one too.
    pub execution_count: u64,
    /// How long it ran.
    pub duration_ms: u64,
    /// It was interrupted because its time was over.
    pub timed_out: bool,
    /// The context's variables are gone; the next run finds a fresh one.
    pub context_lost: bool,
    /// Bytes of `stdout` that were too much.
    pub stdout_dropped_bytes: u64,
    /// Bytes of `stderr` that were too much.
    pub stderr_dropped_bytes: u64,
}

/// Something to show.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(example = json!({"kind": "result", "data": {"text/plain": "21"}}))]
pub struct CodeShown {
    /// `result` for the last expression's value, `display` for what was displayed.
    pub kind: String,
    /// By media type: `text/plain` always; `text/html`, `text/markdown`, `image/svg+xml` as text; `image/png`, `image/jpeg`
    /// and `image/gif` as base64.
    #[schema(value_type = Object)]
    pub data: Map<String, Value>,
}

/// What code raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CodeError {
    /// The error's type.
    pub name: String,
    /// Its message.
    pub value: String,
    /// As a terminal shows it.
    pub traceback: String,
}

impl From<CodeResult> for CodeRecord {
    fn from(result: CodeResult) -> Self {
        let [stdout_dropped_bytes, stderr_dropped_bytes] = result.dropped_bytes;
        let shown = |CodeOutput { kind, data }| CodeShown { kind, data };
        Self {
            ok: result.ok,
            stdout: result.stdout,
            stderr: result.stderr,
            result: result.result,
            results: result.results.into_iter().map(shown).collect(),
            error: result.error.map(|CodeFailure { name, value, traceback }| CodeError { name, value, traceback }),
            language: result.language.as_str(),
            context: result.context,
            execution_count: result.execution_count,
            duration_ms: result.duration_ms,
            timed_out: result.timed_out,
            context_lost: result.context_lost,
            stdout_dropped_bytes,
            stderr_dropped_bytes,
        }
    }
}

/// The contexts of a language.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"contexts": ["default", "plots"]}))]
pub struct CodeContexts {
    /// Their names, oldest first.
    pub contexts: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_language_or_timeout_is_named() {
        let spec = |value| serde_json::from_value::<CodeBody>(value).unwrap().into_spec();
        assert_eq!(spec(json!({"code": "1"})).unwrap().language, Language::Python);
        assert_eq!(spec(json!({"code": "1", "language": "javascript"})).unwrap().language, Language::Javascript);
        for (value, word) in
            [(json!({"code": "1", "language": "cobol"}), "cobol"), (json!({"code": "1", "timeout": -1}), "-1")]
        {
            let error = spec(value).unwrap_err();
            assert_eq!(error.status().as_u16(), 422);
            assert!(error.message().contains(word), "{}", error.message());
        }
    }
}
