//! Artifacts between real jobs on a real host: many files, and an upload that GitLab sends to another origin.
//! What a job must see of artifacts otherwise is in `conformance/cases/artifacts`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{Fault, JobSpec, JobState, JobView, Target};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, told};

/// A hundred thousand files take their time on a busy machine.
const LONG: Duration = Duration::from_secs(240);

fn archive(paths: &[&str]) -> Value {
    json!([{ "name": null, "untracked": false, "paths": paths, "exclude": [], "when": "on_success",
        "artifact_type": "archive", "artifact_format": "zip", "expire_in": null }])
}

fn dependency(job: &JobView) -> Value {
    json!([{ "id": job.id.0, "name": job.name, "token": job.token,
        "artifacts_file": { "filename": "artifacts.zip", "size": job.artifacts.first().map_or(0, |a| a.file.len()) } }])
}

#[tokio::test]
async fn a_hundred_thousand_files_go_from_one_job_to_the_next() -> Result<()> {
    let stage = Stage::start("many-artifacts", Setting::default()).await?;
    let fill = "mkdir out && cd out && seq 100000 | split -a 5 -d -l 1 - file && ls | wc -l";
    let spec = JobSpec::new("fill").script([fill]).payload_field("artifacts", archive(&["out/"]));
    let id = stage.gitlab.enqueue(spec);
    let filled = stage.gitlab.wait_until_over(id, LONG).await.with_context(|| stage.operator_log())?;
    ensure!(filled.state == JobState::Success, "{}", told(&filled));
    ensure!(filled.log_contains("found 100001 matching artifact files"), "{}", told(&filled));

    let count = "ls out | wc -l; cat out/file99999; rm -rf out";
    let spec = JobSpec::new("count")
        .project(77, "group/other")
        .script([count])
        .payload_field("dependencies", dependency(&filled));
    let id = stage.gitlab.enqueue(spec);
    let counted = stage.gitlab.wait_until_over(id, LONG).await.with_context(|| stage.operator_log())?;
    ensure!(counted.state == JobState::Success, "{}", told(&counted));
    ensure!(counted.log_contains("files=100000") && counted.log_contains("O 100000\n"), "{}", told(&counted));
    traces::end(stage).await
}

#[tokio::test]
async fn an_upload_that_is_sent_on_goes_to_the_other_origin_with_its_token() -> Result<()> {
    let stage = Stage::start("sent-on", Setting::default()).await?;
    // The same server by another name: another origin, and the same path there.
    let elsewhere = stage.gitlab.url().replace("127.0.0.1", "localhost");
    let sent_on =
        Fault::refuse(Target::Artifacts, 307).header("location", format!("{elsewhere}/ignored")).once();
    let spec = JobSpec::new("sent-on")
        .script(["echo content > file"])
        .payload_field("artifacts", archive(&["file"]));
    let (id, _) = stage.gitlab.enqueue_with(spec, vec![sent_on]);
    let done = stage.until_over(id).await?;
    ensure!(done.state == JobState::Success && done.log_contains("201 Created"), "{}", told(&done));
    ensure!(done.artifacts.len() == 1, "{} uploads", done.artifacts.len());
    stage.gitlab.assert_clean();
    traces::end(stage).await
}
