//! The side from which tests steer the stand-in and look into it.

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{
    Fault, FaultId, GitLab, GitRepo, JobId, JobSpec, JobState, JobView, Request, Runner, RunnerId, Violation,
    access::Scope,
    runner::{RunnerRecord, RunnerView},
    secret,
    world::World,
};

/// Runners, projects and jobs.
impl GitLab {
    /// Registers a runner with these tags.
    pub fn register_runner(&self, tags: &[&str]) -> Runner {
        self.0.server.world().register_runner(tags.iter().map(|&tag| tag.to_owned()).collect())
    }

    /// An access token that may do this.
    pub fn access_token(&self, scope: Scope) -> String {
        let token = format!("glpat-{}", secret::letters(20));
        self.0.server.world().access_tokens.insert(token.clone(), scope);
        token
    }

    /// Every runner there is: its id, its tags, its settings in the words of the REST API, its token.
    pub fn runners(&self) -> Vec<RunnerView> {
        let world = self.0.server.world();
        let view = |runner: &RunnerRecord| RunnerView {
            id: runner.id,
            token: runner.token.clone(),
            tags: runner.tags.iter().cloned().collect(),
            settings: serde_json::Value::Object(runner.settings.clone()),
            machines: runner.machines.keys().cloned().collect(),
            expires_at: runner.expires_at,
        };
        world.runners.values().map(view).collect()
    }

    /// Removes a runner as a person does in GitLab's pages.
    pub fn remove_runner(&self, id: RunnerId) {
        let mut world = self.0.server.world();
        if let Some(runner) = world.runners.remove(&id) {
            world.retire(runner.token, true);
        }
    }

    /// Gives a runner other tags, as a person does in GitLab's pages.
    pub fn retag_runner(&self, id: RunnerId, tags: &[&str]) {
        if let Some(runner) = self.0.server.world().runners.get_mut(&id) {
            runner.settings.insert("tag_list".to_owned(), tags.into());
            runner.take_settings();
        }
    }

    /// The token of a runner expires at this time.
    pub fn expire_token(&self, id: RunnerId, at: jiff::Timestamp) {
        if let Some(runner) = self.0.server.world().runners.get_mut(&id) {
            runner.expires_at = Some(at);
        }
    }

    /// Serves a repository that no job needs for its own sources, for example a submodule.
    pub fn host(&self, repo: &GitRepo) {
        self.0.server.world().projects.insert(repo.project().to_owned(), repo.clone());
    }

    /// Puts a job into the queue.
    pub fn enqueue(&self, spec: JobSpec) -> JobId {
        let id = self.0.server.world().enqueue(spec);
        self.0.server.queue_changed();
        id
    }

    /// The same with faults that are for its calls only, from the first one on.
    pub fn enqueue_with(&self, spec: JobSpec, faults: Vec<Fault>) -> (JobId, Vec<FaultId>) {
        let mut world = self.0.server.world();
        let id = world.enqueue(spec);
        let faults = faults.into_iter().map(|fault| world.faults.inject(fault.job(id))).collect();
        drop(world);
        self.0.server.queue_changed();
        (id, faults)
    }

    /// How the job stands now.
    pub fn job(&self, id: JobId) -> Option<JobView> {
        self.0.server.world().jobs.get(&id).map(|job| job.view.clone())
    }

    /// Every job, oldest first.
    pub fn jobs(&self) -> Vec<JobView> {
        self.0.server.world().jobs.values().map(|job| job.view.clone()).collect()
    }

    /// Waits until `wanted` holds for the job; fails with how it stands after `deadline`.
    pub async fn wait_for(
        &self,
        id: JobId,
        wanted: impl Fn(&JobView) -> bool,
        deadline: Duration,
    ) -> anyhow::Result<JobView> {
        let changed = {
            let world = self.0.server.world();
            world.jobs.get(&id).with_context(|| format!("there is no job {id}"))?.changed.clone()
        };
        let reached = async {
            loop {
                let change = changed.notified();
                tokio::pin!(change);
                // Before the look, or a change between look and wait would be missed.
                change.as_mut().enable();
                if let Some(job) = self.0.server.world().jobs.get(&id)
                    && wanted(&job.view)
                {
                    return job.view.clone();
                }
                change.await;
            }
        };
        match tokio::time::timeout(deadline, reached).await {
            Ok(job) => Ok(job),
            Err(_) => bail!("after {deadline:?}: {}", self.describe(id)),
        }
    }

    /// Waits until the job is over.
    pub async fn wait_until_over(&self, id: JobId, deadline: Duration) -> anyhow::Result<JobView> {
        self.wait_for(id, |job| job.state.is_final(), deadline).await
    }

    /// Waits until the log holds `text`.
    pub async fn wait_for_log(&self, id: JobId, text: &str, deadline: Duration) -> anyhow::Result<JobView> {
        self.wait_for(id, |job| job.log_contains(text), deadline).await
    }

    /// Cancels: `canceling` where the runner can cancel gracefully, else `canceled`.
    pub fn cancel(&self, id: JobId) -> Option<JobState> {
        self.0.server.world().cancel(id)
    }

    /// Cancels at once.
    pub fn cancel_hard(&self, id: JobId) -> Option<JobState> {
        self.0.server.world().cancel_hard(id)
    }

