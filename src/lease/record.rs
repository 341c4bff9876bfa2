//! The lease's status: who writes it, when, and what it says.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::condition::{
    self, ACCEPTED, FINISHED, Finding, INSTANCE_READY, READY, REPORTED, SLOT_CLEAN, STARTED, Status,
};
use crate::api::job_lease::{JobLeaseStatus, LeasePhase};
use crate::deed::Point;
use crate::gitlab::reason::FailureReason;
use crate::spool::record::JobRecord;

/// A step in a lease's life that its status tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It has no slot yet and waits for something other than a free one.
    Waiting {
        /// What it waits for.
        on: String,
    },
    /// It holds a slot. Written before anything is started there.
    Assigned {
        /// Instance name.
        instance: String,
        /// Slot index.
        slot: u32,
    },
    /// Its host has refused to start it: the slot is kept by what no object knows. It waits for another.
    Displaced,
    /// The supervisor runs the job. From now on it is never started again, only attached to.
    Running,
    /// The end of the log is written by the operator, from this offset.
    Tail {
        /// Bytes GitLab had.
        offset: u64,
        /// Why, for GitLab.
        reason: FailureReason,
        /// Why, for people.
        message: String,
    },
    /// The job has ended and GitLab does not take its end yet.
    Finalizing {
        /// How it ended.
        ending: Ending,
        /// Why GitLab does not take it, when it does not answer.
        silence: Option<Silence>,
    },
    /// GitLab has the result, or wants none.
    Reported(Ending),
    /// GitLab refuses the result, or there is none to tell.
    Failed(Ending),
    /// Of a lease that is over: its slot, which was in doubt, has been seen clean.
    SlotSeenClean,
}

/// GitLab takes nothing of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Since when.
    pub since: Timestamp,
    /// What came instead of an answer.
    pub cause: String,
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GitLab has not taken the job's end since {:.0}: {}", self.since, self.cause)
    }
}

/// How a lease ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Exit code of the script.
    pub exit_code: Option<i32>,
    /// Why it failed.
    pub failure: Option<FailureReason>,
    /// One sentence.
    pub message: String,
    /// When the script began, by the host's clock.
    pub started_at: Option<Timestamp>,
    /// When the last stage ended, by the host's clock.
    pub finished_at: Option<Timestamp>,
    /// Why it is not known that nothing of the job is left on its slot, if it is not.
    pub slot_in_doubt: Option<String>,
}

impl Step {
    /// The name of the write that records it.
    pub fn point(&self) -> Point {
        match self {
            Self::Waiting { .. } => Point::LeaseWaiting,
            Self::Assigned { .. } => Point::LeaseAssigned,
            Self::Displaced => Point::LeaseDisplaced,
            Self::Running => Point::LeaseRunning,
            Self::Tail { .. } => Point::TailRecorded,
            Self::Finalizing { .. } => Point::ResultRecorded,
            Self::Reported(_) => Point::LeaseReported,
            Self::Failed(_) => Point::LeaseFailed,
            Self::SlotSeenClean => Point::SlotSeenClean,
        }
    }
}

impl Ending {
    /// The ending that a record on the host tells.
    pub fn of(record: &JobRecord) -> Self {
        let result = record.result.as_ref();
        Self {
            exit_code: result.map(|result| result.exit_code),
            failure: result.and_then(|result| FailureReason::of(result.outcome)),
            message: result.map(|result| result.message.clone()).unwrap_or_default(),
            started_at: Some(record.started_at),
            finished_at: record.finished_at,
            slot_in_doubt: None,
        }
    }

    /// An ending without a run.
    pub fn without_run(failure: Option<FailureReason>, message: impl Into<String>) -> Self {
        Self { failure, message: message.into(), ..Self::default() }
    }
}

