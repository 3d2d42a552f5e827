//! Lets Tauri read its configuration, and names the commands that the page may be allowed to call.
fn main() {
    let commands = tauri_build::AppManifest::new().commands(&["connection", "open_external", "quit"]);
    tauri_build::try_build(tauri_build::Attributes::new().app_manifest(commands))
        .expect("Tauri's configuration is right");
}
