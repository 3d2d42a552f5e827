//! The files of templates: `<data>/templates/<id>/<version>/root.ext4`, never written to after their import.
//!
//! The built-in template is imported from the guest directory at start, without copying its bytes where the file system
//! can: reflink, else hard link, else a copy that keeps the holes. An image that someone wrote to after its import is
//! noticed by its size and time of change, before a sandbox is put on it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom as RawSeekFrom, ioctl_ficlone, seek};
use serde::Deserialize;
use time::OffsetDateTime;

use super::Template;
use crate::config::{GuestDir, Paths};
use crate::data_dir::make_dir;
use crate::db::{Db, TemplateVersion};
use crate::error::Error;
use crate::sandbox::Size;

/// The built-in template's id.
pub const BUILT_IN: &str = "miosa-sandbox";

/// Its other names: what the image really is. The Python in it is Debian bookworm's, 3.11.
const BUILT_IN_ALIASES: [&str; 10] =
    ["default", "base", "debian", "debian-12", "bookworm", "python", "python3", "python-3.11", "node", "nodejs"];

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// What the engine reads of a guest directory's `manifest.json`.
#[derive(Debug, Deserialize)]
struct Manifest {
    hash: Option<String>,
    agent: Option<ManifestAgent>,
}

#[derive(Debug, Deserialize)]
struct ManifestAgent {
    protocol_version: Option<u32>,
}

/// Makes the guest directory's image the current version of the built-in template, unless it already is.
pub(crate) async fn import_built_in(db: &Db, paths: &Paths, guest: &GuestDir) -> Result<(), Error> {
    let (hash, found) = (read_manifest(guest)?, root_facts(&guest.root)?);
    let version = format!("{hash}-{:x}", found.modified_us);
    if db.make_template_current(BUILT_IN, &version).await? {
        return Ok(());
    }
    let dir = version_dir(paths, BUILT_IN, &version);
    let root = dir.join("root.ext4");
    let (from, to) = (guest.root.clone(), root.clone());
    let imported = blocking(move || {
        make_dir(&dir)?;
        take_over(&from, &to)?;
        root_facts(&to)
    });
    let imported = imported.await?;
    let template = Template {
        id: BUILT_IN.into(),
        version,
        name: "MIOSA sandbox".into(),
        description: "Debian 12 with bash, git, curl, Python 3.11 in /opt/venv and Node.js".into(),
        aliases: BUILT_IN_ALIASES.map(String::from).into(),
        built_in: true,
        default: true,
        shape: Size::Small.shape(),
        workdir: cove_protocol::guest::DEFAULT_CWD.into(),
        tags: vec!["debian".into(), "python".into(), "node".into()],
        root,
        root_bytes: imported.bytes,
        created_at: OffsetDateTime::now_utc(),
    };
    tracing::info!(template = BUILT_IN, version = template.version, "template imported");
    db.insert_template(&TemplateVersion { template, root_modified_us: imported.modified_us }).await?;
    Ok(())
}

/// The template with this id or alias.
pub(crate) async fn find(db: &Db, name: &str) -> Result<Option<TemplateVersion>, Error> {
    let all = db.templates().await?;
    let by_id = all.iter().find(|version| version.template.id == name);
    Ok(by_id.or_else(|| all.iter().find(|version| version.template.is_called(name))).cloned())
}

/// Checks that a version's base layer is as it was imported.
pub(crate) fn check_unchanged(version: &TemplateVersion) -> Result<(), Error> {
    let found = root_facts(&version.template.root)?;
    if found.bytes == version.template.root_bytes && found.modified_us == version.root_modified_us {
        return Ok(());
    }
    let source = io::Error::other("the image was changed after its import; restart the server to import it anew");
    Err(Error::File { action: "use", path: version.template.root.clone(), source })
}

/// Removes versions that nothing refers to, and files without a row.
pub(crate) async fn remove_unused(db: &Db, paths: &Paths) -> Result<(), Error> {
    for (id, version) in db.delete_unused_template_versions().await? {
        tracing::info!(template = id, version, "an unused template version is removed");
    }
    let known: HashSet<PathBuf> =
        db.template_versions().await?.iter().map(|(id, version)| version_dir(paths, id, version)).collect();
    let templates = paths.templates();
    blocking(move || {
        for template in sub_dirs(&templates)? {
            for version in sub_dirs(&template)?.into_iter().filter(|dir| !known.contains(dir)) {
                fs::remove_dir_all(&version).map_err(Error::file("remove", &version))?;
            }
        }
        Ok(())
    })
    .await
}

