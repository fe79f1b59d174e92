use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::{Issued, LAST_RETRY, Schedule, Source, WorkloadCertificates};
use crate::ca::{Authority, CaError, WorkloadCertificate};
use crate::identity::SpiffeId;

const HOUR: Duration = Duration::from_secs(3600);
const STEP: Duration = Duration::from_secs(1);

fn web() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "web")
}

fn certificate(identity: &SpiffeId, now: SystemTime) -> WorkloadCertificate {
    WorkloadCertificate {
        identity: identity.clone(),
        chain: vec![vec![1]],
        key: vec![2],
        not_after: now + HOUR,
        renew_at: now + HOUR / 2,
    }
}

fn away() -> Result<WorkloadCertificate, CaError> {
    Err(CaError::Refused("away".to_owned()))
}

#[test]
fn certificates_are_renewed_at_half_their_life_and_forgotten_with_their_pods() {
    let mut schedule = Schedule::default();
    let start = SystemTime::now();
    schedule.want(&BTreeSet::from([web()]), start);
    assert_eq!(schedule.next_due(start), Some(web()));
    // It is being asked for.
    assert_eq!(schedule.next_due(start), None);
    schedule.done(&web(), Ok(certificate(&web(), start)), start);
    assert_eq!(schedule.wakes(), Some(start + HOUR / 2));
    assert_eq!(schedule.next_due(start + HOUR / 2 - STEP), None);
    assert_eq!(schedule.next_due(start + HOUR / 2), Some(web()));

    // Wanted no more, an answer that is under way is of no use.
    schedule.want(&BTreeSet::new(), start);
    schedule.done(&web(), Ok(certificate(&web(), start)), start);
    assert!(schedule.certificates().is_empty() && schedule.wakes().is_none());
}

#[test]
fn while_the_authority_is_away_a_certificate_stays_until_it_ends() {
    let mut schedule = Schedule::default();
    let start = SystemTime::now();
    schedule.want(&BTreeSet::from([web()]), start);
    schedule.next_due(start);
    schedule.done(&web(), Ok(certificate(&web(), start)), start);

    let mut now = start + HOUR / 2;
    let mut attempts = 0;
    while now < start + HOUR {
        assert_eq!(schedule.next_due(now), Some(web()));
        schedule.done(&web(), away(), now);
        schedule.expire(now);
        assert_eq!(schedule.certificates().len(), 1);
        let next = schedule.wakes().unwrap();
        assert!(next > now && next <= now + 2 * LAST_RETRY);
        now = next;
        attempts += 1;
    }
    assert!((60..400).contains(&attempts), "{attempts}");
    schedule.expire(start + HOUR);
    assert!(schedule.certificates().is_empty());

    // It answers again: at once, not after the pause.
    now = start + HOUR;
    if schedule.next_due(now).is_some() {
        schedule.done(&web(), away(), now);
    }
    assert_eq!(schedule.next_due(now), None);
    schedule.retry(now);
    assert_eq!(schedule.next_due(now), Some(web()));
    schedule.done(&web(), Ok(certificate(&web(), now)), now);
    assert_eq!(schedule.certificates().len(), 1);
}

#[test]
fn whoever_has_none_is_asked_for_first() {
    let mut schedule = Schedule::default();
    let start = SystemTime::now();
    let new = SpiffeId::new("cluster.local", "shop", "zebra");
    schedule.want(&BTreeSet::from([web()]), start);
    schedule.next_due(start);
    schedule.done(&web(), Ok(certificate(&web(), start)), start);
    let now = start + HOUR / 2;
    schedule.want(&BTreeSet::from([web(), new.clone()]), now);
    assert_eq!(schedule.next_due(now), Some(new));
    assert_eq!(schedule.next_due(now), Some(web()));
    assert_eq!(schedule.next_due(now), None);
}

#[tokio::test]
async fn an_agent_with_a_root_of_its_own_has_what_it_wants() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), "cluster.local", 6 * STEP).unwrap();
    let roots = authority.roots_pem().to_owned();
    let certificates = WorkloadCertificates::new(Source::Directory(Box::new(authority)));
    assert_eq!(*certificates.roots_pem(), *roots);
    let (wanted, wanted_receiver) = watch::channel(BTreeSet::new());
    let (sender, mut issued) = watch::channel(Issued::default());
    let task = tokio::spawn(certificates.run(wanted_receiver, sender));

    let identities: BTreeSet<_> =
        (0..50).map(|n| SpiffeId::new("cluster.local", "shop", &format!("web-{n}"))).collect();
    wanted.send_replace(identities.clone());
    let first = issued.wait_for(|issued| issued.certificates.len() == 50).await.unwrap().clone();
    assert_eq!(*first.roots_pem, *roots);
    // All are renewed before they end.
    issued
        .wait_for(|issued| {
            assert_eq!(issued.certificates.len(), 50);
            identities.iter().all(|id| issued.certificates[id] != first.certificates[id])
        })
        .await
        .unwrap();
    wanted.send_replace(BTreeSet::new());
    issued.wait_for(|issued| issued.certificates.is_empty()).await.unwrap();
    drop(wanted);
    task.await.unwrap();
}
