//! What a caller asked for, checked: each error names the field.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use time::OffsetDateTime;

use super::{Sandbox, SandboxId, SandboxSpec, SandboxState, SandboxUpdate, Shape, Size};
use crate::error::Error;
use crate::snapshot::SnapshotId;
use crate::template::Template;

/// vCPUs of a sandbox.
pub const CPU_COUNT: RangeInclusive<u32> = 1..=16;

/// Memory of a sandbox in MiB.
pub const MEMORY_MB: RangeInclusive<u32> = 512..=32768;

/// Disk of a sandbox in MiB.
pub const DISK_SIZE_MB: RangeInclusive<u32> = 1024..=204_800;

/// Seconds of a session.
pub const TIMEOUT_SEC: RangeInclusive<u32> = 1..=86_400;

/// Seconds of a session when none are given.
pub const TIMEOUT_SEC_DEFAULT: u32 = 300;

/// Seconds of inactivity; 0 is off.
pub const IDLE_TIMEOUT_SEC: RangeInclusive<u32> = 0..=86_400;

/// Most characters of a name and of each external id.
const NAME_CHARS_MAX: usize = 255;

/// Most characters of a snapshot's comment.
const COMMENT_CHARS_MAX: usize = 4096;

/// Most characters of a slug: one label of a host name (RFC 1035, 2.3.4).
const SLUG_CHARS_MAX: usize = 63;

/// Most tags.
const TAGS_MAX: usize = 64;

/// Most characters of a tag.
const TAG_CHARS_MAX: usize = 128;

/// Most bytes of metadata as JSON.
const METADATA_BYTES_MAX: usize = 64 << 10;

/// Most environment variables.
const ENV_VARIABLES_MAX: usize = 1024;

/// Most bytes of all names and values of an environment: Linux takes 128 KiB for one string, and it has to fit a frame.
const ENV_BYTES_MAX: usize = 120 << 10;

