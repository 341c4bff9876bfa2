//! What a person would look at on a stage: findings, hosts, Events, and what the operator has written.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::control_plane::audit::{self, Write};
use super::super::wait::until;
use super::{POOL, SOON, Stage, condition};

impl Stage {
    /// Applies the pool with these changes and starts an operator; waits for neither.
    pub async fn raise(&mut self, changes: Value) -> Result<()> {
        self.apply_pool(changes).await?;
        self.operator = Some(self.start_operator("operator-a").await?);
        Ok(())
    }

    /// Waits until a condition of the pool has this status and reason; answers its message.
    pub async fn until_finding(&self, type_: &str, status: &str, reason: &str) -> Result<String> {
        let what = format!("{type_} is {status}, {reason}");
        let pool = self
            .until_object("runnerpool", POOL, &what, |pool| {
                condition(pool, type_) == (status.to_owned(), reason.to_owned())
            })
            .await?;
        Ok(message(&pool, type_))
    }

    /// What kubectl prints of an object in a column.
    pub async fn column(&self, kind: &str, name: &str, column: &str) -> Result<String> {
        let screen = self.kubectl(&["get", kind, name]).await?;
        let found = row(&screen)?.into_iter().find(|(known, _)| known == column);
        found.map(|(_, value)| value).with_context(|| format!("no column {column}: {screen}"))
    }

    /// Waits until a host of the pool is in a state; answers its message.
    pub async fn until_host(&self, name: &str, state: &str) -> Result<String> {
        let pool = self
            .until_object("runnerpool", POOL, &format!("host {name} is {state}"), |pool| {
                host(pool, name)["state"] == state
            })
            .await?;
        Ok(host(&pool, name)["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until there is an Event with this reason; answers it.
    pub async fn until_event(&self, reason: &str) -> Result<Value> {
        until(&format!("there is an Event {reason}"), SOON, async || {
            Ok(self.list("events").await?.into_iter().find(|event| event["reason"] == reason))
        })
        .await
        .with_context(|| self.operator_log())
    }

    /// Waits until an Event tells that a condition of the pool has turned, and why; answers its note.
    pub async fn until_told(&self, type_: &str, reason: &str) -> Result<String> {
        self.until_told_of(POOL, type_, reason).await
    }

    /// The same of another pool.
    pub async fn until_told_of(&self, pool: &str, type_: &str, reason: &str) -> Result<String> {
        let what = format!("an Event tells that {type_} of {pool} has turned: {reason}");
        let event = until(&what, SOON, async || {
            let turns = self.turns_told(type_).await?;
            Ok(turns
                .into_iter()
                .find(|event| event["involvedObject"]["name"] == pool && event["reason"] == reason))
        });
        let event = event.await.with_context(|| self.operator_log())?;
        Ok(event["message"].as_str().unwrap_or_default().to_owned())
    }

    /// The Events that tell how a condition of pools has turned.
    pub async fn turns_told(&self, type_: &str) -> Result<Vec<Value>> {
        let mut events = self.list("events").await?;
        events.retain(|event| event["action"] == type_ && event["involvedObject"]["kind"] == "RunnerPool");
        Ok(events)
    }

    /// Makes a file on every host, for the jobs that wait for it. A busy sshd turns connections away: it is tried
    /// until it is done.
    pub async fn touch(&self, path: &str) -> Result<()> {
        for host in &self.hosts {
            until(&format!("{path} is made on {}", host.name()), SOON, async || {
                Ok(host.ssh(&format!("touch {path}")).await?.status.success().then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// How often GitLab was asked for a job so far, not counting a request that is held now.
    pub fn job_requests(&self) -> usize {
        self.gitlab.requests().iter().filter(|request| request.path.ends_with("/jobs/request")).count()
    }

    /// The writes in the stage's namespace that budgets count.
    pub fn writes(&self) -> Result<Vec<Write>> {
        let mut writes = audit::writes(self.cluster.control_plane.audit_log())?;
        writes.retain(|write| write.namespace == self.namespace && write.is_counted());
        Ok(writes)
    }

    /// Fails unless kubectl refuses the object, and says why with these words.
    pub async fn refused(&self, object: &Value, words: &[&str]) -> Result<()> {
        let Err(error) = self.apply(object).await else { anyhow::bail!("accepted: {object:#}") };
        let error = format!("{error:#}");
        for word in words {
            ensure!(error.contains(word), "{word:?} is not in: {error}");
        }
        Ok(())
    }
}

/// The message of a condition.
pub fn message(object: &Value, type_: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default();
    found["message"].as_str().unwrap_or_default().to_owned()
}

/// What a pool's status says of a host.
pub fn host(pool: &Value, name: &str) -> Value {
    let hosts = pool["status"]["hosts"].as_array().cloned().unwrap_or_default();
    hosts.into_iter().find(|host| host["name"] == name).unwrap_or_default()
}

/// The first row of what kubectl prints, each value with the name of its column.
pub fn row(screen: &str) -> Result<Vec<(String, String)>> {
    let mut lines = screen.lines();
    let header = lines.next().context("an empty screen")?;
    let values = lines.next().with_context(|| format!("no row: {screen}"))?;
    let starts: Vec<usize> = header
        .char_indices()
        .filter(|(at, c)| {
            *c != ' '
                && (*at == 0 || header.get(at.saturating_sub(1)..*at).is_some_and(|before| before == " "))
        })
        .map(|(at, _)| at)
        .collect();
    let cell = |line: &str, from: usize, to: Option<&usize>| {
        let to = to.copied().unwrap_or(line.len()).min(line.len());
        line.get(from..to).unwrap_or_default().trim().to_owned()
    };
    Ok(starts
        .iter()
        .enumerate()
        .map(|(n, from)| (cell(header, *from, starts.get(n + 1)), cell(values, *from, starts.get(n + 1))))
        .collect())
}
