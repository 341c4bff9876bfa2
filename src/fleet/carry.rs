//! Carrying a plan out: each sequence is a task of its own, its steps in order, and the rest of it waits when one fails.

use std::sync::Arc;

use super::look;
use super::plan::{self, Sequence, Step};
use super::view::Stand;
use crate::clock;
use crate::deed::{Deed, Point};
use crate::host::link::{Link, LinkError, VolumeOrder};
use crate::pool::Held;
use crate::provider::{Change, Changed, Cloud, CloudError, ErrorClass};
use crate::spool::verb::Unmounted;
use crate::telemetry::InstanceOperation;

/// Why a step was not done.
enum StepError {
    Cloud(CloudError),
    Host(String),
}

/// Starts what is planned and not under way. The group's size is set as a number, which undoes what lowers it meanwhile, or
/// makes the group launch another in the place of what left: it is set first, and what lowers it comes with the next plan,
/// which is made when the number is there.
pub fn start(held: &Arc<Held>, cloud: &Arc<dyn Cloud>, sequences: &[Sequence]) {
    let now = clock::now();
    let (numbers, others): (Vec<_>, Vec<_>) = sequences.iter().partition(|known| known.sets_size());
    for sequence in numbers.into_iter().chain(others) {
        {
            let mut state = held.fleet.state();
            let rests = state.rests(&sequence.subject, now);
            let waits = state.is_being_resized && sequence.lowers_size();
            if rests || waits || !state.running.insert(sequence.subject.clone()) {
                continue;
            }
            state.is_being_resized |= sequence.sets_size();
        }
        let (held_by_task, cloud, sequence) = (Arc::clone(held), Arc::clone(cloud), sequence.clone());
        held.spawn(async move {
            // The mark goes also when the task ends at an await.
            let (held, subject, sets_size) =
                (Arc::clone(&held_by_task), sequence.subject.clone(), sequence.sets_size());
            let _mark = Mark { held, subject, sets_size };
            let _place = held_by_task.shared.bounds.cloud_changes.enter().await;
            run(&held_by_task, cloud.as_ref(), &sequence).await;
        });
    }
}

struct Mark {
    held: Arc<Held>,
    subject: String,
    sets_size: bool,
}

impl Drop for Mark {
    fn drop(&mut self) {
        {
            let mut state = self.held.fleet.state();
            state.running.remove(&self.subject);
            state.is_being_resized &= !self.sets_size;
        }
        self.held.fleet.wake();
        // Environments on an instance may wait for this.
        self.held.book(|book| book.look_at_instance(plan::instance_of(&self.subject)));
        self.held.wake();
    }
}

async fn run(held: &Held, cloud: &dyn Cloud, sequence: &Sequence) {
    for step in &sequence.steps {
        let done = match step {
            Step::Cloud(change) => {
                let deed = held.deed(change.point()).await;
                if !is_still_due(change, |instance| look::stand_now(held, instance)) {
                    tracing::info!(pool = held.name, ?change, "the instance is needed again");
                    return;
                }
                let made = make_by(held, cloud, change, deed).await;
                made.map(|made| held.fleet.made(&sequence.subject, &made, clock::now()))
                    .map_err(StepError::Cloud)
            }
            Step::Mount { instance, slot, volume, device } => {
                mount(held, instance, *slot, volume, device).await
            }
            Step::Unmount { instance, slot } => unmount(held, instance, *slot).await,
            Step::Quiet { instance } => quiet(held, instance).await,
        };
        match done {
            Ok(()) => {}
            Err(StepError::Cloud(error)) => {
                return held.fleet.failed(&sequence.subject, error, clock::now());
            }
            Err(StepError::Host(why)) => {
                tracing::warn!(
                    pool = held.name,
                    subject = sequence.subject,
                    why,
                    "a step on an instance failed"
                );
                let error = CloudError {
                    class: ErrorClass::Retry,
                    attempt: format!("prepare {}", sequence.subject),
                    code: "HostFailed".to_owned(),
                    message: why,
                };
                return held.fleet.failed(&sequence.subject, error, clock::now());
            }
        }
    }
    held.fleet.touch(&sequence.subject, clock::now());
}

