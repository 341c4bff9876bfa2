//! Plays a case on a stage: what it seeds, its jobs in order, what is done to them, and what came of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::archives;
use super::case::{
    After, Case, Commit, Control, Deed, FaultSeed, Job, ObjectFormat, On, SuspendAt, Variable,
};
use super::own::Ground;
use super::stages::Playground;
use super::surface::Surface;
use crate::testbed::gitlab::{Action, Fault, FaultId, GitRepo, JobId, JobSpec, JobView, Request, Target};
use crate::testbed::hosts::Host;
use crate::testbed::stage::{SOON, Stage, merge};
use crate::testbed::wait::until;
use crate::traces::on;

/// Where slots with users of their own have their workspaces.
const BUILDS: &str = "/builds";

/// A job in the queue.
struct Queued {
    id: JobId,
    at: Timestamp,
}

/// A case being played.
struct Play<'a> {
    stage: &'a Stage,
    /// What a stage of the case's own has besides.
    own: Option<&'a Ground>,
    case: &'a Case,
    project: String,
    repositories: BTreeMap<String, GitRepo>,
    /// The jobs that were, by name, and the last one's.
    jobs: BTreeMap<String, JobId>,
    key: Option<String>,
    /// The faults that were to hit, and how often at least.
    faults: Vec<(FaultId, FaultSeed)>,
}

/// Plays a case; what differs from what it expects, and the log of the job it differs in.
pub async fn play(playground: &Playground, case: &Case) -> Result<()> {
    let stem = case.name.rsplit('/').next().unwrap_or(&case.name);
    let mut play = Play {
        stage: &playground.stage,
        own: playground.own.as_ref(),
        case,
        project: format!("conformance/{stem}"),
        repositories: BTreeMap::new(),
        jobs: BTreeMap::new(),
        key: None,
        faults: playground.own.as_ref().map(|own| own.faults.clone()).unwrap_or_default(),
    };
    let mut waiting: Vec<(&String, &Vec<Commit>)> = case.repositories.iter().collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut left = Vec::new();
        for (project, commits) in waiting {
            // One with submodules comes after those.
            let mut submodules = commits.iter().flat_map(|commit| commit.submodules.values());
            if submodules.any(|submodule| !play.repositories.contains_key(&submodule.of)) {
                left.push((project, commits));
                continue;
            }
            play.repository(project, commits)?;
        }
        ensure!(left.len() < before, "submodules of repositories that are not there: {left:?}");
        waiting = left;
    }
    for job in &case.before {
        play.job(job).await.with_context(|| format!("the job before, {:?}", job.name))?;
    }
    let mut beside = Vec::new();
    for job in &case.beside {
        let queued = play.queue(job)?;
        play.stage.gitlab.wait_for(queued.id, |job| job.running_at.is_some(), SOON).await?;
        beside.push((job, queued));
    }
    play.job(&case.job).await?;
    for (job, queued) in beside {
        play.conclude(job, queued).await.with_context(|| format!("the job beside, {:?}", job.name))?;
    }
    for step in &case.afterwards {
        if let Some(deed) = &step.deed {
            play.own()?.carry_out(play.stage, deed).await?;
        }
        play.until_seen(&step.seen, None).await.with_context(|| format!("after {:?}", step.deed))?;
    }
    play.every_fault_hit()
}

