//! The OpenAPI 3.1 document, made from the routes and the types. Committed as `api/openapi.json`.

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder, Server};
use utoipa::{Modify, OpenApi};

use crate::error::{ErrorBody, ErrorEnvelope};
use crate::routes;

/// What holds for every call.
const ABOUT: &str = "Sandboxes on this machine. Compatible with the MIOSA sandbox API.

Every call but `/healthz` needs `Authorization: Bearer <token>`. Errors are an `ErrorEnvelope`; programs switch on \
`error.code`. Every answer has the header `x-request-id`, under which the server's log has more.

A call that takes longer than 10 s is answered with success then, one space every 10 s, and at last the JSON document. If \
it fails after that, the document of create is the error envelope; exec and run have `data` with exit code 255 beside it; \
all others (pause, resume, snapshots, restore, fork, destroy, file writes) break the answer off.";

#[derive(OpenApi)]
#[openapi(
    info(title = "Cove", description = ABOUT),
    components(schemas(ErrorEnvelope, ErrorBody)),
    security(("token" = [])),
    modifiers(&Basics),
)]
pub(crate) struct Document;

struct Basics;

impl Modify for Basics {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        document.servers = Some(vec![Server::new("/api/v1")]);
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The document as JSON text, without a newline at its end.
pub fn openapi_json() -> String {
    let mut document = routes::all().into_openapi();
    for (path, mut item) in std::mem::take(&mut document.paths.paths) {
        operations(&mut item).for_each(add_error_answer);
        // `{*path}` is axum's spelling of "the rest, with slashes"; OpenAPI has none.
        document.paths.paths.insert(path.replace("{*", "{"), item);
    }
    // The document is plain data.
    document.to_pretty_json().unwrap_or_default()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().filter_map(Option::as_mut)
}

/// Every call may answer the error envelope.
fn add_error_answer(operation: &mut Operation) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorEnvelope"))).build();
    let answer = ResponseBuilder::new()
        .description("Refused or failed; `error.code` says why")
        .content("application/json", content)
        .build();
    operation.responses.responses.insert("default".into(), answer.into());
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_is_openapi_3_1_and_complete() {
        let document: Value = serde_json::from_str(&openapi_json()).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        for path in ["/sandboxes", "/sandboxes/{id}/exec", "/sandboxes/{id}/files/{path}", "/healthz"] {
            assert!(document["paths"][path].is_object(), "{path}");
        }
        assert!(document["paths"]["/sandboxes"]["post"]["responses"]["default"].is_object());
    }

    #[test]
    fn every_reference_has_its_schema() {
        let text = openapi_json();
        let document: Value = serde_json::from_str(&text).unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