fn version_dir(paths: &Paths, id: &str, version: &str) -> PathBuf {
    paths.templates().join(id).join(version)
}

fn sub_dirs(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::file("list", dir))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    Ok(paths.map_err(Error::file("list", dir))?.into_iter().filter(|path| path.is_dir()).collect())
}

/// The manifest's hash, fit for a file name; `local` for an image without a manifest.
fn read_manifest(guest: &GuestDir) -> Result<String, Error> {
    let path = guest.root.with_file_name("manifest.json");
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok("local".into()),
        Err(error) => return Err(Error::file("read", path)(error)),
    }
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| Error::file("read", &path)(error.into()))?;
    let (image, engine) = (manifest.agent.and_then(|agent| agent.protocol_version), cove_protocol::VERSION);
    if let Some(image) = image.filter(|image| *image != engine) {
        let problem = format!(
            "The guest image {} speaks protocol version {image}, this server speaks version {engine}: build it anew with \
             `cargo xtask guest`",
            guest.root.display()
        );
        return Err(Error::HostNotReady { problem });
    }
    let hash: String = manifest.hash.unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    Ok(if hash.is_empty() { "local".into() } else { hash })
}

struct RootFacts {
    bytes: u64,
    modified_us: i64,
}

fn root_facts(path: &Path) -> Result<RootFacts, Error> {
    let found = fs::metadata(path).map_err(Error::file("look at", path))?;
    Ok(RootFacts { bytes: found.len(), modified_us: found.mtime() * 1_000_000 + found.mtime_nsec() / 1000 })
}

/// Gives `to` the content of `from`, cheaply. An unfinished earlier try is replaced.
fn take_over(from: &Path, to: &Path) -> Result<(), Error> {
    let part = to.with_extension("part");
    for stale in [&part, &to.to_path_buf()] {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file("replace", stale)(error)),
            _ => {}
        }
    }
    let failed = || Error::file("import the image to", to);
    let mut source = File::open(from).map_err(Error::file("read", from))?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(&part).map_err(failed())?;
    if ioctl_ficlone(&target, &source).is_err() {
        drop(target);
        fs::remove_file(&part).map_err(failed())?;
        if fs::hard_link(from, to).is_ok() {
            return Ok(());
        }
        target = OpenOptions::new().write(true).create_new(true).open(&part).map_err(failed())?;
        copy_sparse(&mut source, &mut target).map_err(failed())?;
    }
    target.set_permissions(fs::Permissions::from_mode(0o400)).map_err(failed())?;
    target.sync_all().map_err(failed())?;
    fs::rename(&part, to).map_err(failed())
}

/// Copies a file that must not exist yet: reflink where the file system can, else without the holes.
pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source = File::open(from).map_err(Error::file("read", from))?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let mut target = target.map_err(Error::file("make", to))?;
    if ioctl_ficlone(&target, &source).is_err()
        && let Err(error) = copy_sparse(&mut source, &mut target)
    {
        // Half a file is worse than none; if it cannot be removed either, the first error says more.
        let _ = fs::remove_file(to);
        return Err(Error::file("copy to", to)(error));
    }
    Ok(())
}

