//! What people see of a pool besides its jobs: its status and Events, its runner at GitLab, metrics, the list of jobs.
//!
//! All of it is looked at until it is as wished: the operator tells it when it has it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::expect::Line;
use super::own::{Ground, Which};
use crate::testbed::control_plane::reader::secret_value;
use crate::testbed::gitlab::JobId;
use crate::testbed::stage::{POOL, SOON, Stage, condition, message};
use crate::testbed::wait::until;

/// What is to be seen; all of it at the same time.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Surface {
    /// The pool's conditions, by type `[status, reason]`.
    pub conditions: BTreeMap<String, (String, String)>,
    /// What the messages of conditions hold, by type.
    pub says: BTreeMap<String, Vec<String>>,
    /// Part of the pool's status.
    pub status: Option<Value>,
    /// Whose id the pool's status has.
    pub in_use: Option<Which>,
    /// Reasons of Events that there are.
    pub events: Vec<String>,
    /// Part of the runner as GitLab has it, in the words of its REST API.
    pub runner: Option<Value>,
    /// Runners of the pool that GitLab has.
    pub runners: Option<usize>,
    /// Managers of the first runner.
    pub machines: Option<usize>,
    /// Whether GitLab has given the first runner another token since, and it is in the Secret.
    pub token_replaced: Option<bool>,
    /// Secrets that there are, or are not.
    pub secrets: BTreeMap<String, bool>,
    /// Objects by kind.
    pub objects: BTreeMap<String, usize>,
    /// Lines of the metrics.
    pub metrics: Vec<Line>,
    /// What is no line of the metrics.
    pub no_metrics: Vec<Line>,
    /// The list of jobs: all of its lines, in order.
    pub jobs: Option<Vec<Line>>,
    /// Requests for a job that are held now.
    pub held: Option<usize>,
    /// Requests GitLab had so far by the end of their path, at least and at most.
    pub requests: BTreeMap<String, (usize, usize)>,
    /// Nobody has taken the job yet.
    pub queued: bool,
}

impl Surface {
    /// Whether nothing is wished for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Waits until all of it is to be seen.
    pub async fn until_seen(
        &self,
        stage: &Stage,
        ground: &Ground,
        job: Option<JobId>,
        fill: &(impl Fn(&str) -> String + Sync),
    ) -> Result<()> {
        let mut last = Vec::new();
        let seen = until("what is wished for is to be seen", SOON, async || {
            last = self.differences(stage, ground, job, fill).await?;
            Ok(last.is_empty().then_some(()))
        });
        let seen = seen.await;
        seen.with_context(|| format!("last was seen:\n- {}", last.join("\n- ")))
    }

    async fn differences(
        &self,
        stage: &Stage,
        ground: &Ground,
        job: Option<JobId>,
        fill: &(impl Fn(&str) -> String + Sync),
    ) -> Result<Vec<String>> {
        let mut found = Vec::new();
        self.compare_gitlab(stage, ground, job, &mut found);
        self.compare_pool(stage, ground, &mut found).await?;
        self.compare_objects(stage, ground, &mut found).await?;
        self.compare_pages(stage, fill, &mut found).await?;
        Ok(found)
    }

    fn compare_gitlab(&self, stage: &Stage, ground: &Ground, job: Option<JobId>, found: &mut Vec<String>) {
        let runners = ground.runners(stage);
        if let Some(wished) = &self.runner {
            match runners.as_slice() {
                [runner] => {
                    let mut shown = runner.settings.clone();
                    if let Some(fields) = shown.as_object_mut() {
                        fields.insert("tag_list".to_owned(), json!(runner.tags));
                    }
                    found.extend(lacks(&shown, wished, "the runner"));
                }
                others => found.push(format!("the runner is one of {}", others.len())),
            }
        }
        let mut check = |what: &str, is: usize, wished: Option<usize>| {
            if wished.is_some_and(|wished| is != wished) {
                found.push(format!("there are {is} {what}, not {wished:?}"));
            }
        };
        let machines = ground.first_runner(stage).map_or(0, |runner| runner.machines.len());
        check("runners", runners.len(), self.runners);
        check("managers", machines, self.machines);
        check("held requests", stage.gitlab.held_requests(), self.held);
        let requests = if self.requests.is_empty() { Vec::new() } else { stage.gitlab.requests() };
        for (end, (least, most)) in &self.requests {
            let count = requests.iter().filter(|request| request.path.ends_with(end.as_str())).count();
            if !(least..=most).contains(&&count) {
                found.push(format!("GitLab had {count} requests for {end}, not {least} to {most}"));
            }
        }
        let is_queued = job.and_then(|id| stage.gitlab.job(id)).is_some_and(|job| job.picked_up_at.is_none());
        if self.queued && !is_queued {
            found.push("the job was taken".to_owned());
        }
    }

