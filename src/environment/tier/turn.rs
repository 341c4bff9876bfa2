//! Turning back on the way from an instance to a volume: a job names the key, or a wish is taken back, half way. Pure.

use super::detach::detach;
use super::{Host, Plan, View, own_volume};
use crate::api::suspended_environment::Tier;
use crate::fleet::facts::Fate;

/// What is due before another way may be taken; `None` when it may be taken now.
///
/// Until its workspace is unmounted it can stay where it is. From then on its host has let go of it, and only the volume
/// has all of it: it goes on there, and comes back from there.
pub fn first(view: &View<'_>) -> Option<Plan> {
    let environment = view.environment;
    let moving = environment.status.as_ref().and_then(|status| status.moving.as_ref())?;
    if moving.to < Tier::Detached || environment.tier() >= Tier::Detached {
        return None;
    }
    let (instance, _) = environment.place()?;
    let volume = own_volume(view)?;
    let is_on_place = volume
        .attachment
        .as_ref()
        .is_some_and(|known| known.instance == instance && known.is_attached && !known.is_detaching);
    if !is_on_place {
        return Some(detach(view));
    }
    match (view.facts.fate(instance), view.host) {
        (Fate::Running, Host::Answers { has_record: Some(true), mounted: Some(mounted) })
            if mounted == volume.id =>
        {
            None
        }
        (Fate::Running, Host::Answers { has_record: Some(_), .. }) => Some(detach(view)),
        (Fate::Running, Host::Answers { has_record: None, .. } | Host::Away) => {
            Some(Plan::wait(format!("instance {instance} to say what it has of it")))
        }
        // Its volume may have been told to come off a moment ago.
        _ if !view.is_fresh => Some(Plan::wait("the cloud to show what was begun")),
        // Nothing was undone on an instance that is off.
        (Fate::Starting | Fate::Stopping | Fate::Stopped | Fate::Gone | Fate::Unseen, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use serde_json::json;

    use super::super::{Rules, Step, plan};
    use super::*;
    use crate::api::SuspendedEnvironment;
    use crate::fleet::facts::Facts;
    use crate::provider::{Attachment, Instance, Volume, VolumeState};

    /// One on its way from slot 0 of i-1 to its volume, which nobody wishes any more.
    fn environment() -> SuspendedEnvironment {
        let object = json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "SuspendedEnvironment", "metadata": { "name": "p-e" },
            "spec": {
                "pool": "p", "poolUid": "u", "environmentId": "abcdefghijklmnopqrst",
                "expiresAt": "2026-01-02T00:00:00Z", "notAfter": "2026-01-03T00:00:00Z", "workspacePath": "/b/0/g/p",
                "origin": {
                    "projectId": 1, "projectPath": "g/p", "ref": "main", "protected": false, "commit": "c",
                    "jobId": 1, "jobName": "j", "userId": 1, "outcome": "Failed", "lease": "p-1", "leaseUid": "l",
                    "instance": "i-1", "slot": 0,
                },
            },
            "status": {
                "phase": "Demoting", "tier": "Hot", "instance": "i-1", "slot": 0, "savedRevision": 0, "revision": 0,
                "volume": { "id": "vol-1", "zone": "a", "sizeGiB": 1 },
                "moving": { "to": "Detached", "why": "Asked", "since": "2026-01-01T00:00:00Z", "epoch": 1, "retries": 0 },
            },
        });
        serde_json::from_value(object).unwrap()
    }

    fn facts(is_attached: bool) -> Facts {
        let attachment = is_attached.then(|| Attachment {
            instance: "i-1".into(),
            device: "/dev/sdf".into(),
            is_attached: true,
            is_detaching: false,
        });
        let volume = Volume {
            id: "vol-1".into(),
            state: VolumeState::InUse,
            zone: "a".into(),
            size_gib: 1,
            attachment,
            created_at: None,
            snapshot: None,
            tags: BTreeMap::new(),
        };
        let mut facts = Facts::default();
        facts.volumes.put(volume);
        facts.instances.insert("i-1".into(), Instance::for_test("i-1"));
        facts
    }

    fn step(is_attached: bool, host: Host<'_>, is_bound: bool) -> Option<Step> {
        let (environment, facts) = (environment(), facts(is_attached));
        let now: Timestamp = "2026-01-01T00:00:01Z".parse().unwrap();
        let rules = Rules { demotion: &[], has_volumes: true };
        let view = View {
            environment: &environment,
            rules,
            facts: &facts,
            host,
            is_bound,
            is_evicted: false,
            is_leaving: false,
            is_zone_dry: false,
            may_stop: true,
            is_fresh: true,
            is_place_at_rest: true,
            now,
        };
        plan(&view).step
    }

    #[test]
    fn what_is_still_mounted_stays_and_what_is_not_goes_on_to_its_volume() {
        let answers = |has_record, mounted| Host::Answers { has_record, mounted };
        for is_bound in [false, true] {
            let step = |is_attached, host| step(is_attached, host, is_bound);
            let settled = step(true, answers(Some(true), Some("vol-1")));
            assert!(matches!(settled, Some(Step::Settle(settled)) if settled.tier == Tier::Hot));
            assert_eq!(step(true, answers(Some(true), None)), Some(Step::Leave));
            assert!(matches!(step(true, answers(Some(false), None)), Some(Step::Detach { .. })));
            let settled = step(false, answers(Some(false), None));
            assert!(matches!(settled, Some(Step::Settle(settled)) if settled.tier == Tier::Detached));
            // A new holder has not asked yet.
            assert_eq!(step(true, answers(None, Some("vol-1"))), None);
            assert_eq!(step(true, Host::Away), None);
        }
    }
}
