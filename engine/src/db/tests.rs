//! The database on temporary directories: rows and types, journal, recovery of old files.

use std::time::Duration;

use time::OffsetDateTime;

use super::*;
use crate::idempotency::{Answer, Replay};
use crate::sandbox::{External, Sandbox, SandboxFilter, SandboxId, SandboxSpec, SandboxState, Size};
use crate::storage::{Holding, Image, ImageId, Layer, LayerId, Share};
use crate::template::tests::template;

/// A database in a fresh directory, with one template.
pub(crate) async fn database() -> (tempfile::TempDir, Db) {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(&folder.path().join("cove.db")).await.unwrap();
    db.insert_template(&TemplateVersion { template: template(), root_modified_us: 5 }).await.unwrap();
    (folder, db)
}

/// A record as a create makes it.
pub(crate) fn sandbox(spec: SandboxSpec) -> Sandbox {
    // What the database keeps: microseconds.
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(now.microsecond() * 1000).unwrap();
    spec.check(&template(), now).unwrap()
}

/// A new layer on another one, or on the template's base layer.
pub(crate) fn layer(parent: Option<&LayerId>) -> Layer {
    Layer {
        id: LayerId::generate(),
        parent: parent.cloned(),
        template_id: "miosa-sandbox".into(),
        template_version: "v1".into(),
        disk_bytes: 1 << 30,
        frozen: false,
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_sandbox_is_read_as_it_was_written() {
    let (_folder, db) = database().await;
    let mut written = sandbox(SandboxSpec {
        size: Some(Size::Medium),
        timeout_sec: Some(77),
        persistent: Some(false),
        env: [("A".to_owned(), "ü\u{2028}".to_owned())].into(),
        metadata: [("k".to_owned(), serde_json::json!({"n": 1.5}))].into_iter().collect(),
        name: Some("a/b c".into()),
        slug: Some("a-b".into()),
        tags: vec!["x".into(), "y".into()],
        external: External { workspace_id: Some("w".into()), user_id: None, project_id: Some("p".into()) },
        ..SandboxSpec::default()
    });
    assert!(db.begin_create(&written, "v1", &layer(None), MINUTE).await.unwrap().is_some());
    assert_eq!(db.sandbox(&written.id).await.unwrap(), Some(written.clone()));
    written.state = SandboxState::Running;
    written.boot_ms = Some(1234);
    written.boot_path = Some(crate::sandbox::BootPath::Cold);
    written.cpu_granted = Some(2);
    written.ready_at = Some(written.created_at);
    db.end_operations(&written, Outcome::Done).await.unwrap();
    assert_eq!(db.sandbox_by_name("a/b c").await.unwrap(), Some(written));
}

#[tokio::test]
async fn a_name_belongs_to_one_live_sandbox() {
    let (_folder, db) = database().await;
    let named = || sandbox(SandboxSpec { name: Some("web".into()), ..SandboxSpec::default() });
    let mut first = named();
    assert!(db.begin_create(&first, "v1", &layer(None), MINUTE).await.unwrap().is_some());
    assert!(db.begin_create(&named(), "v1", &layer(None), MINUTE).await.unwrap().is_none());
    assert_eq!(db.count_live().await.unwrap(), 1);
    first.state = SandboxState::Destroyed;
    first.destroyed_at = Some(OffsetDateTime::now_utc());
    db.end_destroy(&first).await.unwrap();
    assert!(db.begin_create(&named(), "v1", &layer(None), MINUTE).await.unwrap().is_some());
}

async fn open(db: &Db) -> Vec<(SandboxId, OperationKind)> {
    db.open_operations().await.unwrap().into_iter().map(|open| (open.sandbox, open.kind)).collect()
}

#[tokio::test]
async fn the_journal_holds_what_was_begun_until_it_ends() {
    let (_folder, db) = database().await;
    let mut it = sandbox(SandboxSpec::default());
    db.begin_create(&it, "v1", &layer(None), MINUTE).await.unwrap().unwrap();
    assert_eq!(open(&db).await, [(it.id.clone(), OperationKind::Create)]);
    // A destroy takes the place of the create.
    it.state = SandboxState::Destroying;
    db.begin_operation(&it, OperationKind::Destroy, MINUTE).await.unwrap();
    assert_eq!(open(&db).await, [(it.id.clone(), OperationKind::Destroy)]);
    it.state = SandboxState::Destroyed;
    it.destroyed_at = Some(OffsetDateTime::now_utc());
    db.end_destroy(&it).await.unwrap();
    assert!(db.open_operations().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_list_is_filtered_by_every_field() {
    let (_folder, db) = database().await;
    let all = [
        SandboxSpec { tags: vec!["a".into(), "b".into()], ..SandboxSpec::default() },
        SandboxSpec { tags: vec!["a".into()], name: Some("n".into()), ..SandboxSpec::default() },
        SandboxSpec {
            external: External { user_id: Some("u".into()), ..External::default() },
            ..SandboxSpec::default()
        },
    ];
    let mut ids = Vec::new();
    for spec in all {
        let it = sandbox(spec);
        db.begin_create(&it, "v1", &layer(None), MINUTE).await.unwrap();
        ids.push(it.id);
    }
    let list = async |filter: SandboxFilter| {
        let found = db.sandboxes(&filter).await.unwrap();
        found.iter().map(|found| ids.iter().position(|id| *id == found.id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(list(SandboxFilter::default()).await, [0, 1, 2]);
    assert_eq!(list(SandboxFilter { tags: vec!["a".into()], ..SandboxFilter::default() }).await, [0, 1]);
    assert_eq!(list(SandboxFilter { tags: vec!["b".into(), "a".into()], ..SandboxFilter::default() }).await, [0]);
    assert_eq!(list(SandboxFilter { name: Some("n".into()), ..SandboxFilter::default() }).await, [1]);
    let external = External { user_id: Some("u".into()), ..External::default() };
    assert_eq!(list(SandboxFilter { external, ..SandboxFilter::default() }).await, [2]);
    let nothing: [usize; 0] = [];
    assert_eq!(list(SandboxFilter { state: Some(SandboxState::Running), ..SandboxFilter::default() }).await, nothing);
    assert_eq!(list(SandboxFilter { template_id: Some("other".into()), ..SandboxFilter::default() }).await, nothing);
    let injected = SandboxFilter { name: Some("' OR '1'='1".into()), ..SandboxFilter::default() };
    assert_eq!(list(injected).await, nothing);
}

#[tokio::test]
async fn a_destroyed_sandbox_is_remembered_for_a_day_and_its_keys_are_not() {
    let (_folder, db) = database().await;
    let mut it = sandbox(SandboxSpec::default());
    db.begin_create(&it, "v1", &layer(None), MINUTE).await.unwrap();
    let now = OffsetDateTime::now_utc();
    let replay = Replay { status: 201, answer: Answer::Sandbox(it.id.clone()) };
    db.put_answer("k", "h", &replay).await.unwrap();
    db.put_answer("body", "h", &Replay { status: 422, answer: Answer::Body("{}".into()) }).await.unwrap();
    assert_eq!(db.answer("k", now).await.unwrap(), Some(("h".into(), replay)));
    let (machine, chain) = (MachineRow { pid: 7, start_ticks: u64::MAX / 4 }, vec![LayerId::generate()]);
    let holding = db.holding(&it.id).await.unwrap();
    let step = Step { machine: Some(MachineStep::Put(machine, &chain)), ..Step::default() };
    db.step(Step { sandbox: Some((&it, &holding)), ..step }).await.unwrap();
    assert_eq!(db.machine(&it.id).await.unwrap(), Some((machine, chain)));
    it.state = SandboxState::Destroyed;
    it.destroyed_at = Some(now);
    db.end_destroy(&it).await.unwrap();
    assert_eq!(db.answer("k", now).await.unwrap(), None);
    assert_eq!(db.machine(&it.id).await.unwrap(), None);
    db.forget_old(now + time::Duration::hours(23)).await.unwrap();
    assert!(db.sandbox(&it.id).await.unwrap().is_some());
    assert!(db.answer("body", now).await.unwrap().is_some());
    assert_eq!(db.forget_old(now + time::Duration::hours(25)).await.unwrap(), 1);
    assert_eq!(db.sandbox(&it.id).await.unwrap(), None);
    assert_eq!(db.answer("body", now).await.unwrap(), None);
}

#[tokio::test]
async fn an_unreadable_value_is_named() {
    let (_folder, db) = database().await;
    let it = sandbox(SandboxSpec::default());
    db.begin_create(&it, "v1", &layer(None), MINUTE).await.unwrap();
    sqlx::query("UPDATE sandboxes SET state = 'stopped'").execute(&db.pool).await.unwrap();
    let error = db.sandbox(&it.id).await.unwrap_err();
    assert_eq!(error.to_string(), "The database holds 'stopped' as state, which this version cannot read");
}

#[tokio::test]
async fn writers_wait_for_each_other() {
    let (_folder, db) = database().await;
    let writers = (0..40).map(|_| {
        let db = db.clone();
        tokio::spawn(async move {
            let mut it = sandbox(SandboxSpec::default());
            db.begin_create(&it, "v1", &layer(None), MINUTE).await.unwrap().unwrap();
            it.state = SandboxState::Running;
            db.end_operations(&it, Outcome::Done).await.unwrap();
        })
    });
    futures_util::future::join_all(writers).await.into_iter().for_each(|result| result.unwrap());
    assert_eq!(db.count_live().await.unwrap(), 40);
}

/// Sets on every connection how large the file may become.
async fn limit_pages(db: &Db, pages: i64) {
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut connection = db.pool.acquire().await.unwrap();
        let pragma = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(pragma).execute(&mut *connection).await.unwrap();
        all.push(connection);
    }
}

#[tokio::test]
async fn after_a_full_disk_the_database_can_be_used_again() {
    let (_folder, db) = database().await;
    limit_pages(&db, 1).await;
    let big = || sandbox(SandboxSpec { tags: vec!["x".repeat(100); 60], ..SandboxSpec::default() });
    let mut failures = 0;
    for _ in 0..200 {
        if let Err(error) = db.begin_create(&big(), "v1", &layer(None), MINUTE).await {
            assert!(error.is_no_space(), "{error:?}");
            failures += 1;
        }
    }
    // A connection that failed is replaced by one without the bound.
    assert!((1..=CONNECTIONS_MAX).contains(&failures), "{failures}");
    for _ in 0..20 {
        assert!(db.begin_create(&big(), "v1", &layer(None), MINUTE).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn the_database_is_durable_and_opens_again() {
    let (folder, db) = database().await;
    let it = sandbox(SandboxSpec::default());
    db.begin_create(&it, "v1", &layer(None), MINUTE).await.unwrap();
    for (pragma, expected) in [("PRAGMA synchronous", 2_i64), ("PRAGMA foreign_keys", 1)] {
        let row = sqlx::query(pragma).fetch_one(&db.pool).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), expected, "{pragma}");
    }
    let mode: String = sqlx::query("PRAGMA journal_mode").fetch_one(&db.pool).await.unwrap().get(0);
    assert_eq!(mode, "wal");
    db.close().await;
    let db = Db::open(&folder.path().join("cove.db")).await.unwrap();
    assert_eq!(db.sandbox(&it.id).await.unwrap().unwrap().id, it.id);
    assert!(SandboxId::parse("sbx_").is_none());
}

#[tokio::test]
async fn a_template_that_a_sandbox_stands_on_is_kept() {
    let (_folder, db) = database().await;
    db.begin_create(&sandbox(SandboxSpec::default()), "v1", &layer(None), MINUTE).await.unwrap();
    let mut newer = template();
    newer.version = "v2".into();
    db.insert_template(&TemplateVersion { template: newer, root_modified_us: 6 }).await.unwrap();
    assert_eq!(db.templates().await.unwrap().len(), 1);
    assert!(db.delete_unused_template_versions().await.unwrap().is_empty());
    assert!(db.make_template_current("miosa-sandbox", "v1").await.unwrap());
    assert!(!db.make_template_current("miosa-sandbox", "v3").await.unwrap());
    assert_eq!(db.templates().await.unwrap()[0].template.version, "v1");
    assert_eq!(db.delete_unused_template_versions().await.unwrap(), [("miosa-sandbox".into(), "v2".into())]);
}

fn image(layer: &LayerId) -> Image {
    Image {
        id: ImageId::generate(),
        layer: layer.clone(),
        fingerprint: "f".into(),
        vcpus: 1,
        memory_mb: 512,
        bytes: 7,
        created_at: OffsetDateTime::UNIX_EPOCH,
    }
}

fn snapshot(of: &Sandbox, holding: Holding) -> SnapshotRow {
    let snapshot = crate::snapshot::Snapshot {
        id: crate::snapshot::SnapshotId::generate(),
        sandbox_id: of.id.clone(),
        sandbox_name: Some("a name".into()),
        parent_id: None,
        name: Some("before".into()),
        comment: Some("Übung".into()),
        metadata: [("k".to_owned(), serde_json::json!(1))].into_iter().collect(),
        template_id: "miosa-sandbox".into(),
        size: Some(Size::Small),
        shape: of.shape,
        env: of.env.clone(),
        has_memory: holding.image.is_some(),
        share: Share::default(),
        generation: 3,
        paused_us: Some(5),
        created_at: of.created_at,
        updated_at: of.created_at,
        expires_at: Some(of.created_at),
    };
    SnapshotRow { snapshot, template_version: "v1".into(), holding }
}

#[tokio::test]
async fn layers_and_images_live_as_long_as_something_refers_to_them() {
    let (_folder, db) = database().await;
    let mut it = sandbox(SandboxSpec::default());
    let (base, top) = (layer(None), LayerId::generate());
    db.begin_create(&it, "v1", &base, MINUTE).await.unwrap().unwrap();
    let top = Layer { id: top, parent: Some(base.id.clone()), ..layer(None) };
    let (first, second) = (image(&base.id), image(&top.id));
    let holding = Holding { layer: Some(top.id.clone()), image: None };
    let row = snapshot(&it, Holding { layer: Some(base.id.clone()), image: Some(first.id.clone()) });
    let step = Step { layers: vec![&top], freeze: Some(&base.id), image: Some(&first), ..Step::default() };
    db.step(Step { sandbox: Some((&it, &holding)), snapshot: Some(&row), ..step }).await.unwrap();
    let chain = db.chain(&top.id).await.unwrap();
    assert_eq!(chain, [Layer { frozen: true, ..base.clone() }, top.clone()]);
    assert_eq!(db.snapshot("before").await.unwrap(), Some(row.clone()));
    assert_eq!(db.delete_unreferenced(&[]).await.unwrap(), (vec![], vec![]));

    // A paused sandbox holds its image; one that is pinned is held too.
    let paused = Holding { image: Some(second.id.clone()), ..holding.clone() };
    db.step(Step { image: Some(&second), sandbox: Some((&it, &paused)), ..Step::default() }).await.unwrap();
    assert_eq!(db.delete_unreferenced(&[]).await.unwrap(), (vec![], vec![]));
    db.step(Step { sandbox: Some((&it, &holding)), ..Step::default() }).await.unwrap();
    assert_eq!(db.delete_unreferenced(std::slice::from_ref(&second.id)).await.unwrap(), (vec![], vec![]));
    assert_eq!(db.delete_unreferenced(&[]).await.unwrap(), (vec![second.id], vec![]));

    // The sandbox goes: its top does too, and what the snapshot needs stays.
    it.state = SandboxState::Destroyed;
    it.destroyed_at = Some(OffsetDateTime::now_utc());
    db.end_destroy(&it).await.unwrap();
    assert_eq!(db.delete_unreferenced(&[]).await.unwrap(), (vec![], vec![top.id]));
    assert!(!db.delete_snapshot(&row.snapshot.id).await.unwrap(), "it has a name");
    let mut unnamed = row.snapshot.clone();
    unnamed.name = None;
    assert!(db.update_snapshot(&unnamed).await.unwrap());
    assert_eq!(db.expired_snapshots(OffsetDateTime::now_utc()).await.unwrap().len(), 1);
    assert!(db.delete_snapshot(&row.snapshot.id).await.unwrap());
    assert_eq!(db.delete_unreferenced(&[]).await.unwrap(), (vec![first.id], vec![base.id]));
}

#[tokio::test]
async fn a_deleted_snapshot_leaves_its_place_in_the_tree_to_its_parent() {
    let (_folder, db) = database().await;
    let it = sandbox(SandboxSpec::default());
    let base = layer(None);
    db.begin_create(&it, "v1", &base, MINUTE).await.unwrap().unwrap();
    let holding = Holding { layer: Some(base.id.clone()), image: None };
    let mut parent = None;
    let mut rows = Vec::new();
    for _ in 0..3 {
        let mut row = snapshot(&it, holding.clone());
        (row.snapshot.name, row.snapshot.parent_id) = (None, parent);
        db.step(Step { snapshot: Some(&row), ..Step::default() }).await.unwrap();
        parent = Some(row.snapshot.id.clone());
        rows.push(row.snapshot);
    }
    assert!(db.delete_snapshot(&rows[1].id).await.unwrap());
    let last = db.snapshot(rows[2].id.as_str()).await.unwrap().unwrap();
    assert_eq!(last.snapshot.parent_id, Some(rows[0].id.clone()));
}
