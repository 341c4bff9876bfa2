//! Nothing is lost, doubled or left in a cloud: what is there is a member's, an environment's, or marked to go.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use aws_sdk_ec2::types::{Filter, Tag};
use jiff::Timestamp;
use serde_json::Value;

use super::{Facts, Verb};
use crate::testbed::stage::Stage;

const POOL: &str = "dormouse.dev/pool";
const ENVIRONMENT: &str = "dormouse.dev/environment";
const SLOT_OF: &str = "dormouse.dev/slot-of";
const ORPHANED_AT: &str = "dormouse.dev/orphaned-at";

/// A cloud, as its own API shows it.
#[derive(Clone, Debug, Default)]
pub struct CloudFacts {
    /// Instances that are not gone, with where they stand in their group.
    pub instances: BTreeMap<String, Option<String>>,
    /// The pool's volumes.
    pub volumes: BTreeMap<String, Kept>,
    /// The pool's snapshots.
    pub snapshots: BTreeMap<String, Kept>,
    /// Calls that end or stop an instance: when, which, by what.
    pub ends: Vec<(u64, String, String)>,
    /// Members that their group has put another in the place of.
    pub replaced: usize,
    /// How far the sweep of what nobody owns has come by now.
    pub swept: Swept,
}

/// How far the sweep has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swept {
    /// What is young cannot be marked yet, and what is marked may still be there.
    #[default]
    NotYet,
    /// All that nobody owns is marked.
    Marked,
    /// All that was marked is gone.
    Whole,
}

/// Something that keeps data.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The instance it is attached to.
    pub on: Option<String>,
    /// It was made so lately that nobody can have marked it yet.
    pub is_young: bool,
}

/// The first two minutes are whoever's who made it, and a sweep comes once a minute.
const YOUTH: i64 = 200;

impl CloudFacts {
    /// Looks at the cloud of a stage.
    pub async fn gather(stage: &Stage) -> Result<Self> {
        let cloud = &stage.cloud()?.cloud;
        let state = cloud.state().await?;
        let is_gone = |state: &str| ["shutting-down", "terminated"].contains(&state);
        let living = state.instances.into_iter().filter(|known| !is_gone(&known.state));
        let instances = living.map(|known| (known.id, known.lifecycle)).collect();
        let ours = || Filter::builder().name("tag-key").values(POOL).build();
        let volumes =
            cloud.ec2().describe_volumes().filters(ours()).send().await?.volumes.unwrap_or_default();
        let volumes = volumes.into_iter().filter_map(|volume| {
            let on = volume.attachments().first().and_then(|known| known.instance_id.clone());
            let made_at = volume.create_time.map_or(0, |at| at.secs());
            let is_young = Timestamp::now().as_second() - made_at < YOUTH;
            Some((volume.volume_id.clone()?, Kept { tags: read(volume.tags()), on, is_young }))
        });
        let snapshots = cloud.ec2().describe_snapshots().filters(ours()).send().await?;
        let snapshots = snapshots.snapshots.unwrap_or_default().into_iter();
        let snapshots = snapshots.filter_map(|shot| {
            Some((shot.snapshot_id.clone()?, Kept { tags: read(shot.tags()), ..Kept::default() }))
        });
        let (mut ends, mut replaced) = (Vec::new(), 0);
        for call in cloud.calls(0).await? {
            if call.service == "cloud" && call.action == "replaced" {
                replaced += 1;
            }
            let ending = ["TerminateInstances", "StopInstances", "TerminateInstanceInAutoScalingGroup"];
            if !ending.contains(&call.action.as_str()) || call.answer != "ok" {
                continue;
            }
            let at = u64::try_from(call.at.parse::<Timestamp>()?.as_nanosecond())?;
            let named = ["InstanceId", "InstanceIds"].into_iter().filter_map(|name| call.params.get(name));
            for id in named.flat_map(texts) {
                ends.push((at, id, call.action.clone()));
            }
        }
        let swept = Swept::NotYet;
        Ok(Self {
            instances,
            volumes: volumes.collect(),
            snapshots: snapshots.collect(),
            ends,
            replaced,
            swept,
        })
    }
}

