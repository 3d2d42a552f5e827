//! Kernel config: what we ask for, and whether the final `.config` holds it.
//!
//! Kconfig drops an option without a word when one that it depends on is off, so every line asked for is looked up after
//! `make olddefconfig`.

use std::collections::BTreeMap;

/// The options of some fragments, a later line winning over an earlier one. Values are as written: `y`, `n`, `100`, `"x"`.
pub fn asked<'a>(fragments: impl IntoIterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    fragments.into_iter().flat_map(str::lines).filter_map(option).collect()
}

/// The lines asked for that `config` does not hold, each as a sentence.
pub fn unmet(asked: &BTreeMap<&str, &str>, config: &str) -> Vec<String> {
    let held: BTreeMap<&str, &str> = config.lines().filter_map(option).collect();
    asked
        .iter()
        .filter_map(|(&name, &value)| {
            let found = held.get(name).copied().unwrap_or("n");
            (found != value).then(|| format!("{name} was asked to be {value} and is {found}"))
        })
        .collect()
}

/// `CONFIG_X=value`; anything else is a comment.
fn option(line: &str) -> Option<(&str, &str)> {
    line.trim().split_once('=').filter(|(name, _)| name.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_fragment_wins() {
        let asked = asked(["# CONFIG_OLD=y\nCONFIG_SMP=y\nCONFIG_HZ=100\n", "CONFIG_SMP=n\n"]);
        assert_eq!(asked, BTreeMap::from([("CONFIG_SMP", "n"), ("CONFIG_HZ", "100")]));
    }

    #[test]
    fn what_did_not_stick_is_named() {
        let asked = asked(["CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\nCONFIG_E=n\nCONFIG_NAME=\"x=y\"\n"]);
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n# CONFIG_D is not set\nCONFIG_NAME=\"x=y\"\n";
        assert_eq!(
            unmet(&asked, config),
            ["CONFIG_B was asked to be y and is n", "CONFIG_C was asked to be n and is y"]
        );
    }
}
