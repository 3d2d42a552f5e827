//! The committed document is what the routes say.

#[test]
fn the_committed_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(committed.trim_end() == cove_api::openapi_json(), "run `cargo xtask codegen` and commit api/openapi.json");
}
