//! Each job ran once, and GitLab was told how it ended, with the checksum of the log it has.

use super::{Expectation, Facts, Verb};
use crate::testbed::gitlab::{JobState, JobView};

/// What is wrong with how a job ended.
pub fn broken(facts: &Facts, wanted: &Expectation) -> Vec<String> {
    let Some(job) = facts.last_of(wanted.job) else {
        return vec![format!("job {} is unknown to GitLab", wanted.job)];
    };
    let mut broken = Vec::new();
    let mut say = |what: String| broken.push(format!("job {} ({}): {what}", job.id, job.name));
    let state = if wanted.exit_code == 0 { JobState::Success } else { JobState::Failed };
    let reason = (wanted.exit_code != 0).then_some("script_failure");
    if job.state != state || job.failure_reason.as_deref() != reason {
        let log = job.log_text();
        let last = log.trim_end().lines().last().unwrap_or_default();
        say(format!(
            "is {:?}, {:?}, and should be {state:?}, {reason:?}; its log ends with {last:?}",
            job.state, job.failure_reason
        ));
    }
    if job.exit_code.unwrap_or_default() != wanted.exit_code {
        say(format!("ended with exit code {:?}, not {}", job.exit_code, wanted.exit_code));
    }
    if job.environment_key.is_some() != wanted.sleeps {
        say(format!("was told the environment key {:?}", job.environment_key));
    }
    if let Some(what) = wrong_claim(job) {
        say(what);
    }
    for (verb, name) in [(Verb::Begin, "begun"), (Verb::End, "ended")] {
        let times = facts.entries(job.id).filter(|(_, entry)| entry.verb == verb).count();
        if times != 1 {
            say(format!("{name} {times} times"));
        }
    }
    broken.extend(given_up(facts, wanted));
    broken
}

/// Jobs that GitLab queued anew because nobody acknowledged them: they have left no trace but that.
fn given_up(facts: &Facts, wanted: &Expectation) -> Vec<String> {
    let mut broken = Vec::new();
    let mut next = facts.job(wanted.job);
    while let Some(job) = next.filter(|job| job.retried_as.is_some()) {
        let has_begun = facts.entries(job.id).next().is_some();
        if has_begun || !job.log.is_empty() {
            broken
                .push(format!("job {} ({}) was given back to GitLab and run all the same", job.id, job.name));
        }
        next = job.retried_as.and_then(|next| facts.job(next));
    }
    broken
}

/// What the accepted final update says of the log, against the log.
fn wrong_claim(job: &JobView) -> Option<String> {
    let is_final = |state: &str| ["success", "failed"].contains(&state);
    let Some(accepted) = job.puts.iter().find(|put| is_final(&put.state) && put.answer == 200) else {
        return Some("GitLab has taken no result".to_owned());
    };
    let checksum = format!("crc32:{:08x}", crc32fast::hash(&job.log));
    if accepted.checksum.as_ref() != Some(&checksum) {
        return Some(format!("its result claims {:?}, its log has {checksum}", accepted.checksum));
    }
    let size = u64::try_from(job.log.len()).ok();
    (accepted.bytesize != size)
        .then(|| format!("its result claims {:?} bytes, its log has {size:?}", accepted.bytesize))
}
