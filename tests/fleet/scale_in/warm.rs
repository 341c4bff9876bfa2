//! Members of the group's warm pool.

use anyhow::{Context, Result, ensure};
use aws_sdk_autoscaling::types::WarmPoolState;
use serde_json::json;

use super::*;
use crate::testbed::cloud::Warm;
use crate::testbed::stage::{CloudSetting, Setting};

fn with_warm_pool(reuse: fn(&mut Warm)) -> Warm {
    let mut warm = Warm { min: 1, prepared: Some(1), state: WarmPoolState::Stopped, reuse: false };
    reuse(&mut warm);
    warm
}

/// Waits until one member rests in the warm pool.
async fn until_warm(cloud: &CloudStage) -> Result<String> {
    until("a member rests in the warm pool", SOON, async || {
        let members = cloud.members().await?;
        Ok(members.into_iter().find(|(_, state)| state == "Warmed:Stopped").map(|(id, _)| id))
    })
    .await
}

#[tokio::test]
async fn a_warm_member_runs_a_job_and_one_that_is_not_needed_is_let_go_at_once() -> Result<()> {
    let setting =
        CloudSetting { group: |group| group.warm = Some(with_warm_pool(|_| {})), ..CloudSetting::default() };
    let stage = Stage::start("warm", Setting::cloud(quick(json!({}))).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let warm = until_warm(cloud).await?;
    let (id, instance) = busy(&stage, "busy").await?;
    ensure!(instance == warm, "{instance} was launched although {warm} was there");
    // Another takes its place; it goes when the pool is made smaller.
    let spare = until_warm(cloud).await?;
    let shrink = cloud.cloud.scaling().put_warm_pool().auto_scaling_group_name(GROUP).min_size(0);
    shrink.max_group_prepared_capacity(0).pool_state(WarmPoolState::Stopped).send().await?;
    ensure!(completion(cloud, &spare).await?.1 == "CONTINUE");
    cloud.machines.gone(&spare).await?;
    let beats = calls_of(cloud, "RecordLifecycleActionHeartbeat", &spare).await?;
    ensure!(beats.is_empty(), "nobody needs it: {beats:#?}");
    ends_well(&stage, id, &instance).await?;
    traces::end(stage).await
}

#[tokio::test]
async fn a_member_that_returns_to_the_warm_pool_runs_jobs_again() -> Result<()> {
    let setting = CloudSetting {
        group: |group| {
            group.protected = false;
            group.warm =
                Some(with_warm_pool(|warm| (warm.min, warm.prepared, warm.reuse) = (0, Some(1), true)));
        },
        ..CloudSetting::default()
    };
    let pool = json!({ "policies": [{ "idleTime": "1h" }] });
    let stage = Stage::start("reuse", Setting::cloud(pool).in_cloud(setting)).await?;
    let cloud = stage.cloud()?;
    let (id, instance) = busy(&stage, "busy").await?;
    ends_well(&stage, id, &instance).await?;
    stage.lease_over(id).await?;
    // The group takes an idle member, which the operator has protected: somebody must have done this by hand.
    stage.operator()?.kill()?;
    stage.gitlab.client_restarted();
    let release = cloud.cloud.scaling().set_instance_protection().auto_scaling_group_name(GROUP);
    release.instance_ids(&instance).protected_from_scale_in(false).send().await?;
    let lower = cloud.cloud.scaling().set_desired_capacity().auto_scaling_group_name(GROUP);
    lower.desired_capacity(0).send().await?;
    until_lifecycle(cloud, &instance, "Terminating:Wait").await?;
    stage.give_up_lease().await?;
    stage.operator()?.start_again().await?;
    ensure!(completion(cloud, &instance).await.with_context(|| stage.operator_log())?.1 == "CONTINUE");
    until_lifecycle(cloud, &instance, "Warmed:Stopped").await?;
    let (id, again) = busy(&stage, "again").await?;
    ensure!(again == instance, "{again} was launched although {instance} was there");
    ends_well(&stage, id, &again).await?;
    traces::end(stage).await
}