/// Whether what ends or stops an instance is as right as when it was planned. It has been closed to jobs since, and what was
/// placed there until then is seen now. An environment that is called back from now on stays claimed until the sequence is
/// over and a look shows what came of it, so that its job begins after the stop or instead of it. What remains is a cloud
/// whose look, begun after the stop was answered, still shows the instance running.
fn is_still_due(change: &Change, stand: impl Fn(&str) -> Stand) -> bool {
    match change {
        Change::TerminateMember { instance } | Change::Terminate { instance } => stand(instance).is_free(),
        Change::Stop { instance, .. } => stand(instance).may_stop(),
        _ => true,
    }
}

/// Makes one change and remembers it.
pub async fn make(held: &Held, cloud: &dyn Cloud, change: &Change) -> Result<Changed, CloudError> {
    let deed = held.deed(change.point()).await;
    make_by(held, cloud, change, deed).await
}

async fn make_by(held: &Held, cloud: &dyn Cloud, change: &Change, deed: Deed) -> Result<Changed, CloudError> {
    let answer = deed.make(cloud.change(change), |answer| answer).await;
    note(held, change, answer.as_ref().err());
    match &answer {
        Ok(_) => {
            if let Some(operation) = counted_as(change) {
                held.shared.metrics.instance(&held.namespace, &held.name, operation);
            }
            tell(held, change).await;
        }
        Err(error) if is_a_race(change, error) => {
            tracing::info!(pool = held.name, %error, "the cloud is not in a state for it");
        }
        Err(error) => {
            tracing::warn!(pool = held.name, class = error.class.as_str(), %error, "the cloud did not do it");
            if let Some(pool) = held.pool().filter(|_| error.class != ErrorClass::Retry) {
                let events = &held.shared.events;
                let (action, note) = (error.class.as_str(), error.with_way_out());
                events.warning(pool.as_ref(), "CloudRefused", action, note).await;
            }
        }
    }
    answer
}

/// As what a change of instances is counted.
fn counted_as(change: &Change) -> Option<InstanceOperation> {
    match change {
        Change::SetDesired { .. } | Change::Launch { .. } => Some(InstanceOperation::Create),
        Change::TerminateMember { .. } | Change::Terminate { .. } => Some(InstanceOperation::Delete),
        Change::Stop { .. } => Some(InstanceOperation::Suspend),
        Change::Start { .. } => Some(InstanceOperation::Resume),
        Change::ClaimGroup { .. }
        | Change::LeaveGroup { .. }
        | Change::Protect { .. }
        | Change::Detach { .. }
        | Change::Heartbeat { .. }
        | Change::Complete { .. }
        | Change::Keep { .. }
        | Change::Tag { .. }
        | Change::Untag { .. }
        | Change::CreateVolume(_)
        | Change::Attach { .. }
        | Change::DetachVolume { .. }
        | Change::DeleteVolume { .. }
        | Change::CreateSnapshot { .. }
        | Change::DeleteSnapshot { .. }
        | Change::PushKey { .. } => None,
    }
}

/// Whether the world has only moved on since the change was planned, which the next look sees: nobody can act on it.
fn is_a_race(change: &Change, error: &CloudError) -> bool {
    match error.class {
        ErrorClass::Refused => true,
        // A member may leave its group between the look and its protection.
        ErrorClass::Gone => matches!(change, Change::Protect { .. }),
        ErrorClass::Retry
        | ErrorClass::NoCapacity
        | ErrorClass::Denied
        | ErrorClass::Quota
        | ErrorClass::Invalid => false,
    }
}

