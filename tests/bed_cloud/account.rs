//! The account: who may call, how often, what goes wrong on the wire, what is logged; keys and metadata of instances.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_config::retry::RetryConfig;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{KEY, Lab, code, refused};
use crate::testbed::cloud::{Act, Fault, Group, Market, Reclaim};

#[tokio::test]
async fn faults_hit_the_calls_they_are_meant_for() -> Result<()> {
    let lab = Lab::new("cloud-faults").await?;
    let (one, other) = (lab.running().await?, lab.running().await?);
    let describe = async || code(lab.cloud.ec2().describe_instances().send().await);
    lab.cloud.fault(Fault::error("ec2", "DescribeInstances", 503, "RequestLimitExceeded").times(2)).await?;
    ensure!(describe().await == "RequestLimitExceeded");
    ensure!(describe().await == "RequestLimitExceeded");
    ensure!(describe().await == "ok");
    let hit = Fault::error("ec2", "Stop*", 400, "IncorrectInstanceState").only("InstanceId", &one).after(1);
    lab.cloud.fault(hit.always()).await?;
    ensure!(lab.stop(&other).await == "ok", "another instance");
    ensure!(lab.stop(&one).await == "ok", "the first one passes");
    ensure!(lab.stop(&one).await == "IncorrectInstanceState");
    ensure!(lab.stop(&one).await == "IncorrectInstanceState");
    lab.cloud.clear_faults().await?;
    ensure!(lab.stop(&one).await == "ok");

    let late = Duration::from_millis(400);
    lab.cloud.fault(Fault::latency("autoscaling", "*", late)).await?;
    let begun = Instant::now();
    lab.cloud.scaling().describe_auto_scaling_groups().send().await?;
    ensure!(begun.elapsed() >= late);
    // Others are not held up by it.
    lab.cloud.fault(Fault::latency("autoscaling", "*", Duration::from_secs(5))).await?;
    let slow = lab.cloud.scaling().describe_auto_scaling_groups().send();
    tokio::select! {
        _ = slow => anyhow::bail!("the slow call came first"),
        quick = describe() => ensure!(quick == "ok"),
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_answer_leaves_the_deed_done() -> Result<()> {
    let lab = Lab::new("cloud-cut").await?;
    let run = |ec2: &aws_sdk_ec2::Client, token: &str| {
        let template = aws_sdk_ec2::types::LaunchTemplateSpecification::builder()
            .launch_template_id(&lab.template)
            .build();
        let run = ec2.run_instances().launch_template(template).subnet_id(lab.subnet());
        run.min_count(1).max_count(1).client_token(token)
    };
    lab.cloud.fault(Fault::cut("ec2", "RunInstances")).await?;
    let lost = run(lab.cloud.ec2(), "one").send().await;
    ensure!(lost.is_err_and(|error| error.as_service_error().is_none()), "no answer at all");
    ensure!(lab.cloud.state().await?.instances.len() == 1, "it was carried out");
    let found = run(lab.cloud.ec2(), "one").send().await?;
    ensure!(lab.cloud.state().await?.instances.len() == 1);
    ensure!(found.instances()[0].instance_id() == Some(lab.cloud.state().await?.instances[0].id.as_str()));

    // A client that tries again by itself does not double it.
    lab.cloud.fault(Fault::cut("ec2", "RunInstances")).await?;
    let config = lab.cloud.sdk("AKIADORMOUSELAB00001", "any").await;
    let config = aws_sdk_ec2::config::Builder::from(&config).retry_config(RetryConfig::standard()).build();
    run(&aws_sdk_ec2::Client::from_conf(config), "two").send().await?;
    ensure!(lab.cloud.state().await?.instances.len() == 2);
    let tries = lab.cloud.calls(0).await?;
    let tries = tries.iter().filter(|call| call.names("ClientToken", "two")).count();
    ensure!(tries == 2, "{tries}");
    Ok(())
}

#[tokio::test]
async fn callers_are_refused_as_they_deserve() -> Result<()> {
    let lab = Lab::new("cloud-callers").await?;
    let ec2 = async || code(lab.cloud.ec2().describe_instances().send().await);
    let scaling = async || code(lab.cloud.scaling().describe_auto_scaling_groups().send().await);
    lab.cloud.act(Act::CredentialsExpire).await?;
    ensure!(ec2().await == "RequestExpired" && scaling().await == "ExpiredToken");
    lab.cloud.act(Act::CredentialsWrong).await?;
    ensure!(ec2().await == "AuthFailure" && scaling().await == "InvalidClientTokenId");
    lab.cloud.act(Act::Restore).await?;
    ensure!(ec2().await == "ok" && scaling().await == "ok");

    lab.cloud.config(json!({"access_keys": ["AKIAOTHER"]})).await?;
    ensure!(ec2().await == "AuthFailure");
    lab.cloud.config(json!({"access_keys": null})).await?;

    let actions = vec!["ec2:Describe*".to_owned(), "autoscaling:*".to_owned()];
    lab.cloud.act(Act::Deny { actions }).await?;
    ensure!(ec2().await == "UnauthorizedOperation" && scaling().await == "AccessDenied");
    lab.cloud.act(Act::Restore).await?;

    lab.cloud.config(json!({"throttle": {"Describe*": {"burst": 2, "rate": 0.001}}})).await?;
    ensure!(ec2().await == "ok" && scaling().await == "ok");
    ensure!(ec2().await == "RequestLimitExceeded" && scaling().await == "Throttling");
    lab.pass(2000.0).await?;
    ensure!(ec2().await == "ok");
    lab.cloud.config(json!({"throttle": {}})).await?;

    // Its clock is an hour ahead of ours; a client that tries again sets its own right by the answer.
    lab.cloud.config(json!({"skew_seconds": 3600})).await?;
    ensure!(ec2().await == "RequestExpired");
    lab.cloud.config(json!({"skew_seconds": 0})).await?;

    let calls = lab.cloud.calls(0).await?;
    ensure!(calls.iter().enumerate().all(|(index, call)| call.n == index as u64));
    ensure!(calls.iter().any(|call| call.action == "DescribeInstances" && call.answer == "AuthFailure"));
    let strange = lab.cloud.ec2().describe_fast_snapshot_restores().send().await;
    refused(strange, "InvalidAction");
    Ok(())
}

#[tokio::test]
async fn the_policies_of_users_are_checked_by_action() -> Result<()> {
    let lab = Lab::new("cloud-iam").await?;
    let allowed = ["ec2:DescribeInstances", "autoscaling:DescribeAutoScalingGroups"];
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": allowed, "Resource": "*"}],
    });
    let user = lab.cloud.user("dormouse", policy).await?;
    lab.cloud.config(json!({"iam": true})).await?;
    let config = lab.cloud.sdk(&user.access_key_id, &user.secret_access_key).await;
    let ec2 = aws_sdk_ec2::Client::new(&config);
    let scaling = aws_sdk_autoscaling::Client::new(&config);
    ec2.describe_instances().send().await?;
    scaling.describe_auto_scaling_groups().send().await?;
    refused(ec2.describe_volumes().send().await, "UnauthorizedOperation");
    refused(scaling.describe_policies().send().await, "AccessDenied");
    let wrong = lab.cloud.sdk(&user.access_key_id, "not-its-secret").await;
    let answer = aws_sdk_ec2::Client::new(&wrong).describe_instances().send().await;
    ensure!(code(answer) != "ok", "signatures are checked");
    ensure!(code(lab.cloud.ec2().describe_instances().send().await) != "ok", "of unknown users too");
    lab.cloud.config(json!({"iam": false})).await?;
    lab.cloud.ec2().describe_instances().send().await?;
    Ok(())
}

