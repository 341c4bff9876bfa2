//! SIGKILL of the operator at every durable write, one by one: before it, when the other side has done it but the answer
//! was not looked at, and after. The next holder finishes what was begun, once.
//!
//! The operator of a test build dies by itself where `DORMOUSE_CRASH_AT` says. Each scenario lists the points it passes;
//! [`every_point_is_passed_by_a_scenario`] compares the lists with what the binary prints, so that a new write without a
//! scenario is noticed.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::testbed::operator::{self, Operator};
use crate::testbed::stage::{SOON, Stage};
use crate::testbed::wait::until;

#[cfg(feature = "aws")]
mod caches;
pub mod cloud;
mod endings;
mod environments;
mod jobs;
mod leadership;
mod pools;
mod registration;

const MOMENTS: [&str; 3] = ["before", "deed", "after"];
/// From one death to the next in a life that passes several.
const LIFE: Duration = Duration::from_secs(120);

/// One death of an operator: where, and when around the write.
pub struct Death {
    point: &'static str,
    moment: &'static str,
}

impl Death {
    /// A name for what a round makes, of its own.
    pub fn name(&self) -> String {
        format!("{}-{}", self.point, self.moment)
    }

    /// Whether it is this one.
    pub fn is(&self, point: &str, moment: &str) -> bool {
        (self.point, self.moment) == (point, moment)
    }

    /// Replaces the operator by one that will die there.
    pub async fn arm(&self, stage: &Stage) -> Result<()> {
        let operator = stage.operator()?;
        if operator.pid().is_some() {
            operator.kill()?;
        }
        hand_over(stage).await?;
        operator.set_variable("DORMOUSE_CRASH_AT", Some(&format!("{}:{}", self.point, self.moment)));
        operator.launch()
    }

    /// Waits until it has died there, and starts one that lives.
    pub async fn fall(&self, stage: &Stage) -> Result<()> {
        self.fallen(stage, SOON).await?;
        let operator = stage.operator()?;
        operator.set_variable("DORMOUSE_CRASH_AT", None);
        hand_over(stage).await?;
        operator.start_again().await
    }

    /// Waits until it has died there.
    async fn fallen(&self, stage: &Stage, limit: Duration) -> Result<()> {
        let operator = stage.operator()?;
        let status = operator.until_ended(limit).await.context("it never came to that point")?;
        ensure!(status.signal() == Some(9), "it ended otherwise: {status}\n{}", operator.log_tail());
        Ok(())
    }
}

/// The dead holder's Lease is given up in its name: waiting until it runs out is what other tests do.
async fn hand_over(stage: &Stage) -> Result<()> {
    stage.gitlab.client_restarted();
    stage.give_up_lease().await
}

/// Lets a scenario pass each of its points, three times.
pub async fn at_each(
    stage: &Stage,
    points: &[&'static str],
    scenario: impl AsyncFn(&Stage, &Death) -> Result<()>,
) -> Result<()> {
    for death in deaths(points) {
        pass(stage, &death, &scenario).await?;
    }
    Ok(())
}

/// The same, each time on a stage of its own: for what a scenario leaves there.
pub async fn at_each_anew(
    start: impl AsyncFn() -> Result<Stage>,
    points: &[&'static str],
    scenario: impl AsyncFn(&Stage, &Death) -> Result<()>,
) -> Result<()> {
    for death in deaths(points) {
        let stage = start().await?;
        pass(&stage, &death, &scenario).await?;
        stage.end().await?;
    }
    Ok(())
}

fn deaths(points: &[&'static str]) -> impl Iterator<Item = Death> {
    points.iter().flat_map(|point| MOMENTS.map(|moment| Death { point, moment }))
}

async fn pass(
    stage: &Stage,
    death: &Death,
    scenario: &impl AsyncFn(&Stage, &Death) -> Result<()>,
) -> Result<()> {
    let log = || stage.operator().map(Operator::log_tail).unwrap_or_default();
    let passed = scenario(stage, death).await;
    passed
        .with_context(|| format!("killed at {}:{}; the operator said:\n{}", death.point, death.moment, log()))
}

/// Lets one life pass all of these points, which come in this order: each holder dies at the next of them, and the last
/// one lives.
pub async fn in_turn(
    stage: &Stage,
    points: &[&'static str],
    moment: &'static str,
    life: impl Future<Output = Result<()>>,
) -> Result<()> {
    let now = std::cell::Cell::new("");
    let deaths: Vec<Death> = points.iter().map(|point| Death { point, moment }).collect();
    let first = deaths.first().context("no point is named")?;
    first.arm(stage).await?;
    let fall = async {
        for (number, death) in deaths.iter().enumerate() {
            now.set(death.point);
            if number > 0 {
                death.arm(stage).await?;
            }
            death.fallen(stage, LIFE).await?;
        }
        now.set("the end");
        let operator = stage.operator()?;
        operator.set_variable("DORMOUSE_CRASH_AT", None);
        hand_over(stage).await?;
        operator.start_again().await
    };
    let lived = tokio::try_join!(life, fall);
    let log = || stage.operator().map(Operator::log_tail).unwrap_or_default();
    let context = || format!("on the way to {}:{moment}; the operator said:\n{}", now.get(), log());
    lived.map(|_| ()).with_context(context)
}

#[test]
fn every_point_is_passed_by_a_scenario() -> Result<()> {
    let output = Command::new(operator::binary()?).arg("crash-points").output()?;
    ensure!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout)?;
    let printed: BTreeSet<&str> = printed.lines().filter_map(|line| line.split('\t').next()).collect();
    ensure!(printed.len() > 40, "the list is short: {printed:?}");
    let all = [
        caches::POINTS,
        jobs::POINTS,
        endings::POINTS,
        environments::POINTS,
        pools::POINTS,
        registration::POINTS,
        leadership::POINTS,
        cloud::members::POINTS,
        cloud::tiers::POINTS,
        cloud::accidents::POINTS,
        cloud::expiry::POINTS,
    ];
    let passed: BTreeSet<&str> = all.into_iter().flatten().copied().flatten().copied().collect();
    ensure!(
        printed == passed,
        "without a scenario: {:?}; not points any more: {:?}",
        printed.difference(&passed).collect::<Vec<_>>(),
        passed.difference(&printed).collect::<Vec<_>>()
    );
    Ok(())
}

/// Waits until a name stands in no list of a kind.
pub async fn until_gone(stage: &Stage, kind: &str, name: &str) -> Result<()> {
    until(&format!("{kind} {name} is gone"), SOON, async || {
        let all = stage.list(kind).await?;
        Ok(all.iter().all(|known| known["metadata"]["name"] != name).then_some(()))
    })
    .await
}
