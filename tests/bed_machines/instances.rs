//! Instances boot, stop, sleep and are opened with keys.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::{BOOT_ID, KEY, Lab, SOON, said, text};
use crate::testbed::cloud::{Act, Group};
use crate::testbed::hosts::{Host, Line};
use crate::testbed::wait::until;

/// Asks the instance's metadata for its id, in the way of IMDSv2.
const OWN_ID: &str = r#"
from urllib.request import Request, urlopen
url = open("/etc/dormouse/metadata").read().strip() + "/latest"
life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
token = urlopen(Request(url + "/api/token", method="PUT", headers=life)).read().decode()
asked = Request(url + "/meta-data/instance-id", headers={"X-aws-ec2-metadata-token": token})
print(urlopen(asked).read().decode())
"#;

#[tokio::test]
async fn instances_boot_at_once_each_at_its_address_with_its_own_key() -> Result<()> {
    let Some(lab) = Lab::open("three").await? else { return Ok(()) };
    let mut ids = Vec::new();
    for zone in 0..3 {
        ids.push(lab.launch(zone).await?);
    }
    let mut keys = BTreeSet::new();
    for id in &ids {
        let host = lab.running(id).await?;
        ensure!(host.address().to_string() == lab.cloud.instance(id).await?.address && host.port() == 22);
        ensure!(said(&host, "hostname").await? == *id);
        keys.insert(host.host_key()?);

        let file = "/etc/dormouse/metadata";
        let metadata = said(&host, &format!("cat {file}; stat -c %a {file}")).await?;
        ensure!(metadata == format!("{}/lab/imds/{id}\n444", lab.cloud.endpoint()), "{metadata}");
        ensure!(said(&host, &format!("python3 -c '{OWN_ID}'")).await? == *id);
    }
    ensure!(keys.len() == 3, "two instances have the same host key");
    Ok(())
}

#[tokio::test]
async fn a_stop_keeps_the_disk_and_nothing_else() -> Result<()> {
    let Some(lab) = Lab::open("stop").await? else { return Ok(()) };
    let (id, host) = lab.boot().await?;
    let (boot_id, key) = (said(&host, BOOT_ID).await?, host.host_key()?);
    said(&host, "echo kept >/root/mark; echo lost >/tmp/mark; setsid sleep 1000 >/dev/null 2>&1 &").await?;
    lab.stop(&id, false).await?;
    lab.machines.off(&id).await?;
    ensure!(std::net::TcpStream::connect((host.address(), 22)).is_err(), "a stopped instance accepts");

    let host = lab.start(&id).await?;
    ensure!(said(&host, "cat /root/mark; ls /tmp; pgrep sleep || true").await? == "kept");
    ensure!(said(&host, BOOT_ID).await? != boot_id);
    ensure!(host.host_key()? == key);
    Ok(())
}

#[tokio::test]
async fn a_hibernation_keeps_the_memory_and_one_that_degrades_does_not() -> Result<()> {
    let Some(lab) = Lab::with("hibernate", |template| template.hibernation = true).await? else {
        return Ok(());
    };
    let (id, host) = lab.boot().await?;
    let boot_id = said(&host, BOOT_ID).await?;
    said(&host, "echo kept >/tmp/mark; setsid sleep 1000 >/dev/null 2>&1 &").await?;
    let mut client =
        host.ssh_command("root")?.arg("sleep 100").stdin(Stdio::null()).kill_on_drop(true).spawn()?;
    lab.stop(&id, true).await?;
    lab.machines.asleep(&id).await?;
    ensure!(client.wait().await?.code() == Some(255), "a connection outlived the hibernation");

    let host = lab.start(&id).await?;
    let sleeper = "pgrep -fx 'sleep 1000' >/dev/null && echo alive || echo dead";
    ensure!(said(&host, &format!("cat /tmp/mark; {sleeper}")).await? == "kept\nalive");
    ensure!(said(&host, BOOT_ID).await? == boot_id);

    lab.cloud.act(Act::HibernateDegrades).await?;
    lab.stop(&id, true).await?;
    let host = lab.start(&id).await?;
    ensure!(said(&host, &format!("ls /tmp; {sleeper}")).await? == "dead");
    ensure!(said(&host, BOOT_ID).await? != boot_id);
    Ok(())
}

#[tokio::test]
async fn a_frozen_or_silent_machine_shows_no_banner() -> Result<()> {
    let Some(lab) = Lab::open("silent").await? else { return Ok(()) };
    let (_, host) = lab.boot().await?;
    host.cut(Line::Silent).await?;
    ensure!(!shows_banner(&host).await?);
    host.heal().await?;
    ensure!(shows_banner(&host).await?);
    host.freeze().await?;
    ensure!(!shows_banner(&host).await?);
    host.thaw().await?;
    ensure!(shows_banner(&host).await?);
    Ok(())
}

/// Whether an SSH server says who it is within a second.
async fn shows_banner(host: &Host) -> Result<bool> {
    let mut stream = tokio::net::TcpStream::connect((host.address(), host.port())).await?;
    let mut banner = [0; 4];
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read_exact(&mut banner)).await;
    Ok(read.is_ok_and(|read| read.is_ok()) && &banner == b"SSH-")
}

