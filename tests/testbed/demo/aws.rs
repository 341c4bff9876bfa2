//! The main job on instances that come and go, and an environment through every tier.
//!
//! May assume a bed whose pool is an Auto Scaling group. What the cloud has is shown as the stand-in tells it: there is no
//! AWS program here.

#![allow(clippy::indexing_slicing, reason = "what a JSON value does not have is null, not a panic")]

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::bed::{Bed, NAMESPACE, POOL, say};
use super::super::gitlab::{GitRepo, JobSpec, JobState, JobView};
use super::super::stage::cloud::GROUP;
use super::super::stage::{CloudStage, condition};
use super::super::wait::until;
use super::{SOON, print_log, screen};

/// What is kept of the first job.
struct Kept {
    key: String,
    object: String,
}

/// Shows it; fails if anything is not as it should be.
pub async fn show(bed: &Bed) -> Result<()> {
    let cloud = of(bed)?;
    say("A RunnerPool of an Auto Scaling group that has no instance");
    let pool = bed.pool()?;
    println!("{}", serde_saphyr::to_string(&pool)?);
    bed.client.apply(&pool.to_string()).await?;
    until("the pool is Ready", SOON, async || {
        let pool = bed.kubectl(&["get", "runnerpool", POOL, "-o", "json"]).await?;
        Ok((condition(&serde_json::from_str(&pool)?, "Ready").0 == "True").then_some(()))
    })
    .await?;
    screen(bed, &["get", "runnerpools"]).await?;
    screen_of_cloud(bed).await?;

    stop_and_resume(bed, cloud).await?;
    detach_and_snapshot(bed, cloud).await?;

    say("Nothing needs an instance any more: the group goes back to zero");
    until("the group is empty", SOON, async || Ok(cloud.members().await?.is_empty().then_some(()))).await?;
    screen(bed, &["get", "runnerpools"]).await?;
    screen_of_cloud(bed).await?;
    screen(bed, &["get", "jobleases"]).await?;
    screen(bed, &["get", "events", "--field-selector", "reportingComponent=dormouse.dev/operator"]).await
}

/// A job fails and its environment sleeps, then stops with its instance; a second job resumes it.
async fn stop_and_resume(bed: &Bed, cloud: &CloudStage) -> Result<()> {
    say("A job waits, an instance comes; the job fails, and asks for its environment to be kept");
    let repo = GitRepo::create("web/shop")?;
    repo.commit("first", &[("README.md", "a shop\n")])?;
    bed.gitlab.host(&repo);
    let job = job("test").git(&repo, "main").suspend_on_failure().script([
        "cat README.md",
        "echo 'half an hour of building' > build.out",
        "(while true; do date +%T.%N > heartbeat; sleep 0.2; done) & echo $! > server.pid",
        "mkdir -p deep/inside && cd deep/inside",
        "echo 'the test fails' && exit 7",
    ]);
    let failed = run(bed, job).await?;
    ensure!((failed.state, failed.exit_code) == (JobState::Failed, Some(7)), "the job did not fail with 7");
    let kept = kept(&failed)?;
    rests(bed, &kept, "Hot").await?;
    screen_of_cloud(bed).await?;

    say("Nobody will look at it before tomorrow: its instance leaves the group, and is stopped");
    let stopped = ask(bed, &kept, "Stopped").await?;
    let instance = stopped["status"]["instance"].as_str().context("it is on no instance")?;
    screen_of_cloud(bed).await?;
    ensure!(cloud.cloud.instance(instance).await?.state == "stopped", "{instance} is not stopped");

    say("A second job names the key: the instance starts, and everything on its disk is as it was");
    let resumed = run(
        bed,
        job_of(&kept, "debug").script([
            "pwd",
            "cat ../../build.out",
            "kill -0 $(cat ../../server.pid) 2>/dev/null || echo 'the background process ended with the stop'",
        ]),
    )
    .await?;
    ensure!(resumed.log_contains("half an hour of building"), "what was built is gone");
    ensure!(resumed.log_contains("the background process ended"), "a process survived a stop");
    released(bed, &kept).await
}

/// A second environment goes to its volume and to a snapshot, and comes back from each.
async fn detach_and_snapshot(bed: &Bed, cloud: &CloudStage) -> Result<()> {
    say("Another environment, of a job that passes");
    let built = run(
        bed,
        job("build").git_strategy_none().suspend_on_success().script([
            "seq 1 100000 > numbers",
            "sha256sum numbers | tee sum",
            "export STAGE=built",
        ]),
    )
    .await?;
    ensure!(built.state == JobState::Success, "the job failed");
    let kept = kept(&built)?;
    let first = rests(bed, &kept, "Hot").await?["status"]["instance"].clone();

    say("It needs no instance: its volume is taken off, and the instance goes");
    let detached = ask(bed, &kept, "Detached").await?;
    let volume = detached["status"]["volume"]["id"].as_str().context("it is on no volume")?;
    until_no_instance(cloud).await?;
    screen_of_cloud(bed).await?;

    say("A job resumes it: a new instance comes in the volume's zone, and the volume is attached there");
    let again =
        run(bed, job_of(&kept, "look").suspend_on_success().script(["sha256sum -c sum", "echo $STAGE"]))
            .await?;
    ensure!(
        again.state == JobState::Success && again.log_contains("numbers: OK"),
        "the workspace is not whole"
    );
    let lease = format!("{POOL}-{}", again.id);
    let second = bed.kubectl(&["get", "joblease", &lease, "-o", "jsonpath={.status.instance}"]).await?;
    ensure!(first != second.as_str(), "it did not change its instance");
    println!("\nFirst it was on {}, then on {second}.", first.as_str().unwrap_or("no instance"));

    say("It sleeps again, for a month this time: a snapshot of the volume is kept, and nothing else");
    ask(bed, &kept, "Snapshotted").await?;
    until_no_instance(cloud).await?;
    until("its volume is gone", SOON, async || {
        Ok(cloud.cloud.state().await?.volumes.iter().all(|known| known.id != volume).then_some(()))
    })
    .await?;
    println!("\n{volume} is gone. Volumes that nobody owns wait for slots of instances to come.");
    screen_of_cloud(bed).await?;

    say("And back: a volume is made from the snapshot, on whichever instance comes");
    let last = run(bed, job_of(&kept, "last").script(["sha256sum -c sum", "echo $STAGE"])).await?;
    ensure!(
        last.state == JobState::Success && last.log_contains("numbers: OK"),
        "the workspace is not whole"
    );
    released(bed, &kept).await
}