fn texts(value: &Value) -> Vec<String> {
    let all = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn read(tags: &[Tag]) -> BTreeMap<String, String> {
    tags.iter().filter_map(|tag| Some((tag.key.clone()?, tag.value.clone()?))).collect()
}

/// What is wrong in the cloud.
pub fn broken(facts: &Facts, cloud: &CloudFacts) -> Vec<String> {
    let mut broken = Vec::new();
    let environments = &facts.cluster.environments;
    let status = |field: &str, id: &str| -> BTreeSet<&str> {
        environments.iter().filter_map(|known| known["status"].get(field)?.pointer(id)?.as_str()).collect()
    };
    let (places, volumes, snapshots) =
        (status("instance", ""), status("volume", "/id"), status("snapshot", "/id"));
    for (id, lifecycle) in &cloud.instances {
        let is_member = lifecycle.as_deref().is_some_and(|state| state == "InService");
        if !is_member && !places.contains(id.as_str()) {
            broken.push(format!("instance {id} ({lifecycle:?}) is nobody's"));
        }
    }
    let is_known =
        |id: &String| environments.iter().any(|known| known["spec"]["environmentId"] == id.as_str());
    let is_excused = |kept: &Kept| {
        let is_marked = kept.tags.contains_key(ORPHANED_AT);
        match cloud.swept {
            Swept::NotYet => is_marked || kept.is_young,
            Swept::Marked => is_marked,
            Swept::Whole => false,
        }
    };
    for (id, volume) in &cloud.volumes {
        let slot_of = volume.on.as_ref().or(volume.tags.get(SLOT_OF));
        let in_slot = slot_of.is_some_and(|instance| cloud.instances.contains_key(instance));
        let is_strangers = volume.tags.get(ENVIRONMENT).is_some_and(|environment| !is_known(environment));
        let is_owned = volumes.contains(id.as_str()) || in_slot && !is_strangers;
        if !is_owned && !is_excused(volume) {
            broken.push(format!("volume {id} is an orphan: {volume:?}"));
        }
    }
    for (id, snapshot) in &cloud.snapshots {
        if !snapshots.contains(id.as_str()) && !is_excused(snapshot) {
            broken.push(format!("snapshot {id} is an orphan: {snapshot:?}"));
        }
    }
    if cloud.swept == Swept::Whole {
        let kept = cloud.volumes.iter().chain(&cloud.snapshots);
        let marked = kept.filter(|(_, kept)| kept.tags.contains_key(ORPHANED_AT));
        broken.extend(marked.map(|(id, kept)| format!("{id} is marked as an orphan still: {kept:?}")));
    }
    // No storm here takes an instance, a volume or a snapshot away: whatever is, we have taken from under a sleeper.
    let accidents = facts.cluster.accidents.iter();
    broken.extend(accidents.map(|(name, reason, note)| format!("environment {name} was {reason}: {note}")));
    broken.extend(environments.iter().filter_map(|known| lost(cloud, known)));
    broken.extend(doubled(cloud, environments));
    broken.extend(ended(facts, cloud));
    if cloud.replaced > 0 {
        broken.push(format!("the group has replaced {} members: one was stopped as such", cloud.replaced));
    }
    broken
}

/// What an environment is kept by is not there.
fn lost(cloud: &CloudFacts, known: &Value) -> Option<String> {
    let (name, status) = (&known["metadata"]["name"], &known["status"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let tier = text(&status["tier"]);
    let is_there = match tier.as_str() {
        "Detached" => cloud.volumes.contains_key(&text(&status["volume"]["id"])),
        "Snapshotted" => cloud.snapshots.contains_key(&text(&status["snapshot"]["id"])),
        _ => cloud.instances.contains_key(&text(&status["instance"])),
    };
    (!is_there || status["phase"] == "Lost").then(|| format!("environment {name} is lost at tier {tier:?}"))
}

/// Two have the same, or one has two.
fn doubled(cloud: &CloudFacts, environments: &[Value]) -> Vec<String> {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for known in environments {
        let status = &known["status"];
        let place =
            status["instance"].as_str().map(|instance| format!("slot {} of {instance}", status["slot"]));
        let kept = ["volume", "snapshot"].into_iter().filter_map(|field| status[field]["id"].as_str());
        for thing in place.into_iter().chain(kept.map(str::to_owned)) {
            owners.entry(thing).or_default().push(known["metadata"]["name"].to_string());
        }
    }
    for (id, volume) in &cloud.volumes {
        let Some(environment) = volume.tags.get(ENVIRONMENT) else { continue };
        if !volume.tags.contains_key(ORPHANED_AT) {
            owners.entry(format!("the volumes of {environment}")).or_default().push(id.clone());
        }
    }
    let doubled = owners.into_iter().filter(|(_, owners)| owners.len() > 1);
    doubled.map(|(thing, owners)| format!("{thing}: it is {owners:?}")).collect()
}

/// Instances that were ended or stopped under a job.
fn ended(facts: &Facts, cloud: &CloudFacts) -> Vec<String> {
    let mut broken = Vec::new();
    for (at, instance, action) in &cloud.ends {
        for job in &facts.jobs {
            let on_it = || facts.entries(job.id).filter(|(host, _)| host.name == *instance);
            let time = |verb| on_it().find(|(_, entry)| entry.verb == verb).map(|(_, entry)| entry.at);
            let Some(begun) = time(Verb::Begin) else { continue };
            if begun < *at && time(Verb::End).is_none_or(|end| end > *at) {
                broken.push(format!("{action} of {instance} under job {} ({})", job.id, job.name));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testbed::checker::ClusterFacts;

    const E: &str = "abcdefghijklmnopqrst";

    fn kept(tags: &[(&str, &str)], on: Option<&str>) -> Kept {
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Kept { tags, on: on.map(str::to_owned), is_young: false }
    }

    /// One member with the volume of its slot, and one environment at tier Detached.
    fn world() -> (Facts, CloudFacts) {
        let environment = json!({
            "metadata": { "name": "pool-e" }, "spec": { "environmentId": E },
            "status": { "phase": "Suspended", "tier": "Detached", "volume": { "id": "vol-e" } },
        });
        let cluster = ClusterFacts { environments: vec![environment], ..ClusterFacts::default() };
        let cloud = CloudFacts {
            instances: [("i-1".to_owned(), Some("InService".to_owned()))].into(),
            volumes: [
                ("vol-1".to_owned(), kept(&[(SLOT_OF, "i-1")], Some("i-1"))),
                ("vol-e".to_owned(), kept(&[(SLOT_OF, "i-0"), (ENVIRONMENT, E)], None)),
            ]
            .into(),
            ..CloudFacts::default()
        };
        (Facts { cluster, ..Facts::default() }, cloud)
    }

    #[track_caller]
    fn says(words: &str, break_it: impl FnOnce(&mut Facts, &mut CloudFacts)) {
        let (mut facts, mut cloud) = world();
        assert_eq!(broken(&facts, &cloud), Vec::<String>::new());
        break_it(&mut facts, &mut cloud);
        let all = broken(&facts, &cloud);
        assert!(all.iter().any(|what| what.contains(words)), "{words:?} is not in {all:#?}");
    }

    #[test]
    fn what_is_nobodys_is_told_of() {
        says("instance i-2 (None) is nobody's", |_, cloud| {
            drop(cloud.instances.insert("i-2".to_owned(), None))
        });
        says("volume vol-2 is an orphan", |_, cloud| {
            cloud.volumes.insert("vol-2".to_owned(), kept(&[(SLOT_OF, "i-0")], None));
        });
        says("volume vol-1 is an orphan", |_, cloud| cloud.instances.clear());
        says("volume vol-3 is an orphan", |_, cloud| {
            cloud.volumes.insert("vol-3".to_owned(), kept(&[(ENVIRONMENT, "gone")], Some("i-1")));
        });
        says("snapshot snap-1 is an orphan", |_, cloud| {
            cloud.snapshots.insert("snap-1".to_owned(), kept(&[(ENVIRONMENT, E)], None));
        });
    }

    #[test]
    fn what_is_marked_to_go_is_told_of_once_it_should_be_gone() {
        let (facts, mut cloud) = world();
        cloud.volumes.insert("vol-2".to_owned(), kept(&[(ORPHANED_AT, "then")], None));
        cloud.snapshots.insert("snap-1".to_owned(), kept(&[(ORPHANED_AT, "then")], None));
        for (swept, count) in [(Swept::NotYet, 0), (Swept::Marked, 0), (Swept::Whole, 4)] {
            cloud.swept = swept;
            assert_eq!(broken(&facts, &cloud).len(), count, "{:#?}", broken(&facts, &cloud));
        }
        // What is somebody's and carries the mark still would go with the next sweep.
        says("vol-e is marked as an orphan still", |_, cloud| {
            cloud.swept = Swept::Whole;
            cloud.volumes.get_mut("vol-e").unwrap().tags.insert(ORPHANED_AT.to_owned(), "then".to_owned());
        });
    }

    #[test]
    fn what_is_young_is_told_of_once_it_can_be_marked() {
        let (facts, mut cloud) = world();
        cloud.volumes.insert("vol-2".to_owned(), Kept { is_young: true, ..Kept::default() });
        for (swept, count) in [(Swept::NotYet, 0), (Swept::Marked, 1), (Swept::Whole, 1)] {
            cloud.swept = swept;
            assert_eq!(broken(&facts, &cloud).len(), count, "{:#?}", broken(&facts, &cloud));
        }
    }

    #[test]
    fn what_was_taken_from_under_a_sleeper_is_told_of() {
        for reason in ["Rescued", "Lost"] {
            says(&format!("environment pool-f was {reason}: its instance is gone"), |facts, _| {
                let event = ["pool-f", reason, "its instance is gone"].map(str::to_owned);
                facts.cluster.accidents.push(event.into());
            });
        }
    }

    #[test]
    fn what_is_lost_or_has_two_owners_is_told_of() {
        says("is lost at tier \"Detached\"", |_, cloud| drop(cloud.volumes.remove("vol-e")));
        says("is lost at tier \"Snapshotted\"", |facts, _| {
            facts.cluster.environments[0]["status"]["tier"] = json!("Snapshotted");
        });
        says("is lost", |facts, _| facts.cluster.environments[0]["status"]["phase"] = json!("Lost"));
        says("vol-e: it is", |facts, _| {
            let again = facts.cluster.environments[0].clone();
            facts.cluster.environments.push(again);
        });
        says(&format!("the volumes of {E}: it is"), |_, cloud| {
            cloud.volumes.insert("vol-f".to_owned(), kept(&[(ENVIRONMENT, E)], Some("i-1")));
        });
        says("the group has replaced 1 members", |_, cloud| cloud.replaced = 1);
    }
}
