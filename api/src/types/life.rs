//! What the calls on a living sandbox take: resume, extend, change, tags, many at once (contract 8.6, 9: X01, X02, X57-X59).

use std::collections::BTreeMap;

use cove_engine::{External, SandboxFilter, SandboxId, SandboxUpdate};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;

/// Most sandboxes that one call may name.
const IDS_MAX: usize = 1000;

/// Takes no fields; any that come are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EmptyBody {}

/// A field that is there has a value, which may be `null`: `None` is "leave it", `Some(None)` is "take it away".
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// What resume takes.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"env": {"STAGE": "two"}}))]
pub struct ResumeBody {
    /// Laid over the sandbox's environment, for processes started from now on.
    pub env: Option<BTreeMap<String, String>>,
    /// Selectors of environment templates, which this server does not have: refused rather than ignored.
    #[serde(flatten)]
    #[schema(ignore)]
    pub selectors: EnvironmentSelectors,
}

/// See [`ResumeBody::selectors`].
#[derive(Debug, Default, Deserialize)]
pub struct EnvironmentSelectors {
    environment: Option<Value>,
    environment_id: Option<Value>,
    env_id: Option<Value>,
}

impl EnvironmentSelectors {
    /// Refuses a selector that names something.
    pub fn check(&self) -> Result<(), ApiError> {
        let given =
            [("environment", &self.environment), ("environment_id", &self.environment_id), ("env_id", &self.env_id)];
        match given.into_iter().find(|(_, value)| value.as_ref().is_some_and(super::create::says_something)) {
            Some((field, _)) => {
                Err(ApiError::invalid(field, format!("{field} has no effect on this server; leave it out")))
            }
            None => Ok(()),
        }
    }
}

/// What extend takes.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"timeout_sec": 3600}))]
pub struct ExtendBody {
    /// Seconds of the session from now on, 1-86400; as before when absent.
    pub timeout_sec: Option<u32>,
}

/// What to change of a sandbox. Fields that are absent stay; fields that are not listed are ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"name": "build", "metadata": {"team": "core", "old": null}, "timeout_sec": 3600}))]
pub struct UpdateBody {
    /// A new name; `null` takes it away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Option<String>>,
    /// A new slug; `null` takes it away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub slug: Option<Option<String>>,
    /// In place of the old tags.
    pub tags: Option<Vec<String>>,
    /// Laid over the metadata; `null` removes a key. `miosa_persistent`, `keep_last_snapshots` and
    /// `snapshot_expiration_sec` have their effect.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Seconds of a session, 1-86400.
    pub timeout_sec: Option<u32>,
    /// Seconds of inactivity, 0 (off) to 86400.
    pub idle_timeout_sec: Option<u32>,
    /// No timeout is enforced.
    pub always_on: Option<bool>,
    /// Kept when it stops.
    pub persistent: Option<bool>,
}

impl From<UpdateBody> for SandboxUpdate {
    fn from(body: UpdateBody) -> Self {
        SandboxUpdate {
            name: body.name,
            slug: body.slug,
            tags: body.tags,
            metadata: body.metadata.unwrap_or_default(),
            timeout_sec: body.timeout_sec,
            idle_timeout_sec: body.idle_timeout_sec,
            always_on: body.always_on,
            persistent: body.persistent,
            env: BTreeMap::new(),
        }
    }
}

/// A sandbox's tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"tags": ["ci", "nightly"]}))]
pub struct Tags {
    /// All of them.
    pub tags: Vec<String>,
}

/// Which sandboxes a call on many means: by id, or by what they have. One of the two.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"ids": ["sbx_4k2p", "sbx_9w1z"]}))]
pub struct BulkBody {
    /// These, at most 1000.
    pub ids: Option<Vec<String>>,
    /// All that match.
    pub filter: Option<BulkFilter>,
}

/// What sandboxes must have. At least one field; unknown ones are refused, since ignoring one would mean more sandboxes.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkFilter {
    /// In this state.
    pub state: Option<String>,
    /// All of these tags: a list, or one text with commas.
    pub tags: Option<TagList>,
    /// Made from this template.
    pub template_id: Option<String>,
    /// With this name.
    pub name: Option<String>,
    /// With this id of the caller's own system.
    pub external_workspace_id: Option<String>,
    /// With this id of the caller's own system.
    pub external_user_id: Option<String>,
    /// With this id of the caller's own system.
    pub external_project_id: Option<String>,
}

/// Tags as a list, or in one text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a list of tags, or tags separated by commas")]
pub enum TagList {
    /// Each by itself.
    List(Vec<String>),
    /// With commas between them.
    Text(String),
}

impl TagList {
    fn into_tags(self) -> Vec<String> {
        match self {
            TagList::List(tags) => tags,
            TagList::Text(text) => {
                text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
            }
        }
    }
}

