//! What it costs a job to have the sources of a repository that has not changed, where its slot has them already.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::json;

use super::super::gitlab::{GitRepo, JobSpec, JobState, JobView};
use super::super::stage::{Setting, Stage};
use super::budget::{Bound, Budget, Report};
use super::noise::Noise;
use super::{Options, figures, load};

const LARGE: Budget = Budget { name: "sources-unchanged-1GiB", bound: Bound::Below, limit: 2.0, unit: "s" };
/// With `--quick`.
const SMALL: Budget = Budget { name: "sources-unchanged-64MiB", bound: Bound::Below, limit: 2.0, unit: "s" };

const BYTES_IN_EACH: usize = 64 << 10;
const FILES_IN_FOLDER: usize = 256;

/// Free space that repository, clone and working tree take together, by the size of the repository, and some more.
const COPIES: u64 = 4;

/// Time for the first clone.
const CLONED: Duration = Duration::from_secs(300);

/// Clones once, then fetches again and again.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let (budget, mebibytes) = if options.quick { (SMALL, 64_u64) } else { (LARGE, 1024) };
    let setting = Setting {
        pool: json!({ "isolation": "Shared", "concurrency": 1, "capacityPerInstance": 1 }),
        ..Setting::default()
    };
    let stage = Stage::start("sources", setting).await?;
    let size = mebibytes << 20;
    for folder in [stage.folder(), std::env::temp_dir()] {
        let disk = rustix::fs::statvfs(&folder)?;
        let free = disk.f_bavail * disk.f_frsize;
        ensure!(free >= COPIES * size, "{} needs {} bytes and has {free}", folder.display(), COPIES * size);
    }
    let repo = GitRepo::create("group/large")?;
    let files = usize::try_from(size)? / BYTES_IN_EACH;
    fill(&repo, files)?;
    stage.gitlab.host(&repo);
    let job = || JobSpec::new("sources").git(&repo, "main").script(["git ls-files | wc -l"]);
    let id = stage.gitlab.enqueue(job());
    let first = stage.gitlab.wait_until_over(id, CLONED).await.with_context(|| stage.operator_log())?;
    ensure!(first.state == JobState::Success, "the clone ended as {:?}:\n{}", first.state, first.log_text());
    stage.lease_over(id).await?;
    // Writing back a gigabyte would be measured instead.
    stage.hosts.first().context("the stage has no host")?.exec_root("sync").await?;
    let mut samples = Vec::new();
    for _ in 0..options.repeat(10, 3) {
        let view = load::run_alone(&stage, job()).await?;
        let counted = files.to_string();
        let found = load::lines(&view.log_text()).any(|line| line.trim() == counted);
        ensure!(found, "the job does not have its {files} files:\n{}", view.log_text());
        samples.push(duration(&view)?);
    }
    let method = format!(
        "the get_sources section by the times in the log, for a repository of {mebibytes} MiB in {files} files of random \
         bytes, depth 20, by git over HTTP; the slot has it from an earlier job and nothing has changed; median of {} \
         jobs, one at a time, largest {} s; the first, which clones, took {} s",
        samples.len(),
        figures::shown(figures::largest(&samples)),
        figures::shown(duration(&first)?),
    );
    report.add(budget, figures::median(&samples)?, method, &samples);
    load::leave(stage).await
}

fn fill(repo: &GitRepo, files: usize) -> Result<()> {
    let mut noise = Noise::default();
    let all = (0..files).map(|number| {
        let mut content = vec![0; BYTES_IN_EACH];
        noise.fill(&mut content);
        (format!("folder-{}/file-{number}", number / FILES_IN_FOLDER), content)
    });
    repo.commit_large("all of it", all).map(drop)
}

/// How long the stage of the sources took, in seconds.
fn duration(view: &JobView) -> Result<f64> {
    let log = view.log_text();
    let at = |mark: &str| -> Result<Timestamp> {
        // The mark of one section's end and that of the next one's beginning are on one line.
        let is_it = |line: &&str| {
            let mut rest = line.split(mark).skip(1);
            rest.any(|rest| rest.split('\r').next().is_some_and(|name| name.ends_with(":get_sources")))
        };
        let line =
            log.lines().find(is_it).with_context(|| format!("the log has no {mark} of the sources"))?;
        let (time, _) = line.split_once("Z ").context("the log's lines have no times")?;
        Ok(format!("{time}Z").parse()?)
    };
    Ok(figures::milliseconds(at("section_start:")?, at("section_end:")?) / 1000.0)
}
