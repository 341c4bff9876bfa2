//! Waiting for something to become true, with a deadline and a name for the report.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Between two looks. A look is a system call or one HTTP request; more often would only heat the machine.
const PAUSE: Duration = Duration::from_millis(15);

/// Looks until `look` gives something, and fails with `what` and the last error at the deadline.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            let missed = format!("gave up waiting after {limit:?}: {what}");
            return Err(last.map_or_else(|| anyhow!(missed.clone()), |error| error.context(missed.clone())));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
