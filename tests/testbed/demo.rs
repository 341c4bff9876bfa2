//! The demo: the main job from end to end, with what a person would type and see. On hosts here, on instances in `aws`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::bed::{Bed, NAMESPACE, POOL, Provider, say};
use super::gitlab::{GitRepo, JobSpec, JobState, JobView};
use super::wait::until;

mod aws;

const SOON: Duration = Duration::from_secs(60);

/// Runs the demo; fails if anything is not as it should be.
pub async fn run(provider: Provider) -> Result<()> {
    let bed = Bed::start(provider).await?;
    let shown = match provider {
        Provider::Static => show(&bed).await,
        Provider::Aws => aws::show(&bed).await,
    };
    let violations = bed.gitlab.violations();
    let shown = shown.and_then(|()| {
        ensure!(violations.is_empty(), "GitLab saw what a runner must not do: {violations:?}");
        Ok(())
    });
    if shown.is_err() {
        println!("\nthe operator said:\n{}", bed.operator.log_tail());
    }
    say(match provider {
        Provider::Static => "Cleaning up: environments, pool, operator, hosts, control plane",
        Provider::Aws => "Cleaning up: environments, pool, operator, cloud, control plane",
    });
    let ended = bed.end().await;
    shown?;
    ended?;
    match provider {
        Provider::Static => say("Done. `make up` leaves the same bed running for you."),
        Provider::Aws => say("Done. `make up PROVIDER=aws` leaves the same bed running for you."),
    }
    Ok(())
}

async fn show(bed: &Bed) -> Result<()> {
    say("A RunnerPool of two hosts, two slots each");
    let pool = bed.pool()?;
    println!("{}", serde_saphyr::to_string(&pool)?);
    bed.client.apply(&pool.to_string()).await?;
    until("every host is ready", SOON, async || {
        let pool = bed.kubectl(&["get", "runnerpool", POOL, "-o", "jsonpath={.status.instances}"]).await?;
        Ok((pool == "2/2").then_some(()))
    })
    .await?;
    screen(bed, &["get", "runnerpools"]).await?;

    let key = sleep(bed).await?;
    wake(bed, &key).await?;
    outlive(bed).await?;

    screen(bed, &["get", "jobleases"]).await?;
    screen(bed, &["get", "events", "--field-selector", "reportingComponent=dormouse.dev/operator"]).await
}

/// A job fails and its environment is put to sleep.
async fn sleep(bed: &Bed) -> Result<String> {
    say("A job fails, and asks for its environment to be kept");
    let repo = GitRepo::create("web/shop")?;
    repo.commit("first", &[("README.md", "a shop\n")])?;
    bed.gitlab.host(&repo);
    let job = JobSpec::new("test")
        .project(7, "web/shop")
        .git(&repo, "main")
        .suspendable()
        .suspend_on_failure()
        .script([
            "cat README.md",
            "echo 'half an hour of building' > build.out",
            "(while true; do date +%T.%N > heartbeat; sleep 0.2; done) & echo $! > server.pid",
            "mkdir -p deep/inside && cd deep/inside",
            "echo 'the test fails' && exit 7",
        ]);
    let id = bed.gitlab.enqueue(job);
    let failed = bed.gitlab.wait_until_over(id, SOON).await?;
    print_log(&failed);
    ensure!((failed.state, failed.exit_code) == (JobState::Failed, Some(7)), "the job did not fail with 7");
    let key = failed.environment_key.context("GitLab was told no environment key")?;
    screen(bed, &["get", "suspendedenvironments"]).await?;
    Ok(key)
}

/// A second job resumes it.
async fn wake(bed: &Bed, key: &str) -> Result<()> {
    say("A second job names the key and finds everything as it was");
    let job = JobSpec::new("debug").project(7, "web/shop").suspendable().environment_key(key).script([
        "pwd",
        "cat ../../build.out",
        "kill -0 $(cat ../../server.pid) && echo 'the background process is alive'",
    ]);
    let id = bed.gitlab.enqueue(job);
    let resumed = bed.gitlab.wait_until_over(id, SOON).await?;
    print_log(&resumed);
    ensure!(resumed.state == JobState::Success, "the resumed job failed");
    ensure!(resumed.fetches.is_empty(), "sources were fetched again");
    ensure!(resumed.log_contains("the background process is alive"), "the background process is gone");
    until("the environment is released", SOON, async || {
        let left = bed.kubectl(&["get", "suspendedenvironments", "-o", "name"]).await?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .await?;
    println!("\nIt asked for no other sleep, so the environment was released:");
    screen(bed, &["get", "suspendedenvironments"]).await
}

/// The operator is killed in the middle of a third job.
async fn outlive(bed: &Bed) -> Result<()> {
    say("The operator is killed with SIGKILL in the middle of a third job");
    let script = "for i in $(seq 1 100); do echo \"line $i\"; sleep 0.05; done; exit 4";
    let id = bed.gitlab.enqueue(JobSpec::new("long").project(7, "web/shop").script([script]));
    bed.gitlab.wait_for_log(id, "line 10", SOON).await?;
    let pid = bed.operator.pid().context("the operator does not run")?;
    bed.operator.kill()?;
    println!("kill -9 {pid}: the operator is gone; the job is not");
    bed.operator.start_again().await?;
    println!("started again as process {}", bed.operator.pid().unwrap_or_default());
    let job = bed.gitlab.wait_until_over(id, SOON).await?;
    let log = job.log_text();
    let lines = (1..=100)
        .filter(|number| {
            let line = format!("line {number}");
            log.lines().filter(|found| found.trim_end().ends_with(&line)).count() == 1
        })
        .count();
    let tail: Vec<&str> = log.lines().rev().take(6).collect();
    for line in tail.iter().rev() {
        println!("  | {line}");
    }
    println!("\nGitLab has {lines} of 100 lines, each once; exit code {:?}", job.exit_code);
    ensure!(lines == 100, "lines are missing or doubled:\n{log}");
    ensure!((job.state, job.exit_code) == (JobState::Failed, Some(4)), "the exit code is not 4");
    Ok(())
}

fn print_log(job: &JobView) {
    println!("\nThe log of job {} in GitLab:", job.id.0);
    for line in job.log_text().lines() {
        println!("  | {line}");
    }
}

async fn screen(bed: &Bed, args: &[&str]) -> Result<()> {
    println!("\n$ kubectl --namespace {NAMESPACE} {}", args.join(" "));
    let answer = bed.kubectl(args).await?;
    println!("{}", if answer.trim().is_empty() { "No resources found" } else { answer.trim_end() });
    Ok(())
}
