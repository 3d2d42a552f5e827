//! Install, start and expose a template's application in one call (contract X10). What fails names its step.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cove_engine::protocol::guest::{Command, Exec, FollowJob, StartJob};
use cove_engine::{Engine, JobEvent, SandboxId};
use futures_util::{StreamExt, TryFutureExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::processes::kept;
use super::{exec, sandbox_id};
use crate::Api;
use crate::error::ApiError;
use crate::extract::{Id, JsonBody};
use crate::heartbeat::{self, Unmistakable};
use crate::types::{
    Data, ExposeBody, ProbeBody, StartBody, StartManifest, StartStep, TemplateRecord, UrlInfo, exit_code,
};

/// The name of the background process, by which the next call finds it.
const PROCESS_NAME: &str = "template";

/// How much of the end of a step's output is told.
const TAIL_BYTES: usize = 4 << 10;

const INSTALL_SECONDS: u32 = 600;
const START_SECONDS: u32 = 120;
const SECONDS_MAX: u32 = 86_400;
const PORT: u16 = 3000;

/// Between looks at an application that is not ready. A program tells nobody when it is; this is the one place that asks
/// again and again, as every readiness probe does.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// How long one look may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the install command, starts the application, waits until it is ready, and exposes its port. A step that fails is
/// 422 `TEMPLATE_START_FAILED`, whose details name the step, its exit code and the end of its output.
#[utoipa::path(post, path = "/sandboxes/{id}/template/start", tag = "templates", params(("id" = String, Path)),
    request_body = StartBody, responses((status = 200, body = Data<StartManifest>)))]
pub async fn start_template(
    State(api): State<Api>,
    Id(id): Id,
    JsonBody(body): JsonBody<StartBody>,
) -> Result<Response, ApiError> {
    let id = sandbox_id(&id)?;
    let sandbox = api.engine.get(id.as_str()).await?;
    let template = TemplateRecord::from(api.engine.template(&sandbox.template_id).await?);
    let plan = Plan::of(body, &template)?;
    let work = async move { Ok(Data { data: start(&api, &id, template.id, plan).await? }) };
    Ok(heartbeat::answer(StatusCode::OK, work.map_err(|error: ApiError| Unmistakable(error))).await)
}

struct Plan {
    install: Option<String>,
    install_limit: Duration,
    command: String,
    start_limit: Duration,
    port: u16,
    workdir: String,
    probe: Probe,
}

enum Probe {
    Tcp(u16),
    Http(u16, String),
    Exec(String),
}

impl Plan {
    fn of(body: StartBody, template: &TemplateRecord) -> Result<Self, ApiError> {
        let seconds = |field: &str, value: Option<u32>, default| match value.unwrap_or(default) {
            seconds if (1..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs(seconds.into())),
            wrong => Err(ApiError::invalid(field, format!("{field} is {wrong}, and must be 1 to {SECONDS_MAX}"))),
        };
        let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let command = given(body.start_command).or_else(|| template.start_command.clone());
        let command = command.ok_or_else(|| {
            let message = format!("start_command is missing, and template '{}' has none", template.id);
            ApiError::invalid("start_command", message)
        })?;
        let port = body.port.or(template.preview_port).unwrap_or(PORT);
        let own = template.readiness_probe.clone().and_then(|probe| serde_json::from_value(probe).ok());
        let probe = Probe::of(body.readiness_probe.or(own).unwrap_or_default(), port)?;
        if port == 0 {
            return Err(ApiError::invalid("port", "port is 0, and must be 1 to 65535"));
        }
        let install = given(body.install_command).or_else(|| template.install_command.clone());
        Ok(Self {
            install: install.filter(|_| body.install != Some(false)),
            install_limit: seconds("install_timeout_sec", body.install_timeout_sec, INSTALL_SECONDS)?,
            command,
            start_limit: seconds("start_timeout_sec", body.start_timeout_sec, START_SECONDS)?,
            port,
            workdir: given(body.workdir).unwrap_or_else(|| template.workdir.clone()),
            probe,
        })
    }
}

