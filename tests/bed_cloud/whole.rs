//! The stand-in as a whole: whatever is asked of it at random, its account stays one that could be.
//!
//! A bug here would be a false green elsewhere. The seed is printed; `DORMOUSE_SEED` replays it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use aws_sdk_autoscaling::types::WarmPoolState;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{Lab, code};
use crate::testbed::cloud::{Act, Group, Hook, State, VolumeState, Warm, Way};

const STEPS: usize = 300;
const GROUP: &str = "pool";
const MOST: i32 = 6;

/// One random deed. Answers its code.
async fn step(lab: &Lab, rng: &mut StdRng, state: &State) -> Result<String> {
    let ids: Vec<&str> = state.instances.iter().map(|one| one.id.as_str()).collect();
    let volumes: Vec<&str> = state.volumes.iter().map(|one| one.id.as_str()).collect();
    let snapshots: Vec<&str> = state.snapshots.iter().map(|one| one.id.as_str()).collect();
    let id = ids.choose(rng).copied().unwrap_or("i-0123456789abcdef0");
    let volume = volumes.choose(rng).copied().unwrap_or("vol-0123456789abcdef0");
    let snapshot = snapshots.choose(rng).copied().unwrap_or("snap-0123456789abcdef0");
    let zone = &lab.network.subnets.choose(rng).context("no subnet")?.zone;
    let (ec2, yes) = (lab.cloud.ec2(), rng.random_bool(0.5));
    Ok(match rng.random_range(0..22) {
        0 => lab.start(id).await,
        1 => code(ec2.stop_instances().instance_ids(id).hibernate(yes).send().await),
        2 => lab.terminate(id).await,
        3 => {
            let subnet = &lab.network.subnets[usize::from(yes)].id;
            lab.cloud.launch(&lab.template, subnet).await.map(|_| "ok".to_owned())?
        }
        4 => code(ec2.create_volume().availability_zone(zone).size(1).send().await),
        5 | 6 => {
            let device = format!("/dev/sd{}", ["f", "g", "h"].choose(rng).context("no letter")?);
            code(ec2.attach_volume().volume_id(volume).instance_id(id).device(device).send().await)
        }
        7 => code(ec2.detach_volume().volume_id(volume).force(yes).send().await),
        8 => code(ec2.delete_volume().volume_id(volume).send().await),
        9 => code(ec2.create_snapshot().volume_id(volume).send().await),
        10 => code(ec2.create_volume().availability_zone(zone).snapshot_id(snapshot).send().await),
        11 => code(ec2.delete_snapshot().snapshot_id(snapshot).send().await),
        12 => lab.desire(GROUP, rng.random_range(0..=MOST)).await,
        13 => lab.protect(GROUP, id, yes).await,
        14 => lab.detach_member(GROUP, id, yes).await,
        15 => lab.terminate_member(id, yes).await,
        16 => {
            let attach = lab.cloud.scaling().attach_instances().auto_scaling_group_name(GROUP);
            code(attach.instance_ids(id).send().await)
        }
        17 => {
            let launch = lab.cloud.scaling().launch_instances().auto_scaling_group_name(GROUP);
            let launch = launch.requested_capacity(1).availability_zones(zone);
            code(launch.client_token(format!("{}", rng.random_range(0..9))).send().await)
        }
        18 => {
            let (hook, result) = if yes { ("hello", "CONTINUE") } else { ("bye", "ABANDON") };
            let done = lab.cloud.scaling().complete_lifecycle_action().auto_scaling_group_name(GROUP);
            let done = done.lifecycle_hook_name(hook).lifecycle_action_result(result);
            code(done.instance_id(id).send().await)
        }
        19 => {
            let standby = lab.cloud.scaling().enter_standby().auto_scaling_group_name(GROUP);
            code(standby.instance_ids(id).should_decrement_desired_capacity(yes).send().await)
        }
        20 => {
            let back = lab.cloud.scaling().exit_standby().auto_scaling_group_name(GROUP);
            code(back.instance_ids(id).send().await)
        }
        _ => {
            lab.cloud.act(Act::Unhealthy { instance: id.to_owned() }).await.ok();
            "ok".to_owned()
        }
    })
}