#[tokio::test]
async fn an_instance_without_a_key_is_opened_by_a_pushed_one_for_its_minute() -> Result<()> {
    let Some(lab) = Lab::with("pushed", |template| template.key = None).await? else { return Ok(()) };
    let (id, host) = lab.boot().await?;
    ensure!(!host.ssh("true").await?.status.success(), "the key {KEY} opens it though it was not asked for");
    let key = lab.scratch.path().join("pushed");
    let mut keygen = std::process::Command::new("ssh-keygen");
    text(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).output()?)?;
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    let opens = async |user: &str| {
        let mut command = tokio::process::Command::new("ssh");
        command
            .args([
                "-F",
                "none",
                "-T",
                "-oBatchMode=yes",
                "-oIdentitiesOnly=yes",
                "-oStrictHostKeyChecking=no",
            ])
            .args(["-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR", "-l", user, "-i"])
            .args([key.as_os_str(), host.address().to_string().as_ref(), "true".as_ref()])
            .stdin(Stdio::null());
        anyhow::Ok(command.output().await?.status.success())
    };
    ensure!(!opens("ci").await?, "a key nobody pushed opens it");

    push_key(&lab, &id, "ci", public.trim()).await?;
    until("the key opens it", SOON, async || Ok(opens("ci").await?.then_some(()))).await?;
    ensure!(!opens("root").await?, "it opens another account");
    lab.cloud.act(Act::PassTime { seconds: 61.0 }).await?;
    until("it opens it no more", SOON, async || Ok((!opens("ci").await?).then_some(()))).await
}

/// As the client for EC2 Instance Connect does.
async fn push_key(lab: &Lab, instance: &str, user: &str, key: &str) -> Result<()> {
    let scope = format!("key/20260101/{}/ec2-instance-connect/aws4_request", lab.cloud.region());
    let sent = reqwest::Client::builder()
        .no_proxy()
        .build()?
        .post(format!("{}/", lab.cloud.endpoint()))
        .header(
            "Authorization",
            format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"),
        )
        .header("X-Amz-Target", "AWSEC2InstanceConnectService.SendSSHPublicKey")
        .header("Content-Type", "application/x-amz-json-1.1")
        .body(json!({ "InstanceId": instance, "InstanceOSUser": user, "SSHPublicKey": key }).to_string())
        .send()
        .await?;
    ensure!(sent.status().is_success(), "{}", sent.text().await?);
    Ok(())
}

#[tokio::test]
async fn an_instance_may_run_before_it_answers() -> Result<()> {
    let Some(lab) = Lab::open("late").await? else { return Ok(()) };
    lab.machines.boot_late(Duration::from_secs(1))?;
    let id = lab.launch(0).await?;
    lab.until_state(&id, "running").await?;
    let host = lab.machines.machine(&id)?;
    ensure!(std::net::TcpStream::connect((host.address(), 22)).is_err(), "it is up as soon as it runs");
    let host = lab.running(&id).await?;
    ensure!(said(&host, "hostname").await? == id);
    Ok(())
}

#[tokio::test]
async fn an_instance_elsewhere_is_left_alone_and_told_of() -> Result<()> {
    let Some(lab) = Lab::open("elsewhere").await? else { return Ok(()) };
    let other = lab.cloud.network(lab.machines.subnet()?.wrapping_add(1), 1).await?;
    let id = lab.cloud.launch(&lab.template, &other.subnets[0].id).await?;
    let told = until("it is told of", SOON, async || Ok(lab.machines.trouble_of(&id)?)).await?;
    ensure!(told.contains("its address is not in"), "{told}");
    ensure!(lab.machines.machine(&id).is_err() && lab.cloud.instance(&id).await?.state == "pending");
    Ok(())
}

#[tokio::test]
async fn a_group_grows_and_shrinks_with_its_machines() -> Result<()> {
    let Some(lab) = Lab::open("group").await? else { return Ok(()) };
    let group = Group { protected: false, desired: 2, ..Group::new("pool", 3) };
    lab.cloud.group(&group, &lab.template, &lab.network).await?;
    let before = lab.members("pool", 2).await?;
    for (id, host) in &before {
        ensure!(said(host, "hostname").await? == *id);
    }
    lab.cloud
        .scaling()
        .set_desired_capacity()
        .auto_scaling_group_name("pool")
        .desired_capacity(1)
        .send()
        .await?;
    let after = lab.members("pool", 1).await?;
    let is_kept = |id: &str| after.iter().any(|(kept, _)| kept == id);
    for (id, _) in before.iter().filter(|(id, _)| !is_kept(id)) {
        lab.machines.gone(id).await?;
    }
    ensure!(said(&after[0].1, "hostname").await? == after[0].0);
    Ok(())
}

#[tokio::test]
async fn ten_instances_come_and_go_at_once() -> Result<()> {
    let Some(lab) = Lab::open("ten").await? else { return Ok(()) };
    let begun = Instant::now();
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(lab.launch(number % 3).await?);
    }
    for id in &ids {
        let host = lab.running(id).await?;
        ensure!(said(&host, "hostname").await? == *id);
    }
    let booted = begun.elapsed();
    lab.cloud.ec2().terminate_instances().set_instance_ids(Some(ids.clone())).send().await?;
    for id in &ids {
        lab.machines.gone(id).await?;
    }
    println!("ten machines: up in {booted:?}, gone after {:?}", begun.elapsed() - booted);
    Ok(())
}