fn of(bed: &Bed) -> Result<&CloudStage> {
    bed.cloud.as_ref().context("the bed has no cloud")
}

/// A job whose suspend options count.
fn job(name: &str) -> JobSpec {
    JobSpec::new(name).project(7, "web/shop").suspendable()
}

/// The same that resumes.
fn job_of(kept: &Kept, name: &str) -> JobSpec {
    job(name).environment_key(&kept.key)
}

async fn run(bed: &Bed, job: JobSpec) -> Result<JobView> {
    let id = bed.gitlab.enqueue(job);
    let over = bed.gitlab.wait_until_over(id, SOON).await?;
    print_log(&over);
    Ok(over)
}

fn kept(job: &JobView) -> Result<Kept> {
    let key = job.environment_key.clone().context("GitLab was told no environment key")?;
    let id = key.rsplit_once('=').context("the key has no environment id")?.1;
    let object = format!("{POOL}-{id}");
    Ok(Kept { key, object })
}

/// Asks for a tier, as a person would, and waits for it.
async fn ask(bed: &Bed, kept: &Kept, tier: &str) -> Result<Value> {
    let wish =
        json!({ "spec": { "desiredTier": { "tier": tier, "until": "2099-01-01T00:00:00Z" } } }).to_string();
    let patch = ["patch", "suspendedenvironment", &kept.object, "--type=merge", "-p", &wish];
    println!(
        "\n$ kubectl --namespace {NAMESPACE} patch suspendedenvironment {} --type=merge -p '{wish}'",
        kept.object
    );
    println!("{}", bed.kubectl(&patch).await?.trim_end());
    rests(bed, kept, tier).await
}

/// Shows an environment once it rests at a tier.
async fn rests(bed: &Bed, kept: &Kept, tier: &str) -> Result<Value> {
    let mut last = Value::Null;
    let found = until(&format!("{} is at tier {tier}", kept.object), SOON, async || {
        let found = bed.kubectl(&["get", "suspendedenvironment", &kept.object, "-o", "json"]).await?;
        last = serde_json::from_str(&found)?;
        let status = &last["status"];
        let rests = status["tier"] == tier && status["phase"] == "Suspended" && status["moving"].is_null();
        Ok(rests.then(|| last.clone()))
    })
    .await;
    let found = found.with_context(|| format!("it is {last:#}"))?;
    screen(bed, &["get", "suspendedenvironments"]).await?;
    Ok(found)
}

/// Waits until a resumed job that asked for no other sleep has given its environment back.
async fn released(bed: &Bed, kept: &Kept) -> Result<()> {
    until("the environment is released", SOON, async || {
        let left = bed.kubectl(&["get", "suspendedenvironments", "-o", "name"]).await?;
        Ok((!left.contains(&kept.object)).then_some(()))
    })
    .await?;
    println!("\nIt asked for no other sleep, so the environment was released:");
    screen(bed, &["get", "suspendedenvironments"]).await
}

async fn until_no_instance(cloud: &CloudStage) -> Result<()> {
    until("no instance is left", SOON, async || {
        let instances = cloud.cloud.state().await?.instances;
        Ok(instances.iter().all(|instance| instance.state == "terminated").then_some(()))
    })
    .await
}

/// What there is in the cloud that costs money.
async fn screen_of_cloud(bed: &Bed) -> Result<()> {
    let cloud = of(bed)?;
    println!("\nIn the cloud, group {GROUP}:");
    let state = cloud.cloud.state().await?;
    let mut lines = Vec::new();
    for instance in state.instances.iter().filter(|instance| instance.state != "terminated") {
        let member = instance.lifecycle.as_deref().unwrap_or("not in the group");
        lines.push(format!("instance  {}  {}  {}  {member}", instance.id, instance.zone, instance.state));
    }
    for volume in &state.volumes {
        let holder = state
            .instances
            .iter()
            .find(|instance| instance.volumes.iter().any(|attached| attached.id == volume.id));
        let place = holder.map_or("on no instance".to_owned(), |instance| {
            let root = instance.root_volume.as_deref() == Some(volume.id.as_str());
            format!("{} {}", if root { "disk of" } else { "workspace on" }, instance.id)
        });
        lines.push(format!("volume    {}  {}  {} GiB  {place}", volume.id, volume.zone, volume.size));
    }
    lines.extend(
        state
            .snapshots
            .iter()
            .map(|snapshot| format!("snapshot  {}  of {}  {}", snapshot.id, snapshot.volume, snapshot.state)),
    );
    if lines.is_empty() {
        lines.push("nothing".to_owned());
    }
    for line in lines {
        println!("  {line}");
    }
    Ok(())
}
