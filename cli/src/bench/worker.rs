//! One worker: what it needs, and one operation of it, measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::op::Op;
use super::{Form, Plan};
use crate::client::{Client, ClientError, ForkRequest, ForkSource, Sandbox};

/// The pipes of the process in the guest that changes memory.
const GO: &str = "/tmp/cove-bench-go";
const DONE: &str = "/tmp/cove-bench-done";

/// One process that writes to each of its pages whenever it is told. It is there already when it is told, and writes
/// without system calls, since both are slow where the guest's kernel is emulated.
const CHANGE_MEMORY: &str = r#"
import itertools, sys
size = int(sys.argv[1]) << 20
memory = bytearray(size)
for n in itertools.count(1):
    open("/tmp/cove-bench-go").read()
    memory[::4096] = bytes([n % 255 + 1]) * (size // 4096)
    open("/tmp/cove-bench-done", "w").write("done\n")
"#;

/// What one operation cost.
pub struct Sample {
    /// From the request to its answer.
    pub wall: Duration,
    /// Parts of it and other figures, by the name that the report gives them.
    pub parts: BTreeMap<&'static str, Duration>,
    /// How the machine came to run.
    pub boot_path: Option<String>,
}

impl Sample {
    fn of(wall: Duration) -> Self {
        Self { wall, parts: BTreeMap::new(), boot_path: None }
    }
}

/// Does operations one after the other.
pub struct Worker {
    client: Client,
    plan: Arc<Plan>,
    /// The sandbox that is worked on; empty when the operation makes its own.
    sandbox: String,
    /// What is forked.
    source: Option<ForkSource>,
    /// The process that changes memory runs.
    changes_memory: bool,
}

impl Worker {
    /// A worker that has all it needs and is warmed up.
    pub async fn ready(client: Client, plan: Arc<Plan>) -> Result<Self> {
        let mut worker = Self { client, plan, sandbox: String::new(), source: None, changes_memory: false };
        worker.prepare().await?;
        for _ in 0..worker.plan.op.warm_up_rounds() {
            worker.round().await?;
        }
        Ok(worker)
    }

    async fn prepare(&mut self) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        match &plan.op {
            Op::Exec { sandbox: Some(id), .. } => self.sandbox = id.clone(),
            op if op.needs_sandbox() => {
                let made = self.client.create_ready(&plan.machine).await?;
                running(&made)?;
                self.sandbox = made.id;
            }
            _ => {}
        }
        if let Op::Fork { live, .. } = plan.op {
            self.dirty().await?;
            self.source = Some(if live {
                ForkSource::Sandbox(self.sandbox.clone())
            } else {
                ForkSource::Snapshot(self.client.snapshot(&self.sandbox, &json!({})).await?.id)
            });
        }
        Ok(())
    }

    /// One operation. What makes it possible again is not measured.
    pub async fn round(&mut self) -> Result<Sample, ClientError> {
        let plan = Arc::clone(&self.plan);
        match &plan.op {
            Op::Create => self.create().await,
            Op::Run => self.run().await,
            Op::Exec { form, .. } => self.exec(*form).await,
            Op::Restore { .. } => self.restore().await,
            Op::Fork { .. } => self.fork().await,
            Op::Snapshot { .. } => self.snapshot().await,
            Op::Pause { .. } => self.pause().await,
        }
    }

    async fn create(&self) -> Result<Sample, ClientError> {
        let began = Instant::now();
        let made = self.client.create_ready(&self.plan.machine).await?;
        self.started(began.elapsed(), made).await
    }

    /// The figures of a sandbox that was just started by this worker, which is then destroyed.
    async fn started(&self, wall: Duration, sandbox: Sandbox) -> Result<Sample, ClientError> {
        let sample = self.start_figures(wall, &sandbox).await;
        self.client.destroy(&sandbox.id).await?;
        sample
    }

    async fn start_figures(&self, wall: Duration, sandbox: &Sandbox) -> Result<Sample, ClientError> {
        expect_running(sandbox)?;
        let guest = counters(&self.client, &sandbox.id).await?.guest();
        let mut sample = Sample::of(wall);
        sample.boot_path.clone_from(&sandbox.boot_path);
        if let Some(boot_ms) = sandbox.boot_ms {
            let boot = Duration::from_millis(boot_ms);
            sample.parts.insert("boot_ms", boot);
            sample.parts.insert("host_ms", boot.saturating_sub(guest));
        }
        sample.parts.insert("guest_ms", guest);
        Ok(sample)
    }

    async fn run(&self) -> Result<Sample, ClientError> {
        let mut body = serde_json::to_value(&self.plan.machine).unwrap_or_default();
        body["command"] = "echo 2".into();
        let began = Instant::now();
        let answer = self.client.run_fused(&body).await?;
        let wall = began.elapsed();
        let malformed = |source| ClientError::Malformed { what: "a run", source };
        let sandbox: Sandbox = serde_json::from_value(answer["data"].clone()).map_err(malformed)?;
        let mut sample = self.started(wall, sandbox).await?;
        // Here the guest ran the command too.
        let guest = sample.parts.get("guest_ms").copied().unwrap_or_default();
        sample.parts.insert("host_ms", wall.saturating_sub(guest));
        if answer["exec"]["stdout"] != "2\n" {
            return Err(ClientError::Unexpected { what: "the run", found: answer["exec"].to_string() });
        }
        for (part, name) in [("create_ms", "create_ms"), ("wait_ms", "wait_ms"), ("exec_ms", "exec_ms")] {
            let ms = answer["timings"][name].as_f64().unwrap_or_default();
            sample.parts.insert(part, Duration::from_secs_f64(ms.max(0.0) / 1000.0));
        }
        Ok(sample)
    }

    async fn exec(&self, form: Form) -> Result<Sample, ClientError> {
        let command = match form {
            Form::Argv => json!(["true"]),
            Form::Shell => json!("true"),
        };
        let before = counters(&self.client, &self.sandbox).await?;
        let began = Instant::now();
        let result = self.client.exec_value(&self.sandbox, &json!({ "command": command })).await?;
        let wall = began.elapsed();
        let after = counters(&self.client, &self.sandbox).await?;
        if result["exit_code"] != 0 {
            return Err(ClientError::Unexpected { what: "`true`", found: result.to_string() });
        }
        let mut sample = Sample::of(wall);
        let command = result["duration_ms"].as_u64().unwrap_or_default();
        sample.parts.insert("guest_command_ms", Duration::from_millis(command));
        let guest = after.guest().saturating_sub(before.guest());
        sample.parts.insert("host_outside_kvm_run_ms", wall.saturating_sub(guest));
        sample.parts.insert("vmm_exit_handling_ms", after.exits.saturating_sub(before.exits));
        Ok(sample)
    }

    async fn restore(&mut self) -> Result<Sample, ClientError> {
        self.dirty().await?;
        self.client.pause(&self.sandbox).await?;
        let began = Instant::now();
        let sandbox = self.client.resume(&self.sandbox, &json!({})).await?;
        self.start_figures(began.elapsed(), &sandbox).await
    }

    async fn fork(&self) -> Result<Sample, ClientError> {
        let Some(source) = &self.source else {
            return Err(ClientError::Unexpected { what: "the bench", found: "nothing to fork".into() });
        };
        let request =
            ForkRequest { tags: Some(vec![self.plan.tag.clone()]), persistent: Some(false), ..ForkRequest::default() };
        let began = Instant::now();
        let child = self.client.fork(source, &request).await?;
        self.started(began.elapsed(), child).await
    }

    async fn snapshot(&mut self) -> Result<Sample, ClientError> {
        self.dirty().await?;
        let before = counters(&self.client, &self.sandbox).await?;
        let began = Instant::now();
        let snapshot = self.client.snapshot(&self.sandbox, &json!({})).await?;
        let wall = began.elapsed();
        let guest = counters(&self.client, &self.sandbox).await?.guest().saturating_sub(before.guest());
        let mut sample = Sample::of(wall);
        sample.parts.insert("guest_ms", guest);
        sample.parts.insert("host_ms", wall.saturating_sub(guest));
        if let Some(ms) = snapshot.pause_ms {
            sample.parts.insert("pause_ms", Duration::from_secs_f64(ms.max(0.0) / 1000.0));
        }
        self.client.delete_snapshot(&snapshot.id).await?;
        Ok(sample)
    }

    async fn pause(&mut self) -> Result<Sample, ClientError> {
        self.dirty().await?;
        let began = Instant::now();
        self.client.pause(&self.sandbox).await?;
        let sample = Sample::of(began.elapsed());
        self.client.resume(&self.sandbox, &json!({})).await?;
        Ok(sample)
    }

    /// Changes memory in the guest.
    async fn dirty(&mut self) -> Result<(), ClientError> {
        let mib = self.plan.op.dirty_mib();
        if mib == 0 {
            return Ok(());
        }
        if !self.changes_memory {
            self.shell(&format!("mkfifo {GO} {DONE}; nohup python3 -c '{CHANGE_MEMORY}' {mib} >/dev/null 2>&1 &"))
                .await?;
            self.changes_memory = true;
        }
        self.shell(&format!("echo > {GO}; read -r word < {DONE}")).await
    }

    async fn shell(&self, line: &str) -> Result<(), ClientError> {
        let result = self.client.exec_value(&self.sandbox, &json!({ "command": line })).await?;
        if result["exit_code"] != 0 {
            return Err(ClientError::Unexpected { what: "changing memory", found: result.to_string() });
        }
        Ok(())
    }
}