/// The sandboxes of a [`BulkBody`].
#[derive(Debug, PartialEq, Eq)]
pub enum Many {
    /// By id, each once, as they were written.
    Ids(Vec<String>),
    /// By what they have.
    Filter(SandboxFilter),
}

impl BulkBody {
    /// Who is meant.
    pub fn into_many(self) -> Result<Many, ApiError> {
        match (self.ids, self.filter) {
            (Some(_), Some(_)) => Err(ApiError::invalid("filter", "ids and filter cannot be given together")),
            (None, None) => Err(ApiError::invalid("ids", "ids is missing; or give filter")),
            (Some(ids), None) if ids.len() > IDS_MAX => {
                Err(ApiError::invalid("ids", format!("ids has {} entries; {IDS_MAX} is the most", ids.len())))
            }
            (Some(ids), None) => {
                let mut each = Vec::with_capacity(ids.len());
                for id in ids {
                    if !each.contains(&id) {
                        each.push(id);
                    }
                }
                Ok(Many::Ids(each))
            }
            (None, Some(filter)) => filter.into_filter().map(Many::Filter),
        }
    }
}

impl BulkFilter {
    fn into_filter(self) -> Result<SandboxFilter, ApiError> {
        let filter = SandboxFilter {
            state: self.state.as_deref().map(super::state_word).transpose()?,
            tags: self.tags.map(TagList::into_tags).unwrap_or_default(),
            template_id: self.template_id,
            name: self.name,
            external: External {
                workspace_id: self.external_workspace_id,
                user_id: self.external_user_id,
                project_id: self.external_project_id,
            },
        };
        if filter == SandboxFilter::default() {
            return Err(ApiError::invalid("filter", "filter says nothing, and would mean every sandbox"));
        }
        Ok(filter)
    }
}

/// What became of many sandboxes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct BulkOutcome {
    /// Done, or already so.
    pub succeeded: Vec<String>,
    /// Not done.
    pub failed: Vec<BulkFailure>,
}

/// Why one of many was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BulkFailure {
    /// Which.
    pub id: String,
    /// The stable code of the error.
    #[schema(value_type = String)]
    pub code: &'static str,
    /// A sentence for people.
    pub error: String,
}

impl BulkFailure {
    /// Of this one.
    pub fn of(id: impl ToString, error: &ApiError) -> Self {
        Self { id: id.to_string(), code: error.code(), error: error.message().to_owned() }
    }
}

/// The sandbox that an `{id}` or an entry of `ids` names. What is no id names no sandbox: 404, never 400 (contract 4).
pub fn sandbox_id(id: &str) -> Result<SandboxId, ApiError> {
    SandboxId::parse(id).ok_or_else(|| cove_engine::Error::SandboxNotFound(id.to_owned()).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn update(body: Value) -> SandboxUpdate {
        serde_json::from_value::<UpdateBody>(body).unwrap().into()
    }

    #[test]
    fn null_takes_a_name_away_and_nothing_leaves_it() {
        assert_eq!(update(json!({})), SandboxUpdate::default());
        assert_eq!(update(json!({"name": null})).name, Some(None));
        assert_eq!(update(json!({"name": "a", "slug": "b"})).name, Some(Some("a".into())));
        assert_eq!(update(json!({"metadata": null, "tags": null})), SandboxUpdate::default());
    }

    #[test]
    fn many_are_named_in_one_of_two_ways() {
        let many = |body: Value| serde_json::from_value::<BulkBody>(body).unwrap().into_many();
        assert_eq!(many(json!({"ids": ["a", "b", "a"]})).unwrap(), Many::Ids(vec!["a".into(), "b".into()]));
        let Many::Filter(filter) = many(json!({"filter": {"tags": "a, b", "state": "running"}})).unwrap() else {
            panic!("no filter")
        };
        assert_eq!(filter.tags, ["a", "b"]);
        for (body, about) in [
            (json!({}), "ids is missing"),
            (json!({"filter": {}}), "every sandbox"),
            (json!({"filter": {"tags": []}}), "every sandbox"),
            (json!({"ids": [], "filter": {"name": "x"}}), "together"),
            (json!({"ids": vec!["x"; IDS_MAX + 1]}), "1000"),
            (json!({"filter": {"state": "asleep"}}), "asleep"),
        ] {
            let error = many(body).unwrap_err();
            assert!(error.message().contains(about), "{}", error.message());
        }
        assert!(serde_json::from_value::<BulkBody>(json!({"filter": {"tag": "x"}})).is_err());
    }

    #[test]
    fn a_selector_that_names_something_is_refused() {
        let check = |body: Value| serde_json::from_value::<ResumeBody>(body).unwrap().selectors.check();
        assert!(check(json!({"no_env": true, "environment": null, "env": {"A": "1"}})).is_ok());
        assert!(check(json!({"environment_id": "e1"})).unwrap_err().message().starts_with("environment_id"));
    }
}
