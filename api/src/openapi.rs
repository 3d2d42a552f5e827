//! The OpenAPI 3.1 document, made from the routes and the types. Committed as `api/openapi.json`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, Schema, Server};
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
    add_examples(&mut document);
    // The document is plain data.
    document.to_pretty_json().unwrap_or_default()
}

/// Examples of the types that have none beside them, by their names in the document.
const EXAMPLES: &str = include_str!("openapi/examples.json");

/// Gives every type its example, and an envelope the example of what is in it.
fn add_examples(document: &mut utoipa::openapi::OpenApi) {
    let Some(components) = &mut document.components else { return };
    // A file of ours, looked at by a test.
    let mut examples: BTreeMap<String, Value> = serde_json::from_str(EXAMPLES).unwrap_or_default();
    for (name, schema) in &components.schemas {
        if let Some(example) = example_of(schema) {
            examples.insert(name.clone(), example);
        }
    }
    for (name, schema) in &mut components.schemas {
        let enveloped = name.strip_prefix("Data_").and_then(|inner| {
            let data = match inner.strip_prefix("Vec_") {
                Some(item) => json!([examples.get(item)?]),
                None => examples.get(inner)?.clone(),
            };
            Some(json!({ "data": data }))
        });
        if let Some(example) = examples.get(name).cloned().or(enveloped) {
            set_example(schema, example);
        }
    }
}

fn example_of(schema: &RefOr<Schema>) -> Option<Value> {
    match schema {
        RefOr::T(Schema::Object(object)) => object.example.clone().or_else(|| object.examples.first().cloned()),
        RefOr::T(Schema::AllOf(all)) => all.example.clone(),
        _ => None,
    }
}

fn set_example(schema: &mut RefOr<Schema>, example: Value) {
    match schema {
        RefOr::T(Schema::Object(object)) => object.example = Some(example),
        RefOr::T(Schema::AllOf(all)) => all.example = Some(example),
        _ => {}
    }
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
    use super::*;

    /// What is wrong with an example, as paths.
    fn faults(document: &Value, schema: &Value, example: &Value, at: &str, found: &mut Vec<String>) {
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            return faults(document, &document["components"]["schemas"][name], example, at, found);
        }
        if let (Some(items), Some(values)) = (schema.get("items"), example.as_array()) {
            values.iter().for_each(|value| faults(document, items, value, &format!("{at}[]"), found));
        }
        let (Some(known), Some(fields)) = (schema["properties"].as_object(), example.as_object()) else { return };
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                found.push(format!("{at}.{name} is missing"));
            }
        }
        for (name, value) in fields {
            match known.get(name) {
                Some(schema) => faults(document, schema, value, &format!("{at}.{name}"), found),
                // What a kind of event says stands beside its fields.
                None if at == "EventRecord" => {}
                None => found.push(format!("{at}.{name} is unknown")),
            }
        }
    }

    #[test]
    fn every_body_has_an_example_that_is_one() {
        let document: Value = serde_json::from_str(&openapi_json()).unwrap();
        let mut found = Vec::new();
        let calls = document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
        let bodies = calls.flat_map(|call| {
            let good = call["responses"].as_object().unwrap().iter().filter(|(status, _)| *status != "default");
            good.map(|(_, answer)| answer).chain([&call["requestBody"]]).filter_map(|body| body["content"].as_object())
        });
        let schemas = bodies.flat_map(|content| content.values()).map(|content| &content["schema"]);
        for name in schemas.filter_map(|schema| schema["$ref"].as_str()?.rsplit('/').next()) {
            let schema = &document["components"]["schemas"][name];
            match schema.get("example") {
                Some(example) => faults(&document, schema, example, name, &mut found),
                None => found.push(format!("{name} has no example; see openapi/examples.json")),
            }
        }
        found.sort();
        found.dedup();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

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
