//! What sandboxes look like on a host that can run none.

use serde_json::json;

use crate::harness::TestServer;

#[tokio::test]
async fn create_says_what_is_missing_at_once() {
    let server = TestServer::start().await;
    let began = std::time::Instant::now();
    let answer = server.post("/sandboxes", json!({"template_id": "miosa-sandbox"})).await;
    assert_eq!(answer.refusal(), (501, "HOST_NOT_READY"));
    assert!(!answer.message().is_empty());
    assert_eq!(answer.body["error"]["retryable"], false);
    assert!(began.elapsed().as_secs() < 5);
    // Nothing is left of it.
    assert_eq!(server.get("/sandboxes").await.body, json!({"data": []}));
    server.stop().await;
}

#[tokio::test]
async fn lists_are_enveloped_and_every_filter_is_known() {
    let server = TestServer::start().await;
    let query = "state=running&tags=a%2Cb&external_workspace_id=w&external_user_id=u&external_project_id=p&extra=1";
    for path in
        ["/sandboxes", &format!("/sandboxes?{query}"), "/sandboxes?state=stopped", "/sandboxes?state=provisioning"]
    {
        let answer = server.get(path).await;
        assert_eq!((answer.status, &answer.body), (200, &json!({"data": []})), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn templates_are_listed_and_an_unknown_one_is_named() {
    let server = TestServer::start().await;
    let list = server.get("/sandbox-templates?include_aliases=true").await;
    assert_eq!((list.status, list.body["data"].is_array()), (200, true));
    assert!(list.body.as_object().unwrap().contains_key("default_template_id"));
    let none = server.get("/sandbox-templates/none").await;
    assert_eq!(none.refusal(), (404, "TEMPLATE_NOT_FOUND"));
    server.stop().await;
}

#[tokio::test]
async fn the_system_says_what_may_be_asked_for_and_what_is_missing() {
    let server = TestServer::start().await;
    let system = server.get("/system").await;
    let data = &system.body["data"];
    assert_eq!(data["limits"]["cpu_count"], json!([1, 16]));
    assert_eq!(data["limits"]["memory_mb"], json!([512, 32768]));
    assert!(data["host"]["problem"].is_string());
    let diagnosis = server.get("/system/checks").await;
    let checks = diagnosis.body["data"]["checks"].as_array().unwrap().clone();
    let check = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap().clone();
    assert_eq!((&diagnosis.body["data"]["status"], &check("data_dir")["status"]), (&json!("error"), &json!("ok")));
    assert!(check("guest_image")["advice"].is_string() && check("data_dir")["advice"].is_null());
    server.stop().await;
}