/// The status after a step.
pub fn after(
    old: Option<&JobLeaseStatus>,
    step: &Step,
    holder: &str,
    epoch: u64,
    generation: Option<i64>,
    now: Timestamp,
) -> JobLeaseStatus {
    let mut status = old.cloned().unwrap_or_default();
    status.holder = Some(holder.to_owned());
    status.epoch = Some(epoch);
    match step {
        Step::Waiting { .. } => status.phase = Some(LeasePhase::Accepted),
        Step::Assigned { instance, slot } => {
            status.phase = Some(LeasePhase::Assigned);
            status.instance = Some(instance.clone());
            status.slot = Some(*slot);
        }
        Step::Displaced => {
            status.phase = Some(LeasePhase::Accepted);
            status.instance = None;
            status.slot = None;
        }
        Step::Running => status.phase = Some(LeasePhase::Running),
        Step::Tail { offset, reason, message } => {
            status.phase = Some(LeasePhase::Finalizing);
            status.tail_offset = Some(*offset);
            status.failure_reason = Some(reason.as_str().to_owned());
            status.message = Some(message.clone());
        }
        Step::Finalizing { ending, .. } => {
            status.phase = Some(LeasePhase::Finalizing);
            fill(&mut status, ending);
        }
        Step::Reported(ending) => {
            status.phase = Some(LeasePhase::Reported);
            fill(&mut status, ending);
        }
        Step::Failed(ending) => {
            status.phase = Some(LeasePhase::Failed);
            fill(&mut status, ending);
        }
        Step::SlotSeenClean => {}
    }
    let mut findings = findings(&status);
    findings.extend(slot(step));
    let mut say = |type_, reason, message: String| {
        let said = findings.iter_mut().find(|finding| finding.type_ == type_);
        said.into_iter().for_each(|finding| (finding.reason, finding.message) = (reason, message.clone()));
    };
    match step {
        Step::Waiting { on } => say(INSTANCE_READY, "WaitingForEnvironment", format!("waits for {on}")),
        Step::Finalizing { silence: Some(silence), .. } => {
            say(REPORTED, "GitLabNotAnswering", silence.to_string());
        }
        Step::Assigned { .. }
        | Step::Displaced
        | Step::Running
        | Step::Tail { .. }
        | Step::Finalizing { silence: None, .. }
        | Step::Reported(_)
        | Step::Failed(_)
        | Step::SlotSeenClean => {}
    }
    condition::merge(&mut status.conditions, &findings, generation, now);
    status
}

/// What a step says of the slot: nothing, as long as there is no doubt.
fn slot(step: &Step) -> Option<Finding> {
    match step {
        Step::Reported(Ending { slot_in_doubt: Some(why), .. })
        | Step::Failed(Ending { slot_in_doubt: Some(why), .. }) => {
            Some(Finding::new(SLOT_CLEAN, false, "NotSeenClean", why.clone()))
        }
        Step::SlotSeenClean => {
            Some(Finding::new(SLOT_CLEAN, true, "SeenClean", "nothing of the job is left on its slot"))
        }
        Step::Waiting { .. }
        | Step::Assigned { .. }
        | Step::Displaced
        | Step::Running
        | Step::Tail { .. }
        | Step::Finalizing { .. }
        | Step::Reported(_)
        | Step::Failed(_) => None,
    }
}

fn fill(status: &mut JobLeaseStatus, ending: &Ending) {
    status.exit_code = ending.exit_code;
    status.failure_reason = ending.failure.map(|reason| reason.as_str().to_owned());
    status.message = (!ending.message.is_empty()).then(|| ending.message.clone());
    status.started_at = ending.started_at.map(Time).or(status.started_at.clone());
    status.finished_at = ending.finished_at.map(Time).or(status.finished_at.clone());
}

