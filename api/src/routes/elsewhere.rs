//! Paths of the contract that only make sense in the vendor's cloud: 501 `NOT_AVAILABLE_LOCALLY` with the reason, so that a
//! caller knows that the path is right and the place is not. 501 and not 503, which clients repeat.

use axum::http::StatusCode;

use crate::error::ApiError;

/// First segments, and why there is nothing behind them.
const PLACES: &[(&[&str], &str)] = &[
    (
        &["egress"],
        "sandboxes have no network device on this server, so there is no traffic to allow, deny, log or put secrets into; give \
         values as the sandbox's env",
    ),
    (
        &["environments"],
        "environments are kept in the vendor's cloud; give env, files and commands when you create a sandbox",
    ),
    (&["computers", "opencomputers"], "computers are desktops in the vendor's cloud; use sandboxes"),
    (
        &["deployments", "docker-deploy", "deployment-environments", "services", "domains", "forge", "builder-apps"],
        "deployments live in the vendor's cloud; expose a port of a sandbox instead",
    ),
    (
        &["runs", "agent-runs", "agents", "workflows", "completions", "embeddings", "models"],
        "agents and models run in the vendor's cloud; run your own agent against the sandbox API or /mcp",
    ),
    (
        &[
            "databases",
            "storage",
            "volumes",
            "functions",
            "cron-jobs",
            "health-checks",
            "webhooks",
            "email",
            "notifications",
        ],
        "this is a service of the vendor's cloud",
    ),
    (
        &[
            "projects",
            "workspaces",
            "platform",
            "tenant",
            "organizations",
            "org-invites",
            "admin",
            "api-keys",
            "tokens",
            "service-accounts",
            "credits",
            "billing",
            "usage",
            "quotas",
            "settings",
            "analytics",
            "audit-log",
            "regions",
            "compute",
            "connectors",
            "event-subscriptions",
            "event-deliveries",
            "cloud",
            "community",
            "benchmarks",
        ],
        "there are no accounts, plans or regions on one computer",
    ),
];

/// What stands behind a sandbox's id, and why there is nothing behind it.
const BELOW_SANDBOX: &[(&str, &str)] = &[
    ("ssh-certificates", "this server signs no SSH keys; install one with POST /sandboxes/{id}/ssh-keys"),
    ("browser", "templates bring no browser; run one in the sandbox and reach its port by a preview or tunnel"),
    ("connectors", "this server has no connections to services elsewhere; give values as the sandbox's env"),
    ("deploy", "deployments live in the vendor's cloud; expose a port of the sandbox instead"),
    ("agent", "agents run in the vendor's cloud; run your own against the sandbox API or /mcp"),
];

/// The answer for a path that no route has, if it is one of these.
pub(super) fn answer(path: &str) -> Option<ApiError> {
    let path = crate::mount::without_prefix(path);
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let first = segments.next()?;
    let reason = match first {
        "sandboxes" | "devices" => {
            let below = segments.nth(1)?;
            BELOW_SANDBOX.iter().find(|(name, _)| *name == below)?.1
        }
        "actions" => "approvals and grants are kept in the vendor's cloud; whoever has the token may do everything",
        first => PLACES.iter().find(|(names, _)| names.contains(&first))?.1,
    };
    let message = format!("Not available on this server: {reason}");
    Some(ApiError::new(StatusCode::NOT_IMPLEMENTED, "NOT_AVAILABLE_LOCALLY", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_elsewhere_says_why_and_what_is_unknown_stays_unknown() {
        for path in [
            "/egress/secrets",
            "/api/v1/egress/policies/p1",
            "/environments/e/variables/A/reveal",
            "/sandboxes/sbx_1/ssh-certificates",
            "/sandboxes/sbx_1/browser/cdp-url",
            "/api/v1/api/v1/sandboxes/sbx_1/connectors/sync",
            "/sandboxes/sbx_1/deploy",
            "/computers/c1/exec",
            "/actions/approvals",
        ] {
            let error = answer(path).unwrap();
            assert_eq!((error.status().as_u16(), error.code()), (501, "NOT_AVAILABLE_LOCALLY"), "{path}");
        }
        for path in ["/", "/sandboxes", "/sandboxes/sbx_1", "/sandboxes/sbx_1/nothing", "/nothing"] {
            assert!(answer(path).is_none(), "{path}");
        }
    }
}
