//! What a held pool's objects say, kept so that one change costs one look and not a look at everything.
//!
//! Fed by the caches' changes and by nothing else, so it can be thrown away at any time: a new one reads the same from
//! the caches. Names in it are names of objects of the pool's namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use kube::ResourceExt;

use super::agenda::Agenda;
use super::slots::{Claimant, Occupancy, Sleeper, Slot};
use crate::api::suspended_environment::object_name;
use crate::api::{JobLease, SuspendedEnvironment};
use crate::lease::ended_at;

/// How many leases of one pool are kept for people after their end.
const FINISHED_LEASES_KEPT: usize = 100;

/// How urgent a step for an environment is: the smaller, the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Its time is over.
    Due,
    /// Something has to be done to it.
    Needed,
    /// Something is to be said about it.
    Told,
}

/// The objects of one pool, by what they are asked by.
#[derive(Debug)]
pub struct Book {
    pool: String,
    /// Who owns which slot.
    pub occupancy: Occupancy,
    /// Slots decided for leases whose status does not say so yet.
    reservations: HashMap<String, Slot>,
    /// Slots decided for environments that come back, whose status does not say so yet.
    places: HashMap<String, Slot>,
    /// What each lease is about, to take it out again.
    leases: HashMap<String, Entry>,
    by_environment: BTreeSet<(String, String)>,
    /// Leases that are over and nobody has deleted, those that ended first in front.
    over: BTreeSet<(Timestamp, String)>,
    /// Leases to look at.
    pub lease_agenda: Agenda,
    /// Environments to look at.
    pub environment_agenda: Agenda,
    /// Environments that wait for a step, and how urgent it is.
    steps: BTreeMap<String, Urgency>,
    step_order: BTreeSet<(Urgency, String)>,
    /// Leases whose drivers should look again.
    stirred: BTreeSet<String>,
    /// How each host was when it was last looked at.
    hosts: BTreeMap<String, &'static str>,
    has_settings: bool,
}

#[derive(Debug)]
struct Entry {
    environment: String,
    /// When it came to its end; until then, when it began.
    ended_at: Timestamp,
}

impl Book {
    /// An empty one.
    pub fn new(pool: &str) -> Self {
        Self {
            pool: pool.to_owned(),
            occupancy: Occupancy::default(),
            reservations: HashMap::new(),
            places: HashMap::new(),
            leases: HashMap::new(),
            by_environment: BTreeSet::new(),
            over: BTreeSet::new(),
            lease_agenda: Agenda::default(),
            environment_agenda: Agenda::default(),
            steps: BTreeMap::new(),
            step_order: BTreeSet::new(),
            stirred: BTreeSet::new(),
            hosts: BTreeMap::new(),
            has_settings: false,
        }
    }

    /// What a lease is now; `None` when it is gone.
    pub fn lease_changed(&mut self, name: &str, lease: Option<&JobLease>) {
        if let Some(old) = self.leases.remove(name) {
            self.by_environment.remove(&(old.environment.clone(), name.to_owned()));
            self.over.remove(&(old.ended_at, name.to_owned()));
            self.touch_environment(&old.environment);
        }
        self.occupancy.set_claimant(name, lease.and_then(|lease| self.claimant(lease)));
        let quarantined = lease.and_then(JobLease::quarantined_place);
        let quarantined = quarantined.map(|(instance, index)| Slot { instance: instance.to_owned(), index });
        self.occupancy.set_quarantined(name, quarantined);
        self.lease_agenda.at(name, None);
        self.lease_agenda.now(name);
        self.stirred.insert(name.to_owned());
        let Some(lease) = lease else { return };
        // By the end: a long job's lease would otherwise go the moment it is over, when a hundred later ones have ended
        // before it.
        let ended_at = lease.status.as_ref().and_then(ended_at).unwrap_or(lease.spec.accepted_at.0);
        let environment = lease.spec.environment_id.clone();
        self.occupancy.know(&environment);
        self.by_environment.insert((environment.clone(), name.to_owned()));
        if !lease.phase().is_open() && lease.metadata.deletion_timestamp.is_none() {
            self.over.insert((ended_at, name.to_owned()));
            // By this one, another may be one too many.
            if let Some((_, surplus)) = self.over.iter().nth_back(FINISHED_LEASES_KEPT) {
                self.lease_agenda.now(surplus.clone());
            }
        }
        self.touch_environment(&environment);
        self.leases.insert(name.to_owned(), Entry { environment, ended_at });
    }

