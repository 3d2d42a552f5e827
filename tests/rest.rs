//! The wire itself: who may call, prefixes, idempotency, heartbeats, event framing, and a server without KVM.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Api, RawAnswer, Shared, TestHost, parallel, raw_request, small};

/// A heartbeat byte is due by then.
const HEARTBEAT_MAX: Duration = Duration::from_secs(11);

/// A refusal must not take long.
const REFUSAL_MAX: Duration = Duration::from_secs(5);

pub fn tests(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        parallel(shared, "rest::only_the_right_host_origin_and_token_get_in", guarded),
        parallel(shared, "rest::every_prefix_leads_to_the_same_api", prefixes),
        parallel(shared, "rest::a_wrong_field_is_named", wrong_fields),
        parallel(shared, "rest::the_same_key_means_the_same_sandbox", idempotency),
        parallel(shared, "rest::a_long_exec_is_kept_alive", heartbeat),
        parallel(shared, "rest::events_are_framed_as_the_contract_says", event_framing),
        parallel(shared, "rest::a_command_ends_when_its_caller_goes_away", caller_goes_away),
        parallel(shared, "rest::a_server_without_kvm_says_what_is_missing", without_kvm),
    ]
}

fn port(api: &Api) -> Result<u16> {
    api.origin.rsplit(':').next().and_then(|port| port.parse().ok()).context("The origin has no port")
}