fn findings(status: &JobLeaseStatus) -> Vec<Finding> {
    let phase = status.phase.unwrap_or(LeasePhase::Accepted);
    let message = status.message.clone().unwrap_or_default();
    let (placed, started, finished, reported) = match phase {
        LeasePhase::Accepted => (false, false, false, false),
        LeasePhase::Assigned => (true, false, false, false),
        LeasePhase::Running => (true, true, false, false),
        LeasePhase::Finalizing => (status.instance.is_some(), true, true, false),
        LeasePhase::Reported => (status.instance.is_some(), true, true, true),
        LeasePhase::Failed => (status.instance.is_some(), false, true, false),
    };
    let ready = match phase {
        LeasePhase::Accepted | LeasePhase::Assigned => {
            Finding::new(READY, Status::Unknown, "Waiting", "the job has not started yet")
        }
        LeasePhase::Running => Finding::new(READY, true, "Running", "the supervisor runs the job"),
        LeasePhase::Finalizing => Finding::new(READY, true, "Finalizing", "GitLab is being told the result"),
        LeasePhase::Reported => Finding::new(READY, true, "Reported", "GitLab has the result"),
        LeasePhase::Failed => Finding::new(READY, false, "Failed", message),
    };
    let said = |type_, holds: bool, yes: &'static str, no: &'static str| {
        Finding::new(type_, holds, if holds { yes } else { no }, "")
    };
    vec![
        ready,
        said(ACCEPTED, true, "Durable", "NotDurable"),
        said(INSTANCE_READY, placed, "SlotAssigned", "NoSlot"),
        said(STARTED, started, "Started", "NotStarted"),
        said(FINISHED, finished, "Finished", "NotFinished"),
        said(REPORTED, reported, "Reported", "NotReported"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::JobLease;

    #[test]
    fn a_slot_is_in_doubt_from_the_end_until_it_is_seen_clean() {
        let assigned = after(None, &Step::Assigned { instance: "a".into(), slot: 1 }, "me", 3, None, now());
        let ended = |status: &JobLeaseStatus, slot_in_doubt| {
            let ending = Ending { slot_in_doubt, ..Ending::default() };
            after(Some(status), &Step::Reported(ending), "me", 3, None, now())
        };
        let lease = |status: JobLeaseStatus| -> JobLease {
            let spec = json!({
                "pool": "p", "poolUid": "u", "jobId": 1, "jobName": "j", "projectId": 1, "projectPath": "g/p",
                "ref": "main", "environmentId": "abcdefghijklmnopqrst", "timeoutSeconds": 1,
                "acceptedAt": "2026-01-01T00:00:00Z", "payloadParts": 1,
            });
            let object = json!({
                "apiVersion": "dormouse.dev/v1alpha1", "kind": "JobLease", "metadata": {"name": "p-1"},
                "spec": spec, "status": status,
            });
            serde_json::from_value(object).unwrap()
        };
        assert_eq!(lease(ended(&assigned, None)).quarantined_place(), None);
        let doubted = ended(&assigned, Some("away".into()));
        assert_eq!(lease(doubted.clone()).quarantined_place(), Some(("a", 1)));
        let clean = after(Some(&doubted), &Step::SlotSeenClean, "you", 4, None, now());
        assert_eq!(lease(clean).quarantined_place(), None);
    }

    fn now() -> Timestamp {
        Timestamp::from_second(5).unwrap()
    }

    #[test]
    fn a_step_keeps_what_earlier_ones_said() {
        let assigned = Step::Assigned { instance: "a".into(), slot: 1 };
        let first = after(None, &assigned, "me", 3, None, now());
        let second = after(Some(&first), &Step::Running, "you", 4, None, now());
        assert_eq!((second.instance.as_deref(), second.slot), (Some("a"), Some(1)));
        assert_eq!((second.holder.as_deref(), second.epoch), (Some("you"), Some(4)));
        assert!(condition::is_true(&second.conditions, STARTED));
        assert!(!condition::is_true(&second.conditions, REPORTED));
    }

    #[test]
    fn what_a_resume_waits_for_is_said_until_it_has_its_slot() {
        let placed = |status: &JobLeaseStatus| {
            let found = status.conditions.iter().find(|condition| condition.type_ == INSTANCE_READY).unwrap();
            (found.status.clone(), found.reason.clone(), found.message.clone())
        };
        let said = |status: &str, reason: &str, message: &str| (status.into(), reason.into(), message.into());
        let waiting =
            after(None, &Step::Waiting { on: "volume v to be mounted".into() }, "me", 3, None, now());
        assert_eq!(waiting.phase, Some(LeasePhase::Accepted));
        assert_eq!(
            placed(&waiting),
            said("False", "WaitingForEnvironment", "waits for volume v to be mounted")
        );
        let assigned = Step::Assigned { instance: "a".into(), slot: 1 };
        let assigned = after(Some(&waiting), &assigned, "me", 3, None, now());
        assert_eq!(placed(&assigned), said("True", "SlotAssigned", ""));
    }

    #[test]
    fn a_gitlab_that_does_not_answer_is_told_until_it_has_the_result() {
        let ending = Ending::without_run(None, "");
        let silence = Silence { since: now(), cause: "GitLab answers 503".to_owned() };
        let waits = Step::Finalizing { ending: ending.clone(), silence: Some(silence) };
        let reported = |status: &JobLeaseStatus| {
            let found = status.conditions.iter().find(|condition| condition.type_ == REPORTED).unwrap();
            (found.reason.clone(), found.message.clone())
        };
        let waiting = after(None, &waits, "me", 3, None, now());
        assert_eq!(waiting.phase, Some(LeasePhase::Finalizing));
        let message = "GitLab has not taken the job's end since 1970-01-01T00:00:05Z: GitLab answers 503";
        assert_eq!(reported(&waiting), ("GitLabNotAnswering".to_owned(), message.to_owned()));
        let over = after(Some(&waiting), &Step::Reported(ending), "me", 3, None, now());
        assert_eq!(reported(&over), ("Reported".to_owned(), String::new()));
    }
}
