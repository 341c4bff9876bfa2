//! Who may give orders: one pool, its newest holder; and one environment in a slot.

use dormouse::spool::verb::{Answer, RefusalReason};

use super::{Host, order, refused};

fn start_refused(host: &Host, order: &dormouse::spool::order::JobOrder) -> RefusalReason {
    let ran = host.start(order).into_end();
    refused(ran.answer.unwrap())
}

#[test]
fn an_older_epoch_is_refused_by_every_verb_that_changes_something() {
    let host = Host::new();
    host.run(&order(&host, "env1", 1, &["true"]));
    assert!(matches!(host.ask("hello --pool ns/p --pool-uid pool-uid --epoch 5"), Answer::Hello(_)));
    for line in [
        "hello --pool ns/p --pool-uid pool-uid --epoch 4",
        "list --pool-uid pool-uid --epoch 4",
        "seal --environment env1 --job 1 --epoch 4",
        "cancel --environment env1 --job 1 --epoch 4",
        "suspend --environment env1 --job 1 --epoch 4",
        "release --environment env1 --epoch 4",
        "export --environment env1 --epoch 4",
        "leave --environment env1 --epoch 4",
        "quiesce --epoch 4",
        "notices --epoch 4",
    ] {
        assert_eq!(host.refusal(line), RefusalReason::StaleEpoch { seen: 5 }, "{line}");
    }
    assert_eq!(
        start_refused(&host, &order(&host, "env2", 2, &["true"])),
        RefusalReason::StaleEpoch { seen: 5 }
    );
}

#[test]
fn a_host_belongs_to_one_pool() {
    let host = Host::new();
    host.ask("hello --pool ns/p --pool-uid pool-uid --epoch 1");
    let owner = RefusalReason::ClaimedByOther { pool: "ns/p".into(), pool_uid: "pool-uid".into() };
    assert_eq!(host.refusal("hello --pool ns/q --pool-uid other --epoch 9"), owner);
    let mut foreign = order(&host, "env1", 1, &["true"]);
    foreign.pool_uid = "other".into();
    assert_eq!(start_refused(&host, &foreign), owner);
    assert_eq!(host.ask("unclaim --pool-uid pool-uid --epoch 1"), Answer::Done);
    assert!(matches!(host.ask("hello --pool ns/q --pool-uid other --epoch 1"), Answer::Hello(_)));
}

#[test]
fn a_slot_holds_one_environment_and_other_slots_are_free() {
    let host = Host::new();
    host.run(&order(&host, "env1", 1, &["true"]));
    let mut second = order(&host, "env2", 2, &["pwd"]);
    assert_eq!(start_refused(&host, &second), RefusalReason::SlotTaken);
    second.slot = 1;
    let text = host.run(&second).text();
    assert!(text.contains("/builds/1/group/project"), "{text}");
}

#[test]
fn an_order_that_cannot_be_done_here_is_refused_with_words() {
    let host = Host::new();
    let mut newer = order(&host, "env1", 1, &["true"]);
    newer.format = 999;
    assert_eq!(start_refused(&host, &newer), RefusalReason::Unsupported);
    let mut outside = order(&host, "env1", 1, &["true"]);
    outside.job.job_info.project_full_path = "group/../../etc".into();
    assert_eq!(start_refused(&host, &outside), RefusalReason::Unsupported);
    let mut id = order(&host, "env1", 1, &["true"]);
    id.environment = "../../etc".into();
    assert_eq!(start_refused(&host, &id), RefusalReason::Unsupported);
    let output = host.give(&["start"], b"{not json");
    assert!(String::from_utf8_lossy(&output.stdout).contains("Unsupported"));
}

#[test]
fn a_stream_ends_with_a_refusal_when_a_newer_holder_has_shown_itself() {
    let host = Host::new();
    let mut first = host.start(&order(&host, "env1", 1, &["echo begun", "while :; do sleep 0.1; done"]));
    first.until_log("01O begun");
    let mut second = host.attach("env1", 1, 0);
    second.until_log("01O begun");
    // The same holder may look as often as it likes.
    assert!(matches!(host.ask("hello --pool ns/p --pool-uid pool-uid --epoch 1"), Answer::Hello(_)));
    assert!(matches!(host.ask("hello --pool ns/p --pool-uid pool-uid --epoch 2"), Answer::Hello(_)));
    for outrun in [first, second] {
        let answer = outrun.into_end().answer.unwrap();
        assert_eq!(refused(answer), RefusalReason::StaleEpoch { seen: 2 });
    }
    // The job is not touched by any of it.
    let line = "attach --environment env1 --job 1 --from 0 --epoch 2";
    let words: Vec<&str> = line.split(' ').collect();
    let mut third = super::Following::new(host.command(&words).spawn().unwrap());
    third.until_log("01O begun");
    assert!(third.streamed.alive);
}
