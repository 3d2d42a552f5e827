//! The REST API: translate, check, delegate. One [`router`] for the window, the browser, the CLI and the SDK.
//!
//! ```text
//! trace (id, log line, panic) ─► limits (head) ─► mount (the four prefixes) ─► guard (Host, Origin, token, rate) ─► routes ─► Engine
//! ```
//!
//! `cove serve` and the desktop window make an [`ApiConfig`], a router, and [`serve`] it. The engine knows no HTTP; what
//! it says becomes a status and a code in `error.rs` alone. The contract (paths, shapes, codes) is `api/openapi.json`.
#![forbid(unsafe_code)]
// utoipa's `params(...)` expands to `<T as utoipa::IntoParams>::...`, which the lint takes for ours.
#![allow(unused_qualifications)]

mod auth;
mod base64;
mod config;
mod error;
mod extract;
mod heartbeat;
mod idempotency;
mod limits;
mod lines;
mod mount;
mod openapi;
mod page;
mod preview;
mod routes;
mod serve;
mod sse;
mod tickets;
pub mod token;
mod trace;
mod types;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state, map_request};
use cove_engine::{Engine, Sandbox};

use limits::Rates;
use tickets::Tickets;

use types::{SandboxRecord, UrlInfo};

pub use config::{ApiConfig, PORT_DEFAULT, base_url};
pub use limits::RATE_DEFAULT;
pub use openapi::openapi_json;
pub use preview::ALIAS_PORT_DEFAULT;
pub use serve::{serve, serve_all};

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Api {
    pub engine: Engine,
    pub config: Arc<ApiConfig>,
    pub tickets: Arc<Tickets>,
    pub rates: Arc<Rates>,
}

impl Api {
    /// A sandbox's record now, with its first preview.
    pub(crate) fn record(&self, sandbox: Sandbox) -> SandboxRecord {
        let info = self
            .engine
            .first_preview(&sandbox.id)
            .map(|preview| UrlInfo::new(&preview.record, &sandbox, self.config.alias_port));
        SandboxRecord::now(sandbox).with_preview(info)
    }
}

/// The whole API, mounted at `/api/v1` and its aliases.
pub fn router(engine: Engine, config: ApiConfig) -> Router {
    let rates = Arc::new(Rates::new(config.rate_per_second));
    let api = Api { engine, config: Arc::new(config), tickets: Arc::default(), rates };
    let (routes, _) = routes::all().split_for_parts();
    let routes = routes
        .merge(page::routes())
        .fallback(routes::unknown_route)
        .method_not_allowed_fallback(routes::wrong_method)
        .with_state(api.clone());
    // The prefix is cut off before the routes are looked at, which is why they are a service inside a router.
    Router::new()
        .fallback_service(routes)
        .layer(from_fn_with_state(api, auth::guard))
        .layer(map_request(mount::strip_prefix))
        .layer(from_fn(limits::check_head))
        .layer(from_fn(trace::trace))
}
