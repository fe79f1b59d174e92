use weft_common::FlowEvent;
use weft_proto::v1::{Flow, FlowsRequest, Peer};

use super::enrich::{path_text, verdict_text};

/// Which flows are asked for: all that is set matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    from: Option<Pattern>,
    to: Option<Pattern>,
    namespace: Option<String>,
    verdict: Option<String>,
    path: Option<String>,
}

/// A filter that matches nothing by mistake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} is none of {allowed}")]
pub struct FilterError {
    field: &'static str,
    value: String,
    allowed: &'static str,
}

/// `namespace/pod`, `pod`, an address, or a prefix of one of them that ends in `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    prefix: bool,
}

impl Filter {
    /// What a request asks for.
    ///
    /// # Errors
    /// Where a verdict or path is named that there is not.
    pub fn new(request: &FlowsRequest) -> Result<Self, FilterError> {
        Ok(Self {
            from: Pattern::new(&request.from),
            to: Pattern::new(&request.to),
            namespace: Some(request.namespace.clone()).filter(|value| !value.is_empty()),
            verdict: one_of(
                "verdict",
                &request.verdict,
                &["allowed", "denied"],
                "allowed, denied",
            )?,
            path: one_of(
                "path",
                &request.path,
                &["direct", "tunnel", "l7", "untouched"],
                "direct, tunnel, l7, untouched",
            )?,
        })
    }

    /// Whether it may match; cheap, before names are looked up.
    pub fn may_match(&self, event: &FlowEvent) -> bool {
        self.verdict.as_deref().is_none_or(|verdict| verdict == verdict_text(event))
            && self.path.as_deref().is_none_or(|path| path == path_text(event.path))
    }

    /// Whether it matches.
    pub fn matches(&self, flow: &Flow) -> bool {
        let none = Peer::default();
        let source = flow.source.as_ref().unwrap_or(&none);
        let destination = flow.destination.as_ref().unwrap_or(&none);
        self.verdict.as_ref().is_none_or(|verdict| *verdict == flow.verdict)
            && self.path.as_ref().is_none_or(|path| *path == flow.path)
            && self.from.as_ref().is_none_or(|pattern| pattern.matches(source))
            && self.to.as_ref().is_none_or(|pattern| pattern.matches(destination))
            && self.namespace.as_ref().is_none_or(|namespace| {
                source.namespace == *namespace || destination.namespace == *namespace
            })
    }
}

impl Pattern {
    fn new(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        // Addresses are compared as they are printed.
        let text = match text.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_canonical().to_string(),
            Err(_) => text.to_owned(),
        };
        Some(match text.strip_suffix('*') {
            Some(prefix) => Self { text: prefix.to_owned(), prefix: true },
            None => Self { text, prefix: false },
        })
    }

    fn matches(&self, peer: &Peer) -> bool {
        if let Some((namespace, pod)) = self.text.split_once('/') {
            return peer.namespace == namespace && self.is(pod, &peer.pod);
        }
        self.is(&self.text, &peer.pod) || self.is(&self.text, &peer.address)
    }

    fn is(&self, pattern: &str, value: &str) -> bool {
        if self.prefix { value.starts_with(pattern) } else { value == pattern }
    }
}

fn one_of(
    field: &'static str,
    value: &str,
    values: &[&str],
    allowed: &'static str,
) -> Result<Option<String>, FilterError> {
    if value.is_empty() {
        return Ok(None);
    }
    if values.contains(&value) {
        return Ok(Some(value.to_owned()));
    }
    Err(FilterError { field, value: value.to_owned(), allowed })
}
