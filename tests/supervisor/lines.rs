//! The operator's lines in a job's log: each once, in the log's own style, and nothing after the seal.

use dormouse::spool::verb::{Answer, RefusalReason};

use super::{Host, order, refused};
use dormouse::spool::order::SuspendPlan;

#[test]
fn a_line_is_appended_once_and_the_seal_is_the_end() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, &["printf 'no end of line'"]);
    order.suspend = SuspendPlan { on_success: true, on_failure: false };
    let mut following = host.start(&order);
    following.until_status("the job is finished", |record| record.result.is_some());
    assert!(!host.status("env1", 1).sealed);
    let first = host.append("env1", 1, "key", "Job environment suspended: k");
    assert_eq!(host.append("env1", 1, "key", "Job environment suspended: k"), first);
    let other = host.append("env1", 1, "other", "another line");
    assert!(other.length > first.length);
    let seal = "seal --environment env1 --job 1 --epoch 1";
    let Answer::Log(end) = host.ask_with(seal, "the last line") else { panic!("not sealed") };
    assert_eq!(host.ask_with(seal, "the last line"), Answer::Log(end));
    // An append that the seal has overtaken is refused; one that was there before it is not.
    let late = "append --environment env1 --job 1 --once late --epoch 1";
    assert_eq!(refused(host.ask_with(late, "late")), RefusalReason::Sealed);
    assert_eq!(host.append("env1", 1, "key", "Job environment suspended: k"), end);

    let ran = following.into_end();
    assert_eq!((ran.log.len() as u64, ran.crc32), (end.length, end.crc32));
    let text = ran.text();
    assert_eq!(text.matches("Job environment suspended: k").count(), 1, "{text}");
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    assert!(lines[0].ends_with("Z 00O the last line"), "{text}");
    assert!(lines[1].ends_with("Z 00O another line"), "{text}");
    assert!(lines[2].ends_with("Z 00O Job environment suspended: k"), "{text}");
}

#[test]
fn a_last_text_that_is_cut_short_ends_no_log() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, &["true"]);
    order.suspend = SuspendPlan { on_success: true, on_failure: false };
    let mut following = host.start(&order);
    following.until_status("the job is finished", |record| record.result.is_some());
    let seal = "seal --environment env1 --job 1 --epoch 1";
    let words: Vec<&str> = seal.split(' ').collect();
    for cut in ["", "\"", "\"the last li"] {
        let output = host.give(&words, cut.as_bytes());
        let answer = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(refused(answer), RefusalReason::Unsupported, "{cut:?}");
        assert!(!host.status("env1", 1).sealed, "{cut:?}");
    }
    assert!(matches!(host.ask_with(seal, "the last line"), Answer::Log(_)));
    assert!(following.into_end().text().ends_with("the last line\n"));
}

#[test]
fn a_job_the_host_does_not_know_has_no_log() {
    let host = Host::new();
    assert_eq!(host.refusal("seal --environment env1 --job 1 --epoch 1"), RefusalReason::NotFound);
    assert_eq!(host.refusal("status --environment env1 --job 1"), RefusalReason::NotFound);
    let mut attached = host.attach("env1", 1, 0);
    attached.read_until(|streamed| streamed.answer.is_some());
    assert_eq!(refused(attached.streamed.answer.clone().unwrap()), RefusalReason::NotFound);
}
