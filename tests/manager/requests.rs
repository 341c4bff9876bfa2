//! How many requests for a job are open, and whose.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{Fault, JobSpec, JobState, Options, Target};
use crate::testbed::stage::{POOL, SOON, Setting, Stage};
use crate::testbed::wait::until;

/// The value of the one series of a metric.
async fn figure(stage: &Stage, name: &str) -> Result<Option<f64>> {
    let metrics = stage.operator()?.metrics().await?;
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{")));
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()))
}

/// A server that holds requests for longer than this test takes.
fn held() -> Options {
    Options { hold: Duration::from_secs(40), asks_in_parallel: true, ..Options::default() }
}

#[tokio::test]
async fn an_idle_pool_asks_once_at_a_time_and_a_busy_one_as_often_as_there_is_room() -> Result<()> {
    let pool = json!({ "capacityPerInstance": 8, "isolation": "Shared", "requestConcurrency": 4 });
    let stage = Stage::start("adaptive", Setting { gitlab: held(), ..Setting::pool(pool) }).await?;
    until("a request is held", SOON, async || Ok((stage.gitlab.held_requests() > 0).then_some(()))).await?;
    ensure!(stage.gitlab.held_requests() == 1, "{} requests of an idle pool", stage.gitlab.held_requests());
    let jobs: Vec<_> = (0..6)
        .map(|number| stage.gitlab.enqueue(JobSpec::new(format!("job{number}")).script(["true"])))
        .collect();
    for id in jobs {
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success, "{}", over.log_text());
    }
    until("two requests are held", SOON, async || Ok((stage.gitlab.held_requests() == 2).then_some(())))
        .await?;
    let limit = figure(&stage, "gitlab_runner_request_concurrency_adaptive_limit").await?;
    ensure!(limit.is_some_and(|limit| limit > 1.0 && limit <= 4.0), "{limit:?}");
    ensure!(figure(&stage, "gitlab_runner_request_concurrency_hard_limit").await? == Some(4.0));

    // Told to ask for less, it goes back to one.
    stage.gitlab.inject(Fault::refuse(Target::RequestJob, 429).header("Retry-After", "1").times(2));
    stage.gitlab.enqueue(JobSpec::new("wakes").script(["true"]));
    stage.gitlab.enqueue(JobSpec::new("wakes too").script(["true"]));
    until("it has been pushed back", SOON, async || {
        let limit = figure(&stage, "gitlab_runner_request_concurrency_adaptive_limit").await?;
        Ok(limit.is_some_and(|limit| limit < 1.2).then_some(()))
    })
    .await?;
    stage.gitlab.clear_faults();
    for job in stage.gitlab.jobs() {
        stage.until_over(job.id).await?;
    }
    // Requests that are held end with the server.
    stage.gitlab.down().await?;
    stage.end().await
}

#[tokio::test]
async fn no_more_requests_are_open_than_jobs_have_room() -> Result<()> {
    let pool = json!({
        "capacityPerInstance": 2, "isolation": "Shared", "concurrency": 2, "requestConcurrency": 10,
    });
    let stage = Stage::start("room", Setting { gitlab: held(), ..Setting::pool(pool) }).await?;
    let jobs: Vec<_> = (0..8)
        .map(|number| stage.gitlab.enqueue(JobSpec::new(format!("job{number}")).script(["true"])))
        .collect();
    let mut most = 0;
    for id in jobs {
        let over = stage.until_over(id).await?;
        ensure!(over.state == JobState::Success, "{}", over.log_text());
        let pool = stage.get("runnerpool", POOL).await?;
        let jobs = pool["status"]["jobs"].as_str().unwrap_or_default().to_owned();
        let open: usize = jobs.split('/').next().unwrap_or_default().parse()?;
        most = most.max(open);
    }
    ensure!(most <= 2, "{most} jobs were open at once");
    // The eighth job in a row has raised the limit to three, but there is room for two.
    until("two requests are held", SOON, async || Ok((stage.gitlab.held_requests() == 2).then_some(())))
        .await?;
    let used = figure(&stage, "gitlab_runner_request_concurrency_used_limit").await?;
    ensure!(used.is_some_and(|used| used > 2.0), "{used:?}");
    stage.gitlab.down().await?;
    stage.end().await
}

#[tokio::test]
async fn a_pool_whose_requests_are_held_keeps_no_other_pool_waiting() -> Result<()> {
    // Each pool asks once at a time.
    let gitlab = Options { asks_in_parallel: false, ..held() };
    let setting = Setting { gitlab, ..Setting::pool(json!({})).hosts(&["alder", "birch"]) };
    let mut stage = Stage::without_operator("fair", &setting).await?;
    let host = |number: usize| {
        let host = &stage.hosts[number];
        json!({ "name": host.name(), "address": host.address().to_string(), "port": host.port() })
    };
    let other = stage.gitlab.register_runner(&["other"]);
    let token = format!("--from-literal=token={}", other.token);
    stage.kubectl(&["create", "secret", "generic", "other-token", &token]).await?;
    let mut second = stage.pool(json!({
        "gitlab": { "tokenSecretRef": { "name": "other-token" } },
        "provider": { "static": { "hosts": [host(1)] } },
    }))?;
    second["metadata"]["name"] = json!("second");
    let first = json!({ "provider": { "static": { "hosts": [host(0)] } } });
    stage.apply(&second).await?;
    stage.raise(first).await?;
    for pool in [POOL, "second"] {
        stage.until_condition("runnerpool", pool, "Ready").await?;
    }
    until("both pools ask", SOON, async || Ok((stage.gitlab.held_requests() == 2).then_some(()))).await?;
    for round in 0..3 {
        for runner in [stage.runner.id, other.id] {
            let spec = JobSpec::new(format!("round{round}")).for_runner(runner).script(["true"]);
            let id = stage.gitlab.enqueue(spec);
            // Well below the time for which the other pool's request is held.
            let over = stage.gitlab.wait_until_over(id, Duration::from_secs(20)).await?;
            ensure!(over.state == JobState::Success && over.runner == Some(runner), "{}", over.log_text());
        }
    }
    stage.gitlab.down().await?;
    stage.end().await
}
