//! A slot has one owner at any time: the job in it, or the environment that sleeps in it.

use std::collections::BTreeMap;

use super::{Facts, Verb};

/// Somebody's stay in a slot.
#[derive(Debug)]
struct Stay {
    from: u64,
    /// Without an end it lasts until now.
    to: Option<u64>,
    owner: String,
}

/// Slots that two had at the same time.
pub fn broken(facts: &Facts) -> Vec<String> {
    let mut broken = Vec::new();
    for ((host, slot), mut stays) in stays(facts) {
        stays.sort_by_key(|stay| stay.from);
        for (index, stay) in stays.iter().enumerate() {
            let end = stay.to.unwrap_or(u64::MAX);
            for other in stays.iter().skip(index + 1).take_while(|other| other.from < end) {
                broken.push(format!(
                    "slot {slot} of {host} has two owners: {} and {}",
                    stay.owner, other.owner
                ));
            }
        }
    }
    broken
}

fn stays(facts: &Facts) -> BTreeMap<(String, String), Vec<Stay>> {
    let mut stays: BTreeMap<_, Vec<Stay>> = BTreeMap::new();
    for job in &facts.jobs {
        let begun = facts.entries(job.id).filter(|(_, entry)| entry.verb == Verb::Begin);
        for (host, begin) in begun {
            let mut own = facts.entries(job.id);
            let end = own.find(|(at, entry)| at.name == host.name && entry.verb == Verb::End);
            let end = end.map(|(_, entry)| entry.at);
            let place = stays.entry((host.name.clone(), slot(&begin.folder))).or_default();
            let owner = format!("job {} ({})", job.id, job.name);
            place.push(Stay { from: begin.at, to: end, owner });
            // In a cloud a sleeping environment may leave its slot to others.
            if facts.cloud.is_some() {
                continue;
            }
            let (Some(from), Some(key)) = (end, &job.environment_key) else { continue };
            place.push(Stay { from, to: next_with(facts, key, from), owner: format!("environment {key}") });
        }
    }
    stays
}

/// When the environment is next worked in.
fn next_with(facts: &Facts, key: &str, after: u64) -> Option<u64> {
    let users = facts
        .expectations
        .iter()
        .filter(|wanted| wanted.wakes.as_ref().is_some_and(|woken| woken.key == key));
    let begins = users.filter_map(|wanted| {
        let job = facts.last_of(wanted.job)?;
        let (_, begin) = facts.entries(job.id).find(|(_, entry)| entry.verb == Verb::Begin)?;
        (begin.at >= after).then_some(begin.at)
    });
    begins.min()
}

/// The folder of a workspace is `<builds>/<slot>/<group>/<project>`.
fn slot(folder: &str) -> String {
    let (_, inside) = folder.split_once("/builds/").unwrap_or(("", folder));
    inside.split('/').next().unwrap_or_default().to_owned()
}
