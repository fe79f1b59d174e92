use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use tonic::Code;

use super::read;

const AUDIENCE: &str = "weft-ca";

fn accepted() -> TokenReviewStatus {
    let extra = [
        ("authentication.kubernetes.io/pod-name", "weft-agent-x"),
        ("authentication.kubernetes.io/pod-uid", "1-2-3"),
        ("authentication.kubernetes.io/node-name", "node-a"),
    ];
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        user: Some(UserInfo {
            username: Some("system:serviceaccount:weft-system:weft-agent".to_owned()),
            extra: Some(extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into()),
            ..UserInfo::default()
        }),
        ..TokenReviewStatus::default()
    }
}

fn refused(status: TokenReviewStatus) -> String {
    let refusal = read(status, &[AUDIENCE.to_owned()]).unwrap_err();
    assert_eq!(refusal.code, Code::Unauthenticated);
    refusal.reason
}

#[test]
fn a_bound_token_says_account_pod_and_node() {
    let caller = read(accepted(), &["other".to_owned(), AUDIENCE.to_owned()]).unwrap();
    assert_eq!(caller.account.to_string(), "weft-system/weft-agent");
    assert_eq!((caller.pod.as_str(), caller.pod_uid.as_str()), ("weft-agent-x", "1-2-3"));
    assert_eq!(caller.node.as_deref(), Some("node-a"));
    assert_eq!(caller.audiences, [AUDIENCE]);
}

#[test]
fn what_proves_no_pod_for_this_audience_is_refused() {
    let reason = refused(TokenReviewStatus {
        authenticated: Some(false),
        error: Some("expired".to_owned()),
        ..TokenReviewStatus::default()
    });
    assert!(reason.contains("expired") && reason.contains(AUDIENCE), "{reason}");
    refused(TokenReviewStatus::default());

    // An API server that knows no audiences names none; another audience is not ours.
    for audiences in [None, Some(vec![]), Some(vec!["istio-ca".to_owned()])] {
        let reason = refused(TokenReviewStatus { audiences, ..accepted() });
        assert!(reason.contains("not for the audience"), "{reason}");
    }

    let as_user = |username: &str| {
        let mut status = accepted();
        status.user.as_mut().unwrap().username = Some(username.to_owned());
        status
    };
    assert!(refused(as_user("system:node:node-a")).contains("no service account"));
    assert!(refused(as_user("system:serviceaccount:odd")).contains("no service account"));

    let mut unbound = accepted();
    unbound.user.as_mut().unwrap().extra = Some(BTreeMap::new());
    assert!(refused(unbound).contains("bound to no pod"));
}
