use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{FIRST_RETRY, LAST_RETRY, Published};

fn published(namespaces: &[&str]) -> Published {
    let mut published = Published::default();
    for namespace in namespaces {
        published.namespace((*namespace).to_owned(), true);
    }
    published
}

fn content(text: &str) -> Option<Arc<str>> {
    Some(text.into())
}

#[test]
fn only_what_differs_is_written() {
    let mut published = published(&["a", "b"]);
    published.found("a".to_owned(), content("roots"));
    let now = Instant::now();
    assert_eq!(published.next("roots", now), Ok("b".to_owned()));
    // It is being written, and then it is right.
    assert_eq!(published.next("roots", now), Err(None));
    published.wrote("b", content("roots"));
    assert_eq!(published.next("roots", now), Err(None));

    published.namespace("b".to_owned(), false);
    published.namespace("c".to_owned(), true);
    assert_eq!(published.next("roots", now), Ok("c".to_owned()));
    assert_eq!(published.next("roots", now), Err(None));
}

#[test]
fn an_edit_is_made_good_and_a_quarrel_gets_slower() {
    let mut published = published(&["a"]);
    let mut now = Instant::now();
    let mut last = Duration::ZERO;
    for _ in 0..12 {
        let due = match published.next("roots", now) {
            Ok(_) => now,
            Err(due) => due.unwrap(),
        };
        let pause = due - now;
        assert!(pause >= last && pause <= LAST_RETRY, "{pause:?} after {last:?}");
        (now, last) = (due, pause);
        if published.writing.is_empty() {
            assert_eq!(published.next("roots", now), Ok("a".to_owned()));
        }
        published.wrote("a", content("roots"));
        assert_eq!(published.next("roots", now), Err(None));
        published.found("a".to_owned(), content("another's"));
    }
    assert_eq!(last, LAST_RETRY);

    // Left alone for long, it is no quarrel any more.
    published.found("a".to_owned(), content("roots"));
    now += 3 * LAST_RETRY;
    assert_eq!(published.next("roots", now), Err(None));
    published.found("a".to_owned(), None);
    assert_eq!(published.next("roots", now), Ok("a".to_owned()));
    published.wrote("a", None);
    assert_eq!(published.next("roots", now), Err(Some(now + FIRST_RETRY)));
}