impl Probe {
    fn of(body: ProbeBody, port: u16) -> Result<Self, ApiError> {
        let port = body.port.unwrap_or(port);
        match (body.kind.as_deref(), body.command) {
            (Some("exec"), Some(command)) => Ok(Probe::Exec(command)),
            (Some("exec"), None) => {
                Err(ApiError::invalid("readiness_probe.command", "readiness_probe.command is missing"))
            }
            (Some("http"), _) => {
                let path = body.path.or(body.url).unwrap_or_default();
                let path = match path.split_once("://") {
                    Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]).to_owned(),
                    None => path,
                };
                let path = if path.starts_with('/') { path } else { format!("/{path}") };
                if path.chars().any(|c| c.is_control() || c == ' ') {
                    let message = "readiness_probe.path holds a space or control character";
                    return Err(ApiError::invalid("readiness_probe.path", message));
                }
                Ok(Probe::Http(port, path))
            }
            (None | Some("tcp" | ""), _) => Ok(Probe::Tcp(port)),
            (Some(other), _) => {
                let message = format!("readiness_probe.type is '{other}', and must be tcp, http or exec");
                Err(ApiError::invalid("readiness_probe.type", message))
            }
        }
    }

    fn words(&self) -> String {
        match self {
            Probe::Tcp(port) => format!("connect to port {port}"),
            Probe::Http(port, path) => format!("GET http://127.0.0.1:{port}{path}"),
            Probe::Exec(command) => command.clone(),
        }
    }

    async fn is_ready(&self, engine: &Engine, id: &SandboxId, workdir: &str) -> Result<bool, ApiError> {
        match self {
            Probe::Tcp(port) => Ok(engine.connect(id, *port).await.is_ok()),
            Probe::Http(port, path) => {
                let Ok(mut stream) = engine.connect(id, *port).await else { return Ok(false) };
                let head = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
                let mut start = [0; 12];
                let asked = async {
                    stream.write_all(head.as_bytes()).await?;
                    stream.read_exact(&mut start).await
                };
                let answered = asked.await.is_ok() && start.starts_with(b"HTTP/1.");
                Ok(answered && matches!(start[9], b'1'..=b'3'))
            }
            Probe::Exec(command) => {
                let exec = shell(command, workdir, PROBE_DEADLINE);
                let run = exec::run(engine.clone(), id.clone(), exec, None).await.map_err(|broken| broken.error)?;
                Ok(run.data.exit_code == 0)
            }
        }
    }
}

fn shell(line: &str, workdir: &str, limit: Duration) -> Exec {
    Exec {
        command: Command::Shell(line.to_owned()),
        cwd: Some(workdir.to_owned()),
        env: Vec::new(),
        user: None,
        stdin: false,
        timeout_ms: Some(limit.as_millis() as u64),
    }
}

async fn start(api: &Api, id: &SandboxId, template_id: String, plan: Plan) -> Result<StartManifest, ApiError> {
    let engine = &api.engine;
    let mut steps = Vec::new();
    engine.make_dir(id, &plan.workdir).await?;
    if let Some(install) = &plan.install {
        let exec = shell(install, &plan.workdir, plan.install_limit);
        let run = exec::run(engine.clone(), id.clone(), exec, None).await.map_err(|broken| broken.error)?.data;
        let output = tail(format!("{}{}", run.stdout, run.stderr).as_bytes());
        let status = if run.exit_code == 0 { "succeeded" } else { "failed" };
        let exit_code = Some(run.exit_code);
        let step = StartStep {
            step: "install",
            command: install.clone(),
            status,
            exit_code,
            duration_ms: run.duration_ms,
            output,
        };
        done_or_failed(&mut steps, step)?;
    }
    for old in engine.jobs(id).await? {
        if old.exit.is_none() && old.name.as_deref() == Some(PROCESS_NAME) {
            engine.stop_job(id, old.pid).await?;
        }
    }
    let began = Instant::now();
    let mut exec = shell(&plan.command, &plan.workdir, plan.start_limit);
    exec.timeout_ms = None;
    let job = engine.start_job(id, StartJob { exec, name: Some(PROCESS_NAME.to_owned()) }).await?;
    let milliseconds = |since: Instant| since.elapsed().as_millis() as u64;
    steps.push(StartStep {
        step: "start",
        command: plan.command.clone(),
        status: "succeeded",
        exit_code: None,
        duration_ms: milliseconds(began),
        output: String::new(),
    });
    let began = Instant::now();
    let (ready, exit) = wait_ready(engine, id, &plan, job.pid).await?;
    let output = tail(&kept(engine, id, job.pid, None).await?.text);
    if let (false, Some(code)) = (ready, exit) {
        let duration_ms = milliseconds(began);
        steps.pop();
        let command = plan.command.clone();
        let step = StartStep { step: "start", command, status: "failed", exit_code: Some(code), duration_ms, output };
        return done_or_failed(&mut steps, step).and(Err(ApiError::internal("a failed step is no success")));
    }
    let status = if ready { "succeeded" } else { "failed" };
    let (command, duration_ms) = (plan.probe.words(), milliseconds(began));
    done_or_failed(&mut steps, StartStep { step: "ready", command, status, exit_code: None, duration_ms, output })?;
    let spec = ExposeBody { port: Some(plan.port), ..ExposeBody::default() }.into_spec()?;
    let (preview, _) = engine.expose(id, spec).await?;
    let sandbox = engine.get(id.as_str()).await?;
    let info = UrlInfo::new(&preview, &sandbox, api.config.alias_port);
    Ok(StartManifest {
        sandbox_id: id.to_string(),
        template_id,
        status: "ready",
        pid: job.pid,
        port: plan.port,
        workdir: plan.workdir,
        preview_url: info.url.clone(),
        url: info.url,
        steps,
    })
}

