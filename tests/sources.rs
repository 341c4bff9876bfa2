//! Sources from a real git over HTTP, with the job's token as the password: submodules, large files, any reference.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{GitRepo, JobSpec, JobState, JobView};
use crate::testbed::stage::{Setting, Stage};
use crate::traces::{self, told};

/// What is below the workspaces of a host with a job's token in it.
async fn files_with_token(stage: &Stage, job: &JobView) -> Result<String> {
    let script = format!("grep -rlF -- '{}' ~/builds || true", job.token);
    Ok(String::from_utf8(stage.hosts[0].ssh(&script).await?.stdout)?)
}

fn has(job: &JobView, lines: &[&str]) -> Result<()> {
    ensure!(job.state == JobState::Success, "{}", told(job));
    for line in lines {
        ensure!(job.log_contains(line), "{line:?} is missing: {}", told(job));
    }
    Ok(())
}

/// `group/inner` is a submodule of `group/middle`, which is one of `group/project`.
fn nested(stage: &Stage) -> Result<[GitRepo; 3]> {
    let [inner, middle, outer] = ["group/inner", "group/middle", "group/project"].map(GitRepo::create);
    let (inner, middle, outer) = (inner?, middle?, outer?);
    let deep = inner.commit("deep", &[("deep", "deepest\n")])?;
    inner.commit("later", &[("deep", "later\n")])?;
    middle.commit("file", &[("file", "middle\n")])?;
    let between = middle.commit_submodule("inner", "../inner.git", &deep)?;
    outer.commit("file", &[("file", "outer\n")])?;
    // An address of its own, with the server in it, as people write them.
    outer.commit_submodule("lib/middle", &format!("{}/group/middle.git", stage.gitlab.url()), &between)?;
    for repo in [&inner, &middle, &outer] {
        stage.gitlab.host(repo);
    }
    Ok([inner, middle, outer])
}

#[tokio::test]
async fn submodules_come_as_deep_as_the_job_says_and_their_credentials_stay_out_of_files() -> Result<()> {
    let stage = Stage::start("submodules", Setting::default()).await?;
    let [inner, middle, outer] = nested(&stage)?;
    let job = |strategy: &str| {
        JobSpec::new(strategy).git(&outer, "main").variable("GIT_SUBMODULE_STRATEGY", strategy).script([
            "cat file; cat lib/middle/file || echo no middle; cat lib/middle/inner/deep || echo no inner",
        ])
    };
    has(&stage.run(job("none")).await?, &["outer", "no middle", "no inner", "Skipping submodules"])?;
    has(&stage.run(job("normal")).await?, &["outer", "O middle\n", "no inner"])?;
    let recursive = stage.run(job("recursive").git_depth(1)).await?;
    has(&recursive, &["outer", "O middle\n", "O deepest\n", "Updating submodules recursively..."])?;
    ensure!(recursive.fetches.iter().any(|fetch| fetch.project == "group/inner"), "{:?}", recursive.fetches);
    ensure!(files_with_token(&stage, &recursive).await?.is_empty(), "a file holds the token");

    // What a job leaves in a submodule, its settings and locks included, is gone for the next one.
    let mess = "echo mess > lib/middle/file; echo x > lib/middle/left; touch .git/modules/lib/middle/index.lock; \
                git -C lib/middle config core.fsmonitor /bin/false";
    has(&stage.run(job("recursive").script([mess])).await?, &[])?;
    let next = inner.commit("newest", &[("deep", "newest\n")])?;
    let between = middle.commit_submodule("inner", "../inner.git", &next)?;
    outer.commit_submodule("lib/middle", "../middle.git", &between)?;
    let listing = "ls -A lib/middle; cat lib/middle/file lib/middle/inner/deep; \
                   git -C lib/middle config core.fsmonitor || echo clean";
    let moved = stage.run(job("recursive").git_depth(1).script([listing])).await?;
    has(&moved, &["O middle\n", "O newest\n", "O clean\n"])?;
    ensure!(!moved.log_contains("O left\n") && !moved.log_contains("anew"), "{}", told(&moved));
    traces::end(stage).await
}

