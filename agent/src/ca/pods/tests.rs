use super::{Placement, Places};
use crate::ca::caller::ServiceAccount;

fn pod(uid: &str, node: Option<&str>, account: &str, phase: &str) -> Placement {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": uid, "namespace": "shop", "uid": uid },
        "spec": { "nodeName": node, "serviceAccountName": account, "containers": [] },
        "status": { "phase": phase },
    }))
    .unwrap()
}

#[test]
fn an_account_is_on_a_node_while_one_of_its_pods_runs_there() {
    let web = ServiceAccount { namespace: "shop".to_owned(), name: "web".to_owned() };
    let other = ServiceAccount { namespace: "bank".to_owned(), name: "web".to_owned() };
    let mut places = Places::default();
    places.set(&pod("1", None, "web", "Pending"));
    assert!(!places.has("a", &web));
    places.set(&pod("1", Some("a"), "web", "Pending"));
    places.set(&pod("1", Some("a"), "web", "Running"));
    places.set(&pod("2", Some("a"), "web", "Running"));
    assert!(places.has("a", &web) && !places.has("b", &web) && !places.has("a", &other));

    places.forget("1");
    assert!(places.has("a", &web));
    places.set(&pod("2", Some("a"), "web", "Succeeded"));
    assert!(!places.has("a", &web));
    places.forget("2");
    places.forget("never seen");
    assert!(places.counts.is_empty() && places.pods.is_empty());
}
