//! What create takes (contract 8.1).

use std::collections::BTreeMap;

use cove_engine::{External, SandboxSpec, Size};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;

/// What create takes. Fields that are not listed are accepted and ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct CreateBody {
    /// Template id, slug or alias; the default template when absent. `image` and `template` mean the same.
    #[serde(alias = "image", alias = "template")]
    pub template_id: Option<String>,
    /// A named size. Without it and without single figures: `small`.
    #[schema(value_type = Option<String>, example = "small")]
    pub size: Option<Size>,
    /// vCPUs, 1-16.
    pub cpu_count: Option<u32>,
    /// Memory in MiB, 512-32768.
    pub memory_mb: Option<u32>,
    /// Disk in MiB, 1024-204800. `disk_mb` means the same.
    #[serde(alias = "disk_mb")]
    pub disk_size_mb: Option<u32>,
    /// Seconds of a session, 1-86400; 300 when absent.
    pub timeout_sec: Option<u32>,
    /// Seconds of inactivity, 0 (off, the default) to 86400.
    pub idle_timeout_sec: Option<u32>,
    /// Kept when it stops; true when absent.
    pub persistent: Option<bool>,
    /// No timeout is enforced.
    pub always_on: Option<bool>,
    /// Environment of every process.
    pub env: Option<BTreeMap<String, String>>,
    /// The caller's own data.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Unique among live sandboxes.
    pub name: Option<String>,
    /// A short name for URLs.
    pub slug: Option<String>,
    /// Labels to filter by.
    pub tags: Option<Vec<String>>,
    /// Stored, echoed, and a filter of the list.
    pub external_workspace_id: Option<String>,
    /// Stored, echoed, and a filter of the list.
    pub external_user_id: Option<String>,
    /// Stored, echoed, and a filter of the list.
    pub external_project_id: Option<String>,
    /// When the host has no room: answer `NO_READY_MACHINE`, which clients do not repeat.
    pub fail_fast: Option<bool>,
    /// `standard` and `auto` are this server's own machines; `soma` is refused.
    pub runtime_profile: Option<String>,
    /// Fields that change what runs in the sandbox and that this server does not act on: refused rather than ignored.
    #[serde(flatten)]
    #[schema(ignore)]
    pub refused: Refused,
}

/// See [`CreateBody::refused`].
#[derive(Debug, Default, Deserialize)]
pub struct Refused {
    setup_file: Option<Value>,
    services: Option<Value>,
    entrypoint: Option<Value>,
    readiness_probe: Option<Value>,
    auto_start: Option<Value>,
    environment: Option<Value>,
    environment_id: Option<Value>,
    env_id: Option<Value>,
}

impl Refused {
    fn check(&self) -> Result<(), ApiError> {
        let given = [
            ("setup_file", &self.setup_file),
            ("services", &self.services),
            ("entrypoint", &self.entrypoint),
            ("readiness_probe", &self.readiness_probe),
            ("auto_start", &self.auto_start),
            ("environment", &self.environment),
            ("environment_id", &self.environment_id),
            ("env_id", &self.env_id),
        ];
        match given.into_iter().find(|(_, value)| value.as_ref().is_some_and(says_something)) {
            Some((field, _)) => {
                Err(ApiError::invalid(field, format!("{field} has no effect on this server; leave it out")))
            }
            None => Ok(()),
        }
    }
}

/// `null`, `false`, `""`, `[]` and `{}` ask for nothing.
pub(super) fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) | Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

impl CreateBody {
    /// The engine's form. The engine checks the values; what it has no field for is checked here.
    pub fn into_spec(self) -> Result<SandboxSpec, ApiError> {
        self.refused.check()?;
        if let Some(profile) = self.runtime_profile.as_deref().filter(|profile| !["standard", "auto"].contains(profile))
        {
            let message = format!("runtime_profile is '{profile}'; this server has 'standard' and 'auto'");
            return Err(ApiError::invalid("runtime_profile", message));
        }
        Ok(SandboxSpec {
            template: self.template_id,
            size: self.size,
            cpu_count: self.cpu_count,
            memory_mb: self.memory_mb,
            disk_size_mb: self.disk_size_mb,
            timeout_sec: self.timeout_sec,
            idle_timeout_sec: self.idle_timeout_sec,
            always_on: self.always_on,
            persistent: self.persistent,
            env: self.env.unwrap_or_default(),
            metadata: self.metadata.unwrap_or_default(),
            name: self.name,
            slug: self.slug,
            tags: self.tags.unwrap_or_default(),
            external: External {
                workspace_id: self.external_workspace_id,
                user_id: self.external_user_id,
                project_id: self.external_project_id,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_be_ignored_silently_is_refused_by_name() {
        let body = |json: Value| serde_json::from_value::<CreateBody>(json).unwrap().into_spec();
        assert!(body(json!({"setup_file": "", "services": [], "no_env": true, "region": "eu"})).is_ok());
        for (field, value) in
            [("setup_file", json!("echo")), ("services", json!([{}])), ("runtime_profile", json!("soma"))]
        {
            let error = body(json!({ field: value })).unwrap_err();
            assert!(error.message().starts_with(field), "{}", error.message());
        }
    }

    #[test]
    fn image_and_disk_mb_are_other_spellings() {
        let body: CreateBody =
            serde_json::from_value(json!({"image": "python", "disk_mb": 2048, "env": null})).unwrap();
        let spec = body.into_spec().unwrap();
        assert_eq!((spec.template.as_deref(), spec.disk_size_mb), (Some("python"), Some(2048)));
    }
}
