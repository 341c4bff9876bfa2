//! States of instances, and what they allow.

use anyhow::{Context, Result, ensure};
use aws_sdk_ec2::types::{
    AttributeBooleanValue, AttributeValue, Filter, InstanceStateName, SecureBlobAttributeValue, Tag,
};
use serde_json::json;

use super::{Lab, code, refused};
use crate::testbed::cloud::{Act, Market};

impl Lab {
    async fn shown(&self, id: &str) -> Result<aws_sdk_ec2::types::Instance> {
        let found = self.cloud.ec2().describe_instances().instance_ids(id).send().await?;
        let first = found.reservations.unwrap_or_default().into_iter().next();
        first.and_then(|one| one.instances?.into_iter().next()).context("it is not described")
    }

    pub(super) async fn start(&self, id: &str) -> String {
        code(self.cloud.ec2().start_instances().instance_ids(id).send().await)
    }

    pub(super) async fn stop(&self, id: &str) -> String {
        code(self.cloud.ec2().stop_instances().instance_ids(id).send().await)
    }

    async fn hibernate(&self, id: &str) -> String {
        code(self.cloud.ec2().stop_instances().instance_ids(id).hibernate(true).send().await)
    }

    pub(super) async fn terminate(&self, id: &str) -> String {
        code(self.cloud.ec2().terminate_instances().instance_ids(id).send().await)
    }
}

#[tokio::test]
async fn states_last_and_refuse_what_does_not_fit_them() -> Result<()> {
    let lab = Lab::new("cloud-states").await?;
    lab.slow().await?;
    let id = lab.cloud.launch(&lab.template, lab.subnet()).await?;
    ensure!(lab.cloud.instance(&id).await?.state == "pending");
    ensure!(lab.stop(&id).await == "IncorrectInstanceState");
    lab.pass(601.0).await?;
    ensure!(lab.cloud.instance(&id).await?.state == "running");
    ensure!(lab.start(&id).await == "ok", "starting what runs is no error");

    lab.cloud.ec2().reboot_instances().instance_ids(&id).send().await?;
    ensure!(lab.cloud.instance(&id).await?.boots == 2);

    ensure!(lab.stop(&id).await == "ok");
    refused(lab.cloud.ec2().reboot_instances().instance_ids(&id).send().await, "IncorrectInstanceState");
    ensure!(lab.cloud.instance(&id).await?.state == "stopping");
    ensure!(lab.start(&id).await == "IncorrectInstanceState");
    ensure!(lab.stop(&id).await == "ok", "stopping twice is no error");
    lab.pass(601.0).await?;
    let stopped = lab.cloud.instance(&id).await?;
    ensure!(stopped.state == "stopped" && stopped.boots == 2 && !stopped.hibernated);
    ensure!(stopped.state_reason.as_deref() == Some("Client.UserInitiatedShutdown"));
    let address = stopped.address;

    ensure!(lab.start(&id).await == "ok");
    ensure!(lab.cloud.instance(&id).await?.state == "pending");
    lab.pass(601.0).await?;
    let running = lab.cloud.instance(&id).await?;
    ensure!(running.state == "running" && running.boots == 3 && running.address == address);
    ensure!(running.state_reason.is_none());

    ensure!(lab.terminate(&id).await == "ok");
    ensure!(lab.cloud.instance(&id).await?.state == "shutting-down");
    lab.pass(601.0).await?;
    let shown = lab.shown(&id).await?;
    ensure!(shown.state().and_then(|state| state.name()) == Some(&InstanceStateName::Terminated));
    ensure!(shown.private_ip_address().is_none(), "a terminated instance has no address");
    ensure!(lab.start(&id).await == "IncorrectInstanceState");
    ensure!(lab.stop(&id).await == "IncorrectInstanceState");
    ensure!(lab.terminate(&id).await == "ok", "terminating twice is no error");

    lab.pass(3601.0).await?;
    ensure!(lab.start(&id).await == "InvalidInstanceID.NotFound", "the record is gone after an hour");
    ensure!(lab.start("i-0123456789abcdef0").await == "InvalidInstanceID.NotFound");
    ensure!(lab.start("i-xyz").await == "InvalidInstanceID.Malformed");
    Ok(())
}

#[tokio::test]
async fn hibernation_must_be_chosen_at_launch_and_can_degrade() -> Result<()> {
    let plain = Lab::new("cloud-no-hibernation").await?;
    let id = plain.running().await?;
    ensure!(plain.hibernate(&id).await == "UnsupportedHibernationConfiguration");
    ensure!(plain.cloud.instance(&id).await?.state == "running");

    let lab = Lab::with("cloud-hibernation", |template| template.hibernation = true).await?;
    let id = lab.running().await?;
    ensure!(lab.shown(&id).await?.hibernation_options().and_then(|one| one.configured()) == Some(true));
    ensure!(lab.hibernate(&id).await == "ok");
    let asleep = lab.until_state(&id, "stopped").await?;
    ensure!(asleep.hibernated);
    ensure!(asleep.state_reason.as_deref() == Some("Client.UserInitiatedHibernate"));
    ensure!(lab.start(&id).await == "ok");
    ensure!(lab.until_state(&id, "running").await?.boots == 1, "a wake is not a boot");

    lab.cloud.act(Act::HibernateDegrades).await?;
    ensure!(lab.hibernate(&id).await == "ok");
    let asleep = lab.until_state(&id, "stopped").await?;
    ensure!(asleep.state_reason.as_deref() == Some("Client.UserInitiatedHibernate"), "the API cannot tell");
    ensure!(lab.start(&id).await == "ok");
    ensure!(lab.until_state(&id, "running").await?.boots == 2);

    lab.cloud.config(json!({"hibernate_ready_seconds": 120})).await?;
    ensure!(lab.hibernate(&id).await == "UnsupportedOperation", "it has just booted");
    Ok(())
}

