//! Whether the operator may be uninstalled: what would be left behind if it were.
//!
//! Reads only. Environments can be released by nobody but an operator, so taking the last one away strands them; jobs
//! that run go on, and wait with their results for an operator that comes back.

use std::fmt::Write as _;

use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::api::{JobLease, RunnerPool, SuspendedEnvironment};

/// How many objects of a kind are named; of the others only the number is said.
const NAMED: usize = 20;
/// Objects asked for in one request.
const PAGE: u32 = 500;

/// The namespaces looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One namespace.
    Namespace(String),
    /// All of them.
    All,
}

/// Whether jobs that run are a reason to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// They are.
    Refuse,
    /// They may run on without an operator.
    Allow,
}

/// Why it cannot be said.
#[derive(Debug, thiserror::Error)]
#[error("failed to list {plural}")]
pub struct LookError {
    plural: String,
    #[source]
    source: kube::Error,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Open leases: namespace/name and what is said about each.
    open_leases: Vec<String>,
    /// Environments, asleep or in use.
    environments: Vec<String>,
    /// Pools, which are no reason to refuse.
    pools: usize,
    /// Kinds the API server does not know.
    unknown_kinds: Vec<String>,
}

/// Looks at every lease and environment.
///
/// # Errors
/// When the API server cannot be asked, or does not permit it. A kind it does not know has no objects.
pub async fn look(client: &Client, scope: &Scope) -> Result<Remains, LookError> {
    let mut remains = Remains::default();
    remains.open_leases = each(client, scope, &mut remains.unknown_kinds, |lease: JobLease| {
        let spec = &lease.spec;
        lease.phase().is_open().then(|| {
            format!("{} ({:?}, job {} of {})", path(&lease), lease.phase(), spec.job_id, spec.project_path)
        })
    })
    .await?;
    remains.environments =
        each(client, scope, &mut remains.unknown_kinds, |environment: SuspendedEnvironment| {
            let origin = &environment.spec.origin;
            Some(format!(
                "{} ({:?}, {} on {}, expires {})",
                path(&environment),
                environment.phase(),
                origin.project_path,
                origin.instance,
                environment.expires_at(),
            ))
        })
        .await?;
    remains.pools =
        each(client, scope, &mut remains.unknown_kinds, |pool: RunnerPool| Some(path(&pool))).await?.len();
    Ok(remains)
}

impl Remains {
    /// Why the operator must stay, with the ways out; nothing when it may go.
    pub fn refusal(&self, running: Running) -> Option<String> {
        let leases: &[String] = match running {
            Running::Refuse => &self.open_leases,
            Running::Allow => &[],
        };
        if leases.is_empty() && self.environments.is_empty() {
            return None;
        }
        let mut text = String::from("Dormouse is still in use and is not uninstalled.\n");
        section(&mut text, "Jobs that run", leases);
        section(&mut text, "Environments that are kept", &self.environments);
        text.push_str("\nThe ways out:\n");
        if !leases.is_empty() {
            text.push_str(
                "- Set spec.mode of the pools to Draining and wait for their condition Drained.\n\
                 - Or let the jobs run on without an operator (chart value uninstall.allowRunning=true): GitLab gets \
                 their results from an operator that is installed again in time.\n",
            );
        }
        if !self.environments.is_empty() {
            text.push_str(
                "- Release the environments: kubectl delete suspendedenvironments --all --namespace NAMESPACE\n",
            );
        }
        text.push_str(
            "- Or leave it all behind (chart value uninstall.force=true): what is on the hosts stays there until an \
             operator is installed again.\n",
        );
        Some(text)
    }

    /// What there is, for people.
    pub fn report(&self) -> String {
        let mut text = format!(
            "{} pools, {} open leases, {} environments\n",
            self.pools,
            self.open_leases.len(),
            self.environments.len()
        );
        section(&mut text, "Jobs that run", &self.open_leases);
        section(&mut text, "Environments that are kept", &self.environments);
        section(&mut text, "Kinds that the API server does not know", &self.unknown_kinds);
        text
    }

    /// Kinds the API server does not know: their definitions are not installed.
    pub fn unknown_kinds(&self) -> &[String] {
        &self.unknown_kinds
    }
}

/// What `describe` says about each object of a kind, page by page.
async fn each<K>(
    client: &Client,
    scope: &Scope,
    unknown_kinds: &mut Vec<String>,
    mut describe: impl FnMut(K) -> Option<String>,
) -> Result<Vec<String>, LookError>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = match scope {
        Scope::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        Scope::All => Api::all(client.clone()),
    };
    let mut described = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = match api.list(&page).await {
            Ok(list) => list,
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                unknown_kinds.push(K::plural(&()).into_owned());
                return Ok(described);
            }
            Err(source) => return Err(LookError { plural: K::plural(&()).into_owned(), source }),
        };
        described.extend(list.items.into_iter().filter_map(&mut describe));
        match list.metadata.continue_ {
            Some(token) if !token.is_empty() => page = page.continue_token(&token),
            _ => return Ok(described),
        }
    }
}

fn path(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn section(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n{title}:");
    for line in lines.iter().take(NAMED) {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(more) = lines.len().checked_sub(NAMED).filter(|more| *more > 0) {
        let _ = writeln!(text, "  and {more} more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remains(leases: usize, environments: usize) -> Remains {
        let named = |kind: &str, count| (0..count).map(|index| format!("ci/{kind}-{index}")).collect();
        Remains {
            open_leases: named("lease", leases),
            environments: named("senv", environments),
            ..Remains::default()
        }
    }

    #[test]
    fn an_idle_operator_may_go_and_pools_do_not_hold_it() {
        assert_eq!(Remains { pools: 3, ..remains(0, 0) }.refusal(Running::Refuse), None);
    }

    #[test]
    fn running_jobs_hold_it_unless_they_are_allowed_to_run_on() {
        let text = remains(1, 0).refusal(Running::Refuse).unwrap();
        assert!(text.contains("ci/lease-0") && text.contains("Draining"), "{text}");
        assert!(!text.contains("suspendedenvironments"), "{text}");
        assert_eq!(remains(1, 0).refusal(Running::Allow), None);
    }

    #[test]
    fn environments_hold_it_in_any_case_and_only_some_are_named() {
        let text = remains(1, 25).refusal(Running::Allow).unwrap();
        assert!(text.contains("ci/senv-19\n  and 5 more"), "{text}");
        assert!(!text.contains("lease-0"), "{text}");
    }
}
