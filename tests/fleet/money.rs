//! What a pool costs and what its tiers save, by prices of its own.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::tiers::{ask, leaves_marks, until_tier, with_volumes};
use crate::suspension::{object_of, put_to_sleep, until_gone};
use crate::testbed::stage::{POOL, SOON, Stage};
use crate::testbed::wait::until;
use crate::traces;

/// An hour of an instance is 100 dollars, of its root volume 1, of its workspace volume 0.1, of a snapshot 0.01. The type
/// of the instances is not the one that is assumed of others.
const PRICES: &str = r#"
date: "2026-01-01"
source: a test
currency: USD
instances: { m6i.large: 100.0 }
defaultInstance: 7.0
volumeGiBMonth: { gp3: 73.0 }
defaultVolumeGiBMonth: 5.0
snapshotGiBMonth: 7.3
publicIPv4: 3.0
rootGiB: 10
rootType: gp3
"#;

/// What stands in a pool's status, as dollars an hour: all of it, its environments, saved.
struct Hourly {
    all: &'static str,
    environments: &'static str,
    saved: &'static str,
}

async fn until_costs(stage: &Stage, what: &str, wanted: &Hourly) -> Result<Value> {
    let pool = stage
        .until_object("runnerpool", POOL, &format!("{what} costs {}", wanted.all), |pool| {
            let cost = &pool["status"]["cost"];
            cost["perHour"] == wanted.all
                && cost["environmentsPerHour"] == wanted.environments
                && cost["savedPerHour"] == wanted.saved
        })
        .await?;
    let figure = |amount: &str| -> Result<f64> { Ok(amount.parse()?) };
    for (name, amount) in
        [("dormouse_cost_dollars_per_hour", wanted.all), ("dormouse_saved_dollars_per_hour", wanted.saved)]
    {
        let (line, amount) = (format!("{name}{{runner_name=\"{POOL}\"}} "), figure(amount)?);
        let mut last = String::new();
        until(&format!("{name} is {amount}"), SOON, async || {
            last = stage.operator()?.metrics().await?;
            let shown = last.lines().find_map(|found| found.strip_prefix(&line)?.parse::<f64>().ok());
            Ok(shown.is_some_and(|shown| (shown - amount).abs() < 1e-3).then_some(()))
        })
        .await
        .with_context(|| last)?;
    }
    Ok(pool)
}

fn dollars(used: &Value, field: &str) -> Result<f64> {
    Ok(used[field].as_str().with_context(|| format!("no {field} in {used:#}"))?.parse()?)
}

#[tokio::test]
async fn each_tier_costs_and_saves_what_the_given_prices_say() -> Result<()> {
    // Another one is there all the time, so that what an environment would cost on an instance is known at each tier.
    let pool = json!({ "maxInstances": 2, "policies": [{ "idleCount": 1, "idleTime": "1s" }] });
    let mut stage = Stage::without_operator("money", &with_volumes(pool.clone())).await?;
    let file = stage.folder().join("prices.yaml");
    std::fs::write(&file, PRICES)?;
    stage.apply_pool(with_volumes(pool).pool).await?;
    let operator = stage.new_operator("operator-a").await?;
    operator.set_variable("DORMOUSE_PRICES", Some(&file.display().to_string()));
    operator.start_again().await?;
    stage.operator = Some(operator);

    let (_, key) = put_to_sleep(&stage, leaves_marks("first")).await?;
    let hot = Hourly { all: "202.2000", environments: "101.1000", saved: "0.0000" };
    let seen = until_costs(&stage, "a running instance", &hot).await?;
    ensure!(seen["status"]["cost"]["running"] == 2 && seen["status"]["cost"]["volumeGiB"] == 22, "{seen:#}");
    ensure!(seen["status"]["cost"]["prices"].as_str().is_some_and(|it| it.contains("a test")), "{seen:#}");

    ask(&stage, &key, "Stopped").await?;
    until_tier(&stage, &key, "Stopped").await?;
    let stopped = Hourly { all: "102.2000", environments: "1.1000", saved: "100.0000" };
    until_costs(&stage, "a stopped one", &stopped).await?;

    ask(&stage, &key, "Detached").await?;
    until_tier(&stage, &key, "Detached").await?;
    let detached = Hourly { all: "101.2000", environments: "0.1000", saved: "101.0000" };
    until_costs(&stage, "its volume", &detached).await?;

    ask(&stage, &key, "Snapshotted").await?;
    until_tier(&stage, &key, "Snapshotted").await?;
    let snapshotted = Hourly { all: "101.1100", environments: "0.0100", saved: "101.0900" };
    let seen = until_costs(&stage, "its snapshot", &snapshotted).await?;

    // What has come together: at 100 dollars an hour each second counts.
    let used = &seen["status"]["usage"];
    ensure!(dollars(used, "dollars")? > 0.0 && dollars(used, "savedDollars")? > 0.0, "{used:#}");
    ensure!(dollars(used, "instanceHours")? > 0.0 && dollars(used, "volumeGiBMonths")? > 0.0, "{used:#}");
    let kept = stage.get("suspendedenvironment", &object_of(&key)?).await?;
    ensure!(kept["status"]["costPerHour"] == "0.0100", "{kept:#}");
    let own = &kept["status"]["usage"];
    ensure!(dollars(own, "dollars")? > 0.0 && dollars(own, "savedDollars")? > 0.0, "{own:#}");
    // No more than the pool, which had another one all the time.
    ensure!(dollars(own, "instanceHours")? < dollars(used, "instanceHours")?, "{own:#} {used:#}");

    stage.kubectl(&["delete", "senv", &object_of(&key)?, "--wait=false"]).await?;
    until_gone(&stage, &key).await?;
    let nothing = Hourly { all: "101.1000", environments: "0.0000", saved: "0.0000" };
    until_costs(&stage, "what idles", &nothing).await?;
    traces::end(stage).await
}
