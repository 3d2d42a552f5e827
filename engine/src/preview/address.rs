//! Which loopback address a sandbox gets, and which ports on it are tried.
//!
//! Linux takes all of 127.0.0.0/8 for its own without being told. 127.0.x.x is left alone: the host itself (127.0.0.1),
//! its resolver (127.0.0.53, 127.0.0.54) and its name (127.0.1.1) live there. The rest has 16 million addresses; they are
//! chosen at random, so that two servers on one host rarely meet, and a listener that cannot be opened is tried elsewhere.

use std::net::Ipv4Addr;

use crate::random;

/// What is added to the ports that only root may have.
const PRIVILEGED_OFFSET: u16 = 8000;

/// The first port that everybody may have.
const UNPRIVILEGED: u16 = 1024;

/// Ports that are tried after the wanted one.
const PORTS_TRIED_MAX: u16 = 200;

/// A random address that a sandbox may have.
pub(super) fn random() -> Ipv4Addr {
    from_bytes(random::bytes::<4>())
}

/// One of 127.1.0.1 to 127.254.255.254, never one that ends with 0 or 255.
fn from_bytes([first, second, third, fourth]: [u8; 4]) -> Ipv4Addr {
    // The fourth byte makes up for what the other three lose by staying within their bounds.
    let last = 1 + (u16::from(third) * 256 + u16::from(fourth)) % 254;
    Ipv4Addr::new(127, 1 + first % 254, second, last as u8)
}

/// The ports on the host for a guest's port, the first choice first.
pub(super) fn host_ports(port: u16) -> impl Iterator<Item = u16> {
    let first = if port < UNPRIVILEGED { PRIVILEGED_OFFSET + port } else { port };
    let after = (0..=PORTS_TRIED_MAX).map_while(move |step| first.checked_add(step));
    // Above the last port it goes on below.
    let below =
        (1..=PORTS_TRIED_MAX).map_while(move |step| first.checked_sub(step)).filter(|port| *port >= UNPRIVILEGED);
    after.chain(below)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_address_is_a_loopback_one_that_nobody_else_uses(bytes: [u8; 4]) {
            let [network, first, _, last] = from_bytes(bytes).octets();
            prop_assert_eq!(network, 127);
            prop_assert!((1..=254).contains(&first) && (1..=254).contains(&last));
        }

        #[test]
        fn ports_are_such_as_everybody_may_have_and_none_comes_twice(port in 1u16..) {
            let ports: Vec<u16> = host_ports(port).collect();
            let unique: std::collections::HashSet<u16> = ports.iter().copied().collect();
            prop_assert_eq!(unique.len(), ports.len());
            prop_assert!(ports.iter().all(|port| *port >= UNPRIVILEGED));
            prop_assert!(ports.len() > 100);
        }
    }

    #[test]
    fn a_port_keeps_its_number_and_a_privileged_one_gets_8000_more() {
        for (port, host) in [(3000, 3000), (80, 8080), (443, 8443), (1024, 1024), (65535, 65535), (1, 8001)] {
            assert_eq!(host_ports(port).next(), Some(host));
        }
        assert_eq!(host_ports(65535).nth(1), Some(65534));
    }
}
