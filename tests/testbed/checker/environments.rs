//! No environment is lost: each sleeps where GitLab was told it does, or woke as it had been.

use serde_json::Value;

use super::{Entry, Facts, HostFacts, Verb, Woken};
use crate::testbed::gitlab::JobId;

/// What is wrong with environments.
pub fn broken(facts: &Facts) -> Vec<String> {
    let mut broken = Vec::new();
    for wanted in &facts.expectations {
        let Some(job) = facts.last_of(wanted.job) else { continue };
        if let Some(woken) = &wanted.wakes {
            let what = woke_otherwise(facts, job.id, woken);
            broken.extend(what.map(|what| format!("job {} ({}): {what}", job.id, job.name)));
        }
        if let Some(key) = &job.environment_key
            && !is_woken(facts, job.id, key)
            && !wanted.expires
        {
            broken.extend(not_asleep(facts, job.id, key).map(|what| format!("environment {key}: {what}")));
        }
    }
    broken
}

/// Whether a later job was to wake it.
fn is_woken(facts: &Facts, after: JobId, key: &str) -> bool {
    facts.expectations.iter().any(|wanted| {
        wanted.wakes.as_ref().is_some_and(|woken| woken.key == key)
            && facts.last_of(wanted.job).is_some_and(|job| job.id > after)
    })
}

fn not_asleep(facts: &Facts, job: JobId, key: &str) -> Option<String> {
    let has_key = |known: &&Value| known["status"]["environmentKey"] == key;
    let Some(known) = facts.cluster.environments.iter().find(has_key) else {
        return Some("it is lost: the API server has no object of it".to_owned());
    };
    if known["status"]["phase"] != "Suspended" {
        return Some(format!("it is not asleep but {}", known["status"]["phase"]));
    }
    // Where it is kept in a cloud is told of there.
    if facts.cloud.is_some() {
        return None;
    }
    let id = key.rsplit('=').next().unwrap_or_default();
    let Some((host, _)) = facts.entries(job).next() else {
        return Some(format!("no host remembers job {job}, which put it to sleep"));
    };
    (!host.environments.iter().any(|name| name == id))
        .then(|| format!("it is lost: {} has nothing of it", host.name))
}

/// A woken environment is where it was, with its files and processes.
fn woke_otherwise(facts: &Facts, job: JobId, woken: &Woken) -> Option<String> {
    let begin = |id| -> Option<(&HostFacts, &Entry)> {
        facts.entries(id).find(|(_, entry)| entry.verb == Verb::Begin)
    };
    // Jobs that did not begin are told of where results are judged.
    let (host, entry) = begin(job)?;
    let Some((first_host, first)) = begin(woken.of) else {
        return Some(format!("it wakes what job {} made, which never began", woken.of));
    };
    let places = [(&host.name, &entry.folder), (&first_host.name, &first.folder)];
    // In a cloud it may go on elsewhere, in a folder of the same name.
    let is_elsewhere =
        if facts.cloud.is_some() { places[0].1 != places[1].1 } else { places[0] != places[1] };
    if is_elsewhere {
        return Some(format!("it woke in {:?}, and what it wakes was in {:?}", places[0], places[1]));
    }
    let found = |verb| facts.entries(job).find(|(_, entry)| entry.verb == verb).map(|(_, entry)| entry);
    match found(Verb::Found) {
        Some(entry) if entry.word == woken.of.to_string() => {}
        Some(entry) => return Some(format!("it found the files of job {}, not of {}", entry.word, woken.of)),
        None => return Some("it did not look for its files".to_owned()),
    }
    match (found(Verb::Alive), found(Verb::Dead)) {
        (Some(_), None) => None,
        // Processes live through tier Hot alone, and through hibernation.
        (None, Some(_)) if facts.cloud.is_some() => None,
        (None, Some(_)) => Some("the background process did not live through the sleep".to_owned()),
        (_, _) => Some("nothing is known of the background process".to_owned()),
    }
}
