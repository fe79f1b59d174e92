//! Who asks: what the API server says about a service account token (TokenReview, audience-bound
//! tokens: KEP-1205, node information: KEP-4193).

#[cfg(test)]
mod tests;

use std::fmt;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tonic::{Code, Status};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl std::str::FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not of the form NAMESPACE/NAME")),
        }
    }
}

/// A pod that has proven itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The account that the token is of.
    pub account: ServiceAccount,
    /// The pod that the token is bound to.
    pub pod: String,
    /// That pod's uid.
    pub pod_uid: String,
    /// The pod's node, where the token says it (Kubernetes 1.30 and later).
    pub node: Option<String>,
    /// For which of the audiences asked about the token is.
    pub audiences: Vec<String>,
}

/// Why a caller does not get what it asked for: the reason, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller sees.
    pub code: Code,
    /// What the caller and the log see.
    pub reason: String,
}

impl Refusal {
    pub(super) fn unauthenticated(reason: impl Into<String>) -> Self {
        Self { code: Code::Unauthenticated, reason: reason.into() }
    }

    pub(super) fn denied(reason: impl Into<String>) -> Self {
        Self { code: Code::PermissionDenied, reason: reason.into() }
    }

    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, reason: reason.into() }
    }

    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self { code: Code::Unavailable, reason: reason.into() }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.reason)
    }
}

/// Asks the API server who has the token, and whether it is for one of `audiences`.
///
/// # Errors
/// Where it is nobody's, or for something else, or the API server cannot be asked.
pub async fn identify(
    client: &Client,
    token: &str,
    audiences: &[String],
) -> Result<Caller, Refusal> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(audiences.to_vec()),
        },
        ..TokenReview::default()
    };
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let reviewed = reviews.create(&PostParams::default(), &review).await.map_err(|error| {
        Refusal::unavailable(format!("the API server could not review the token: {error}"))
    })?;
    read(reviewed.status.unwrap_or_default(), audiences)
}

/// What a review says.
pub(super) fn read(status: TokenReviewStatus, audiences: &[String]) -> Result<Caller, Refusal> {
    let wanted = audiences.join(" or ");
    if status.authenticated != Some(true) {
        let error = status.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(Refusal::unauthenticated(format!(
            "the API server does not accept the token for the audience {wanted}: {error}; mount a \
             projected serviceAccountToken with that audience, and send the file's present content"
        )));
    }
    // An API server that knows no audiences answers for its own only (TokenReviewStatus).
    let matching: Vec<String> = status
        .audiences
        .unwrap_or_default()
        .into_iter()
        .filter(|audience| audiences.contains(audience))
        .collect();
    if matching.is_empty() {
        return Err(Refusal::unauthenticated(format!(
            "the token is not for the audience {wanted}; mount a projected serviceAccountToken \
             with that audience"
        )));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, name)| ServiceAccount {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
        .ok_or_else(|| {
            Refusal::unauthenticated(format!(
                "the token is of {username:?}, which is no service account"
            ))
        })?;
    let extra = user.extra.unwrap_or_default();
    let first = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
    match (first(POD_NAME), first(POD_UID)) {
        (Some(pod), Some(pod_uid)) => {
            Ok(Caller { account, pod, pod_uid, node: first(NODE_NAME), audiences: matching })
        }
        _ => Err(Refusal::unauthenticated(format!(
            "the token of the service account {account} is bound to no pod: use a projected \
             serviceAccountToken, or `kubectl create token --bound-object-kind Pod`"
        ))),
    }
}