#[tokio::test]
async fn a_pushed_key_is_known_for_a_minute() -> Result<()> {
    let lab = Lab::new("cloud-connect").await?;
    let id = lab.running().await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let push = async |id: &str, zone: &str| -> Result<(StatusCode, Value)> {
        let scope = "20260101/eu-central-1/ec2-instance-connect/aws4_request";
        let body = json!({
            "InstanceId": id, "InstanceOSUser": "ci", "SSHPublicKey": KEY, "AvailabilityZone": zone,
        });
        let answer = http
            .post(lab.cloud.endpoint())
            .header("authorization", format!("AWS4-HMAC-SHA256 Credential=AKIADORMOUSELAB00001/{scope}, SignedHeaders=host, Signature=0"))
            .header("x-amz-target", "AWSEC2InstanceConnectService.SendSSHPublicKey")
            .header("content-type", "application/x-amz-json-1.1")
            .body(body.to_string())
            .send()
            .await?;
        Ok((answer.status(), answer.json().await?))
    };
    let (status, answer) = push(&id, lab.zone()).await?;
    ensure!(status == StatusCode::OK && answer["Success"] == true, "{status} {answer}");
    let keys = lab.cloud.state().await?.pushed_keys;
    ensure!(keys.len() == 1 && keys[0].instance == id && keys[0].user == "ci" && keys[0].key == KEY);
    lab.pass(61.0).await?;
    ensure!(lab.cloud.state().await?.pushed_keys.is_empty());

    let (status, answer) = push("i-0123456789abcdef0", lab.zone()).await?;
    ensure!(status == 404 && answer["__type"] == "EC2InstanceNotFoundException", "{answer}");
    let (status, answer) = push(&id, "eu-central-1z").await?;
    ensure!(status == 400 && answer["__type"] == "InvalidArgsException", "{answer}");
    ensure!(lab.stop(&id).await == "ok");
    let (_, answer) = push(&id, lab.zone()).await?;
    ensure!(answer["__type"] == "EC2InstanceStateInvalidException", "{answer}");
    Ok(())
}