impl Play<'_> {
    /// Makes a repository as the case has it.
    fn repository(&mut self, project: &str, commits: &[Commit]) -> Result<()> {
        let project = project.replace("<<project>>", &self.project);
        let format = match self.case.object_format {
            ObjectFormat::Sha1 => "sha1",
            ObjectFormat::Sha256 => "sha256",
        };
        let mut repository = GitRepo::with_format(project.clone(), format)?;
        if let Some(credentials) = self.case.deploy_tokens.get(&project) {
            repository = repository.with_deploy_token(credentials);
        }
        for (number, commit) in commits.iter().enumerate() {
            let mut files: Vec<(&str, String)> =
                commit.files.iter().map(|(path, text)| (path.as_str(), self.fill(text, None))).collect();
            if !commit.large_files.is_empty() {
                files.push((".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n".to_owned()));
            }
            let large = commit.large_files.iter();
            files.extend(large.map(|(path, text)| (path.as_str(), repository.large_file(text))));
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            let mut id = repository.commit_to(&commit.branch, &format!("commit {}", number + 1), &files)?;
            for (path, submodule) in &commit.submodules {
                let of = self.repositories.get(&submodule.of).context("a submodule's repository")?;
                let url = self.fill(&submodule.url, None);
                id = repository.commit_submodule_of(path, &url, submodule.branch.as_deref(), &of.tip()?)?;
            }
            if let Some(tag) = &commit.tag {
                repository.tag(tag, &id)?;
            }
            for reference in &commit.refs {
                repository.set_ref(reference, &id)?;
            }
        }
        self.stage.gitlab.host(&repository);
        self.repositories.insert(project, repository);
        Ok(())
    }

    /// Runs a job and compares.
    async fn job(&mut self, job: &Job) -> Result<()> {
        let queued = self.queue(job)?;
        let id = queued.id;
        for control in &job.control {
            match self.control(id, control).await {
                Ok(fault) => self.faults.extend(fault),
                Err(error) => {
                    let log = self.stage.gitlab.job(id).map(|job| job.log_text()).unwrap_or_default();
                    bail!("{control:?} could not be done: {error:#}\n{log}");
                }
            }
        }
        self.conclude(job, queued).await
    }

    /// Puts a job into the queue, with what goes wrong from the start.
    fn queue(&mut self, job: &Job) -> Result<Queued> {
        let spec = self.spec(job)?;
        let name = self.name(job);
        let (of_all, own): (Vec<&FaultSeed>, Vec<&FaultSeed>) =
            job.faults.iter().partition(|seed| seed.on.is_of_all());
        let at = Timestamp::now();
        for seed in of_all {
            self.faults.push((self.stage.gitlab.inject(fault(seed)?), seed.clone()));
        }
        let faults: Vec<Fault> = own.iter().map(|seed| fault(seed)).collect::<Result<_>>()?;
        let (id, faults) = self.stage.gitlab.enqueue_with(spec, faults);
        self.faults.extend(faults.into_iter().zip(own.into_iter().cloned()));
        self.jobs.insert(name, id);
        Ok(Queued { id, at })
    }

    /// Waits for a job's end and compares.
    async fn conclude(&mut self, job: &Job, queued: Queued) -> Result<()> {
        let Queued { id, at } = queued;
        let deadline = job.deadline.map_or(SOON, Duration::from_secs);
        let over = self.stage.gitlab.wait_until_over(id, deadline).await?;
        // One that needs what the runner does not list is GitLab's own to end.
        if over.picked_up_at.is_some() && !self.takes_the_pool_away() {
            self.stage.lease_over(id).await?;
        }
        let mut differences = self.differences(job, &over).await?;
        differences.extend(self.heard_too_soon(job, id, at).await?);
        self.key.clone_from(&over.environment_key);
        if let Some(key) = &self.key {
            self.stage.asleep(key).await?;
        }
        let broken = self.stage.gitlab.violations().into_iter().filter(|seen| seen.job == Some(id));
        differences.extend(broken.map(|seen| format!("the protocol was broken: {seen}")));
        ensure!(
            differences.is_empty(),
            "- {}\nthe log of job {id}:\n{}",
            differences.join("\n- "),
            over.log_text()
        );
        Ok(())
    }

    /// Whether GitLab was spoken to again sooner than it wants after it has answered 429.
    async fn heard_too_soon(&self, job: &Job, id: JobId, began: Timestamp) -> Result<Option<String>> {
        let Some(seconds) = job.expect.quiet else { return Ok(None) };
        let of_all = job.faults.iter().any(|seed| seed.on == On::Request);
        let is_meant = |request: &Request| {
            let is_own = request.job == Some(id);
            request.at >= began && if of_all { request.path.ends_with("/jobs/request") } else { is_own }
        };
        let gitlab = &self.stage.gitlab;
        let limited = |request: &Request| is_meant(request) && request.answer == Some(429);
        let limited = gitlab.wait_for_request(limited, SOON).await?;
        let next = |request: &Request| is_meant(request) && request.number > limited.number;
        let next = gitlab.wait_for_request(next, SOON).await?;
        let quiet = next.at.duration_since(limited.at).as_secs_f64();
        Ok((quiet < seconds as f64)
            .then(|| format!("it was spoken to again after {quiet:.1} s, not {seconds}")))
    }

    /// A fault that never came about, or less often than it was to, shows nothing. Looked at when all jobs are over: some
    /// hit what a later job asks for.
    fn every_fault_hit(&self) -> Result<()> {
        for (id, seed) in &self.faults {
            let (hits, wanted) = (self.stage.gitlab.fault_hits(*id), seed.times.unwrap_or(1));
            ensure!(
                hits >= wanted,
                "{seed:?} hit {hits} times, not {wanted}: the case does not show what it says"
            );
        }
        Ok(())
    }

    async fn differences(&self, job: &Job, over: &JobView) -> Result<Vec<String>> {
        let needs_place = job.git.is_some()
            || !job.expect.host.is_empty()
            || format!("{:?}", job.expect).contains("<<workspace>>");
        let place = if needs_place { self.place(over.id).await? } else { None };
        let workspace = place.as_ref().map(|(_, workspace)| workspace.clone()).unwrap_or_default();
        let fill = |text: &str| self.fill(text, Some(over)).replace("<<workspace>>", &workspace);
        let mut found = job.expect.differences(over, &fill).await;
        if let Some(wished) = job.expect.uploads_tried {
            let is_upload = |request: &Request| {
                request.job == Some(over.id)
                    && request.method == "POST"
                    && request.path.ends_with("/artifacts")
            };
            let tried = self.stage.gitlab.requests().iter().filter(|request| is_upload(request)).count();
            if tried != wished {
                found.push(format!("GitLab was sent artifacts {tried} times, not {wished}"));
            }
        }
        if let Some(wished) = job.expect.results_told {
            // As it is now: one that is told again comes after GitLab has it.
            let puts = self.stage.gitlab.job(over.id).map(|job| job.puts).unwrap_or_default();
            let told = puts.iter().filter(|put| put.state == "success" || put.state == "failed").count();
            if told != wished {
                found.push(format!("the result was told {told} times, not {wished}"));
            }
        }
        found.extend(self.misplaced(job, over)?);
        let Some((host, _)) = place else { return Ok(found) };
        for wish in &job.expect.host {
            let command = fill(&wish.run);
            let printed = on(host, &command).await?;
            if printed != fill(&wish.prints) {
                found.push(format!(
                    "{command:?} prints {printed:?} on the host, not {:?}",
                    fill(&wish.prints)
                ));
            }
        }
        if job.git.is_some() {
            let config = format!("cat {workspace}/.git/config 2>/dev/null || true");
            if on(host, &config).await?.contains(&over.token) {
                found.push("the job's token is in .git/config".to_owned());
            }
        }
        Ok(found)
    }

    /// Whether another runner ran a job than was to, or too soon.
    fn misplaced(&self, job: &Job, over: &JobView) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if let Some(which) = job.expect.ran_on {
            let (is, wished) = (over.runner, self.own()?.runner(self.stage, which));
            if is != Some(wished) {
                found.push(format!("it ran on {is:?}, not on the {which:?} one, {wished}"));
            }
        }
        for name in &job.expect.after_jobs {
            let other = self.jobs.get(name).with_context(|| format!("no job is called {name:?}"))?;
            let ended = self.stage.gitlab.job(*other).and_then(|other| other.finished_at);
            let is_later = over.picked_up_at.zip(ended).is_some_and(|(taken, ended)| taken >= ended);
            if !is_later {
                found.push(format!("it was taken at {:?}, {name} was over at {ended:?}", over.picked_up_at));
            }
        }
        Ok(found)
    }

    fn own(&self) -> Result<&Ground> {
        self.own.context("the case has no stage of its own")
    }

    /// Whether nothing of the pool is left to look at once its jobs are over.
    fn takes_the_pool_away(&self) -> bool {
        self.case.controls().any(|step| matches!(step.deed, Deed::DeletePool))
    }

    async fn until_seen(&self, surface: &Surface, id: Option<JobId>) -> Result<()> {
        let job = id.and_then(|id| self.stage.gitlab.job(id));
        let fill = |text: &str| self.fill(text, job.as_ref());
        surface.until_seen(self.stage, self.own()?, id, &fill).await
    }

    /// The host a job ran on, and its workspace there.
    async fn place(&self, id: JobId) -> Result<Option<(&Host, String)>> {
        let lease = self.stage.lease_over(id).await?;
        let instance = lease["status"]["instance"].as_str();
        let Some(host) = self.stage.hosts.iter().find(|host| Some(host.name()) == instance) else {
            return Ok(None);
        };
        let project = lease["spec"]["projectPath"].as_str().unwrap_or(&self.project).to_owned();
        Ok(Some((host, format!("{BUILDS}/{}/{project}", lease["status"]["slot"]))))
    }

    fn name(&self, job: &Job) -> String {
        let stem = self.case.name.rsplit('/').next().unwrap_or(&self.case.name);
        job.name.clone().unwrap_or_else(|| stem.to_owned())
    }

    /// Puts in what is known.
    fn fill(&self, text: &str, job: Option<&JobView>) -> String {
        let mut text =
            text.replace("<<project>>", &self.project).replace("<<gitlab>>", &self.stage.gitlab.url());
        if let Some(job) = job {
            let id = job.id.to_string();
            let key = job.environment_key.as_ref().or(self.key.as_ref());
            for (mark, value) in
                [("<<id>>", &id), ("<<token>>", &job.token), ("<<key>>", key.unwrap_or(&String::new()))]
            {
                text = text.replace(mark, value);
            }
        }
        text
    }

    /// The job as GitLab queues it.
    fn spec(&self, job: &Job) -> Result<JobSpec> {
        let mut spec = JobSpec::new(self.name(job)).script(&job.script).after_script(&job.after_script);
        let project = job.project.as_ref().map_or(self.project.clone(), |path| self.fill(path, None));
        spec = spec.project(project_id(&project), &project);
        if let Some(reference) = &job.git {
            let repository = self.repositories.get(&project);
            spec = spec.git(repository.with_context(|| format!("no repository {project:?}"))?, reference);
        }
        for (key, variable) in &job.variables {
            spec = match variable {
                Variable::Plain(value) => spec.variable(key, self.fill(value, None)),
                Variable::Flagged(given) if given.masked => spec.masked_variable(key, &given.value),
                Variable::Flagged(given) if given.file => spec.file_variable(key, &given.value),
                Variable::Flagged(given) if given.raw => spec.raw_variable(key, &given.value),
                Variable::Flagged(given) => spec.variable(key, &given.value),
            };
        }
        if !job.timestamps && !job.variables.contains_key("FF_TIMESTAMPS") {
            spec = spec.variable("FF_TIMESTAMPS", "false");
        }
        if let Some(depth) = job.git_depth {
            spec = spec.git_depth(depth);
        }
        if let Some(allow) = job.allow_git_fetch {
            spec = spec.allow_git_fetch(allow);
        }
        if let Some(timeout) = job.timeout {
            spec = spec.timeout(Duration::from_secs(timeout));
        }
        for tag in &job.tags {
            spec = spec.tag(tag);
        }
        if let Some(which) = job.runner {
            spec = spec.for_runner(self.own()?.runner(self.stage, which));
        }
        if let Some(protected) = job.protected {
            spec = spec.protected(protected);
        }
        if let Some(reasons) = &job.failure_reasons {
            spec = spec.failure_reasons(reasons);
        }
        for feature in &job.needs_features {
            spec = spec.needs_feature(feature);
        }
        if let Some(limit) = job.artifacts_limit {
            spec = spec.artifacts_limit(limit);
        }
        if let Some(archive) = &job.archive {
            spec = spec.archive(archives::made(archive)?);
        }
        spec = spec.chunks_pending(job.chunks_pending).log_resets(job.log_resets);
        self.sleep(self.edits(spec, job)?, job)
    }

    /// What decides about its environment.
    fn sleep(&self, mut spec: JobSpec, job: &Job) -> Result<JobSpec> {
        if !job.suspend.is_empty() || job.resume {
            spec = spec.suspendable();
        }
        for end in &job.suspend {
            spec = match end {
                SuspendAt::Success => spec.suspend_on_success(),
                SuspendAt::Failure => spec.suspend_on_failure(),
            };
        }
        match (job.resume, &self.key) {
            (false, _) => Ok(spec),
            (true, Some(key)) => Ok(spec.environment_key(key)),
            (true, None) => bail!("the job before was not suspended"),
        }
    }

    /// What is changed in the finished payload.
    fn edits(&self, spec: JobSpec, job: &Job) -> Result<JobSpec> {
        let mut fields: BTreeMap<String, Value> = job.payload.clone();
        if let Some(steps) = &job.steps {
            let step = json!({ "name": "script", "script": [], "timeout": 3600, "when": "on_success",
                "allow_failure": false });
            fields.insert("steps".to_owned(), completed(&step, steps));
        }
        if !job.artifacts.is_empty() {
            let artifact = json!({ "name": null, "untracked": false, "paths": [], "exclude": [],
                "when": "on_success", "artifact_type": "archive", "artifact_format": "zip", "expire_in": null });
            fields.insert("artifacts".to_owned(), completed(&artifact, &job.artifacts));
        }
        if !job.cache.is_empty() {
            let cache = json!({ "key": "default", "untracked": false, "policy": "pull-push", "paths": [],
                "when": "on_success", "fallback_keys": [] });
            fields.insert("cache".to_owned(), completed(&cache, &job.cache));
        }
        if !job.dependencies.is_empty() {
            let dependencies: Result<Vec<Value>> =
                job.dependencies.iter().map(|name| self.dependency(name)).collect();
            fields.insert("dependencies".to_owned(), Value::Array(dependencies?));
        }
        let more: Vec<Value> = job.more_variables.clone();
        let (project, gitlab) = (self.project.clone(), self.stage.gitlab.url());
        let refspecs = job.refspecs.clone();
        Ok(spec.edit_payload(move |payload| {
            for (name, value) in &fields {
                payload[name] = value.clone();
            }
            if let Some(refspecs) = &refspecs {
                payload["git_info"]["refspecs"] = json!(refspecs);
            }
            if let Some(variables) = payload["variables"].as_array_mut() {
                let variable = json!({ "public": true, "file": false, "masked": false, "raw": false });
                if let Value::Array(more) = completed(&variable, &more) {
                    variables.extend(more);
                }
            }
            let known = [
                ("<<id>>", payload["id"].to_string()),
                ("<<token>>", payload["token"].as_str().unwrap_or_default().to_owned()),
                ("<<project>>", project.clone()),
                ("<<gitlab>>", gitlab.clone()),
            ];
            fill_value(payload, &known);
        }))
    }

    /// A job whose artifacts another one gets.
    fn dependency(&self, name: &str) -> Result<Value> {
        let id = self.jobs.get(name).with_context(|| format!("no job before is called {name:?}"))?;
        let job = self.stage.gitlab.job(*id).context("GitLab has forgotten it")?;
        let size = job.artifacts.last().map_or(0, |artifact| artifact.body.len());
        Ok(json!({ "id": id.0, "token": job.token, "name": name,
            "artifacts_file": { "filename": "artifacts.zip", "size": size } }))
    }

    /// Does a step; where it is a fault, that is what must hit from now on.
    async fn control(&self, id: JobId, control: &Control) -> Result<Option<(FaultId, FaultSeed)>> {
        let gitlab = &self.stage.gitlab;
        let job = gitlab.job(id);
        let fill = |text: &str| self.fill(text, job.as_ref());
        match &control.after {
            After::Log(text) => drop(gitlab.wait_for_log(id, &fill(text), SOON).await?),
            After::HandedOut => drop(gitlab.wait_for(id, |job| job.picked_up_at.is_some(), SOON).await?),
            After::Running => drop(gitlab.wait_for(id, |job| job.running_at.is_some(), SOON).await?),
            After::Seen(surface) => self.until_seen(surface, Some(id)).await?,
            After::Host(command) => {
                let command = fill(command);
                until(&format!("{command:?} succeeds on a host"), SOON, async || {
                    for host in &self.stage.hosts {
                        if host.ssh(&command).await?.status.success() {
                            return Ok(Some(()));
                        }
                    }
                    Ok(None)
                })
                .await?;
            }
        }
        // What is done to a job that is over changes nothing, and shows nothing.
        let is_over = gitlab.job(id).is_none_or(|job| job.state.is_final());
        ensure!(!is_over, "the job is over already");
        match &control.deed {
            Deed::Cancel => drop(gitlab.cancel(id)),
            Deed::CancelHard => drop(gitlab.cancel_hard(id)),
            Deed::Forget => gitlab.forget(id),
            Deed::KillOperator => self.stage.crash_operator().await?,
            Deed::Interval(seconds) => gitlab.set_update_interval(id, *seconds),
            Deed::Fault(seed) => {
                let fault = fault(seed)?;
                let fault = if seed.on.is_of_all() { fault } else { fault.job(id) };
                return Ok(Some((gitlab.inject(fault), seed.clone())));
            }
            Deed::Host(command) => {
                for host in &self.stage.hosts {
                    on(host, &fill(command)).await?;
                }
            }
            Deed::Drop(reason) => gitlab.drop_job(id, reason),
            Deed::Pool(_)
            | Deed::Token(_)
            | Deed::Access(_)
            | Deed::DeleteSecret(_)
            | Deed::ReplaceCertificates
            | Deed::DeletePool => self.own()?.carry_out(self.stage, &control.deed).await?,
        }
        Ok(None)
    }
}