/// What is remembered of a change that later plans are decided by.
fn note(held: &Held, change: &Change, error: Option<&CloudError>) {
    let now = clock::now();
    let mut state = held.fleet.state();
    let memory = &mut state.memory;
    if let Change::SetDesired { to, .. } = change {
        memory.desired = error.is_none().then_some(*to);
    }
    if let Change::Launch { count, zone, .. } = change {
        memory.desired = memory.desired.filter(|_| error.is_none()).map(|desired| desired + count);
        let is_dry = error.is_some_and(|error| error.class == ErrorClass::NoCapacity);
        memory.dry_zones.extend(zone.iter().filter(|_| is_dry).map(|zone| (zone.clone(), now)));
    }
    if let Change::TerminateMember { .. } | Change::Detach { shrinks: true, .. } = change {
        memory.desired = memory.desired.filter(|_| error.is_none()).map(|desired| desired.saturating_sub(1));
    }
    match change {
        Change::Heartbeat { hook, instance, .. } if error.is_none() => {
            state.memory.heartbeats.insert((instance.clone(), hook.clone()), now);
        }
        Change::TerminateMember { instance } | Change::Terminate { instance } if error.is_none() => {
            state.memory.told_to_go.insert(instance.clone(), now);
        }
        Change::Start { instance } if error.is_none() => {
            state.memory.started_at.insert(instance.clone(), now);
        }
        // It is stopped without its memory then.
        Change::Stop { instance, hibernate: true, .. }
            if error.is_some_and(|error| error.code == "UnsupportedHibernationConfiguration") =>
        {
            state.memory.cannot_hibernate.insert(instance.clone());
        }
        // A token stands for one wish: whatever came of this one, the next is another. One whose answer was lost shows
        // itself by its tags.
        Change::CreateVolume(_) | Change::Launch { .. } => state.memory.orders += 1,
        Change::SetDesired { .. }
        | Change::Protect { .. }
        | Change::TerminateMember { .. }
        | Change::Detach { .. }
        | Change::Heartbeat { .. }
        | Change::Complete { .. }
        | Change::Stop { .. }
        | Change::Start { .. }
        | Change::Terminate { .. }
        | Change::Keep { .. }
        | Change::Tag { .. }
        | Change::Untag { .. }
        | Change::Attach { .. }
        | Change::DetachVolume { .. }
        | Change::DeleteVolume { .. }
        | Change::CreateSnapshot { .. }
        | Change::DeleteSnapshot { .. }
        | Change::ClaimGroup { .. }
        | Change::LeaveGroup { .. }
        | Change::PushKey { .. } => {}
    }
}

/// Events for what people want to see happen.
async fn tell(held: &Held, change: &Change) {
    let (reason, note) = match change {
        Change::SetDesired { group, to } => ("ScaledOut", format!("group {group} is to have {to} instances")),
        Change::Launch { count, zone, .. } => {
            let zone = zone.as_deref().unwrap_or("any zone");
            ("ScaledOut", format!("{count} instances were asked for in {zone}"))
        }
        Change::TerminateMember { instance } => ("ScaledIn", format!("{instance} goes: nothing needs it")),
        Change::Detach { instance, .. } => {
            ("InstanceDetached", format!("{instance} left its group and is kept"))
        }
        Change::Stop { instance, hibernate, .. } => {
            let how = if *hibernate { "hibernated" } else { "stopped" };
            ("InstanceStopped", format!("{instance} is being {how} with what sleeps on it"))
        }
        Change::Start { instance } => ("InstanceStarted", format!("{instance} is being started")),
        Change::Terminate { instance } => {
            ("InstanceTerminated", format!("{instance} goes: nothing needs it"))
        }
        Change::Complete { instance, abandon, .. } => {
            let how = if *abandon { "is kept by its group's policy" } else { "may go: nothing needs it" };
            ("HookCompleted", format!("{instance} {how}"))
        }
        Change::ClaimGroup { group, .. } => ("GroupClaimed", format!("group {group} belongs to this pool")),
        Change::Protect { .. }
        | Change::Heartbeat { .. }
        | Change::Keep { .. }
        | Change::Tag { .. }
        | Change::Untag { .. }
        | Change::CreateVolume(_)
        | Change::Attach { .. }
        | Change::DetachVolume { .. }
        | Change::DeleteVolume { .. }
        | Change::CreateSnapshot { .. }
        | Change::DeleteSnapshot { .. }
        | Change::LeaveGroup { .. }
        | Change::PushKey { .. } => {
            tracing::debug!(pool = held.name, change = change.attempt(), "changed in the cloud");
            return;
        }
    };
    tracing::info!(pool = held.name, reason, note, "changed in the cloud");
    if let Some(pool) = held.pool() {
        held.shared.events.normal(pool.as_ref(), reason, "Scale", note).await;
    }
}

