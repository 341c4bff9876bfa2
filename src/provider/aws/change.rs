//! Which calls carry a change out.

use std::future::Future;

use super::AwsCloud;
use crate::provider::{Change, Changed, CloudError, ErrorClass};

impl AwsCloud {
    pub(super) async fn carry_out(&self, change: &Change) -> Result<Changed, CloudError> {
        let attempt = change.attempt();
        let attempt = attempt.as_str();
        match change {
            Change::SetDesired { group, to } => done(self.set_desired(attempt, group, *to).await),
            Change::Launch { group, count, zone, token } => {
                self.launch(attempt, group, *count, zone.as_deref(), token).await
            }
            Change::ClaimGroup { group, tags } => done(self.claim_group(attempt, group, tags).await),
            Change::LeaveGroup { group, keys } => {
                done(unless_gone(self.leave_group(attempt, group, keys).await))
            }
            Change::Protect { group, instances, on } => {
                done(self.protect(attempt, group, instances, *on).await)
            }
            Change::TerminateMember { instance } => {
                done(unless_gone(self.terminate_member(attempt, instance).await))
            }
            Change::Detach { group, instance, shrinks } => {
                done(self.detach(attempt, group, instance, *shrinks).await)
            }
            Change::Heartbeat { group, hook, instance } => {
                done(self.heartbeat(attempt, group, hook, instance).await)
            }
            Change::Complete { group, hook, instance, abandon } => {
                done(unless_gone(self.complete(attempt, group, hook, instance, *abandon).await))
            }
            Change::Stop { instance, hibernate, force } => {
                done(self.stop(attempt, instance, *hibernate, *force).await)
            }
            Change::Start { instance } => done(self.start(attempt, instance).await),
            Change::Terminate { instance } => done(unless_gone(self.terminate(attempt, instance).await)),
            Change::Keep { instance } => done(self.set_kept(attempt, instance, true).await),
            Change::Tag { ids, tags } => done(self.tag(attempt, ids, tags).await),
            Change::Untag { ids, keys } => done(self.untag(attempt, ids, keys).await),
            Change::CreateVolume(order) => self.create_volume(attempt, order).await,
            Change::Attach { volume, instance, device } => {
                done(self.attach(attempt, volume, instance, device).await)
            }
            Change::DetachVolume { volume, instance, force } => {
                done(self.detach_volume(attempt, volume, instance, *force).await)
            }
            Change::DeleteVolume { volume } => done(unless_gone(self.delete_volume(attempt, volume).await)),
            Change::CreateSnapshot { volume, tags } => self.create_snapshot(attempt, volume, tags).await,
            Change::DeleteSnapshot { snapshot } => {
                done(unless_gone(self.delete_snapshot(attempt, snapshot).await))
            }
            Change::PushKey { instance, zone, username, key } => {
                done(self.push_key(attempt, instance, zone, username, key).await)
            }
        }
    }
}

fn done(outcome: Result<(), CloudError>) -> Result<Changed, CloudError> {
    outcome.map(|()| Changed::Done)
}

/// What shall not be there and is not.
pub(super) fn unless_gone(outcome: Result<(), CloudError>) -> Result<(), CloudError> {
    match outcome {
        Err(error) if error.class == ErrorClass::Gone => Ok(()),
        outcome => outcome,
    }
}

/// Carries something out for many at once. AWS refuses all of them for the sake of one, so a refused batch is halved until
/// only what is to blame is left undone; answers the first error.
pub(super) async fn in_batches<'a, F>(
    items: &'a [String],
    most: usize,
    mut call: impl FnMut(&'a [String]) -> F,
) -> Result<(), CloudError>
where
    F: Future<Output = Result<(), CloudError>>,
{
    let mut batches: Vec<&[String]> = items.chunks(most.max(1)).rev().collect();
    let mut first = Ok(());
    while let Some(batch) = batches.pop() {
        let Err(error) = call(batch).await else { continue };
        match error.class {
            ErrorClass::Gone | ErrorClass::Refused if batch.len() > 1 => {
                let (left, right) = batch.split_at(batch.len() / 2);
                batches.extend([right, left]);
            }
            ErrorClass::Gone | ErrorClass::Refused => first = first.and(Err(error)),
            // It would befall the others as well.
            ErrorClass::Retry
            | ErrorClass::NoCapacity
            | ErrorClass::Denied
            | ErrorClass::Quota
            | ErrorClass::Invalid => return first.and(Err(error)),
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;

    fn error(class: ErrorClass) -> CloudError {
        CloudError { class, attempt: String::new(), code: String::new(), message: String::new() }
    }

    proptest! {
        #[test]
        fn all_but_what_is_to_blame_is_done_once(
            bad in proptest::collection::vec(prop::bool::weighted(0.1), 0..120),
            most in 1usize..60,
        ) {
            let items: Vec<String> = (0..bad.len()).map(|index| index.to_string()).collect();
            let done = RefCell::new(Vec::new());
            let outcome = block_on(in_batches(&items, most, async |batch: &[String]| {
                assert!(batch.len() <= most && !batch.is_empty());
                let is_bad = |item: &String| bad[item.parse::<usize>().unwrap()];
                if batch.iter().any(is_bad) {
                    return Err(error(ErrorClass::Refused));
                }
                done.borrow_mut().extend(batch.iter().map(|item| item.parse::<usize>().unwrap()));
                Ok(())
            }));
            let good: Vec<usize> = (0..bad.len()).filter(|index| !bad[*index]).collect();
            prop_assert_eq!(done.into_inner(), good);
            prop_assert_eq!(outcome.is_err(), bad.contains(&true));
        }
    }

    #[test]
    fn what_would_befall_all_ends_it() {
        let items: Vec<String> = (0..100).map(|index| index.to_string()).collect();
        let calls = RefCell::new(0);
        let outcome = block_on(in_batches(&items, 50, async |_: &[String]| {
            *calls.borrow_mut() += 1;
            Err(error(ErrorClass::Denied))
        }));
        assert_eq!((outcome, calls.into_inner()), (Err(error(ErrorClass::Denied)), 1));
    }
}
