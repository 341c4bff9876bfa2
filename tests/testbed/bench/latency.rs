//! How long a person waits for a job's first sign, and what a suspend adds to its end.

use anyhow::{Context, Result};
use serde_json::json;

use super::super::stage::{Setting, Stage};
use super::Options;
use super::budget::{Bound, Budget, Report};
use super::{figures, load};

const FIRST_BYTE: Budget = Budget { name: "first-byte-p95", bound: Bound::Below, limit: 300.0, unit: "ms" };
const FIRST_BYTE_LASTING: Budget =
    Budget { name: "first-byte-lasting-p95", bound: Bound::Below, limit: 300.0, unit: "ms" };
const SUSPEND_ADDED: Budget = Budget { name: "suspend-added", bound: Bound::Below, limit: 100.0, unit: "ms" };

/// Jobs before the first that counts: programs and connections are then as warm as they stay.
const WARM_UP: usize = 3;

/// Runs plain and suspended jobs in turn, one at a time.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let setting = Setting {
        pool: json!({
            "capacityPerInstance": 2, "isolation": "Shared", "concurrency": 2,
            "suspension": { "slotFloor": 0 },
        }),
        ..Setting::default()
    };
    let stage = Stage::start("latency", setting).await?;
    for _ in 0..WARM_UP {
        load::run_alone(&stage, load::trivial("warm-up")).await?;
    }
    let (mut first_bytes, mut of_lasting) = (Vec::new(), Vec::new());
    let (mut plain, mut suspended) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat(40, 8) {
        let view = load::run_alone(&stage, load::trivial("plain")).await?;
        first_bytes.push(load::first_byte(&view)?);
        plain.push(load::end(&view)?);

        let view = load::run_alone(&stage, load::lasting("lasting")).await?;
        of_lasting.push(load::first_byte(&view)?);

        let job = load::trivial("suspended").suspendable().suspend_on_success();
        let view = load::run_alone(&stage, job).await?;
        let key = view.environment_key.as_deref().context("the environment was not suspended")?;
        suspended.push(load::end(&view)?);
        stage.asleep(key).await?;
        stage.kubectl(&["delete", "suspendedenvironments", "--all"]).await?;
        stage.until_none("suspendedenvironments").await?;
    }
    for (budget, samples, what) in [
        (FIRST_BYTE, &first_bytes, "trivial jobs"),
        (FIRST_BYTE_LASTING, &of_lasting, "jobs whose one echo is followed by two seconds of silence"),
    ] {
        let method = format!(
            "from GitLab handing the job out to the first byte of its script in GitLab's log; one host, {} {what}, one at \
             a time; median {} ms, largest {} ms",
            samples.len(),
            figures::shown(figures::median(samples)?),
            figures::shown(figures::largest(samples)),
        );
        report.add(budget, figures::percentile(samples, 95)?, method, samples);
    }
    let (plain_end, suspended_end) = (figures::median(&plain)?, figures::median(&suspended)?);
    let method = format!(
        "from the script's last line to GitLab accepting the job's end: median of {} suspended jobs, {} ms, less that of \
         as many plain ones, {} ms, in turn",
        suspended.len(),
        figures::shown(suspended_end),
        figures::shown(plain_end),
    );
    report.add(SUSPEND_ADDED, suspended_end - plain_end, method, &suspended);
    load::leave(stage).await
}