#[tokio::test]
async fn protected_instances_and_those_on_spot_refuse_to_end() -> Result<()> {
    let lab = Lab::new("cloud-protected").await?;
    let id = lab.running().await?;
    let modify = || lab.cloud.ec2().modify_instance_attribute().instance_id(&id);
    let flag = |on: bool| AttributeBooleanValue::builder().value(on).build();
    modify().disable_api_termination(flag(true)).send().await?;
    ensure!(lab.terminate(&id).await == "OperationNotPermitted");
    modify().disable_api_stop(AttributeBooleanValue::builder().value(true).build()).send().await?;
    ensure!(lab.stop(&id).await == "OperationNotPermitted");
    modify().disable_api_stop(flag(false)).send().await?;
    let data = SecureBlobAttributeValue::builder().value(aws_sdk_ec2::primitives::Blob::new("x")).build();
    refused(modify().user_data(data).send().await, "IncorrectInstanceState");
    let kind = AttributeValue::builder().value("m6i.xlarge").build();
    refused(modify().instance_type(kind.clone()).send().await, "IncorrectInstanceState");
    ensure!(lab.stop(&id).await == "ok");
    lab.until_state(&id, "stopped").await?;
    modify().instance_type(kind).send().await?;
    ensure!(lab.terminate(&id).await == "OperationNotPermitted", "stopped makes no difference");
    modify().disable_api_termination(flag(false)).send().await?;
    ensure!(lab.terminate(&id).await == "ok");

    let lab = Lab::with("cloud-spot-stop", |template| template.market = Market::SpotOnce).await?;
    let id = lab.running().await?;
    ensure!(lab.shown(&id).await?.instance_lifecycle().is_some_and(|one| one.as_str() == "spot"));
    ensure!(lab.stop(&id).await == "UnsupportedOperation");
    ensure!(lab.terminate(&id).await == "ok");
    Ok(())
}

#[tokio::test]
async fn a_launch_with_the_same_token_is_the_same_launch() -> Result<()> {
    let lab = Lab::new("cloud-token").await?;
    let run = |count: i32, token: &str| {
        let template = aws_sdk_ec2::types::LaunchTemplateSpecification::builder()
            .launch_template_id(&lab.template)
            .build();
        let run = lab.cloud.ec2().run_instances().launch_template(template).subnet_id(lab.subnet());
        run.min_count(count).max_count(count).client_token(token)
    };
    let ids = |run: aws_sdk_ec2::operation::run_instances::RunInstancesOutput| -> Vec<String> {
        run.instances().iter().filter_map(|one| one.instance_id()).map(str::to_owned).collect()
    };
    let first = ids(run(2, "one").send().await?);
    ensure!(first.len() == 2);
    ensure!(ids(run(2, "one").send().await?) == first);
    refused(run(3, "one").send().await, "IdempotentParameterMismatch");
    ensure!(ids(run(2, "two").send().await?) != first);
    ensure!(lab.cloud.state().await?.instances.len() == 4);

    // A refusal is not remembered: the same token may succeed later.
    lab.cloud.act(Act::NoCapacity).await?;
    refused(run(1, "three").send().await, "InsufficientInstanceCapacity");
    lab.cloud.act(Act::Restore).await?;
    ensure!(ids(run(1, "three").send().await?).len() == 1);

    let strange = lab.cloud.ec2().run_instances().subnet_id(lab.subnet()).min_count(1).max_count(1);
    refused(strange.clone().image_id("ami-0123456789abcdef0").send().await, "InvalidAMIID.NotFound");
    let image = crate::testbed::cloud::IMAGE;
    refused(strange.clone().image_id(image).key_name("x").send().await, "InvalidKeyPair.NotFound");
    refused(strange.image_id(image).dry_run(true).send().await, "DryRunOperation");
    Ok(())
}