/// Copies what is not a hole (lseek(2), `SEEK_DATA`).
fn copy_sparse(source: &mut File, target: &mut File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < length {
        let data = match seek(&*source, RawSeekFrom::Data(at)) {
            Ok(data) => data,
            // No data up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = seek(&*source, RawSeekFrom::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        let mut rest = hole - data;
        while rest > 0 {
            let most = usize::try_from(rest).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let count = source.read(&mut buffer[..most])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            target.write_all(&buffer[..count])?;
            rest -= count as u64;
        }
        at = hole;
    }
    Ok(())
}

/// File work that may take long, off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going away.
        Err(_) => Err(Error::ShuttingDown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        _folder: tempfile::TempDir,
        db: Db,
        paths: Paths,
        guest: GuestDir,
    }

    async fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let guest_dir = folder.path().join("guest");
        let paths = Paths { data: folder.path().join("data"), runtime: folder.path().join("run") };
        for dir in [&guest_dir, &paths.templates()] {
            fs::create_dir_all(dir).unwrap();
        }
        let guest = GuestDir { kernel: guest_dir.join("vmlinux"), kernel_up: None, root: guest_dir.join("root.ext4") };
        let mut root = File::create(&guest.root).unwrap();
        root.write_all(b"superblock").unwrap();
        root.set_len(8 << 20).unwrap();
        root.seek(SeekFrom::Start(5 << 20)).unwrap();
        root.write_all(b"data").unwrap();
        let db = Db::open(&paths.database()).await.unwrap();
        Fixture { _folder: folder, db, paths, guest }
    }

    #[tokio::test]
    async fn the_built_in_template_is_imported_once_and_found_by_its_names() {
        let f = fixture().await;
        import_built_in(&f.db, &f.paths, &f.guest).await.unwrap();
        let first = find(&f.db, "python").await.unwrap().unwrap();
        assert_eq!((first.template.id.as_str(), first.template.root_bytes), (BUILT_IN, 8 << 20));
        assert!(find(&f.db, "python-3.12").await.unwrap().is_none());
        import_built_in(&f.db, &f.paths, &f.guest).await.unwrap();
        assert_eq!(f.db.template_versions().await.unwrap().len(), 1);
        check_unchanged(&first).unwrap();
        assert_eq!(fs::read(&first.template.root).unwrap(), fs::read(&f.guest.root).unwrap());
    }

    #[tokio::test]
    async fn a_new_image_is_a_new_version_and_the_old_one_goes_when_nothing_needs_it() {
        let f = fixture().await;
        import_built_in(&f.db, &f.paths, &f.guest).await.unwrap();
        let old = find(&f.db, BUILT_IN).await.unwrap().unwrap().template;
        fs::remove_file(&f.guest.root).unwrap();
        fs::write(&f.guest.root, "another image").unwrap();
        import_built_in(&f.db, &f.paths, &f.guest).await.unwrap();
        let new = find(&f.db, BUILT_IN).await.unwrap().unwrap().template;
        assert_ne!(old.version, new.version);
        assert!(old.root.exists());
        remove_unused(&f.db, &f.paths).await.unwrap();
        assert!(!old.root.exists() && new.root.exists());
    }

    #[tokio::test]
    async fn an_image_that_was_written_to_is_noticed() {
        let f = fixture().await;
        import_built_in(&f.db, &f.paths, &f.guest).await.unwrap();
        let version = find(&f.db, BUILT_IN).await.unwrap().unwrap();
        fs::set_permissions(&version.template.root, fs::Permissions::from_mode(0o600)).unwrap();
        OpenOptions::new().append(true).open(&version.template.root).unwrap().write_all(b"x").unwrap();
        assert!(check_unchanged(&version).is_err());
    }

    #[tokio::test]
    async fn a_guest_image_of_another_protocol_version_is_refused() {
        let f = fixture().await;
        let manifest = f.guest.root.with_file_name("manifest.json");
        fs::write(&manifest, r#"{"hash":"ab/../12","agent":{"protocol_version":999}}"#).unwrap();
        let error = import_built_in(&f.db, &f.paths, &f.guest).await.unwrap_err();
        assert!(error.to_string().contains("version 999"), "{error}");
        fs::write(&manifest, r#"{"hash":"ab/../12"}"#).unwrap();
        import_built_in(&f.db, &f.paths, &f.guest).await.unwrap();
        assert!(find(&f.db, BUILT_IN).await.unwrap().unwrap().template.version.starts_with("ab12-"));
    }

    #[test]
    fn a_copy_keeps_holes_and_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let mut source = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
        source.set_len(64 << 20).unwrap();
        source.seek(SeekFrom::Start(40 << 20)).unwrap();
        source.write_all(&vec![7; 3 << 20]).unwrap();
        let mut target = File::create(&to).unwrap();
        copy_sparse(&mut source, &mut target).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 8 << 20);
    }
}
