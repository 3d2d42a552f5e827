//! Starts the window; all of it is in `lib.rs`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    match cove_desktop::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