/// Projects have a number of their own each, the same for all jobs of one.
fn project_id(project: &str) -> u64 {
    2000 + u64::from(crc32fast::hash(project.as_bytes()))
}

/// Entries with what they leave out.
fn completed(usual: &Value, given: &[Value]) -> Value {
    let complete = |changes: &Value| {
        let mut entry = usual.clone();
        merge(&mut entry, changes.clone());
        entry
    };
    Value::Array(given.iter().map(complete).collect())
}

fn fill_value(value: &mut Value, known: &[(&str, String)]) {
    match value {
        Value::String(text) => {
            for (mark, with) in known {
                if text.contains(mark) {
                    *text = text.replace(mark, with);
                }
            }
            while let Some((range, repeated)) = repetition(text) {
                text.replace_range(range, &repeated);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill_value(item, known)),
        Value::Object(fields) => fields.values_mut().for_each(|field| fill_value(field, known)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Where a text holds `<<x*1000>>`, and what that stands for.
fn repetition(text: &str) -> Option<(Range<usize>, String)> {
    text.match_indices("<<").find_map(|(start, _)| {
        let (inner, _) = text.get(start + 2..)?.split_once(">>")?;
        let (repeated, count) = inner.split_once('*')?;
        Some((start..start + inner.len() + 4, repeated.repeat(count.parse().ok()?)))
    })
}

/// A fault as the stand-in takes it.
pub fn fault(seed: &FaultSeed) -> Result<Fault> {
    let target = match seed.on {
        On::Update => Target::Update,
        On::Running => Target::UpdateTo("running"),
        On::Final => Target::FinalUpdate,
        On::Trace => Target::Trace,
        On::Artifacts => Target::Artifacts,
        On::Storage => Target::Storage,
        On::Git => Target::Git,
        On::Request => Target::RequestJob,
        On::CreateRunner => Target::CreateRunner,
        On::ResetToken => Target::ResetToken,
    };
    let action = match (seed.answer, seed.delay, seed.lost) {
        (Some(status), None, false) => Action::Refuse(status, Vec::new()),
        (None, Some(seconds), false) => Action::Delay(Duration::from_secs(seconds)),
        (None, None, true) => Action::CutAfterHandling,
        _ => bail!("a fault has one of `answer`, `delay` and `lost`"),
    };
    let mut fault = Fault::on(target, action).after(seed.after);
    if let Some(times) = seed.times {
        fault = fault.times(times);
    }
    for (name, value) in &seed.headers {
        let name = match name.as_str() {
            "Retry-After" => "retry-after",
            "Job-Status" => "job-status",
            "RateLimit-ResetTime" => "ratelimit-resettime",
            "Location" => "location",
            other => bail!("the header {other:?} is none a fault can have"),
        };
        fault = fault.header(name, value);
    }
    Ok(fault)
}