#[tokio::test]
async fn instances_read_their_metadata_with_a_token() -> Result<()> {
    let lab = Lab::with("cloud-metadata", |template| template.market = Market::SpotOnce).await?;
    let id = lab.running().await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let base = format!("{}/lab/imds/{id}/latest", lab.cloud.endpoint());
    let token = http.put(format!("{base}/api/token"));
    ensure!(token.try_clone().context("clone")?.send().await?.status() == 400, "it wants a time to live");
    let token = token.header("X-aws-ec2-metadata-token-ttl-seconds", "60").send().await?.text().await?;
    let get = async |path: &str, token: &str| -> Result<(StatusCode, String)> {
        let get = http.get(format!("{base}/{path}")).header("X-aws-ec2-metadata-token", token);
        let answer = get.send().await?;
        Ok((answer.status(), answer.text().await?))
    };
    ensure!(get("meta-data/instance-id", "wrong").await?.0 == 401);
    ensure!(get("meta-data/instance-id", &token).await?.1 == id);
    ensure!(get("meta-data/placement/availability-zone", &token).await?.1 == lab.zone());
    ensure!(get("meta-data/spot/instance-action", &token).await?.0 == 404, "no notice");
    ensure!(get("meta-data/events/recommendations/rebalance", &token).await?.0 == 404);

    let instance = id.clone();
    lab.cloud.act(Act::SpotNotice { instance, action: Reclaim::Terminate, seconds: Some(120.0) }).await?;
    lab.cloud.act(Act::Rebalance { instance: id.clone() }).await?;
    let notice: Value = serde_json::from_str(&get("meta-data/spot/instance-action", &token).await?.1)?;
    ensure!(notice["action"] == "terminate");
    let time = notice["time"].as_str().unwrap_or_default();
    ensure!(time.len() == 20 && time.ends_with('Z'), "{time}");
    let advice = get("meta-data/events/recommendations/rebalance", &token).await?.1;
    ensure!(advice.contains("noticeTime"), "{advice}");
    lab.pass(61.0).await?;
    ensure!(get("meta-data/instance-id", &token).await?.0 == 401, "the token is over");
    lab.pass(60.0).await?;
    lab.until_state(&id, "terminated").await?;
    ensure!(get("meta-data/instance-id", &token).await?.0 == 404);
    Ok(())
}

#[tokio::test]
async fn groups_of_another_region_are_not_seen() -> Result<()> {
    let lab = Lab::new("cloud-region").await?;
    lab.group(&Group::new("pool", 1)).await?;
    let config = lab.cloud.sdk("AKIADORMOUSELAB00001", "any").await;
    let region = aws_config::Region::new("eu-west-1");
    let config = aws_sdk_autoscaling::config::Builder::from(&config).region(region).build();
    let found = aws_sdk_autoscaling::Client::from_conf(config).describe_auto_scaling_groups().send().await?;
    ensure!(found.auto_scaling_groups().is_empty());
    Ok(())
}