    /// What an environment is now; `None` when it is gone.
    pub fn environment_changed(&mut self, name: &str, environment: Option<&SuspendedEnvironment>) {
        self.occupancy.set_sleeper(
            name,
            environment.map(|environment| Sleeper {
                environment: environment.spec.environment_id.clone(),
                slot: place_of(environment).or_else(|| self.places.get(name).cloned()),
                bound: environment.bound_lease().is_some(),
            }),
        );
        if let Some(environment) = environment {
            self.occupancy.know(&environment.spec.environment_id);
        }
        if environment.is_none() {
            self.environment_agenda.at(name, None);
            self.drop_step(name);
        }
        self.environment_has_news(name);
    }

    /// How a host is now. Where that is news, everything that lies on it is looked at again.
    pub fn host_is(&mut self, name: &str, how: Option<&'static str>) {
        if self.hosts.get(name).copied() == how {
            return;
        }
        match how {
            Some(how) => self.hosts.insert(name.to_owned(), how),
            None => self.hosts.remove(name),
        };
        self.stir_instance(name);
    }

    fn stir_instance(&mut self, name: &str) {
        let environments: Vec<String> = self.occupancy.environments_on(name).map(str::to_owned).collect();
        for environment in environments {
            self.environment_has_news(&environment);
        }
        let leases: Vec<String> = self.occupancy.leases_on(name).map(str::to_owned).collect();
        self.stirred.extend(leases);
        // Those that are over are kept only as long as there is a slot to be in doubt about.
        let over: Vec<String> = self.occupancy.quarantines_on(name).map(str::to_owned).collect();
        for lease in over {
            self.lease_agenda.now(lease);
        }
    }

    /// Whether the pool's settings are known: only then a host that is not there is one the pool does not want.
    pub fn settings_are(&mut self, known: bool) {
        if std::mem::replace(&mut self.has_settings, known) != known {
            for name in self.occupancy.environment_names() {
                self.environment_agenda.now(name);
            }
        }
    }

    /// Names of the hosts that have been told of.
    pub fn hosts(&self) -> Vec<String> {
        self.hosts.keys().cloned().collect()
    }

    /// Names of the leases of an environment.
    pub fn leases_of(&self, environment: &str) -> Vec<String> {
        let from = (environment.to_owned(), String::new());
        let own = self.by_environment.range(from..).take_while(|(known, _)| known == environment);
        own.map(|(_, lease)| lease.clone()).collect()
    }

    /// Whether more leases are kept for people than should be, and this is one of those that ended first.
    pub fn is_surplus(&self, lease: &str) -> bool {
        let newest = self.over.iter().rev().take(FINISHED_LEASES_KEPT);
        self.over.len() > FINISHED_LEASES_KEPT && !newest.into_iter().any(|(_, kept)| kept == lease)
    }

    /// The slot decided for a lease whose status does not say so yet.
    pub fn reservation(&self, lease: &str) -> Option<&Slot> {
        self.reservations.get(lease)
    }

    /// Decides a slot for a lease.
    pub fn reserve(&mut self, lease: &JobLease, slot: Slot) {
        let name = lease.name_any();
        self.reservations.insert(name.clone(), slot);
        self.occupancy.set_claimant(&name, self.claimant(lease));
        self.stirred.insert(name);
    }

    /// Takes a decision back: the lease's status says so now, or it does not want the slot any more.
    pub fn settle_reservation(&mut self, name: &str, lease: Option<&JobLease>) {
        self.reservations.remove(name);
        self.occupancy.set_claimant(name, lease.and_then(|lease| self.claimant(lease)));
    }

    /// Decides a slot for an environment that comes back to an instance.
    pub fn reserve_place(&mut self, environment: &SuspendedEnvironment, slot: Slot) {
        let name = environment.name_any();
        self.places.insert(name.clone(), slot);
        self.environment_changed(&name, Some(environment));
    }

