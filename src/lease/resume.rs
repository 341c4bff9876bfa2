//! Resuming: from the key a job names to the slot its environment owns, and letting go of it again.
//!
//! Writes: (3) the environment's status names the lease and says Resuming. Death after it: the next holder finds
//! itself bound. Letting go: the status names no lease and says Suspended (an accident), or the object is deleted
//! (the script ended and nothing asked for another sleep).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{DriveError, Driver};
use crate::api::SuspendedEnvironment;
use crate::api::condition;
use crate::api::runner_pool::SuspensionMode;
use crate::api::suspended_environment::{BoundLease, Phase, SuspendedEnvironmentStatus, object_name};
use crate::clock;
use crate::deed::Point;
use crate::environment;
use crate::environment::check::{self, Refusal, Resumer, Verdict};
use crate::environment::plan::HostWord;
use crate::host::link::{Link, LinkError};
use crate::kube_ext::{is_conflict, is_not_found};
use crate::pool::slots::Slot;
use crate::spool::order::ResumeOrder;
use crate::spool::record::EnvironmentPhase;
use crate::telemetry::EnvironmentOutcome;

/// What a look at the environment a job names comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It is bound to the lease; this is its slot.
    Bound(Slot),
    /// Not yet.
    Wait(String),
    /// No.
    Refused(String),
}

/// Looks at the environment a job names and binds it if it may be.
pub async fn look(driver: &Driver) -> Result<Look, DriveError> {
    match try_bind(driver).await? {
        Ok(look) => Ok(look),
        Err(refusal) => {
            let held = &driver.held;
            held.shared.metrics.environment(&held.name, EnvironmentOutcome::ResumeRefused);
            let message = format!("the environment cannot be resumed: {refusal}");
            held.shared
                .events
                .warning(driver.lease.as_ref(), "ResumeRefused", refusal.reason(), message.clone())
                .await;
            Ok(Look::Refused(message))
        }
    }
}