/// What holds at any moment.
fn check(state: &State) -> Result<()> {
    let mut addresses = BTreeSet::new();
    let mut on: BTreeMap<&str, &str> = BTreeMap::new();
    for one in &state.instances {
        if one.state == "terminated" {
            ensure!(one.volumes.is_empty(), "{} is gone and has volumes", one.id);
        } else {
            ensure!(addresses.insert(&one.address), "two instances have {}", one.address);
        }
        ensure!(!one.hibernated || matches!(one.state.as_str(), "stopping" | "stopped"), "{one:?}");
        for volume in &one.volumes {
            let twice = on.insert(&volume.id, &one.id);
            ensure!(twice.is_none(), "{} is on {} and {twice:?}", volume.id, one.id);
        }
    }
    for volume in &state.volumes {
        let attached = on.remove(volume.id.as_str()).is_some();
        ensure!((volume.state == VolumeState::InUse) == attached, "{volume:?}, attached: {attached}");
    }
    ensure!(on.is_empty(), "on instances, and no volumes: {on:?}");
    Ok(())
}

/// What holds once everything has had its time.
async fn check_rest(lab: &Lab) -> Result<()> {
    let state = lab.cloud.state().await?;
    check(&state)?;
    for one in &state.instances {
        ensure!(["running", "stopped", "terminated"].contains(&one.state.as_str()), "{one:?} is not at rest");
        let Some(lifecycle) = one.lifecycle.as_deref() else { continue };
        ensure!(
            ["InService", "Standby", "Terminating:Retained", "Warmed:Stopped"].contains(&lifecycle),
            "{one:?} is not at rest"
        );
        ensure!(lifecycle != "InService" || one.state == "running", "{one:?}");
    }
    for one in &state.snapshots {
        ensure!(one.state == "completed", "{one:?}");
    }
    let count = |wanted: &'static str| {
        state.instances.iter().filter(move |one| one.lifecycle.as_deref() == Some(wanted))
    };
    let (serving, desired) = (count("InService").count(), usize::try_from(lab.desired(GROUP).await?)?);
    ensure!(serving >= desired, "{serving} in service of {desired}");
    let unprotected = count("InService").filter(|one| !one.protected).count();
    ensure!(serving == desired || unprotected == 0, "{serving} in service of {desired}, not all protected");
    let listed = lab.cloud.scaling().describe_auto_scaling_instances().send().await?;
    let members = state.instances.iter().filter(|one| one.lifecycle.is_some()).count();
    ensure!(listed.auto_scaling_instances().len() == members);
    Ok(())
}

#[tokio::test]
async fn a_random_account_is_one_that_could_be() -> Result<()> {
    let seed = match std::env::var("DORMOUSE_SEED") {
        Ok(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16)?,
        Err(_) => rand::random(),
    };
    eprintln!("replay with DORMOUSE_SEED={seed:#x}");
    let mut rng = StdRng::seed_from_u64(seed);
    let lab = Lab::with("cloud-whole", |template| template.hibernation = true).await?;
    let hook = |name: &str, way| {
        let (name, result) = (name.to_owned(), "CONTINUE".to_owned());
        Hook { name, way, timeout_seconds: 60, result }
    };
    let warm = Warm { min: 1, prepared: Some(2), state: WarmPoolState::Stopped, reuse: true };
    lab.group(&Group {
        desired: 2,
        protected: false,
        retain: true,
        hooks: vec![hook("hello", Way::In), hook("bye", Way::Out)],
        warm: Some(warm),
        ..Group::new(GROUP, MOST)
    })
    .await?;
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for number in 1..=STEPS {
        let state = lab.cloud.state().await?;
        check(&state).with_context(|| format!("before step {number}"))?;
        *answers.entry(step(&lab, &mut rng, &state).await?).or_default() += 1;
        if rng.random_bool(0.3) {
            lab.pass(rng.random_range(0.0..40.0)).await?;
        }
        if number % 50 == 0 {
            // Hooks expire, retries come round; no more than an hour, or the terminated ones are forgotten.
            for _ in 0..20 {
                lab.pass(61.0).await?;
            }
            check_rest(&lab).await.with_context(|| format!("after step {number}"))?;
        }
    }
    ensure!(!answers.contains_key("InternalError") && !answers.contains_key("no code"), "{answers:?}");
    ensure!(answers.get("ok").is_some_and(|&count| count > STEPS / 5), "{answers:?}");
    Ok(())
}