    /// Takes that decision back: the environment's status says so now, or it does not come back.
    pub fn settle_place(&mut self, name: &str, environment: Option<&SuspendedEnvironment>) {
        if self.places.remove(name).is_some() {
            self.environment_changed(name, environment);
        }
    }

    /// The slot decided for an environment whose status does not say so yet.
    pub fn place_of(&self, environment: &str) -> Option<Slot> {
        self.places.get(environment).cloned()
    }

    /// Everything on an instance is looked at again: something has become of it, or is about to.
    pub fn look_at_instance(&mut self, name: &str) {
        self.stir_instance(name);
    }

    /// Lets an environment wait for its step.
    pub fn add_step(&mut self, environment: &str, urgency: Urgency) {
        self.drop_step(environment);
        self.steps.insert(environment.to_owned(), urgency);
        self.step_order.insert((urgency, environment.to_owned()));
    }

    /// Takes the environment with the most urgent step.
    pub fn next_step(&mut self) -> Option<String> {
        let (_, name) = self.step_order.pop_first()?;
        self.steps.remove(&name);
        Some(name)
    }

    /// How many environments wait for their step.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Takes the leases whose drivers should look again.
    pub fn take_stirred(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.stirred)
    }

    fn drop_step(&mut self, environment: &str) {
        if let Some(urgency) = self.steps.remove(environment) {
            self.step_order.remove(&(urgency, environment.to_owned()));
        }
    }

    /// One of its leases has changed: whether a job uses it may be another thing now.
    fn touch_environment(&mut self, id: &str) {
        self.environment_has_news(&object_name(&self.pool, id));
    }

    /// Something that no object says has changed about an environment: it is looked at again, and so is what waits for it.
    pub fn environment_has_news(&mut self, name: &str) {
        self.environment_agenda.now(name);
        if let Some(id) = name.strip_prefix(&self.pool).and_then(|rest| rest.strip_prefix('-')) {
            self.stirred.extend(self.leases_of(id));
        }
    }

    fn claimant(&self, lease: &JobLease) -> Option<Claimant> {
        if !lease.phase().is_open() {
            return None;
        }
        let decided = || self.reservations.get(&lease.name_any()).cloned();
        let place = lease.place().map(|(instance, index)| Slot { instance: instance.to_owned(), index });
        Some(Claimant {
            environment: lease.spec.environment_id.clone(),
            slot: place.or_else(decided),
            resumes: lease.spec.resume_from.is_some(),
            accepted_at: lease.spec.accepted_at.0,
        })
    }
}

fn place_of(environment: &SuspendedEnvironment) -> Option<Slot> {
    environment.place().map(|(instance, index)| Slot { instance: instance.to_owned(), index })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn over(job: usize, accepted: usize, finished: usize) -> JobLease {
        let time = |seconds: usize| Timestamp::from_second(seconds as i64).unwrap().to_string();
        serde_json::from_value(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "JobLease", "metadata": { "name": format!("p-{job}") },
            "spec": {
                "pool": "p", "poolUid": "u", "jobId": job, "jobName": "j", "projectId": 1, "projectPath": "g/p",
                "ref": "main", "environmentId": format!("e{job}"), "timeoutSeconds": 60,
                "acceptedAt": time(accepted), "payloadParts": 1,
            },
            "status": { "phase": "Reported", "conditions": [{
                "type": "Finished", "status": "True", "reason": "Finished", "message": "",
                "lastTransitionTime": time(finished),
            }] },
        }))
        .unwrap()
    }

    #[test]
    fn those_that_ended_first_are_surplus_not_those_that_took_long() {
        let mut book = Book::new("p");
        let tell = |book: &mut Book, lease: JobLease| book.lease_changed(&lease.name_any(), Some(&lease));
        for job in 1..=FINISHED_LEASES_KEPT {
            tell(&mut book, over(job, job, job + 1));
        }
        // Accepted before all of them, and over after them.
        tell(&mut book, over(1000, 0, 2000));
        assert!(!book.is_surplus("p-1000") && book.is_surplus("p-1") && !book.is_surplus("p-2"));
        book.lease_changed("p-1", None);
        assert!(!book.is_surplus("p-2"));
    }
}