async fn try_bind(driver: &Driver) -> Result<Result<Look, Refusal>, DriveError> {
    let held = &driver.held;
    if driver.settings.spec.suspension.mode == SuspensionMode::Disabled {
        return Ok(Err(Refusal::SwitchedOff));
    }
    let text = driver.lease.spec.resume_from.as_deref().unwrap_or_default();
    let key = match check::key(text, &driver.settings.identity) {
        Ok(key) => key,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let name = object_name(&held.name, key.environment.as_str());
    let found = held.shared.environments.read(&held.namespace, &name).await?;
    let leases = held.leases_of(key.environment.as_str());
    let open: Vec<&crate::api::JobLease> =
        leases.iter().filter(|lease| lease.phase().is_open()).map(AsRef::as_ref).collect();
    let job = Resumer {
        lease_uid: driver.lease.uid().unwrap_or_default(),
        project_id: driver.job.job_info.project_id,
        protected: driver.job.is_protected(),
    };
    let identity = &driver.settings.identity;
    let verdict = check::environment(found.as_deref(), &open, identity, &job, clock::now());
    let Some(found) = found else { return Ok(Err(Refusal::Unknown)) };
    match verdict {
        Verdict::Refuse(refusal) => return Ok(Err(refusal)),
        Verdict::Wait => return Ok(Ok(Look::Wait("the job that uses the environment to end".to_owned()))),
        Verdict::Bound => return Ok(bound_look(driver, &found)),
        Verdict::Bind => {}
    }
    let Some(slot) = slot_of(&found).filter(|_| found.is_hot() && !is_leaving_its_place(&found)) else {
        // It is brought back for this job, and is this job's from now on; then its host is asked.
        return bind(driver, &found, job.lease_uid).await.map(|bound| {
            let tier = found.tier().as_str();
            Ok(match bound {
                true => Look::Wait(format!("the environment to come back from tier {tier}")),
                false => Look::Wait("the environment".to_owned()),
            })
        });
    };
    let Some(link) = held.hosts.link(&slot.instance) else {
        return Ok(Ok(Look::Wait(format!(
            "instance {}, where the environment sleeps, to answer",
            slot.instance
        ))));
    };
    if let Some(volume) = environment::unmounted(held, &found) {
        return Ok(Ok(Look::Wait(format!("volume {volume} to be mounted"))));
    }
    match host_knows(&link, &found).await {
        Ok(Some(EnvironmentPhase::Suspended)) => {}
        // What an earlier job left running there when its host was lost is put to sleep first.
        Ok(Some(EnvironmentPhase::Active | EnvironmentPhase::Releasing)) => {
            let awake = "the environment, which its host has not put to sleep again yet".to_owned();
            return Ok(Ok(Look::Wait(awake)));
        }
        Ok(None) => return Ok(Err(Refusal::UnknownToHost)),
        // A host that does not answer as it should is away: the job waits for it, up to its own time-out.
        Err(error) => {
            let away = format!("instance {}, where the environment sleeps: {error}", slot.instance);
            return Ok(Ok(Look::Wait(away)));
        }
    }
    Ok(Ok(match bind(driver, &found, job.lease_uid).await? {
        true => Look::Bound(slot),
        false => Look::Wait("the environment".to_owned()),
    }))
}

/// (3): only if nobody changed it since it was checked; otherwise it is checked again.
async fn bind(driver: &Driver, found: &SuspendedEnvironment, lease_uid: String) -> Result<bool, DriveError> {
    let held = &driver.held;
    let mut next = found.clone();
    let status = next.status.get_or_insert_default();
    status.phase = Some(Phase::Resuming);
    status.bound_lease = Some(BoundLease { name: driver.lease.name_any(), uid: lease_uid });
    environment::describe_in_full(&driver.held, &mut next);
    let deed = held.deed(Point::EnvironmentBound).await;
    match held.shared.environments.replace_status(deed, &next).await {
        Ok(_) => Ok(true),
        Err(error) if is_conflict(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether it is on its way to a colder tier: what is done for that now may not be undone in its slot.
fn is_leaving_its_place(found: &SuspendedEnvironment) -> bool {
    found.status.as_ref().is_some_and(|status| status.moving.is_some())
}

/// It is this job's: has it a slot of an instance that answers?
fn bound_look(driver: &Driver, found: &SuspendedEnvironment) -> Result<Look, Refusal> {
    if found.phase() == Phase::Lost {
        return Err(Refusal::Lost);
    }
    let status = found.status.as_ref();
    let on = status.and_then(|status| {
        let tier = status.conditions.iter().find(|known| known.type_ == condition::TIER_REACHED)?;
        (tier.status != "True").then(|| tier.message.clone())
    });
    match slot_of(found).filter(|_| found.is_hot() && !is_leaving_its_place(found)) {
        // An instance of a cloud that was stopped or given another volume meanwhile is asked first.
        Some(slot) if driver.held.fleet.is_cloud() => {
            let place = Place {
                instance: &slot.instance,
                answers: driver.held.hosts.link(&slot.instance).is_some(),
                unmounted: environment::unmounted(&driver.held, found),
                word: driver.held.inventories.word(&slot.instance, &found.spec.environment_id),
                has_volume: status.is_some_and(|status| status.volume.is_some()),
                is_assigned: driver.lease.place().is_some(),
            };
            Ok(place.waits_for()?.map_or(Look::Bound(slot.clone()), Look::Wait))
        }
        Some(slot) => Ok(Look::Bound(slot)),
        None => Ok(Look::Wait(format!("the environment to come back: {}", on.unwrap_or_default()))),
    }
}

/// The slot in a cloud of an environment that is a job's.
#[derive(Debug)]
struct Place<'a> {
    instance: &'a str,
    /// Whether there is a link to it. What it has listed may be of before it was stopped.
    answers: bool,
    /// The volume that is to be mounted there, if it answers and has not.
    unmounted: Option<String>,
    word: HostWord,
    has_volume: bool,
    /// Whether the lease says so already.
    is_assigned: bool,
}

impl Place<'_> {
    /// What the job has to wait for before it is sent there.
    fn waits_for(self) -> Result<Option<String>, Refusal> {
        let instance = self.instance;
        if !self.answers && !self.is_assigned {
            return Ok(Some(format!("instance {instance} to answer")));
        }
        if let Some(volume) = self.unmounted.filter(|_| self.word != HostWord::Active) {
            return Ok(Some(format!("volume {volume} to be mounted")));
        }
        match self.word {
            HostWord::Asleep | HostWord::Restarted | HostWord::Active => Ok(None),
            HostWord::NotAsked | HostWord::Unknown if self.is_assigned => Ok(None),
            HostWord::NotAsked => Ok(Some(format!("instance {instance} to say what it has"))),
            // What lies on a volume of its own is given to its host again from what was saved.
            HostWord::Unknown if self.has_volume => {
                Ok(Some(format!("instance {instance} to be told of the environment again")))
            }
            HostWord::Unknown => Err(Refusal::UnknownToHost),
        }
    }
}

/// What the environment does by its host's own record, if that says the same as the object: an object made by hand
/// proves nothing.
async fn host_knows(
    link: &Link,
    environment: &SuspendedEnvironment,
) -> Result<Option<EnvironmentPhase>, LinkError> {
    let listed = link.list().await?;
    let same = listed.iter().map(|listed| &listed.environment).find(|record| {
        record.environment == environment.spec.environment_id
            && record.project_id == environment.spec.origin.project_id
            && record.workspace == environment.spec.workspace_path
            && environment.place().is_some_and(|(_, slot)| record.slot == slot)
    });
    Ok(same.map(|record| record.phase))
}

fn slot_of(environment: &SuspendedEnvironment) -> Option<Slot> {
    let (instance, index) = environment.place()?;
    Some(Slot { instance: instance.to_owned(), index })
}

/// The environment of the lease's own id, bound to it or not.
pub fn own(driver: &Driver) -> Option<std::sync::Arc<SuspendedEnvironment>> {
    let held = &driver.held;
    let name = object_name(&held.name, &driver.lease.spec.environment_id);
    held.shared.environments.cache.get(&held.namespace, &name)
}

/// The same, asked of the API server itself: before something is destroyed that only an object protects, since a
/// watch may lag behind what an earlier holder wrote.
pub async fn read_own(driver: &Driver) -> Result<Option<std::sync::Arc<SuspendedEnvironment>>, DriveError> {
    let held = &driver.held;
    let name = object_name(&held.name, &driver.lease.spec.environment_id);
    Ok(held.shared.environments.read(&held.namespace, &name).await?)
}

/// The environment bound to the lease, if there is one.
pub fn bound(driver: &Driver) -> Option<std::sync::Arc<SuspendedEnvironment>> {
    let uid = driver.lease.uid();
    own(driver).filter(|known| known.bound_lease().is_some_and(|bound| Some(&bound.uid) == uid.as_ref()))
}

/// What the supervisor is told of the environment to wake.
pub fn order(environment: &SuspendedEnvironment) -> ResumeOrder {
    let status = environment.status.clone().unwrap_or_default();
    ResumeOrder {
        key: status.environment_key.unwrap_or_default(),
        project_id: environment.spec.origin.project_id,
        workspace: environment.spec.workspace_path.clone(),
    }
}

/// Says that the job runs in it.
pub async fn in_use(driver: &Driver) -> Result<(), DriveError> {
    let Some(found) = bound(driver) else { return Ok(()) };
    if found.phase() == Phase::InUse {
        return Ok(());
    }
    write(driver, Point::EnvironmentInUse, &found, |status| {
        status.phase = Some(Phase::InUse);
        status.last_resumed_at = Some(Time(clock::now()));
    })
    .await?;
    driver.held.shared.metrics.environment(&driver.held.name, EnvironmentOutcome::Resumed);
    let note = format!("resumed by job {}", driver.job.id);
    driver.held.shared.events.normal(found.as_ref(), "Resumed", "Resume", note).await;
    Ok(())
}

/// Back to sleep after an end that was not the script's own: an accident never destroys an environment.
pub async fn back_to_sleep(driver: &Driver, why: &str) -> Result<(), DriveError> {
    let Some(found) = bound(driver) else { return Ok(()) };
    write(driver, Point::EnvironmentReturned, &found, |status| {
        status.phase = Some(Phase::Suspended);
        status.bound_lease = None;
        status.last_accident = Some(format!("job {}: {why}", driver.job.id));
    })
    .await
}

/// The same for one whose job may still be awake on its host: frozen first, then written.
pub async fn freeze_again(driver: &Driver, link: &Link, why: &str) -> Result<(), DriveError> {
    link.suspend(driver.held.deed(Point::EnvironmentFrozenAgain).await, &driver.path()).await?;
    back_to_sleep(driver, why).await
}

/// A lease that closes lets go of whatever it is still bound to.
pub async fn let_go(driver: &Driver) -> Result<(), DriveError> {
    if bound(driver).is_some() {
        back_to_sleep(driver, "it ended before its script did").await
    } else {
        Ok(())
    }
}

/// Changes an environment's status, with the conditions that follow from it, on top of whatever it is by now. One
/// that is gone meanwhile needs no status.
pub async fn write(
    driver: &Driver,
    point: Point,
    environment: &SuspendedEnvironment,
    change: impl Fn(&mut SuspendedEnvironmentStatus),
) -> Result<(), DriveError> {
    let store = &driver.held.shared.environments;
    let name = environment.name_any();
    loop {
        let Some(current) = store.cache.get(&driver.held.namespace, &name) else { return Ok(()) };
        let mut next = current.as_ref().clone();
        change(next.status.get_or_insert_default());
        environment::describe_in_full(&driver.held, &mut next);
        match store.replace_status(driver.held.deed(point).await, &next).await {
            Ok(_) => return Ok(()),
            Err(error) if is_not_found(&error) => return Ok(()),
            // The cache holds the newer version now.
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place<'static> {
        Place {
            instance: "i-1",
            answers: true,
            unmounted: None,
            word: HostWord::Asleep,
            has_volume: true,
            is_assigned: false,
        }
    }

    fn waits(place: Place<'_>) -> String {
        place.waits_for().unwrap().unwrap_or_else(|| "nothing".to_owned())
    }

    #[test]
    fn a_job_is_sent_where_its_environment_is_whole_and_nowhere_else() {
        assert_eq!(waits(place()), "nothing");
        assert_eq!(waits(Place { word: HostWord::Restarted, ..place() }), "nothing");
        // What an instance listed before it was stopped says nothing of how it comes up again.
        assert_eq!(waits(Place { answers: false, ..place() }), "instance i-1 to answer");
        let unmounted = || Place { unmounted: Some("vol-1".to_owned()), ..place() };
        assert_eq!(waits(unmounted()), "volume vol-1 to be mounted");
        assert_eq!(waits(Place { word: HostWord::Active, ..unmounted() }), "nothing");
        assert_eq!(waits(Place { word: HostWord::NotAsked, ..place() }), "instance i-1 to say what it has");
        let forgotten = || Place { word: HostWord::Unknown, ..place() };
        assert_eq!(waits(forgotten()), "instance i-1 to be told of the environment again");
        let lost = Place { has_volume: false, ..forgotten() };
        assert!(matches!(lost.waits_for(), Err(Refusal::UnknownToHost)));
    }

    #[test]
    fn a_slot_that_the_lease_names_already_is_gone_on_with() {
        for word in [HostWord::NotAsked, HostWord::Unknown, HostWord::Asleep] {
            for answers in [false, true] {
                let assigned = Place { is_assigned: true, has_volume: false, answers, word, ..place() };
                assert_eq!(waits(assigned), "nothing");
            }
        }
    }
}
