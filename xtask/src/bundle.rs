//! `cargo xtask bundle`: the Debian package, with everything that Cove needs at run time.
//!
//! ```text
//! /usr/lib/cove/{cove,cove-desktop,vmm,guest/}    beside each other, where the engine looks first
//! /usr/bin/{cove,cove-desktop}                    links to them
//! /usr/share/{applications,icons,doc}             the menu entry (also for cove:// links), icons, licence
//! ```
//!
//! Made with dpkg-deb alone, so that nothing is downloaded. `--check` installs it into a fresh system and starts it there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::step::{self, Step};
use crate::{build, setup, workspace};

/// Programs, all in one folder.
const PROGRAMS: [&str; 3] = ["cove", "cove-desktop", "vmm"];

/// Those of them that a user starts.
const COMMANDS: [&str; 2] = ["cove", "cove-desktop"];

/// Icons by their size in pixels.
const ICONS: [(&str, &str); 3] = [("32x32", "32x32.png"), ("128x128", "128x128.png"), ("512x512", "icon.png")];

/// What is in the guest image's folder and needed at run time.
const GUEST_FILES: [&str; 4] = ["vmlinux", "vmlinux-up", "root.ext4", "manifest.json"];

/// The entry in the desktop's menu.
const ENTRY: &str = include_str!("../../icons/cove.desktop");

/// Arguments of `cargo xtask bundle`.
#[derive(clap::Args)]
pub struct Args {
    /// Install it into a fresh Debian in a folder, and start command and window there.
    #[arg(long)]
    check: bool,
}

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    let package = make()?;
    println!("{}", package.display());
    if args.check { check(&package) } else { Ok(()) }
}

/// Builds everything and packs it.
fn make() -> Result<PathBuf> {
    let cove = build::ensure(true)?.cove;
    build::window()?;
    let release = cove.with_file_name("");
    let version = env!("CARGO_PKG_VERSION");
    let step = Step::begin("Pack", &workspace::target_dir().join("xtask/bundle.log"))?;
    let bundle = workspace::target_dir().join("bundle");
    let root = bundle.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let lib = root.join("usr/lib/cove");
    fs::create_dir_all(lib.join("guest"))?;
    for program in PROGRAMS {
        put(&release.join(program), &lib.join(program), 0o755)?;
        step.run(Command::new("strip").arg(lib.join(program)))?;
    }
    for file in GUEST_FILES.iter().filter(|file| release.join("guest").join(file).exists()) {
        // Most of the root image is holes.
        step.run(
            Command::new("cp")
                .args(["--sparse=always", "--preserve=mode"])
                .arg(release.join("guest").join(file))
                .arg(lib.join("guest")),
        )?;
        fs::set_permissions(lib.join("guest").join(file), fs::Permissions::from_mode(0o644))?;
    }
    fs::create_dir_all(root.join("usr/bin"))?;
    for command in COMMANDS {
        symlink(format!("../lib/cove/{command}"), root.join("usr/bin").join(command))?;
    }
    share(&root.join("usr/share"))?;
    control(&root, version)?;
    let package = bundle.join(format!("cove_{version}_amd64.deb"));
    step.run(Command::new("dpkg-deb").args(["--root-owner-group", "-Zzstd", "--build"]).arg(&root).arg(&package))?;
    let bytes = fs::metadata(&package)?.len();
    step.done(&format!("{} MiB", bytes >> 20));
    Ok(package)
}

fn share(share: &Path) -> Result<()> {
    let icons = workspace::root().join("icons");
    for (size, file) in ICONS {
        put(&icons.join(file), &share.join(format!("icons/hicolor/{size}/apps/cove.png")), 0o644)?;
    }
    put(&icons.join("icon.svg"), &share.join("icons/hicolor/scalable/apps/cove.svg"), 0o644)?;
    put(&workspace::root().join("LICENSE"), &share.join("doc/cove/copyright"), 0o644)?;
    fs::create_dir_all(share.join("applications"))?;
    fs::write(share.join("applications/cove.desktop"), ENTRY).context("cannot write the menu entry")
}

/// What dpkg must know. The libraries are those that the window links, and the one that the tray looks up at run time.
fn control(root: &Path, version: &str) -> Result<()> {
    let listed = step::output(Command::new("du").args(["--summarize", "--block-size=1024"]).arg(root.join("usr")))?;
    let kib = listed.split_whitespace().next().unwrap_or("0").to_owned();
    let text = format!(
        "Package: cove\nVersion: {version}\nArchitecture: amd64\nMaintainer: The Cove developers <cove@localhost>\n\
         Installed-Size: {kib}\nSection: devel\nPriority: optional\n\
         Depends: libc6, libgtk-3-0 | libgtk-3-0t64, libwebkit2gtk-4.1-0, libayatana-appindicator3-1\n\
         Recommends: xdg-utils, fonts-dejavu-core | fonts-noto-core\nSuggests: qemu-utils\n\
         Description: local sandboxes that are real Linux machines\n\
         \x20A window, a command and an API for persistent microVM sandboxes on this computer's KVM.\n"
    );
    fs::create_dir_all(root.join("DEBIAN"))?;
    fs::write(root.join("DEBIAN/control"), text).context("cannot write the control file")
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot protect {}", to.display()))
}

/// What is done inside of the fresh system: doctor finds image, agent and vmm, and the window draws its page.
const TRY: &str = r#"set -eu
apt-get install --yes --no-install-recommends /tmp/cove.deb xvfb xauth dbus fonts-dejavu-core imagemagick
export HOME=/tmp/home LANG=C.UTF-8
mkdir -m 700 $HOME
cove doctor --json > /tmp/doctor.json || true
cat /tmp/doctor.json
for name in vmm guest_image agent; do
    grep -A1 "\"name\": \"$name\"" /tmp/doctor.json | grep -q '"ok"' || { echo "doctor is not content with $name"; exit 1; }
done
cat > /tmp/window.sh <<'END'
cove-desktop & window=$!
for second in $(seq 60); do
    sleep 1
    colours=$(import -window root -format %k info: 2>/dev/null || echo 0)
    [ "$colours" -gt 100 ] && break
done
kill $window
wait $window || true
echo "the window drew $colours colours after $second s"
[ "$colours" -gt 100 ]
END
DBUS_SESSION_BUS_ADDRESS=disabled: NO_AT_BRIDGE=1 timeout 120 xvfb-run -a -s "-screen 0 1280x800x24" sh /tmp/window.sh
"#;

/// Installs the package into a fresh Debian, and starts it there.
fn check(package: &Path) -> Result<()> {
    ensure!(setup::is_root()?, "installing into a fresh system needs root: run `cargo xtask bundle --check` as root");
    let script = package.with_file_name("try.sh");
    fs::write(&script, TRY)?;
    let step =
        Step::begin("Install into a fresh Debian and start", &workspace::target_dir().join("xtask/bundle-check.log"))?;
    let copy = |from: &Path, to: &str| format!("--customize-hook=cp '{}' \"$1/tmp/{to}\"", from.display());
    let mut fresh = Command::new("mmdebstrap");
    fresh.args(["--variant=apt", "--mode=root", "--skip=cleanup/apt"]);
    fresh.arg(copy(package, "cove.deb")).arg(copy(&script, "try.sh"));
    fresh.arg("--customize-hook=chroot \"$1\" sh /tmp/try.sh").args(["--format=null", "bookworm", "/dev/null"]);
    step.run(&mut fresh)?;
    step.done("");
    Ok(())
}
