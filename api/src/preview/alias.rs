//! Aliases: `<port>-<label>.localhost:<proxy>`, one shared listener that routes by `Host`. Browsers resolve every name
//! below `localhost` to this computer by themselves (RFC 6761, 6.3); other programs mostly do not, hence the addresses.

/// The shared listener.
#[derive(Clone, Copy, Debug)]
pub struct Alias {
    /// Its port.
    pub port: u16,
}

impl Alias {
    /// The guest's port and the sandbox's label in a `Host`, when it is an alias at this listener.
    pub fn parse<'a>(&self, host: &'a str) -> Option<(u16, &'a str)> {
        let (name, port) = host.rsplit_once(':')?;
        if port.parse() != Ok(self.port) {
            return None;
        }
        let (guest_port, label) = name.strip_suffix(".localhost")?.split_once('-')?;
        let fine = !label.is_empty() && label.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric());
        // No sign, no leading zero: each preview has one name.
        let number = guest_port.parse().ok().filter(|number: &u16| number.to_string() == guest_port)?;
        fine.then_some((number, label))
    }
}

/// The alias of a sandbox's port.
pub fn url(guest_port: u16, label: &str, proxy_port: u16) -> String {
    format!("http://{guest_port}-{label}.localhost:{proxy_port}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_aliases() {
        let alias = Alias { port: 7334 };
        assert_eq!(alias.parse("3000-my-app.localhost:7334"), Some((3000, "my-app")));
        for host in [
            "3000-my-app.localhost",
            "3000-my-app.localhost:7335",
            "3000-my-app.localhost.evil.example:7334",
            "03000-my-app.localhost:7334",
            "+3000-my-app.localhost:7334",
            "70000-app.localhost:7334",
            "3000-.localhost:7334",
            "3000-a.b.localhost:7334",
            "localhost:7334",
            "127.0.0.1:7334",
            "",
        ] {
            assert_eq!(alias.parse(host), None, "{host}");
        }
    }
}