async fn mount(held: &Held, instance: &str, slot: u32, volume: &str, device: &str) -> Result<(), StepError> {
    let away = || StepError::Host(format!("instance {instance} does not answer"));
    let link = held.hosts.link(instance).ok_or_else(away)?;
    let settings = held.settings().ok_or_else(away)?;
    let order = VolumeOrder {
        slot,
        volume: volume.to_owned(),
        builds_dir: settings.spec.builds_dir().to_owned(),
        device: Some(device.to_owned()),
        isolation: settings.isolation(held.hosts.slots(instance)),
    };
    let deed = held.deed(Point::VolumeMounted).await;
    link.volume_mount(deed, &order).await.map_err(|error| StepError::Host(error.to_string()))?;
    Ok(())
}

async fn unmount(held: &Held, instance: &str, slot: u32) -> Result<(), StepError> {
    let away = || StepError::Host(format!("instance {instance} does not answer"));
    let link = held.hosts.link(instance).ok_or_else(away)?;
    let settings = held.settings().ok_or_else(away)?;
    let unmounted = unmount_at(held, &link, slot, settings.spec.builds_dir()).await;
    unmounted.map(|_| ()).map_err(|error| StepError::Host(error.to_string()))
}

/// Unmounts what is mounted at a slot.
pub async fn unmount_at(
    held: &Held,
    link: &Link,
    slot: u32,
    builds_dir: &str,
) -> Result<Unmounted, LinkError> {
    let deed = held.deed(Point::VolumeUnmounted).await;
    link.volume_unmount(deed, slot, builds_dir).await
}

/// A host that does not answer has nothing that could be written out: the stop itself ends its system in order.
async fn quiet(held: &Held, instance: &str) -> Result<(), StepError> {
    let Some(link) = held.hosts.link(instance) else { return Ok(()) };
    let deed = held.deed(Point::HostQuieted).await;
    link.quiesce(deed).await.map_err(|error| StepError::Host(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::view::{Sleeping, Use};

    fn stand(has_job: bool, environment: Option<Sleeping>) -> Stand {
        let kept = Use { has_job, environments: environment.into_iter().collect(), is_in_doubt: false };
        Stand { slots: [(0, kept)].into(), ..Stand::default() }
    }

    #[test]
    fn an_instance_on_which_something_is_by_now_does_not_end() {
        let instance = "i-1".to_owned();
        for end in [
            Change::TerminateMember { instance: instance.clone() },
            Change::Terminate { instance: instance.clone() },
        ] {
            let is_due = |stand: Stand| is_still_due(&end, |_| stand.clone());
            assert!(is_due(Stand::default()));
            assert!(!is_due(stand(true, None)));
            assert!(!is_due(stand(false, Some(Sleeping::default()))));
        }
        assert!(is_still_due(&Change::Keep { instance }, |_| stand(true, None)));
    }

    #[test]
    fn an_instance_is_stopped_only_under_what_is_still_to_stop() {
        let stop = Change::Stop { instance: "i-1".to_owned(), hibernate: false, force: false };
        let claimed = Sleeping { is_to_stop: true, ..Sleeping::default() };
        assert!(is_still_due(&stop, |_| stand(false, Some(claimed.clone()))));
        assert!(!is_still_due(&stop, |_| stand(true, Some(claimed.clone()))));
        let called_back = Sleeping { is_wanted: true, ..claimed.clone() };
        assert!(!is_still_due(&stop, |_| stand(false, Some(called_back.clone()))));
        assert!(!is_still_due(&stop, |_| stand(false, Some(Sleeping::default()))));
    }
}
