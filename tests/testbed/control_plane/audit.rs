//! Counts what was written to the API server, from its audit log.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// One request that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Who asked, as `system:serviceaccount:<namespace>:<name>` or a user's name.
    pub user: String,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// Plural name, with the subresource behind a slash if there is one.
    pub resource: String,
    /// Empty for resources of the whole cluster.
    pub namespace: String,
    /// Empty when the server chose the name.
    pub name: String,
    /// HTTP status of the answer.
    pub code: u16,
}

impl Write {
    /// Events and renewals of Leases are not counted in the budgets: their number grows with time, not with work.
    pub fn is_counted(&self) -> bool {
        self.resource != "events" && !(self.resource == "leases" && self.verb != "create")
    }
}

/// All writes that have been answered so far, in the order of their answers; refused and failed ones too.
pub fn writes(log: &Path) -> Result<Vec<Write>> {
    Ok(entries(log, 0)?.into_iter().filter_map(Entry::into_write).collect())
}

/// A request of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it came.
    pub at: Timestamp,
    /// Who asked.
    pub user: String,
    /// What was asked, such as `get` or `delete`.
    pub verb: String,
    /// Plural name; empty for pages that are no resource.
    pub resource: String,
    /// Empty for resources of the whole cluster.
    pub namespace: String,
    /// Empty for lists.
    pub name: String,
}

/// How long the log is: where [`calls`] of what is still to come begin.
pub fn length(log: &Path) -> Result<u64> {
    Ok(std::fs::metadata(log)?.len())
}

/// All requests that were answered after the log had this length.
pub fn calls(log: &Path, from: u64) -> Result<Vec<Call>> {
    let calls = entries(log, from)?.into_iter().map(|entry| {
        let object = entry.object_ref.unwrap_or_default();
        Call {
            at: entry.request_received_timestamp,
            user: entry.user.username,
            verb: entry.verb,
            resource: object.resource,
            namespace: object.namespace,
            name: object.name,
        }
    });
    Ok(calls.collect())
}

fn entries(log: &Path, from: u64) -> Result<Vec<Entry>> {
    let mut file = File::open(log).with_context(|| format!("failed to open {}", log.display()))?;
    file.seek(SeekFrom::Start(from))?;
    let mut found = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        // The server may be in the middle of its last line.
        if line.ends_with('}') {
            found.push(serde_json::from_str(&line).context("failed to read a line of the audit log")?);
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    request_received_timestamp: Timestamp,
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

impl Entry {
    fn into_write(self) -> Option<Write> {
        let changes =
            matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        let object = self.object_ref.filter(|_| changes)?;
        let resource = if object.subresource.is_empty() {
            object.resource
        } else {
            format!("{}/{}", object.resource, object.subresource)
        };
        Some(Write {
            user: self.user.username,
            verb: self.verb,
            resource,
            namespace: object.namespace,
            name: object.name,
            code: self.response_status.map_or(0, |status| status.code),
        })
    }
}
