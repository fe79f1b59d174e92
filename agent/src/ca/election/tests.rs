use std::time::Duration;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use tokio::time::Instant;

use super::{Seen, Step, step};

fn seen(holder: &str, seconds: i32, at: Instant) -> Seen {
    let spec = LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(seconds),
        ..LeaseSpec::default()
    };
    Seen { spec, at }
}

#[test]
fn a_lease_is_taken_only_from_nobody_or_from_who_let_it_end() {
    let now = Instant::now();
    let after = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(step(&seen("b", 15, now), "a", after(14)), Step::Wait);
    assert_eq!(step(&seen("b", 15, now), "a", after(15)), Step::Take);
    assert_eq!(step(&seen("", 15, now), "a", now), Step::Take);
    assert_eq!(step(&seen("a", 15, now), "a", after(100)), Step::Renew);
    // What makes no sense as a duration counts as ours.
    assert_eq!(step(&seen("b", -1, now), "a", after(1)), Step::Wait);
    assert_eq!(step(&seen("b", -1, now), "a", after(15)), Step::Take);
}