#[tokio::test]
async fn capacity_keys_and_stops_can_fail() -> Result<()> {
    let lab = Lab::with("cloud-trouble", |template| template.hibernation = true).await?;
    let id = lab.running().await?;
    lab.cloud.act(Act::StopHangs { instance: Some(id.clone()) }).await?;
    ensure!(lab.stop(&id).await == "ok");
    lab.pass(3600.0).await?;
    ensure!(lab.cloud.instance(&id).await?.state == "stopping", "it hangs");
    lab.cloud.ec2().stop_instances().instance_ids(&id).force(true).send().await?;
    lab.until_state(&id, "stopped").await?;

    lab.cloud.act(Act::NoCapacity).await?;
    ensure!(lab.start(&id).await == "InsufficientInstanceCapacity");
    lab.cloud.act(Act::Restore).await?;
    lab.cloud.act(Act::ZoneClosed { zone: lab.zone().to_owned() }).await?;
    ensure!(lab.start(&id).await == "InsufficientInstanceCapacity");
    ensure!(lab.cloud.launch(&lab.template, lab.subnet()).await.is_err());
    lab.cloud.launch(&lab.template, &lab.network.subnets[1].id).await?;
    lab.cloud.act(Act::Restore).await?;

    lab.cloud.act(Act::KmsDisabled).await?;
    ensure!(lab.start(&id).await == "ok", "the call is accepted");
    let after = lab.until_state(&id, "stopped").await?;
    ensure!(after.state_reason.as_deref() == Some("Client.InternalError"));
    ensure!(after.boots == 1, "it never came up");
    lab.cloud.act(Act::Restore).await?;
    ensure!(lab.start(&id).await == "ok");
    ensure!(lab.until_state(&id, "running").await?.boots == 2);

    lab.cloud.act(Act::Stop { instance: id.clone() }).await?;
    lab.until_state(&id, "stopped").await?;
    lab.cloud.act(Act::Terminate { instance: id.clone() }).await?;
    lab.until_state(&id, "terminated").await?;
    Ok(())
}

#[tokio::test]
async fn listings_filter_page_and_may_be_behind() -> Result<()> {
    let lab = Lab::with("cloud-listing", |template| {
        template.tags = vec![("dormouse.dev/cluster".to_owned(), "one/two%3".to_owned())];
    })
    .await?;
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(lab.running().await?);
    }
    let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
    let ec2 = lab.cloud.ec2();
    let count = |found: aws_sdk_ec2::operation::describe_instances::DescribeInstancesOutput| {
        found.reservations().iter().map(|one| one.instances().len()).sum::<usize>()
    };
    let by = |filter: Filter| ec2.describe_instances().filters(filter).send();
    ensure!(count(by(filter("tag:dormouse.dev/cluster", "one/two%3")).await?) == 7);
    ensure!(count(by(filter("tag:dormouse.dev/cluster", "one*")).await?) == 7);
    ensure!(count(by(filter("tag:dormouse.dev/cluster", "two")).await?) == 0);
    ensure!(count(by(filter("instance-state-name", "stopped")).await?) == 0);
    refused(by(filter("no-such-thing", "x")).await, "InvalidParameterValue");

    let mut seen = Vec::new();
    let mut token = None;
    loop {
        let page = ec2.describe_instances().max_results(5).set_next_token(token).send().await?;
        for one in page.reservations().iter().flat_map(|one| one.instances()) {
            seen.push(one.instance_id().unwrap_or_default().to_owned());
        }
        token = page.next_token;
        if token.is_none() {
            break;
        }
    }
    ensure!(seen == ids, "each once, over two pages");
    let both = ec2.describe_instances().instance_ids(&ids[0]).max_results(5);
    refused(both.send().await, "InvalidParameterCombination");

    ec2.create_tags().resources(&ids[0]).tags(Tag::builder().key("k").value("v").build()).send().await?;
    ensure!(count(by(filter("tag-key", "k")).await?) == 1);
    lab.cloud.act(Act::RemoveTags { resource: ids[0].clone(), keys: vec![] }).await?;
    ensure!(count(by(filter("tag-key", "k")).await?) == 0);
    ensure!(count(by(filter("tag:dormouse.dev/cluster", "*")).await?) == 6);

    let tag = |id: &str, key: &str| {
        let tag = Tag::builder().key(key).value("v").build();
        ec2.create_tags().resources(id).tags(tag).send()
    };
    refused(tag(&ids[1], "aws:autoscaling:groupName").await, "InvalidParameterValue");
    refused(tag("i-0123456789abcdef0", "k").await, "InvalidInstanceID.NotFound");
    refused(tag("vol-0123456789abcdef0", "k").await, "InvalidVolume.NotFound");
    refused(tag("snap-0123456789abcdef0", "k").await, "InvalidSnapshot.NotFound");

    lab.cloud.config(json!({"eventual_seconds": 100, "reuse_addresses": true})).await?;
    lab.cloud.act(Act::Terminate { instance: ids[0].clone() }).await?;
    let old = lab.until_state(&ids[0], "terminated").await?.address;
    let fresh = lab.cloud.launch(&lab.template, lab.subnet()).await?;
    ensure!(lab.cloud.instance(&fresh).await?.address == old, "another machine has the address now");
    let one = || ec2.describe_instances().instance_ids(&fresh).send();
    refused(one().await, "InvalidInstanceID.NotFound");
    lab.pass(101.0).await?;
    ensure!(count(one().await?) == 1);
    Ok(())
}
