//! Calls that go wrong, on the wire and by the account.

use std::time::Instant;

use super::*;
use crate::testbed::cloud::{Act, Fault};
use crate::testbed::ports::free_port;

fn start() -> Change {
    Change::Start { instance: owned(NOWHERE) }
}

#[tokio::test]
async fn every_refusal_has_the_class_that_its_cause_has() -> Result<()> {
    let lab = Lab::new("aws-classes").await?;
    let cases = [
        (400, "IncorrectInstanceState", ErrorClass::Refused, 1),
        (400, "VcpuLimitExceeded", ErrorClass::Quota, 1),
        (403, "UnauthorizedOperation", ErrorClass::Denied, 1),
        (400, "InvalidParameterValue", ErrorClass::Invalid, 1),
        (500, "InsufficientInstanceCapacity", ErrorClass::NoCapacity, 3),
        (503, "Unavailable", ErrorClass::Retry, 3),
    ];
    for (status, code, class, tries) in cases {
        lab.cloud.fault(Fault::error("ec2", "StartInstances", status, code).always()).await?;
        let since = lab.cloud.calls_so_far().await?;
        let error = lab.refused(&start()).await?;
        ensure!(error.class == class && error.code == code, "{error:?}");
        ensure!(error.attempt == format!("start instance {NOWHERE}"), "{error:?}");
        ensure!(error.message.contains("A fault of the test bed"), "the cloud's own words: {error:?}");
        let calls = lab.calls(since, "StartInstances").await?.len();
        ensure!(calls == tries, "{code} was tried {calls} times");
        lab.cloud.clear_faults().await?;
        let counted = format!("action=\"StartInstances\",outcome=\"{}\"}} 1", class.as_str());
        ensure!(lab.metrics.text()?.contains(&counted), "{counted} is missing in {}", lab.metrics.text()?);
    }
    Ok(())
}

#[tokio::test]
async fn a_throttled_call_is_tried_again_and_makes_the_next_ones_rarer() -> Result<()> {
    let lab = Lab::new("aws-throttled").await?;
    let instance = lab.running().await?;
    // Two refusals are within the tries of one call.
    lab.cloud.fault(Fault::error("ec2", "StopInstances", 503, "RequestLimitExceeded").times(2)).await?;
    let stop = Change::Stop { instance, hibernate: false, force: false };
    lab.twice(&stop).await?;
    ensure!(!lab.aws.is_throttled());
    lab.cloud.fault(Fault::error("ec2", "StopInstances", 503, "RequestLimitExceeded").times(3)).await?;
    let error = lab.refused(&stop).await?;
    ensure!(error.class == ErrorClass::Retry && error.code == "RequestLimitExceeded", "{error:?}");
    ensure!(lab.aws.is_throttled(), "who looks at the account by itself has to know");
    ensure!(lab.metric("dormouse_cloud_throttled_total{service=\"ec2\"} 1")?, "{}", lab.metrics.text()?);
    lab.twice(&stop).await.context("later it goes")
}

#[tokio::test]
async fn credentials_that_end_are_told_without_the_secret_and_work_again_when_mended() -> Result<()> {
    let lab = Lab::with_group("aws-credentials", 1).await?;
    for act in [Act::CredentialsExpire, Act::CredentialsWrong] {
        lab.cloud.act(act.clone()).await?;
        let looked = lab.look().await;
        let error = looked.err().context("the look failed")?.downcast::<CloudError>()?;
        ensure!(error.class == ErrorClass::Denied, "{act:?}: {error:?}");
        let told = format!("{error:?}");
        ensure!(!told.contains("a-secret-that-is-told-nobody"), "{told}");
        let key = Change::PushKey {
            instance: owned(NOWHERE),
            zone: owned(lab.zone()),
            username: owned("ci"),
            key: owned(KEY),
        };
        ensure!(lab.refused(&key).await?.class == ErrorClass::Denied);
        lab.cloud.act(Act::Restore).await?;
        lab.look().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_authorized_is_named() -> Result<()> {
    let lab = Lab::with_group("aws-denied", 1).await?;
    lab.cloud.act(Act::Deny { actions: vec![owned("autoscaling:DescribePolicies")] }).await?;
    let fresh = AwsCloud::new(settings(lab.cloud.endpoint()), Metrics::new()).await?;
    let wanted =
        Wanted { cluster: owned(CLUSTER), groups: BTreeSet::from([owned(GROUP)]), ids: Ids::default() };
    let error = fresh.observe(&wanted).await.err().context("refused")?;
    ensure!(error.class == ErrorClass::Denied && error.to_string().contains("DescribePolicies"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_cloud_that_is_not_there_is_out_of_reach_and_no_verdict() -> Result<()> {
    let aws = AwsCloud::new(settings(&format!("http://127.0.0.1:{}", free_port()?)), Metrics::new()).await?;
    let began = Instant::now();
    let error = aws.change(&start()).await.err().context("refused")?;
    ensure!(error.class == ErrorClass::Retry && error.code == "Unreachable", "{error:?}");
    ensure!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn more_calls_than_the_limit_wait_their_turn() -> Result<()> {
    let lab = Lab::new("aws-limits").await?;
    let mut tight = settings(lab.cloud.endpoint());
    tight.limits.launch = dormouse::provider::aws::limit::Rate { burst: 1.0, per_second: 4.0 };
    let aws = AwsCloud::new(tight, Metrics::new()).await?;
    let began = Instant::now();
    let change = start();
    futures::future::join_all((0..5).map(|_| aws.change(&change))).await;
    ensure!(began.elapsed() >= Duration::from_secs(1), "four waited for a quarter of a second each");
    Ok(())
}
