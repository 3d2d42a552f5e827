//! Headers between client and app: what belongs to one connection alone stays there, all else is passed on as it is.

use std::net::IpAddr;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Of one connection (RFC 9110, 7.6.1), besides what `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// The protocol that a message asks or agrees to change to.
pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = words(headers, &header::CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// Removes what belongs to the connection that the message came on, and says anew what is to hold on the next one.
pub fn pass_on(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let wants_trailers = words(headers, &header::TE).any(|word| word.eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> =
        words(headers, &header::CONNECTION).filter_map(|word| HeaderName::from_bytes(word.as_bytes()).ok()).collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    match (upgrade, wants_trailers) {
        (Some(protocol), trailers) => {
            let words = if trailers { "upgrade, te" } else { "upgrade" };
            headers.insert(header::CONNECTION, HeaderValue::from_static(words));
            headers.insert(header::UPGRADE, protocol);
        }
        (None, true) => drop(headers.insert(header::CONNECTION, HeaderValue::from_static("te"))),
        (None, false) => {}
    }
}

/// Tells the app who asks and by which name. What another proxy in front of us said is kept.
pub fn add_forwarded(headers: &mut HeaderMap, peer: IpAddr, host: &str) {
    let earlier: Vec<&str> = headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let chain = earlier.into_iter().map(str::to_owned).chain([peer.to_string()]).collect::<Vec<_>>().join(", ");
    if let Ok(value) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, value);
    }
    let port = host.rsplit_once(':').map_or("80", |(_, port)| port);
    for (name, value) in [(FORWARDED_HOST, host), (FORWARDED_PROTO, "http"), (FORWARDED_PORT, port)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.entry(name).or_insert(value);
        }
    }
}

/// The words of a header's comma-separated lists.
pub fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Private"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-private", "1"),
            ("x-public", "1"),
            ("trailer", "x-sum"),
            ("te", "trailers, deflate"),
        ]);
        pass_on(&mut headers, None);
        let expected = map(&[("x-public", "1"), ("trailer", "x-sum"), ("te", "trailers"), ("connection", "te")]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn an_upgrade_is_one_only_when_the_connection_says_so() {
        assert_eq!(upgrade_of(&map(&[("upgrade", "websocket")])), None);
        let asked = map(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]);
        assert_eq!(upgrade_of(&asked), Some(HeaderValue::from_static("websocket")));
    }

    #[test]
    fn the_app_hears_of_every_proxy_on_the_way() {
        let mut headers = map(&[("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "https")]);
        add_forwarded(&mut headers, IpAddr::from([127, 0, 0, 1]), "127.1.2.3:3000");
        let expected = map(&[
            ("x-forwarded-for", "9.9.9.9, 127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "127.1.2.3:3000"),
            ("x-forwarded-port", "3000"),
        ]);
        assert_eq!(headers, expected);
    }
}
