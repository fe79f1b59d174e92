//! The headers of a CONNECT request that say for whom it is.

use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;

/// What the client dialled, as `ip:port`.
pub(crate) const DESTINATION: &str = "weft-destination";
/// Why a tunnel's server refused a connection.
pub(crate) const REASON: &str = "weft-reason";

/// The value of `forwarded` (RFC 7239) for a client. A port makes it a quoted string, also for
/// IPv4 (section 6: the colon is not a token's character).
pub(crate) fn value(client: SocketAddr) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("for=\"{client}\"")).ok()
}

/// The client in the last element of a `forwarded` header; port 0 if it has none.
pub(crate) fn client(value: &HeaderValue) -> Option<SocketAddr> {
    let element = value.to_str().ok()?.rsplit(',').next()?;
    let node = element.split(';').find_map(|pair| {
        let (name, node) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(node.trim())
    })?;
    let node = node.strip_prefix('"').and_then(|node| node.strip_suffix('"')).unwrap_or(node);
    if let Ok(client) = node.parse::<SocketAddr>() {
        return Some(SocketAddr::new(client.ip().to_canonical(), client.port()));
    }
    let address = node.strip_prefix('[').and_then(|node| node.strip_suffix(']')).unwrap_or(node);
    Some(SocketAddr::new(address.parse::<IpAddr>().ok()?.to_canonical(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_survives_the_header() {
        for text in ["10.1.2.3:4567", "[2001:db8::1]:80"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(client(&value(address).unwrap()), Some(address));
        }
    }

    #[test]
    fn other_forms_are_read() {
        let read = |text| client(&HeaderValue::from_static(text));
        assert_eq!(read("for=10.0.0.1"), Some("10.0.0.1:0".parse().unwrap()));
        assert_eq!(
            read("For=\"[2001:db8::1]\";proto=http"),
            Some("[2001:db8::1]:0".parse().unwrap())
        );
        assert_eq!(read("for=10.0.0.1:7;host=\"a\""), Some("10.0.0.1:7".parse().unwrap()));
        // The last hop is the one that is proven.
        assert_eq!(read("for=1.2.3.4, for=10.0.0.1"), Some("10.0.0.1:0".parse().unwrap()));
        assert_eq!(read("for=unknown"), None);
        assert_eq!(read("by=10.0.0.1"), None);
    }
}