    async fn compare_pool(&self, stage: &Stage, ground: &Ground, found: &mut Vec<String>) -> Result<()> {
        let is_asked = !self.conditions.is_empty()
            || !self.says.is_empty()
            || self.status.is_some()
            || self.in_use.is_some();
        if !is_asked {
            return Ok(());
        }
        let pool = stage.get("runnerpool", POOL).await?;
        for (type_, wished) in &self.conditions {
            let is = condition(&pool, type_);
            if is != *wished {
                found.push(format!("{type_} is {is:?}, not {wished:?}: {}", message(&pool, type_)));
            }
        }
        for (type_, parts) in &self.says {
            let message = message(&pool, type_);
            let missing = parts.iter().filter(|part| !message.contains(part.as_str()));
            found.extend(missing.map(|part| format!("{type_} does not say {part:?}: {message}")));
        }
        if let Some(wished) = &self.status {
            found.extend(lacks(&pool["status"], wished, "the status"));
        }
        if let Some(which) = self.in_use {
            let (is, wished) = (&pool["status"]["runnerId"], ground.runner(stage, which));
            if *is != wished.0 {
                found.push(format!("runner {is} is in use, not {wished}"));
            }
        }
        Ok(())
    }

    async fn compare_objects(&self, stage: &Stage, ground: &Ground, found: &mut Vec<String>) -> Result<()> {
        if !self.events.is_empty() {
            let events = stage.list("events").await?;
            let missing =
                self.events.iter().filter(|reason| !events.iter().any(|event| event["reason"] == **reason));
            found.extend(missing.map(|reason| format!("there is no Event {reason}")));
        }
        for (kind, wished) in &self.objects {
            let is = stage.list(kind).await?.len();
            if is != *wished {
                found.push(format!("there are {is} {kind}, not {wished}"));
            }
        }
        if self.secrets.is_empty() && self.token_replaced.is_none() {
            return Ok(());
        }
        let secrets = stage.list("secrets").await?;
        let named = |name: &str| secrets.iter().find(|secret| secret["metadata"]["name"] == name);
        for (name, wished) in &self.secrets {
            if named(name).is_some() != *wished {
                found.push(format!("that there is a Secret {name} is not {wished}"));
            }
        }
        if let Some(wished) = self.token_replaced {
            let token = ground.first_runner(stage).map(|runner| runner.token).unwrap_or_default();
            let is_replaced = token != ground.first_token();
            if is_replaced != wished {
                found.push(format!("that GitLab has replaced its token is {is_replaced}, not {wished}"));
            }
            let kept = named(ground.secret()).map(|secret| secret_value(secret, "token"));
            let kept = kept.transpose()?.unwrap_or_default();
            if kept != token.as_bytes() {
                found.push("the Secret has another token than GitLab".to_owned());
            }
        }
        Ok(())
    }

    async fn compare_pages(
        &self,
        stage: &Stage,
        fill: &(impl Fn(&str) -> String + Sync),
        found: &mut Vec<String>,
    ) -> Result<()> {
        if let Some(wishes) = &self.jobs {
            let (_, list) = stage.operator()?.page("/debug/jobs/list").await?;
            let lines: Vec<&str> = list.lines().collect();
            let mut are_alike = lines.len() == wishes.len();
            for (line, wish) in lines.iter().zip(wishes) {
                are_alike &= wish.test(fill)?(line);
            }
            if !are_alike {
                found.push(format!("the list of jobs is {lines:?}, not {wishes:?}"));
            }
        }
        if self.metrics.is_empty() && self.no_metrics.is_empty() {
            return Ok(());
        }
        let metrics = stage.operator()?.metrics().await?;
        for wish in &self.metrics {
            let test = wish.test(fill)?;
            if !metrics.lines().any(test) {
                found.push(format!("the metrics have no line {wish:?}"));
            }
        }
        for wish in &self.no_metrics {
            let test = wish.test(fill)?;
            if let Some(line) = metrics.lines().find(|line| test(line)) {
                found.push(format!("the metrics have {line:?} for {wish:?}, which must be absent"));
            }
        }
        Ok(())
    }
}

/// Where a value has not what is wished of it. What an object has besides is nobody's business; lists are compared whole.
fn lacks(is: &Value, wished: &Value, place: &str) -> Option<String> {
    match (is, wished) {
        (Value::Object(fields), Value::Object(wishes)) => wishes.iter().find_map(|(name, wish)| {
            lacks(fields.get(name).unwrap_or(&Value::Null), wish, &format!("{place}, {name}"))
        }),
        _ => (is != wished).then(|| format!("{place} is {is}, not {wished}")),
    }
}
