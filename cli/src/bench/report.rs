//! What a run of the bench found, as JSON or for people.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Plan;
use super::figures::{Figures, milliseconds};
use super::op::Op;
use super::worker::Sample;
use crate::client::ClientError;
use crate::text::{printable, table};

/// Outcomes of one run, counted and sorted.
pub struct Report {
    facts: Value,
    wall: Figures,
    parts: BTreeMap<&'static str, Figures>,
    success: usize,
    rejected: usize,
    failed: usize,
    /// How often each code was the answer.
    errors: BTreeMap<String, usize>,
    /// The sentence of the first failure.
    first_error: Option<String>,
    boot_paths: BTreeMap<String, usize>,
    total: Duration,
    how: &'static str,
}

impl Report {
    /// The report of these outcomes, which took `total` together.
    pub fn of(plan: &Plan, host: Value, total: Duration, outcomes: Vec<Result<Sample, ClientError>>) -> Self {
        let mut report = Self {
            facts: facts(plan, &host),
            wall: Figures::default(),
            parts: BTreeMap::new(),
            success: 0,
            rejected: 0,
            failed: 0,
            errors: BTreeMap::new(),
            first_error: None,
            boot_paths: BTreeMap::new(),
            total,
            how: plan.op.how(),
        };
        let mut samples = Vec::new();
        for outcome in outcomes {
            match outcome {
                Ok(sample) => samples.push(sample),
                Err(error) => report.count(error),
            }
        }
        report.success = samples.len();
        report.wall = Figures::of(samples.iter().map(|sample| sample.wall));
        let mut columns: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
        for sample in &samples {
            for (name, value) in &sample.parts {
                columns.entry(name).or_default().push(*value);
            }
            if let Some(path) = &sample.boot_path {
                *report.boot_paths.entry(path.clone()).or_default() += 1;
            }
        }
        report.parts = columns.into_iter().map(|(name, values)| (name, Figures::of(values))).collect();
        report
    }

    fn count(&mut self, error: ClientError) {
        if error.is_rejection() {
            self.rejected += 1;
        } else {
            self.failed += 1;
        }
        *self.errors.entry(error.code().to_owned()).or_default() += 1;
        self.first_error.get_or_insert_with(|| format!("{:#}", anyhow::Error::from(error)));
    }

    /// How many operations did what they should.
    pub fn successes(&self) -> usize {
        self.success
    }

    /// Prints the report.
    pub fn print(&self, as_json: bool) -> Result<u8> {
        let mut out = io::stdout().lock();
        if as_json {
            serde_json::to_writer_pretty(&mut out, &self.json()).context("Cannot print the figures")?;
            writeln!(out).context("Cannot print the figures")?;
        } else {
            out.write_all(self.text().as_bytes()).context("Cannot print the figures")?;
        }
        Ok(0)
    }

    fn per_second(&self) -> f64 {
        let seconds = self.total.as_secs_f64();
        if seconds > 0.0 { (self.success as f64 / seconds * 100.0).round() / 100.0 } else { 0.0 }
    }

    fn json(&self) -> Value {
        let mut report = self.facts.clone();
        let wall = &self.wall;
        let more = json!({
            "success": self.success, "rejected": self.rejected, "failed": self.failed, "errors": self.errors,
            "first_error": self.first_error, "total_ms": self.total.as_millis() as u64, "per_second": self.per_second(),
            "wall_ms": wall, "p50_ms": wall.p50_ms, "p95_ms": wall.p95_ms, "p99_ms": wall.p99_ms, "min_ms": wall.min_ms,
            "max_ms": wall.max_ms, "boot_paths": self.boot_paths, "how": self.how,
        });
        if let (Value::Object(report), Value::Object(more)) = (&mut report, more) {
            report.extend(more);
            report.extend(self.parts.iter().map(|(name, figures)| ((*name).to_owned(), json!(figures))));
        }
        report
    }

