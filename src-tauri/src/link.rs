//! Deep links: `cove://sandbox/<id>`, also with a tab, as the desktop gives them to a start of Cove.

use tauri::Url;

/// Longest part of a link; ids and tabs are shorter.
const PART_CHARS_MAX: usize = 64;

/// The page's place that a link means, such as `#/sandboxes/sbx_1/terminal`. `None` for what is no link of ours: a link can
/// come from any web page, so nothing of it is passed on that was not looked at.
pub fn place(link: &str) -> Option<String> {
    let url = Url::parse(link).ok().filter(|url| url.scheme() == "cove" && url.host_str() == Some("sandbox"))?;
    let parts: Vec<&str> = url.path_segments()?.filter(|part| !part.is_empty()).collect();
    let plain = |part: &&str| {
        part.len() <= PART_CHARS_MAX && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    let fits = (1..=2).contains(&parts.len()) && parts.iter().all(plain);
    fits.then(|| format!("#/sandboxes/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_a_sandbox_and_nothing_else_is_a_link() {
        for (link, expected) in [
            ("cove://sandbox/sbx_01AB-c", Some("#/sandboxes/sbx_01AB-c")),
            ("cove://sandbox/sbx_1/terminal", Some("#/sandboxes/sbx_1/terminal")),
            ("cove://sandbox/sbx_1/", Some("#/sandboxes/sbx_1")),
            ("cove://sandbox/", None),
            ("cove://sandbox/a/b/c", None),
            ("cove://sandbox/a'%22b", None),
            ("cove://app.shell/index.html", None),
            ("https://sandbox/sbx_1", None),
            ("--help", None),
        ] {
            assert_eq!(place(link).as_deref(), expected, "{link}");
        }
    }
}