#[tokio::test]
async fn submodules_are_chosen_by_path_and_reached_by_https_though_written_for_ssh() -> Result<()> {
    let stage = Stage::start("submodule-paths", Setting::default()).await?;
    let [inner, _, _] = nested(&stage)?;
    let outer = GitRepo::create("group/chooser")?;
    outer.commit("file", &[("file", "outer\n")])?;
    let tip = inner.commit("tip", &[("deep", "tip\n")])?;
    outer.commit_submodule(
        "over ssh".replace(' ', "-").as_str(),
        "git@ssh.git.test:group/inner.git",
        &tip,
    )?;
    stage.gitlab.host(&outer);
    let job = |name: &str| {
        JobSpec::new(name)
            .git(&outer, "main")
            .variable("GIT_SUBMODULE_STRATEGY", "normal")
            .script(["cat over-ssh/deep || echo none"])
    };
    let forced = job("forced")
        .variable("GIT_SUBMODULE_FORCE_HTTPS", "true")
        .variable("CI_SERVER_SHELL_SSH_HOST", "ssh.git.test");
    has(&stage.run(forced.clone()).await?, &["O tip\n"])?;
    let without = forced.git_strategy("clone").variable("GIT_SUBMODULE_PATHS", ":(exclude)over-ssh");
    has(&stage.run(without).await?, &["O none\n"])?;
    let odd = job("odd").variable("GIT_SUBMODULE_STRATEGY", "everything");
    has(&stage.run(odd).await?, &["WARNING: GIT_SUBMODULE_STRATEGY \"everything\"", "using none"])?;
    traces::end(stage).await
}

#[tokio::test]
async fn large_files_come_with_the_sources_unless_the_job_skips_them() -> Result<()> {
    let stage = Stage::start("large-files", Setting::default()).await?;
    let repo = GitRepo::create("group/large")?;
    let pointer = repo.large_file("large content\n");
    repo.commit(
        "large",
        &[(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n"), ("a.bin", &pointer)],
    )?;
    stage.gitlab.host(&repo);
    let job = |name: &str| JobSpec::new(name).git(&repo, "main").script(["cat a.bin"]);
    let skipped = stage.run(job("skipped").variable("GIT_LFS_SKIP_SMUDGE", "1")).await?;
    has(&skipped, &["git-lfs.github.com/spec/v1"])?;
    let fetched = stage.run(job("fetched")).await?;
    has(&fetched, &["O large content\n"])?;
    ensure!(fetched.fetches.iter().any(|fetch| fetch.request.contains("lfs/objects/batch")));
    ensure!(files_with_token(&stage, &fetched).await?.is_empty(), "a file holds the token");
    // What is there is not fetched again.
    let again = stage.run(job("again")).await?;
    has(&again, &["O large content\n"])?;
    ensure!(!again.fetches.iter().any(|fetch| fetch.request.contains("gitlab-lfs")), "{:?}", again.fetches);
    traces::end(stage).await
}

#[tokio::test]
async fn merge_requests_tags_and_other_object_formats_are_checked_out() -> Result<()> {
    let stage = Stage::start("references", Setting::default()).await?;
    let repo = GitRepo::create("group/project")?;
    let first = repo.commit("first", &[("file", "first\n")])?;
    repo.tag("v1", &first)?;
    repo.commit("second", &[("file", "second\n")])?;
    let merged = repo.commit_to("feature", "feature", &[("file", "feature\n")])?;
    repo.set_ref("refs/merge-requests/5/merge", &merged)?;
    stage.gitlab.host(&repo);
    let show = ["cat file; git for-each-ref --format='%(refname)'; git rev-parse HEAD"];
    let tag = stage.run(JobSpec::new("tag").git(&repo, "v1").script(show)).await?;
    has(&tag, &["O first\n", "O refs/tags/v1\n", &first])?;
    let sha = merged.clone();
    let request = JobSpec::new("request").git(&repo, "main").script(show).edit_payload(move |payload| {
        payload["git_info"]["sha"] = json!(sha);
        payload["git_info"]["refspecs"] =
            json!(["+refs/merge-requests/5/merge:refs/remotes/origin/merge-requests/5/merge"]);
    });
    let request = stage.run(request).await?;
    has(&request, &["O feature\n", "O refs/remotes/origin/merge-requests/5/merge\n", &merged])?;

    let newer = GitRepo::with_format("group/newer", "sha256")?;
    let named = newer.commit("first", &[("file", "by sha256\n")])?;
    stage.gitlab.host(&newer);
    has(
        &stage.run(JobSpec::new("sha256").git(&newer, "main").script(show)).await?,
        &["O by sha256\n", &named],
    )?;

    let missing = JobSpec::new("missing").git(&repo, "main").script(["echo never"]).edit_payload(|payload| {
        payload["git_info"]["refspecs"] = json!(["+refs/heads/gone:refs/remotes/origin/gone"]);
    });
    let missing = stage.run(missing).await?;
    ensure!(missing.state == JobState::Failed && !missing.log_contains("O never"), "{}", told(&missing));
    ensure!(missing.log_contains("refs/heads/gone"), "{}", told(&missing));
    ensure!(missing.failure_reason.as_deref() == Some("script_failure"), "{}", told(&missing));
    traces::end(stage).await
}