    fn text(&self) -> String {
        let (op, n) = (self.facts["bench"].as_str().unwrap_or_default(), self.success + self.rejected + self.failed);
        let mut text = format!(
            "{op}: {n} ({} at a time), {} good, {} rejected, {} failed; {} a second\n",
            self.facts["concurrency"],
            self.success,
            self.rejected,
            self.failed,
            self.per_second()
        );
        let mut rows = vec![["", "p50", "p95", "p99", "min", "max"].map(str::to_owned), row("wall", &self.wall)];
        let parts = PARTS.iter().filter_map(|(part, words)| Some(row(words, self.parts.get(part)?)));
        rows.extend(parts);
        text.push_str(&table(&rows));
        if let Some(error) = &self.first_error {
            text.push_str(&format!("first failure: {}\n", printable(error)));
        }
        if !self.boot_paths.is_empty() {
            let paths: Vec<String> = self.boot_paths.iter().map(|(path, count)| format!("{count} {path}")).collect();
            text.push_str(&format!("started: {}\n", paths.join(", ")));
        }
        let host = &self.facts["host"];
        let emulated = if host["assist"] == true { ", which emulates the guest's kernel" } else { "" };
        let words = |name: &str| printable(host[name].as_str().unwrap_or("unknown"));
        text.push_str(&format!("host: {}{emulated}; {}\n{}\n", words("module"), words("cpu_model"), self.how));
        text
    }
}

fn facts(plan: &Plan, host: &Value) -> Value {
    let machine = &plan.machine;
    let mut facts = json!({
        "bench": plan.op.name(), "n": plan.n, "concurrency": plan.concurrency, "dirty_mib": plan.op.dirty_mib(),
        "machine": {"size": machine.size, "cpu_count": machine.cpu_count, "memory_mb": machine.memory_mb,
                    "disk_size_mb": machine.disk_size_mb},
        "host": host,
    });
    match &plan.op {
        Op::Exec { form, sandbox } => {
            facts["command"] = "true".into();
            facts["form"] = json!(form);
            facts["sandbox_id"] = json!(sandbox);
        }
        Op::Fork { live, .. } => facts["live"] = (*live).into(),
        Op::Run => facts["command"] = "echo 2".into(),
        _ => {}
    }
    facts
}

fn row(name: &str, figures: &Figures) -> [String; 6] {
    let [p50, p95, p99, min, max] =
        [figures.p50_ms, figures.p95_ms, figures.p99_ms, figures.min_ms, figures.max_ms].map(milliseconds);
    [name.to_owned(), p50, p95, p99, min, max]
}

/// What the report for people calls a figure, in its order.
const PARTS: [(&str, &str); 10] = [
    ("create_ms", "create"),
    ("wait_ms", "wait"),
    ("exec_ms", "exec"),
    ("boot_ms", "start, by the engine"),
    ("pause_ms", "standing still"),
    ("guest_command_ms", "command, by the guest's clock"),
    ("guest_ms", "the guest's share"),
    ("host_ms", "the host's share"),
    ("host_outside_kvm_run_ms", "host, outside the guest"),
    ("vmm_exit_handling_ms", "  of it exits"),
];

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;
    use crate::client::CreateRequest;

    #[test]
    fn what_had_no_room_is_told_from_what_broke() {
        let (n, concurrency) = (4, 2);
        let plan = Plan { op: Op::Create, n, concurrency, machine: CreateRequest::default(), tag: "t".into() };
        let refused =
            |status, code: &str| Err(ClientError::Refused { status, code: code.into(), message: "No".into() });
        let sample = Sample {
            wall: Duration::from_millis(7),
            parts: BTreeMap::from([("boot_ms", Duration::from_millis(5))]),
            boot_path: Some("warm".into()),
        };
        let outcomes = vec![
            Ok(sample),
            refused(StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY"),
            refused(StatusCode::CONFLICT, "RESOURCE_STATE"),
            refused(StatusCode::CONFLICT, "RESOURCE_STATE"),
        ];
        let host = json!({"module": "kvm_intel", "assist": false, "cpu_model": "CPU"});
        let report = Report::of(&plan, host, Duration::from_millis(500), outcomes);
        let json = report.json();
        assert_eq!((&json["success"], &json["rejected"], &json["failed"]), (&json!(1), &json!(1), &json!(2)));
        assert_eq!(json["errors"], json!({"NO_CAPACITY": 1, "RESOURCE_STATE": 2}));
        assert_eq!((&json["p99_ms"], &json["boot_ms"]["p50_ms"]), (&json!(7.0), &json!(5.0)));
        assert_eq!((&json["boot_paths"]["warm"], &json["per_second"]), (&json!(1), &json!(2.0)));
        let text = report.text();
        assert!(text.starts_with("create: 4 (2 at a time), 1 good, 1 rejected, 2 failed"), "{text}");
        assert!(text.contains("host: kvm_intel; CPU"), "{text}");
    }
}
