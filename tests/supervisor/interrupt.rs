//! A job that is ended because its instance is about to be taken away.

use dormouse::spool::order::{JobOrder, SuspendPlan};
use dormouse::spool::record::{Outcome, ScriptEnd};
use dormouse::spool::verb::{Answer, Interruption};

use super::{Host, order, step};

/// A script that leaves something and waits for ever.
const ENDLESS: &[&str] =
    &["mkdir -p deep && cd deep && export GREETING=hello", "echo begun", "while :; do sleep 0.05; done"];

fn kept_on_failure(host: &Host) -> JobOrder {
    let mut order = order(host, "env1", 1, ENDLESS);
    order.job.steps.push(step("after_script", &["echo after"]));
    JobOrder { suspend: SuspendPlan { on_success: false, on_failure: true }, ..order }
}

fn interrupt(host: &Host, can_leave: bool) {
    let interruption = Interruption { message: "the instance goes".to_owned(), can_leave };
    let words = ["interrupt", "--environment", "env1", "--job", "1", "--epoch", "1"];
    let output = host.give(&words, &serde_json::to_vec(&interruption).unwrap());
    assert_eq!(serde_json::from_slice::<Answer>(&output.stdout).unwrap(), Answer::Done);
}

#[test]
fn an_interrupted_job_fails_by_no_fault_of_its_own_and_nothing_follows_its_script() {
    let host = Host::new();
    let mut following = host.start(&kept_on_failure(&host));
    following.until_log("01O begun");
    interrupt(&host, false);
    let ran = following.into_end();
    let result = ran.record().result.clone().unwrap();
    assert_eq!((result.outcome, result.script), (Outcome::SystemFailure, ScriptEnd::NotEnded));
    assert!(!result.suspend_due, "what cannot leave the instance is not kept on it");
    let text = ran.text();
    assert!(text.contains("ERROR: Job failed (system failure): the instance goes"), "{text}");
    assert!(!text.contains("01O after"), "{text}");
    // Once is enough.
    interrupt(&host, true);
    assert_eq!(host.status("env1", 1).result, Some(result));
}

#[test]
fn an_environment_that_can_leave_is_put_to_sleep_as_after_a_failure_with_what_the_script_left() {
    let host = Host::new();
    let mut following = host.start(&kept_on_failure(&host));
    following.until_log("01O begun");
    interrupt(&host, true);
    following.until_status("the job is finished", |record| record.result.is_some());
    let record = host.status("env1", 1);
    let result = record.result.unwrap();
    assert_eq!((result.outcome, result.script), (Outcome::SystemFailure, ScriptEnd::Failure));
    assert!(result.suspend_due && !record.sealed);
    let context = host.suspend("env1", 1).context.unwrap();
    assert!(context.cwd.ends_with("/deep") && context.variables > 0, "{context:?}");
    assert_eq!(context.processes, 0);
    host.ask_with("seal --environment env1 --job 1 --epoch 1", "");
    assert!(!following.into_end().text().contains("01O after"));
}

#[test]
fn a_job_that_was_canceled_before_is_canceled_and_ends_at_once() {
    let host = Host::new();
    let mut order = kept_on_failure(&host);
    order.job.steps.last_mut().unwrap().script = vec!["echo after".to_owned(), "sleep 1000".to_owned()];
    let mut following = host.start(&order);
    following.until_log("01O begun");
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1 --graceful"), Answer::Done);
    following.until_log("01O after");
    interrupt(&host, true);
    let ran = following.into_end();
    let result = ran.record().result.clone().unwrap();
    assert_eq!(result.outcome, Outcome::Canceled);
    assert!(!result.suspend_due, "a canceled job keeps nothing");
}
