//! Prints the OpenAPI document: `cargo run -p cove-api --example openapi > api/openapi.json`.

fn main() {
    println!("{}", cove_api::openapi_json());
}
