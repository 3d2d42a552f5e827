//! A template on the wire (contract 8.15).

use cove_engine::Template;
use serde::Serialize;
use utoipa::ToSchema;

use super::timestamp;

/// All templates.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TemplateList {
    /// The one that create uses when the caller names none.
    pub default_template_id: Option<String>,
    /// Each template.
    pub data: Vec<TemplateRecord>,
}

/// What sandboxes can be made from.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are those of the contract; what is not obvious has a line")]
pub struct TemplateRecord {
    pub id: String,
    pub name: String,
    pub slug: String,
    pub description: String,
    pub image_id: String,
    /// Changes whenever the template's files do.
    pub version: String,
    /// Other names under which create finds it.
    pub aliases: Vec<String>,
    pub category: String,
    pub default: bool,
    pub built_in: bool,
    pub status: String,
    /// Of a sandbox whose caller names no shape.
    pub cpu_count: u32,
    pub default_cpu: u32,
    pub memory_mb: u32,
    pub default_memory_mb: u32,
    pub disk_mb: u32,
    /// The smallest disk that it fits on.
    pub disk_mb_min: u64,
    pub workdir: String,
    pub preview_port: Option<u16>,
    pub install_command: Option<String>,
    pub start_command: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub readiness_probe: Option<serde_json::Value>,
    pub runtimes: Vec<String>,
    pub artifact_paths: Vec<String>,
    pub tags: Vec<String>,
    pub created_at: String,
}

impl From<Template> for TemplateRecord {
    fn from(template: Template) -> Self {
        Self {
            slug: template.id.clone(),
            image_id: template.id.clone(),
            id: template.id,
            name: template.name,
            description: template.description,
            version: template.version,
            aliases: template.aliases,
            category: "base".into(),
            default: template.default,
            built_in: template.built_in,
            status: "ready".into(),
            cpu_count: template.shape.cpu_count,
            default_cpu: template.shape.cpu_count,
            memory_mb: template.shape.memory_mb,
            default_memory_mb: template.shape.memory_mb,
            disk_mb: template.shape.disk_size_mb,
            disk_mb_min: template.root_bytes.div_ceil(1 << 20),
            workdir: template.workdir,
            preview_port: None,
            install_command: None,
            start_command: None,
            readiness_probe: None,
            runtimes: vec!["standard".into()],
            artifact_paths: Vec::new(),
            tags: template.tags,
            created_at: timestamp(template.created_at),
        }
    }
}

impl TemplateList {
    /// The list of `templates`.
    pub fn of(templates: Vec<Template>) -> Self {
        let default = templates.iter().find(|template| template.default);
        Self {
            default_template_id: default.map(|template| template.id.clone()),
            data: templates.into_iter().map(TemplateRecord::from).collect(),
        }
    }
}
