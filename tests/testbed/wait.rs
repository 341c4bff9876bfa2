//! Waiting for something to become true, with a deadline and a name for the report.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks. A look is a system call or one HTTP request; more often would only heat the machine.
const PAUSE: Duration = Duration::from_millis(15);

/// An error that waiting longer will not change.
#[derive(Debug)]
struct Final(anyhow::Error);

impl fmt::Display for Final {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Final {}

/// Makes [`until`] fail with this error at once instead of looking again.
pub fn give_up(error: anyhow::Error) -> anyhow::Error {
    anyhow::Error::new(Final(error))
}

/// Looks until `look` gives something; at the deadline fails with `what` and the error of the last look.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let looked = look().await;
        let is_final = looked.as_ref().is_err_and(|error| error.is::<Final>());
        match looked {
            Ok(Some(found)) => return Ok(found),
            Err(error) if is_final || Instant::now() >= deadline => {
                return Err(error.context(format!("failed to see that {what}, within {limit:?}")));
            }
            Ok(None) if Instant::now() >= deadline => bail!("did not see that {what}, within {limit:?}"),
            Ok(None) | Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