/// Keeps a step, or tells that it failed with all that was done before.
fn done_or_failed(steps: &mut Vec<StartStep>, step: StartStep) -> Result<(), ApiError> {
    if step.status == "succeeded" {
        steps.push(step);
        return Ok(());
    }
    let how = match step.exit_code {
        Some(124) => "ran out of time".to_owned(),
        Some(code) => format!("ended with exit code {code}"),
        None => format!("was not ready after {} s", step.duration_ms / 1000),
    };
    let message = format!("The step '{}' failed: `{}` {how}. {}", step.step, step.command, last_line(&step.output));
    let error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "TEMPLATE_START_FAILED", message.trim());
    Err(error
        .with_detail("step", step.step)
        .with_detail("exit_code", step.exit_code)
        .with_detail("output", step.output.as_str())
        .with_detail("steps", json!(steps)))
}

fn last_line(output: &str) -> &str {
    output.trim_end().rsplit('\n').next().unwrap_or_default()
}

/// Waits until the application is ready, has ended (with which code), or its time is over.
async fn wait_ready(engine: &Engine, id: &SandboxId, plan: &Plan, pid: i32) -> Result<(bool, Option<i32>), ApiError> {
    let mut output = engine.follow_job(id, FollowJob { pid, from: u64::MAX, follow: true }).await?;
    let ended = async {
        while let Some(event) = output.next().await {
            if let JobEvent::End(job) = event? {
                return Ok(job.exit.map(exit_code));
            }
        }
        Ok::<_, cove_engine::Error>(None)
    };
    let ready = async {
        loop {
            if let Ok(true) =
                timeout(PROBE_DEADLINE, plan.probe.is_ready(engine, id, &plan.workdir)).await.unwrap_or(Ok(false))
            {
                return;
            }
            sleep_until(Instant::now() + PROBE_INTERVAL).await;
        }
    };
    let either = async {
        tokio::select! {
            () = ready => Ok((true, None)),
            exit = ended => exit.map(|exit| (false, exit)),
        }
    };
    match timeout(plan.start_limit, either).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Ok((false, None)),
    }
}

fn tail(output: &[u8]) -> String {
    String::from_utf8_lossy(&output[output.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_tcp_http_or_exec() {
        let of = |value| Probe::of(serde_json::from_value(value).unwrap(), 3000);
        assert!(matches!(of(json!({})), Ok(Probe::Tcp(3000))));
        assert!(
            matches!(of(json!({"type": "http", "url": "http://x:1/health"})), Ok(Probe::Http(3000, path)) if path == "/health")
        );
        assert!(matches!(of(json!({"type": "http", "port": 81})), Ok(Probe::Http(81, path)) if path == "/"));
        for wrong in [json!({"type": "exec"}), json!({"type": "icmp"}), json!({"type": "http", "path": "/a b"})] {
            assert_eq!(of(wrong).err().unwrap().status().as_u16(), 422);
        }
    }

    #[test]
    fn a_failed_step_tells_itself_and_the_end_of_its_output() {
        let step = StartStep {
            step: "install",
            command: "npm ci".into(),
            status: "failed",
            exit_code: Some(1),
            duration_ms: 5,
            output: "a\nno such package\n".into(),
        };
        let error = done_or_failed(&mut Vec::new(), step).unwrap_err();
        assert!(error.message().ends_with("no such package"), "{}", error.message());
        let body = serde_json::to_value(error.body()).unwrap();
        assert_eq!(body["error"]["details"]["step"], "install");
    }
}