/// A raw request with the headers given, which may lie.
fn raw(api: &Api, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Result<RawAnswer> {
    let mut lines = String::new();
    for (name, value) in headers {
        lines.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{lines}\r\n{body}");
    raw_request(port(api)?, &request)
}

fn guarded(shared: &Shared) -> Result<()> {
    let api = shared.host()?.api();
    let host = format!("127.0.0.1:{}", port(&api)?);
    let token = format!("Bearer {}", api.token);
    let status = |headers: &[(&str, &str)]| -> Result<Option<u16>> {
        Ok(raw(&api, "GET", "/api/v1/sandboxes", headers, "")?.status())
    };
    let (good_host, good_token) = (("Host", host.as_str()), ("Authorization", token.as_str()));
    ensure!(status(&[good_host, good_token])? == Some(200), "the right ones");
    ensure!(status(&[("Host", "evil.example"), good_token])? == Some(421), "a foreign host");
    ensure!(status(&[("Host", "127.0.0.1"), good_token])? == Some(421), "a host without port");
    ensure!(status(&[good_host, good_token, ("Origin", "https://evil.example")])? == Some(403), "a foreign page");
    ensure!(status(&[good_host, good_token, ("Origin", "null")])? == Some(403), "a page without origin");
    ensure!(status(&[good_host])? == Some(401), "no token");
    ensure!(status(&[good_host, ("Authorization", "Bearer wrong")])? == Some(401), "a wrong token");
    let health = raw(&api, "GET", "/healthz", &[good_host], "")?;
    ensure!(health.status() == Some(200), "health needs no token");
    // A form of a foreign page cannot say that its body is JSON.
    let headers = [good_host, good_token, ("Content-Type", "text/plain")];
    let answer = raw(&api, "POST", "/api/v1/sandboxes", &headers, "{}")?;
    ensure!(matches!(answer.status(), Some(400 | 415 | 422)), "a body that is not JSON: {}", answer.head);
    Ok(())
}

fn prefixes(shared: &Shared) -> Result<()> {
    let api = shared.host()?.api();
    let id = shared.sandbox()?.id;
    let headers = [("Host", format!("127.0.0.1:{}", port(&api)?)), ("Authorization", format!("Bearer {}", api.token))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for prefix in ["/api/v1", "/api/v1/api/v1", "/v1", ""] {
        let answer = raw(&api, "GET", &format!("{prefix}/sandboxes/{id}"), &headers, "")?;
        ensure!(answer.status() == Some(200), "{prefix}: {}", answer.head);
        ensure!(answer.head.to_lowercase().contains("content-type: application/json"), "{prefix}: {}", answer.head);
        ensure!(String::from_utf8_lossy(&answer.body).contains(&id), "{prefix} has another record");
        let answer = raw(&api, "GET", &format!("{prefix}/sandboxes/sbx_nosuchone"), &headers, "")?;
        ensure!(answer.status() == Some(404), "{prefix}: {}", answer.head);
    }
    Ok(())
}

fn wrong_fields(shared: &Shared) -> Result<()> {
    let api = shared.host()?.api();
    let wrong: [(&str, Value); 8] = [
        ("cpu_count", json!({ "cpu_count": 17, "memory_mb": 512, "disk_size_mb": 4096 })),
        ("memory_mb", json!({ "cpu_count": 1, "memory_mb": 511, "disk_size_mb": 4096 })),
        ("disk_size_mb", json!({ "cpu_count": 1, "memory_mb": 512, "disk_size_mb": 1023 })),
        ("timeout_sec", json!({ "timeout_sec": 0 })),
        ("idle_timeout_sec", json!({ "idle_timeout_sec": 86401 })),
        ("size", json!({ "size": "huge" })),
        ("env", json!({ "env": { "A=B": "x" } })),
        ("name", json!({ "name": "" })),
    ];
    for (field, body) in wrong {
        let answer = api.post("/sandboxes", &body)?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status == 422 || answer.status == 400, "{field} is taken: {text}");
        let (code, message) = answer.error()?;
        ensure!(message.contains(field), "{code} does not name {field}: {message}");
        ensure!(answer.headers.contains_key("x-request-id"), "No request id: {text}");
    }
    let unknown = api.post("/sandboxes", &json!({ "template_id": "no-such-template" }))?;
    ensure!(unknown.error()?.0 == "TEMPLATE_NOT_FOUND", "{:?}", unknown.error()?);
    let broken =
        api.send(api.request(Method::POST, "/sandboxes").header("content-type", "application/json").body("{"))?;
    ensure!(broken.status == 400 || broken.status == 422, "Half a document gets {}", broken.status);
    ensure!(api.get("/no/such/route")?.status == 404);
    ensure!(api.send(api.request(Method::PUT, "/sandboxes"))?.status == 405);
    Ok(())
}

fn idempotency(shared: &Shared) -> Result<()> {
    let host = shared.host()?;
    let api = host.api();
    let key = format!("e2e-{}", std::process::id());
    let create = |body: &Value| -> Result<Answer> {
        let request = api.request(Method::POST, "/sandboxes").query(&[("wait", "false")]);
        api.send(request.header("Idempotency-Key", &key).json(body))
    };
    let first = create(&small())?;
    ensure!(first.status == 201, "The first create gets {}", first.status);
    let id = first.data()?["id"].clone();
    let again = create(&small())?;
    ensure!(again.status == 200 && again.data()?["id"] == id, "The same key made another sandbox: {}", again.data()?);
    let other = create(&json!({ "size": "xs" }))?;
    ensure!(other.status == 422 && other.error()?.0 == "IDEMPOTENCY_KEY_REUSED", "{:?}", other.error()?);
    host.destroy(id.as_str().context("no id")?)?.data()?;
    let after = create(&small())?;
    ensure!(after.status == 201 && after.data()?["id"] != id, "A destroyed sandbox came back: {}", after.data()?);
    host.destroy(after.data()?["id"].as_str().context("no id")?)?.data().map(drop)
}

/// A raw POST of JSON to the shared sandbox.
fn raw_post(shared: &Shared, route: &str, body: &Value) -> Result<RawAnswer> {
    let api = shared.host()?.api();
    let path = format!("/api/v1{}", shared.sandbox()?.path(route));
    let (host, token) = (format!("127.0.0.1:{}", port(&api)?), format!("Bearer {}", api.token));
    let headers = [("Host", host.as_str()), ("Authorization", token.as_str()), ("Content-Type", "application/json")];
    raw(&api, "POST", &path, &headers, &body.to_string())
}

fn heartbeat(shared: &Shared) -> Result<()> {
    let answer = raw_post(shared, "/exec", &json!({ "command": "sleep 12; echo done" }))?;
    ensure!(answer.status() == Some(200), "{}", answer.head);
    ensure!(answer.head.to_lowercase().contains("transfer-encoding: chunked"), "{}", answer.head);
    let (first, _) = answer.arrivals.first().context("No body came")?;
    ensure!(*first <= HEARTBEAT_MAX, "The first byte came after {} ms", first.as_millis());
    let body = answer.unchunked()?;
    ensure!(body[0].is_ascii_whitespace(), "No heartbeat: {}", String::from_utf8_lossy(&body));
    let document: Value = serde_json::from_slice(&body)?;
    ensure!(document["data"]["stdout"] == "done\n" && document["data"]["exit_code"] == 0, "{document}");
    Ok(())
}

fn event_framing(shared: &Shared) -> Result<()> {
    let line = "printf 'one\\ntwo\\nhalf'; printf 'oops\\n' >&2; printf 'a\\xe2\\x80\\xa8b\\n'; exit 7";
    let answer = raw_post(shared, "/exec/stream", &json!({ "command": line }))?;
    ensure!(answer.status() == Some(200), "{}", answer.head);
    let head = answer.head.to_lowercase();
    ensure!(head.contains("content-type: text/event-stream") && !head.contains("content-encoding"), "{head}");
    let text = String::from_utf8(answer.unchunked()?).context("The stream is not UTF-8")?;
    ensure!(text.ends_with("\n\n"), "The last frame is not ended");
    ensure!(!text.contains(['\u{85}', '\u{2028}', '\u{2029}', '\r']), "A raw line break would cut the frame: {text:?}");
    let frames: Vec<&str> = text.split("\n\n").filter(|frame| !frame.is_empty() && !frame.starts_with(':')).collect();
    let lines_of = |event: &str| -> Result<Vec<String>> {
        let begin = format!("event: {event}\ndata: ");
        let data = frames.iter().filter_map(|frame| frame.strip_prefix(&begin));
        data.map(|data| Ok(serde_json::from_str::<Value>(data)?["line"].as_str().context("no line")?.to_owned()))
            .collect()
    };
    ensure!(lines_of("stdout")? == ["one", "two", "halfa\u{2028}b"], "{frames:?}");
    ensure!(lines_of("stderr")? == ["oops"], "{frames:?}");
    let last =
        frames.last().and_then(|frame| frame.strip_prefix("event: exit\ndata: ")).context("The exit is not last")?;
    ensure!(serde_json::from_str::<Value>(last)?["exit_code"] == 7, "{last}");
    Ok(())
}

fn caller_goes_away(shared: &Shared) -> Result<()> {
    let api = shared.host()?.api();
    let sandbox = shared.sandbox()?;
    let url = format!("{}{}", api.base_url(), sandbox.path("/exec"));
    let impatient = reqwest::blocking::Client::builder().no_proxy().timeout(Duration::from_millis(1500)).build()?;
    let body = json!({ "command": ["sleep", "4242"] });
    ensure!(impatient.post(url).bearer_auth(&api.token).json(&body).send().is_err(), "sleep 4242 came back");
    let left = "for i in $(seq 50); do pgrep -f 'sleep 424[2]' >/dev/null || exit 0; sleep 0.1; done; exit 1";
    let ran = sandbox.run(left)?;
    ensure!(ran.exit_code == 0, "The command runs on: {ran:?}");
    Ok(())
}

fn without_kvm(_: &Shared) -> Result<()> {
    TestHost::start_with(&[("COVE_KVM", "/nonexistent")])?.test(|host| {
        let began = Instant::now();
        let answer = host.api().post("/sandboxes", &small())?;
        let (code, message) = answer.error()?;
        ensure!(answer.status >= 400 && message.contains("/nonexistent"), "{code}: {message}");
        ensure!(host.api().get("/sandbox-templates")?.status == 200);
        ensure!(host.list()?.is_empty(), "A sandbox that cannot run was recorded");
        let doctor = host.cove(&["doctor"]).env("COVE_KVM", "/nonexistent").output()?;
        let said = String::from_utf8_lossy(&doctor.stdout);
        ensure!(doctor.status.code() == Some(1) && said.contains("/nonexistent"), "{said}");
        ensure!(began.elapsed() < REFUSAL_MAX, "It took {} ms to say no", began.elapsed().as_millis());
        Ok(())
    })
}
