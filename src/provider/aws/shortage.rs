//! Groups that have fewer members than they wish: when they are asked why, and what their activities tell. Pure.
//!
//! What a group does after its desired capacity was set fails nowhere but in its own activities. They are read only of a
//! group that is short for a while, and seldom: each group that launches is short for some seconds.

use std::time::{Duration, Instant};

use aws_sdk_autoscaling::types::{Activity, ScalingActivityStatusCode as Status};

use super::error;
use crate::provider::{CloudError, ErrorClass};

/// How long a group is short before it is asked: it launches within seconds where nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is asked then. It tries again with growing pauses itself.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// A group that is short of members.
#[derive(Debug, Clone)]
pub struct Shortage {
    since: Instant,
    asked: Option<Instant>,
    /// Why its last launch failed, if it did.
    pub failure: Option<CloudError>,
}

impl Shortage {
    /// It was not short before.
    pub fn begins(now: Instant) -> Self {
        Self { since: now, asked: None, failure: None }
    }

    /// Whether the group is to be asked now.
    pub fn is_due(&self, now: Instant) -> bool {
        let is_long = |since: Instant, span| now.saturating_duration_since(since) >= span;
        is_long(self.since, PATIENCE) && self.asked.is_none_or(|at| is_long(at, ASK_EVERY))
    }

    /// It is asked now.
    pub fn asks(&mut self, now: Instant) {
        self.asked = Some(now);
    }
}

/// Why a group's last launch failed, by its activities, the newest first; `None` when it did not.
pub fn failure(group: &str, activities: &[Activity]) -> Option<CloudError> {
    let is_launch = |known: &&Activity| known.description().unwrap_or_default().starts_with("Launching");
    let is_over = |known: &&Activity| {
        matches!(known.status_code(), Some(Status::Failed | Status::Successful | Status::Cancelled))
    };
    let last = activities.iter().filter(is_launch).find(is_over)?;
    if last.status_code() != Some(&Status::Failed) {
        return None;
    }
    let message = last.status_message().unwrap_or("the group's activity gives no reason");
    Some(CloudError {
        class: classify(message),
        attempt: format!("launch an instance in group {group}"),
        code: "LaunchFailed".to_owned(),
        message: error::shorten(message),
    })
}

/// An activity has no code, only words; they quote the code of EC2, or not.
fn classify(message: &str) -> ErrorClass {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["limitexceeded", "limit exceeded", "vcpu limit", "quota", "count exceeded"]) {
        return ErrorClass::Quota;
    }
    let is_about_capacity =
        message.contains("capacity") && says(&["sufficient", "unfulfillable", "not enough", "no spot"]);
    if is_about_capacity || says(&["not supported in your requested availability zone"]) {
        return ErrorClass::NoCapacity;
    }
    ErrorClass::Invalid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(description: &str, status: Status, message: &str) -> Activity {
        let activity = Activity::builder().activity_id("a").auto_scaling_group_name("g").cause("c");
        let activity = activity.description(description).status_code(status).status_message(message);
        activity.start_time(aws_sdk_autoscaling::primitives::DateTime::from_secs(0)).build()
    }

    const LAUNCH: &str = "Launching a new EC2 instance.  Status Reason: it failed";

    #[test]
    fn a_group_is_asked_when_it_is_short_for_a_while_and_then_seldom() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut shortage = Shortage::begins(begun);
        assert!(!shortage.is_due(after(9)) && shortage.is_due(after(10)));
        shortage.asks(after(12));
        assert!(!shortage.is_due(after(41)) && shortage.is_due(after(42)));
    }

    #[test]
    fn the_last_launch_that_is_over_tells() {
        let failed = activity(LAUNCH, Status::Failed, "no");
        let under_way = activity("Launching a new EC2 instance: i-1", Status::InProgress, "");
        let passed = activity("Launching a new EC2 instance: i-2", Status::Successful, "");
        let ended = activity("Terminating EC2 instance: i-3", Status::Successful, "");
        let found = failure("g", &[under_way, ended, failed.clone(), passed.clone()]);
        assert_eq!(
            found.map(|error| error.to_string()).unwrap(),
            "failed to launch an instance in group g: LaunchFailed: no"
        );
        assert_eq!(failure("g", &[passed, failed]), None);
        assert_eq!(failure("g", &[]), None);
    }

    #[test]
    fn its_words_tell_who_has_to_do_something() {
        let cases = [
            (
                "We currently do not have sufficient m5.large capacity in the Availability Zone you requested (a). \
                 Launching EC2 instance failed.",
                ErrorClass::NoCapacity,
            ),
            (
                "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity.",
                ErrorClass::NoCapacity,
            ),
            (
                "Your requested instance type (p5.48xlarge) is not supported in your requested Availability Zone (a).",
                ErrorClass::NoCapacity,
            ),
            (
                "You have requested more vCPU capacity than your current vCPU limit of 32 allows for the instance \
                 bucket. Launching EC2 instance failed.",
                ErrorClass::Quota,
            ),
            ("Max spot instance count exceeded. Launching EC2 instance failed.", ErrorClass::Quota),
            ("The key pair 'ci' does not exist. Launching EC2 instance failed.", ErrorClass::Invalid),
            ("The image id '[ami-1]' does not exist. Launching EC2 instance failed.", ErrorClass::Invalid),
        ];
        for (message, class) in cases {
            assert_eq!(
                failure("g", &[activity(LAUNCH, Status::Failed, message)]).unwrap().class,
                class,
                "{message}"
            );
        }
    }
}
