//! Each log is complete, in order, and has no byte twice.

use super::{Expectation, Facts};
use crate::testbed::gitlab::JobView;

/// What is wrong with a job's log.
pub fn broken(facts: &Facts, wanted: &Expectation) -> Vec<String> {
    // A job that is not there is told of where results are judged.
    let Some(job) = facts.last_of(wanted.job) else { return Vec::new() };
    let mut broken = Vec::new();
    let mut say = |what: String| broken.push(format!("log of job {} ({}): {what}", job.id, job.name));
    let found = numbers(job);
    if let Some(what) = first_difference(&found, wanted.lines) {
        say(what);
    }
    for once in once(job, wanted) {
        let times = job.log_text().matches(&once).count();
        if times != 1 {
            say(format!("{once:?} is there {times} times"));
        }
    }
    let kept = facts.hosts.iter().flat_map(|host| &host.logs).filter(|(id, _)| *id == job.id);
    for (_, log) in kept {
        if *log != job.log {
            let same = log.iter().zip(&job.log).take_while(|(left, right)| left == right).count();
            let (there, here) = (log.len(), job.log.len());
            say(format!("the host has {there} bytes, GitLab {here}, and they differ from byte {same} on"));
        }
    }
    broken
}

/// The numbers of the numbered lines, in their order.
fn numbers(job: &JobView) -> Vec<u32> {
    let text = job.log_text();
    let numbered = text.lines().filter_map(|line| {
        let (_, number) = line.trim_end().strip_suffix('.')?.rsplit_once(" line ")?;
        number.parse().ok()
    });
    numbered.collect()
}

fn first_difference(found: &[u32], lines: u32) -> Option<String> {
    let wanted: Vec<u32> = (1..=lines).collect();
    if found == wanted {
        return None;
    }
    let at = found.iter().zip(&wanted).take_while(|(left, right)| left == right).count();
    Some(format!(
        "{} numbered lines instead of {lines}; after {at} right ones comes {:?}",
        found.len(),
        found.get(at)
    ))
}

/// Texts that the log holds exactly once.
fn once(job: &JobView, wanted: &Expectation) -> Vec<String> {
    let end = match wanted.exit_code {
        0 => "Job succeeded".to_owned(),
        code => format!("Job failed: exit code {code}"),
    };
    let mut texts = vec![end];
    texts.extend(wanted.wakes.iter().map(|woken| format!("Job environment resumed: {}", woken.key)));
    let key = job.environment_key.iter().filter(|_| wanted.sleeps);
    texts.extend(key.map(|key| format!("Job environment suspended: {key}")));
    texts
}