fn running(sandbox: &Sandbox) -> Result<()> {
    if let Err(error) = expect_running(sandbox) {
        bail!(error);
    }
    Ok(())
}

fn expect_running(sandbox: &Sandbox) -> Result<(), ClientError> {
    if sandbox.state == "running" {
        return Ok(());
    }
    let reason = sandbox.last_error().unwrap_or_default();
    Err(ClientError::Unexpected { what: "the sandbox", found: format!("{} {}", sandbox.state, reason) })
}

/// The machine's own counters, of the vCPU that ran most.
struct Counters {
    cpu: Duration,
    exits: Duration,
}

impl Counters {
    /// Time in which the guest ran.
    fn guest(&self) -> Duration {
        self.cpu.saturating_sub(self.exits)
    }
}

async fn counters(client: &Client, id: &str) -> Result<Counters, ClientError> {
    let stats = client.sandbox_value(id, "stats", &[]).await?;
    let micros =
        |vcpu: &Value, name: &str| Duration::from_micros(vcpu.get(name).and_then(Value::as_u64).unwrap_or_default());
    let vcpus = stats.get("vcpus").and_then(Value::as_array);
    let busiest = vcpus.and_then(|vcpus| vcpus.iter().max_by_key(|vcpu| micros(vcpu, "cpu_us")));
    match busiest {
        Some(vcpu) => Ok(Counters { cpu: micros(vcpu, "cpu_us"), exits: micros(vcpu, "exit_us") }),
        None => Err(ClientError::Unexpected { what: "the machine's figures", found: "no vCPU in them".into() }),
    }
}