impl SandboxSpec {
    /// The record of the sandbox that this asks for, in state `creating`.
    pub(crate) fn check(self, template: &Template, now: OffsetDateTime) -> Result<Sandbox, Error> {
        let (size, shape) = self.shape(template)?;
        let least_mb = u32::try_from(template.root_bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        if shape.disk_size_mb < least_mb {
            let message = format!(
                "disk_size_mb is {}, and template '{}' needs at least {least_mb}",
                shape.disk_size_mb, template.id
            );
            return Err(Error::invalid("disk_size_mb", message));
        }
        let timeout_sec = in_range("timeout_sec", self.timeout_sec.unwrap_or(TIMEOUT_SEC_DEFAULT), TIMEOUT_SEC)?;
        let idle_timeout_sec = in_range("idle_timeout_sec", self.idle_timeout_sec.unwrap_or(0), IDLE_TIMEOUT_SEC)?;
        let persistent = persistence(self.persistent, &self.metadata)?;
        check_env("env", self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        check_metadata(&self.metadata)?;
        check_tags(&self.tags)?;
        for (field, text) in [
            ("name", &self.name),
            ("external_workspace_id", &self.external.workspace_id),
            ("external_user_id", &self.external.user_id),
            ("external_project_id", &self.external.project_id),
        ] {
            check_text(field, text.as_deref(), NAME_CHARS_MAX)?;
        }
        check_slug(self.slug.as_deref())?;
        Ok(Sandbox {
            id: SandboxId::generate(),
            state: SandboxState::Creating,
            last_error: None,
            template_id: template.id.clone(),
            size,
            shape,
            cpu_granted: None,
            timeout_sec,
            idle_timeout_sec,
            always_on: self.always_on.unwrap_or(false),
            persistent,
            env: self.env,
            metadata: self.metadata,
            name: self.name,
            slug: self.slug,
            tags: self.tags,
            external: self.external,
            boot_ms: None,
            boot_path: None,
            created_at: now,
            started_at: None,
            extended_at: None,
            paused_at: None,
            ran_ms: 0,
            ready_at: None,
            destroyed_at: None,
            generation: 0,
            forked_from: None,
            snapshot_id: None,
        })
    }

    /// The shape, and the size if it was asked for by name or by default.
    fn shape(&self, template: &Template) -> Result<(Option<Size>, Shape), Error> {
        let base = self.size.map_or(template.shape, Size::shape);
        let figures = [
            ("cpu_count", self.cpu_count, base.cpu_count, CPU_COUNT),
            ("memory_mb", self.memory_mb, base.memory_mb, MEMORY_MB),
            ("disk_size_mb", self.disk_size_mb, base.disk_size_mb, DISK_SIZE_MB),
        ];
        let mut chosen = [0; 3];
        for (place, (field, asked, base, range)) in chosen.iter_mut().zip(figures) {
            *place = in_range(field, asked.unwrap_or(base), range)?;
            if let Some(size) = self.size.filter(|_| *place != base) {
                let message =
                    format!("{field} is {place}, and size '{}' has {base}: give one or the other", size.as_str());
                return Err(Error::invalid(field, message));
            }
        }
        let [cpu_count, memory_mb, disk_size_mb] = chosen;
        let shape = Shape { cpu_count, memory_mb, disk_size_mb };
        let by_default = self.cpu_count.is_none() && self.memory_mb.is_none() && self.disk_size_mb.is_none();
        let default_size = Size::ALL.into_iter().find(|size| by_default && size.shape() == shape);
        Ok((self.size.or(default_size), shape))
    }
}

impl SandboxUpdate {
    /// The record with this laid over it.
    pub(crate) fn check(self, mut record: Sandbox) -> Result<Sandbox, Error> {
        check_text("name", self.name.as_ref().and_then(Option::as_deref), NAME_CHARS_MAX)?;
        check_slug(self.slug.as_ref().and_then(Option::as_deref))?;
        if let Some(tags) = &self.tags {
            check_tags(tags)?;
        }
        for (key, value) in self.metadata {
            if value.is_null() {
                record.metadata.remove(&key);
            } else {
                record.metadata.insert(key, value);
            }
        }
        check_metadata(&record.metadata)?;
        for (name, value) in self.env {
            match value {
                Some(value) => record.env.insert(name, value),
                None => record.env.remove(&name),
            };
        }
        check_env("env", record.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        // A policy in the metadata that was not changed here gives way to the field.
        let policy = persistence(None, &record.metadata)?;
        if let Some(persistent) = self.persistent {
            record.metadata.remove("miosa_persistent");
            record.persistent = persistent;
        } else if record.metadata.contains_key("miosa_persistent") {
            record.persistent = policy;
        }
        record.timeout_sec = in_range("timeout_sec", self.timeout_sec.unwrap_or(record.timeout_sec), TIMEOUT_SEC)?;
        record.idle_timeout_sec =
            in_range("idle_timeout_sec", self.idle_timeout_sec.unwrap_or(record.idle_timeout_sec), IDLE_TIMEOUT_SEC)?;
        record.always_on = self.always_on.unwrap_or(record.always_on);
        record.name = self.name.unwrap_or(record.name);
        record.slug = self.slug.unwrap_or(record.slug);
        record.tags = self.tags.unwrap_or(record.tags);
        Ok(record)
    }
}

/// What a caller says about a snapshot.
pub(crate) fn check_snapshot(
    name: Option<&str>,
    comment: Option<&str>,
    metadata: &serde_json::Map<String, serde_json::Value>,
) -> Result<(), Error> {
    check_text("name", name, NAME_CHARS_MAX)?;
    // Names and ids are found by the same call.
    if name.is_some_and(|name| SnapshotId::parse(name).is_some()) {
        return Err(Error::invalid("name", "name has the form of a snapshot's id"));
    }
    if let Some(chars) = comment.map(|comment| comment.chars().count()).filter(|chars| *chars > COMMENT_CHARS_MAX) {
        let message = format!("comment has {chars} characters, and at most {COMMENT_CHARS_MAX} are possible");
        return Err(Error::invalid("comment", message));
    }
    check_metadata(metadata)
}

fn in_range(field: &'static str, value: u32, range: RangeInclusive<u32>) -> Result<u32, Error> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(field, format!("{field} is {value}, and must be from {} to {}", range.start(), range.end())))
}

/// `persistent` may also hide in the metadata, where the SDK puts it with its retention policy (contract 8.1).
fn persistence(given: Option<bool>, metadata: &serde_json::Map<String, serde_json::Value>) -> Result<bool, Error> {
    let policy = match metadata.get("miosa_persistent") {
        None | Some(serde_json::Value::Null) => None,
        Some(serde_json::Value::Bool(persistent)) => Some(*persistent),
        Some(other) => {
            return Err(Error::invalid(
                "metadata",
                format!("metadata.miosa_persistent is {other}, and must be true or false"),
            ));
        }
    };
    match (given, policy) {
        (Some(given), Some(policy)) if given != policy => {
            let message = format!("persistent is {given}, and metadata.miosa_persistent is {policy}: they must agree");
            Err(Error::invalid("persistent", message))
        }
        (given, policy) => Ok(given.or(policy).unwrap_or(true)),
    }
}

/// Environment names and values, of a sandbox or of one command.
pub(crate) fn check_env<'a>(
    field: &'static str,
    variables: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), Error> {
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in variables {
        // POSIX.1-2017, base definitions 8.1 and 3.235, with the lower-case letters that everyone uses.
        let mut letters = name.bytes();
        let first = letters.next().is_some_and(|letter| letter == b'_' || letter.is_ascii_alphabetic());
        if !first || !letters.all(|letter| letter == b'_' || letter.is_ascii_alphanumeric()) {
            let message = format!(
                "{field} has the name '{}', and names are letters, digits and _, no digit first",
                shortened(name)
            );
            return Err(Error::invalid(field, message));
        }
        if value.contains('\0') {
            return Err(Error::invalid(field, format!("{field} has a zero byte in the value of {name}")));
        }
        count += 1;
        bytes += name.len() + value.len() + 2;
    }
    if count > ENV_VARIABLES_MAX || bytes > ENV_BYTES_MAX {
        let message = format!(
            "{field} has {count} variables of {bytes} bytes, and at most {ENV_VARIABLES_MAX} of {ENV_BYTES_MAX} bytes are possible"
        );
        return Err(Error::invalid(field, message));
    }
    Ok(())
}

fn check_metadata(metadata: &serde_json::Map<String, serde_json::Value>) -> Result<(), Error> {
    let bytes = serde_json::to_string(metadata).map_or(usize::MAX, |text| text.len());
    if bytes > METADATA_BYTES_MAX {
        let message = format!("metadata has {bytes} bytes as JSON, and at most {METADATA_BYTES_MAX} are possible");
        return Err(Error::invalid("metadata", message));
    }
    for key in ["snapshot_expiration_sec", "keep_last_snapshots"] {
        let fine = match metadata.get(key) {
            None | Some(serde_json::Value::Null) => true,
            Some(serde_json::Value::Object(_)) => key == "keep_last_snapshots",
            Some(value) => value.as_u64().is_some(),
        };
        if !fine {
            let message = format!("metadata.{key} must be a whole number that is not negative");
            return Err(Error::invalid("metadata", message));
        }
    }
    Ok(())
}

fn check_tags(tags: &[String]) -> Result<(), Error> {
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid(
            "tags",
            format!("tags has {} tags, and at most {TAGS_MAX} are possible", tags.len()),
        ));
    }
    for tag in tags {
        check_text("tags", Some(tag), TAG_CHARS_MAX)?;
        // A list is filtered by tags joined with commas.
        if tag.contains(',') {
            return Err(Error::invalid("tags", format!("tags has '{tag}', and a tag may not hold a comma")));
        }
    }
    Ok(())
}