    /// Ends a job as GitLab itself does, for example with `no_updates_running`.
    pub fn drop_job(&self, id: JobId, reason: &str) {
        if let Some(job) = self.0.server.world().jobs.get_mut(&id) {
            job.drop_as(reason);
        }
    }

    /// Forgets the job: every call for it is answered with 404.
    pub fn forget(&self, id: JobId) {
        if let Some(job) = self.0.server.world().jobs.get_mut(&id) {
            job.is_forgotten = true;
        }
    }

    /// Answers the next updates of a job that waits for its runner with 409.
    pub fn take_elsewhere(&self, id: JobId) {
        if let Some(job) = self.0.server.world().jobs.get_mut(&id) {
            job.is_taken_elsewhere = true;
        }
    }

    /// Sets the seconds between updates that the job's answers ask for.
    pub fn set_update_interval(&self, id: JobId, seconds: u64) {
        if let Some(job) = self.0.server.world().jobs.get_mut(&id) {
            job.update_interval = seconds;
        }
    }

    /// Makes the environment's key unknown to the routing, as GitLab does after seven days.
    pub fn forget_environment(&self, key: &str) {
        let mut world = self.0.server.world();
        world.environments.remove(key);
        world.tick_queues();
        drop(world);
        self.0.server.queue_changed();
    }

    fn describe(&self, id: JobId) -> String {
        let Some(job) = self.job(id) else {
            return format!("there is no job {id}");
        };
        let log = job.log_text();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let puts: Vec<String> =
            job.puts.iter().map(|put| format!("{} -> {}", put.state, put.answer)).collect();
        format!(
            "job {id} {:?} is {:?}, exit code {:?}, reason {:?}, machine {:?}, updates {puts:?}, \
             {} bytes of log, which ends:\n{}",
            job.name,
            job.state,
            job.exit_code,
            job.failure_reason,
            job.machine,
            job.log.len(),
            tail.join("\n"),
        )
    }
}

/// Faults and what excuses a client.
impl GitLab {
    /// Injects a fault.
    pub fn inject(&self, fault: Fault) -> FaultId {
        self.0.server.world().faults.inject(fault)
    }

    /// Removes a fault.
    pub fn remove_fault(&self, id: FaultId) {
        self.0.server.world().faults.remove(id);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.0.server.world().faults.clear();
    }

    /// How many requests a fault has hit.
    pub fn fault_hits(&self, id: FaultId) -> u32 {
        self.0.server.world().faults.hits(id)
    }

    /// Cuts every connection once.
    pub fn cut_connections(&self) {
        self.0.connections.cut_all();
        for job in self.0.server.world().jobs.values_mut() {
            job.conduct.excuse();
        }
    }

    /// A new client process takes over: for each job it may start at a wrong offset once and
    /// repeat a final update once, and its first request knows no queue value.
    pub fn client_restarted(&self) {
        self.0.server.world().client_restarted();
    }

    /// The client may repeat the job's final update once.
    pub fn expect_redelivery(&self, id: JobId) {
        if let Some(job) = self.0.server.world().jobs.get_mut(&id) {
            job.conduct.expect_repetition();
        }
    }
}

/// What was recorded.
impl GitLab {
    /// How many requests for a job are held now.
    pub fn held_requests(&self) -> usize {
        self.0.server.world().held_requests
    }

    /// Every violation so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.0.server.world().ledger.violations.iter().cloned().collect()
    }

    /// Every violation so far, which are then forgotten: for a test that provokes them.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.0.server.world().ledger.violations.drain(..).collect()
    }

    /// Every request so far, in the order they ended.
    pub fn requests(&self) -> Vec<Request> {
        self.0.server.world().ledger.requests.iter().cloned().collect()
    }

    /// Waits for a request, past or future, that `wanted` holds for. It is seen when it is over.
    pub async fn wait_for_request(
        &self,
        wanted: impl Fn(&Request) -> bool,
        deadline: Duration,
    ) -> anyhow::Result<Request> {
        let look = |world: &World| world.ledger.requests.iter().find(|r| wanted(r)).cloned();
        self.watch_requests(look, deadline).await.context("wait for a request")
    }

    /// Waits until at least one request for a job is held.
    pub async fn wait_until_polled(&self, deadline: Duration) -> anyhow::Result<()> {
        let look = |world: &World| (world.held_requests > 0).then_some(());
        self.watch_requests(look, deadline).await.context("wait for a held request")
    }

    async fn watch_requests<T>(
        &self,
        look: impl Fn(&World) -> Option<T>,
        deadline: Duration,
    ) -> anyhow::Result<T> {
        let found = async {
            loop {
                let change = self.0.server.requests.notified();
                tokio::pin!(change);
                // Before the look, or a change between look and wait would be missed.
                change.as_mut().enable();
                let seen = look(&self.0.server.world());
                if let Some(seen) = seen {
                    return seen;
                }
                change.await;
            }
        };
        tokio::time::timeout(deadline, found).await.with_context(|| format!("not within {deadline:?}"))
    }

    /// Fails the test if there was a violation.
    #[track_caller]
    pub fn assert_clean(&self) {
        let violations = self.violations();
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(
            lines.is_empty(),
            "the runner broke the protocol {} times:\n{}",
            lines.len(),
            lines.join("\n"),
        );
    }
}
