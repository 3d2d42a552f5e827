//! Many clients at one server: everyone gets an answer, and everyone's own.
//!
//! Figures are reported and not asserted, since they are the host's as much as the server's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Api, Shared, exclusive, full, small};

/// Between two calls of one client: what a busy page or agent does, and not a flood.
const THINK: Duration = Duration::from_millis(400);

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![exclusive(shared, "traffic::many_clients_at_once_are_all_answered_with_their_own", many_clients)]
}

/// Sandboxes, clients, and how long they ask.
fn size() -> (usize, usize, Duration) {
    full((10, 200, Duration::from_secs(60)), (2, 40, Duration::from_secs(8)))
}

/// How long calls took, by kind of call.
type Times = BTreeMap<&'static str, Vec<Duration>>;

fn many_clients(shared: &Shared) -> Result<()> {
    let host = shared.own_host()?;
    let outcome = (|| {
        let (sandboxes, clients, length) = size();
        let ids = (0..sandboxes).map(|_| Ok(host.sandbox(&small())?.id)).collect::<Result<Vec<String>>>()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let times = runtime.block_on(ask_all(host.api(), &ids, clients, length))?;
        report(&times, clients, sandboxes);
        for id in &ids {
            host.destroy(id)?.data()?;
        }
        host.finish()
    })();
    outcome.map_err(|error: anyhow::Error| error.context(host.report()))
}

async fn ask_all(api: Api, ids: &[String], clients: usize, length: Duration) -> Result<Times> {
    let until = Instant::now() + length;
    let asking: Vec<_> = (0..clients)
        .map(|number| {
            let (api, id) = (api.clone(), ids[number % ids.len()].clone());
            tokio::spawn(async move { ask(&api, &id, number, until).await.with_context(|| format!("client {number}")) })
        })
        .collect();
    let mut all = Times::new();
    for client in asking {
        for (kind, times) in client.await?? {
            all.entry(kind).or_default().extend(times);
        }
    }
    Ok(all)
}

/// One client with one connection: mixed calls until the time is over.
async fn ask(api: &Api, id: &str, number: usize, until: Instant) -> Result<Times> {
    let http = Client::builder().no_proxy().pool_max_idle_per_host(1).tcp_nodelay(true).build()?;
    let request =
        |method: Method, path: &str| http.request(method, format!("{}{path}", api.base_url())).bearer_auth(&api.token);
    let of = |route: &str| format!("/sandboxes/{id}{route}");
    let file = format!("/workspace/client-{number}");
    let mut times = Times::new();
    let mut turn = number * 7;
    // Not all in the same moment.
    wait(THINK.mul_f64((number % 16) as f64 / 16.0)).await;
    while Instant::now() < until {
        let mine = format!("{number} {turn}");
        let began = Instant::now();
        // One call in forty enters a guest: those of a host that emulates their kernels do a few such things a second.
        let kind = match turn % 200 {
            0 => {
                let exec = request(Method::POST, &of("/exec")).json(&json!({ "command": format!("echo {mine}") }));
                let answer = json_of(exec).await?;
                ensure!(answer["data"]["stdout"] == format!("{mine}\n"), "{answer}");
                "exec"
            }
            50 | 150 => {
                body_of(request(Method::PUT, &of(&format!("/files{file}"))).body(mine.clone())).await?;
                let read = request(Method::GET, &of("/fs/download")).query(&[("path", &file)]);
                let read = body_of(read).await?;
                ensure!(read == mine.as_bytes(), "{} instead of {mine}", String::from_utf8_lossy(&read));
                "file there and back"
            }
            100 | 175 => {
                let answer = json_of(request(Method::GET, &of("/files"))).await?;
                ensure!(answer["data"]["path"] == "/workspace", "{answer}");
                "list"
            }
            turn => {
                let route = ["", "/metrics", "/usage", "/env", "/readiness", "/previews", "/resources"][turn % 7];
                let answer = json_of(request(Method::GET, &of(route))).await?;
                let data = &answer["data"];
                let named = data["id"].as_str().or(data["sandbox_id"].as_str());
                ensure!(named.is_none_or(|named| named == id), "{answer} is not about {id}");
                "no guest"
            }
        };
        times.entry(kind).or_default().push(began.elapsed());
        turn += 1;
        wait(THINK).await;
    }
    Ok(times)
}

async fn wait(time: Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + time).await;
}

async fn json_of(request: RequestBuilder) -> Result<Value> {
    Ok(serde_json::from_slice(&body_of(request).await?)?)
}

async fn body_of(request: RequestBuilder) -> Result<Vec<u8>> {
    let response = request.send().await?;
    let (status, url) = (response.status(), response.url().clone());
    let body = response.bytes().await?;
    ensure!(status == StatusCode::OK, "{url}: {status} {}", String::from_utf8_lossy(&body));
    Ok(body.into())
}

fn report(times: &Times, clients: usize, sandboxes: usize) {
    eprintln!("  {clients} clients, {sandboxes} sandboxes:");
    for (kind, times) in times {
        let mut times = times.clone();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
        let (p50, p95, p99, max) = (at(50), at(95), at(99), at(100));
        let count = times.len();
        eprintln!("  {kind:20} {count:6} calls  p50 {p50:.1} ms  p95 {p95:.1} ms  p99 {p99:.1} ms  max {max:.1} ms");
    }
}
