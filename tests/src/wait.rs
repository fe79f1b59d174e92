use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take before its wait is given up, on a busy machine, too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition that nothing announces.
const INTERVAL: Duration = Duration::from_millis(1);

/// Looks at a condition until it gives a value; `what` names it in the error.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> Result<T> {
    eventually_within(PATIENCE, what, condition)
}

/// As [`eventually`], with its own limit.
pub fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(INTERVAL);
    }
}

/// As [`eventually`], for a condition that is asynchronous or may fail.
#[cfg(feature = "client")]
pub async fn eventually_async<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {PATIENCE:?} in vain: {what}");
        }
        // Whoever is asked is another process, as a rule.
        tokio::time::sleep(INTERVAL * 20).await;
    }
}
