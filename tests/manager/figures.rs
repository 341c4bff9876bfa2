//! Metrics and the list of jobs, as dashboards and scripts for gitlab-runner read them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{Fault, JobSpec, JobState, Target};
use crate::testbed::stage::{SOON, Setting, Stage};
use crate::testbed::wait::until;

const LIST: &str = include_str!("../data/upstream-metrics.txt");

/// A metric as the list names it: its kind, its labels, the buckets of a histogram.
#[derive(Debug, Default, PartialEq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
    buckets: Vec<String>,
}

fn listed() -> Result<BTreeMap<String, Metric>> {
    let lines = LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let metric = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, kind) = (words.next().context("a name")?, words.next().context("a kind")?);
        let list = |word: Option<&str>| -> Vec<String> {
            word.unwrap_or("-").split(',').filter(|label| *label != "-").map(str::to_owned).collect()
        };
        let labels = list(words.next()).into_iter().collect();
        let buckets = list(words.next());
        Ok((name.to_owned(), Metric { kind: kind.to_owned(), labels, buckets }))
    };
    lines.map(metric).collect()
}

/// What a scrape shows of a metric: the labels of all of its series, the buckets of the first.
fn scraped(text: &str, name: &str, kind: &str) -> Option<(BTreeSet<String>, Vec<String>)> {
    let series = match kind {
        "histogram" => format!("{name}_bucket"),
        _ => name.to_owned(),
    };
    let mut labels = None;
    let mut buckets = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(&series) else { continue };
        let within = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((within, _)) => within,
            None if rest.starts_with(' ') => "",
            None => continue,
        };
        let pairs: Vec<(&str, &str)> = within.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let names =
            pairs.iter().map(|(label, _)| (*label).to_owned()).filter(|label| label != "le").collect();
        labels.get_or_insert(names);
        if let Some((_, le)) = pairs.iter().find(|(label, _)| *label == "le") {
            let le = le.trim_matches('"').to_owned();
            if !buckets.contains(&le) {
                buckets.push(le);
            }
        }
    }
    labels.map(|labels| (labels, buckets))
}

#[tokio::test]
async fn dashboards_for_gitlab_runner_find_every_metric_they_read() -> Result<()> {
    let stage = Stage::start("figures", Setting::pool(json!({ "concurrency": 7 }))).await?;
    // One answer that is no use, so that what counts such has a series.
    let fault = stage.gitlab.inject(Fault::refuse(Target::RequestJob, 503).once());
    until("a request was refused", SOON, async || Ok((stage.gitlab.fault_hits(fault) > 0).then_some(())))
        .await?;
    let failed = stage.run(JobSpec::new("fails").script(["exit 1"])).await?;
    // Both ends of its last stage but one are seen: it begins and ends while the job is streamed.
    let wait = |word: &str| [format!("echo {word}; while [ ! -e /tmp/{word} ]; do sleep 0.05; done")];
    let passes = JobSpec::new("passes").script(wait("first")).after_script(wait("second"));
    let id = stage.gitlab.enqueue(passes);
    for word in ["first", "second"] {
        stage.until_log(id, &format!("$ echo {word}")).await?;
        stage.touch(&format!("/tmp/{word}")).await?;
    }
    let passed = stage.until_over(id).await?;
    ensure!((failed.state, passed.state) == (JobState::Failed, JobState::Success));
    stage.lease_over(failed.id).await?;
    stage.lease_over(passed.id).await?;
    let text = stage.operator()?.metrics().await?;
    let mut wrong = Vec::new();
    for (name, expected) in listed()? {
        let kind = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let family = name.strip_suffix("_total").unwrap_or(&name);
        let has_kind = text.lines().filter(|line| line.starts_with("# TYPE ")).map(kind).any(|words| {
            words.get(2).is_some_and(|known| known == family) && words.get(3) == Some(&expected.kind)
        });
        match scraped(&text, &name, &expected.kind) {
            None => wrong.push(format!("{name} is missing")),
            Some(_) if !has_kind => wrong.push(format!("{name} is no {}", expected.kind)),
            Some((labels, _)) if labels != expected.labels => {
                wrong.push(format!("{name} has labels {labels:?}, not {:?}", expected.labels));
            }
            Some((_, buckets)) if expected.kind == "histogram" && buckets != expected.buckets => {
                wrong.push(format!("{name} has buckets {buckets:?}, not {:?}", expected.buckets));
            }
            Some(_) => {}
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?} in:\n{text}");
    for line in [
        format!("runner=\"{}\"", &stage.runner.token["glrt-t1_".len()..][..9]),
        "gitlab_runner_concurrent 7".to_owned(),
        "state=\"idle\",stage=\"\",executor_stage=\"\"} 0".to_owned(),
        "failure_reason=\"script_failure\",mode=\"traditional\"} 1".to_owned(),
        "stage=\"after_script\"} 1".to_owned(),
        "state=\"suspending\"} 0".to_owned(),
        "endpoint=\"request_job\",status=\"503\",method=\"post\"} 1".to_owned(),
    ] {
        ensure!(text.contains(&line), "{line} is missing in:\n{text}");
    }
    ensure!(!text.contains("glrt-") && !text.contains(&stage.runner.token), "a token is in the metrics");
    stage.end().await
}

#[tokio::test]
async fn open_jobs_are_listed_with_their_stage_and_leave_the_list() -> Result<()> {
    let stage = Stage::start("joblist", Setting::pool(json!({}))).await?;
    let operator = stage.operator()?;
    ensure!(operator.page("/debug/jobs/list").await? == (200, String::new()));
    let script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done";
    let id = stage.gitlab.enqueue(JobSpec::new("runs").project(7, "group/project").script([script]));
    let waits = stage.gitlab.enqueue(JobSpec::new("waits").project(7, "group/project").script(["true"]));
    stage.until_log(id, "begun").await?;
    let begin =
        format!("url={}/group/project/-/jobs/{id} state=running stage=step_script ", stage.gitlab.url());
    let list = until("the job is listed in its stage", SOON, async || {
        let (_, list) = operator.page("/debug/jobs/list").await?;
        Ok(list.contains(&begin).then_some(list))
    })
    .await?;
    let line = list.lines().find(|line| line.starts_with(&begin)).context("the line")?;
    let fields: Vec<&str> =
        line.split(' ').filter_map(|field| field.split_once('=')).map(|(key, _)| key).collect();
    ensure!(fields == ["url", "state", "stage", "executor_stage", "duration"], "{line}");
    let gauge = "state=\"running\",stage=\"step_script\",executor_stage=\"run\"} 1";
    ensure!(operator.metrics().await?.contains(gauge), "{gauge} is missing");
    stage.touch("/tmp/go").await?;
    stage.until_over(id).await?;
    stage.until_over(waits).await?;
    until("the list is empty", SOON, async || {
        Ok(operator.page("/debug/jobs/list").await?.1.is_empty().then_some(()))
    })
    .await?;
    ensure!(
        !operator.metrics().await?.contains("state=\"running\",stage"),
        "a series of a job that is over stays"
    );
    stage.end().await
}