fn check_text(field: &'static str, text: Option<&str>, chars_max: usize) -> Result<(), Error> {
    let Some(text) = text else { return Ok(()) };
    if text.trim().is_empty() {
        return Err(Error::invalid(field, format!("{field} is empty")));
    }
    let chars = text.chars().count();
    if chars > chars_max {
        return Err(Error::invalid(
            field,
            format!("{field} has {chars} characters, and at most {chars_max} are possible"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, format!("{field} holds a control character")));
    }
    Ok(())
}

fn check_slug(slug: Option<&str>) -> Result<(), Error> {
    let Some(slug) = slug else { return Ok(()) };
    let letters = slug.bytes().all(|letter| letter == b'-' || letter.is_ascii_lowercase() || letter.is_ascii_digit());
    if slug.is_empty() || slug.len() > SLUG_CHARS_MAX || !letters || slug.starts_with('-') || slug.ends_with('-') {
        let message = format!(
            "slug is '{}', and must be 1 to {SLUG_CHARS_MAX} lower-case letters, digits and -, no - at either end",
            shortened(slug)
        );
        return Err(Error::invalid("slug", message));
    }
    Ok(())
}

/// Enough of a wrong value to recognise it.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

/// `env` as the agent takes it.
pub(crate) fn env_pairs(env: &BTreeMap<String, String>) -> Vec<(String, String)> {
    env.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::template::tests::template;

    fn check(spec: SandboxSpec) -> Result<Sandbox, Error> {
        spec.check(&template(), OffsetDateTime::now_utc())
    }

    /// The field that is wrong and the sentence about it.
    fn refused(spec: SandboxSpec) -> (&'static str, String) {
        let error = check(spec).unwrap_err();
        (error.field().unwrap(), error.to_string())
    }

    #[test]
    fn nothing_given_is_a_small_persistent_sandbox_of_five_minutes() {
        let sandbox = check(SandboxSpec::default()).unwrap();
        assert_eq!(sandbox.size, Some(Size::Small));
        assert_eq!(sandbox.shape, Shape { cpu_count: 2, memory_mb: 4096, disk_size_mb: 20480 });
        assert_eq!((sandbox.timeout_sec, sandbox.idle_timeout_sec), (300, 0));
        assert!(sandbox.persistent && !sandbox.always_on);
        assert!(SandboxId::parse(sandbox.id.as_str()).is_some(), "{}", sandbox.id);
    }

    #[test]
    fn figures_make_a_custom_shape_without_a_size() {
        let spec = SandboxSpec { cpu_count: Some(1), memory_mb: Some(512), ..SandboxSpec::default() };
        let sandbox = check(spec).unwrap();
        assert_eq!(sandbox.size, None);
        assert_eq!(sandbox.shape, Shape { cpu_count: 1, memory_mb: 512, disk_size_mb: 20480 });
    }

    #[test]
    fn a_size_and_the_same_figures_agree_and_other_figures_conflict() {
        let spec = SandboxSpec { size: Some(Size::Xs), cpu_count: Some(1), ..SandboxSpec::default() };
        assert_eq!(check(spec).unwrap().size, Some(Size::Xs));
        let spec = SandboxSpec { size: Some(Size::Xs), memory_mb: Some(4096), ..SandboxSpec::default() };
        let (field, message) = refused(spec);
        assert_eq!(field, "memory_mb");
        assert_eq!(message, "memory_mb is 4096, and size 'xs' has 2048: give one or the other");
    }

    #[test]
    fn every_figure_has_its_range_and_the_error_names_it() {
        let with = |set: &dyn Fn(&mut SandboxSpec)| {
            let mut spec = SandboxSpec::default();
            set(&mut spec);
            refused(spec)
        };
        assert_eq!(with(&|s| s.cpu_count = Some(17)).0, "cpu_count");
        assert_eq!(with(&|s| s.cpu_count = Some(0)).0, "cpu_count");
        assert_eq!(with(&|s| s.memory_mb = Some(511)).1, "memory_mb is 511, and must be from 512 to 32768");
        assert_eq!(with(&|s| s.disk_size_mb = Some(1023)).0, "disk_size_mb");
        assert_eq!(with(&|s| s.timeout_sec = Some(0)).0, "timeout_sec");
        assert_eq!(with(&|s| s.idle_timeout_sec = Some(86_401)).0, "idle_timeout_sec");
        assert_eq!(with(&|s| s.name = Some(" ".into())).0, "name");
        assert_eq!(with(&|s| s.name = Some("x".repeat(256))).0, "name");
        assert_eq!(with(&|s| s.name = Some("a\nb".into())).0, "name");
        assert_eq!(with(&|s| s.slug = Some("-a".into())).0, "slug");
        assert_eq!(with(&|s| s.tags = vec!["a,b".into()]).0, "tags");
        assert_eq!(with(&|s| s.tags = vec!["a".into(); 65]).0, "tags");
        assert_eq!(with(&|s| s.external.user_id = Some(String::new())).0, "external_user_id");
        assert_eq!(with(&|s| _ = s.metadata.insert("a".into(), json!("x".repeat(65 << 10)))).0, "metadata");
        assert_eq!(with(&|s| _ = s.metadata.insert("keep_last_snapshots".into(), json!(-1))).0, "metadata");
    }

    #[test]
    fn a_disk_holds_at_least_the_template() {
        let mut template = template();
        template.root_bytes = (1500 << 20) + 1;
        let spec = SandboxSpec { disk_size_mb: Some(1500), ..SandboxSpec::default() };
        let error = spec.check(&template, OffsetDateTime::now_utc()).unwrap_err();
        assert!(error.to_string().contains("at least 1501"), "{error}");
    }

    #[test]
    fn environment_names_are_posix_names() {
        for (name, fine) in
            [("A", true), ("_a1", true), ("1A", false), ("", false), ("A-B", false), ("A=B", false), ("É", false)]
        {
            let spec = SandboxSpec { env: [(name.to_owned(), "v".to_owned())].into(), ..SandboxSpec::default() };
            assert_eq!(check(spec).is_ok(), fine, "{name}");
        }
        let spec = SandboxSpec { env: [("A".to_owned(), "a\0".to_owned())].into(), ..SandboxSpec::default() };
        assert_eq!(refused(spec).0, "env");
        let spec = SandboxSpec { env: [("A".to_owned(), "a".repeat(ENV_BYTES_MAX))].into(), ..SandboxSpec::default() };
        assert_eq!(refused(spec).0, "env");
    }

    #[test]
    fn persistence_may_hide_in_the_metadata() {
        let with = |persistent, policy: serde_json::Value| {
            let metadata = [("miosa_persistent".to_owned(), policy)].into_iter().collect();
            check(SandboxSpec { persistent, metadata, ..SandboxSpec::default() })
        };
        assert!(!with(None, json!(false)).unwrap().persistent);
        assert!(with(Some(true), json!(true)).unwrap().persistent);
        assert_eq!(with(Some(true), json!(false)).unwrap_err().field(), Some("persistent"));
        assert_eq!(with(None, json!("yes")).unwrap_err().field(), Some("metadata"));
    }
}
