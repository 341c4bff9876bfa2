//! Caches in a bucket: the real operator signs, a real host asks, and the bucket checks what S3 checks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::testbed::bucket::{ACCESS_KEY, Bucket, SECRET_KEY};
use crate::testbed::gitlab::{JobSpec, JobState, JobView};
use crate::testbed::scratch::Scratch;
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::traces::{self, told};

/// A stage whose pool keeps caches in a bucket.
pub struct Scene {
    /// The stage.
    pub stage: Stage,
    /// The bucket.
    pub bucket: Bucket,
    _scratch: Scratch,
}

impl Scene {
    /// A pool whose caches are in a bucket, with these changes.
    pub async fn start(name: &str, changes: Value) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let bucket = Bucket::start(scratch.path()).await?;
        let setting = Setting::default();
        let mut stage = Stage::without_operator(name, &setting).await?;
        keys(&stage, ACCESS_KEY, SECRET_KEY, &[]).await?;
        let mut pool = json!({ "cache": bucket.spec() });
        crate::testbed::stage::merge(&mut pool, changes);
        stage.apply_pool(pool).await?;
        stage.operator = Some(stage.start_operator("operator-a").await?);
        stage.until_condition("runnerpool", POOL, "Ready").await?;
        stage.until_hosts("Ready").await?;
        Ok(Self { stage, bucket, _scratch: scratch })
    }

    /// The requests for objects of jobs.
    async fn asked(&self, method: &str) -> Result<Vec<(String, u16)>> {
        let asked = self.bucket.asked().await?.into_iter();
        let of_jobs = asked.filter(|asked| asked.method == method && asked.path.contains("/project/"));
        Ok(of_jobs.map(|asked| (asked.path, asked.status)).collect())
    }
}

/// The Secret with the keys to the bucket.
pub async fn keys(stage: &Stage, id: &str, secret: &str, more: &[(&str, &str)]) -> Result<()> {
    let mut data = json!({ "AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": secret });
    for (key, value) in more {
        data[key] = json!(value);
    }
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "bucket",
        "namespace": stage.namespace }, "stringData": data });
    stage.apply(&secret).await
}

/// Changes the cache of the pool's spec and waits until the pool says what is wrong; it works all the same.
async fn told_as(scene: &Scene, reason: &str, cache: Value) -> Result<String> {
    let mut spec = scene.bucket.spec();
    crate::testbed::stage::merge(&mut spec, cache);
    scene.stage.apply_pool(json!({ "cache": spec })).await?;
    let message = scene.stage.until_finding("CacheReady", "False", reason).await?;
    scene.stage.until_event(reason).await?;
    scene.stage.until_condition("runnerpool", POOL, "Ready").await?;
    Ok(message)
}

/// A job with one cache of the folder `deps`.
pub fn job(name: &str, cache: Value, script: &[&str]) -> JobSpec {
    let mut entry = json!({ "key": "k", "untracked": false, "policy": "pull-push", "paths": ["deps"],
        "when": "on_success", "fallback_keys": [] });
    crate::testbed::stage::merge(&mut entry, cache);
    JobSpec::new(name)
        .project(77, "group/project")
        .variable("GIT_STRATEGY", "empty")
        .variable("FF_TIMESTAMPS", "false")
        .payload_field("cache", json!([entry]))
        .script(script.iter().copied())
}

fn leaving(name: &str) -> JobSpec {
    job(name, json!({ "policy": "push" }), &["mkdir deps; echo left > deps/x"])
}

#[tokio::test]
async fn a_cache_goes_through_the_bucket_and_no_key_comes_to_the_host() -> Result<()> {
    let scene = Scene::start("cache-bucket", json!({ "cache": { "path": "ci/x" } })).await?;
    let stage = &scene.stage;
    stage.until_condition("runnerpool", POOL, "CacheReady").await?;
    let left = stage.run(leaving("leaves")).await?;
    ensure!(left.state == JobState::Success && left.log_contains("Created cache"), "{}", told(&left));
    let cache = json!({ "key": "branch", "fallback_keys": ["k"] });
    let found =
        stage.run(job("finds", cache, &["cat deps/x", "env; ls -laR ..; echo more > deps/y"])).await?;
    ensure!(found.state == JobState::Success && found.log_contains("\nleft\n"), "{}", told(&found));
    ensure!(found.log_contains("There is no cache under branch"), "{}", told(&found));
    ensure!(found.log_contains("Creating cache branch..."), "{}", told(&found));
    let put = scene.asked("PUT").await?;
    // The prefix and the kind of the token are left out.
    let bare = stage.runner.token.trim_start_matches("glrt-").trim_start_matches("t1_");
    let short: String = bare.chars().take(9).collect();
    let folder = format!("/ci-cache/ci/x/runner/{short}/project/77");
    ensure!(put == [(format!("{folder}/k"), 200), (format!("{folder}/branch"), 200)], "{put:?}");
    for view in [&left, &found] {
        ensure!(!view.log_contains("X-Amz") && !view.log_contains(SECRET_KEY), "{}", told(view));
    }
    let host = stage.hosts.first().context("a host")?;
    for text in [SECRET_KEY, "X-Amz-Signature"] {
        let kept =
            traces::on(host, &format!("grep -rl '{text}' /var/lib/dormouse ~/builds 2>/dev/null | wc -l"))
                .await?;
        ensure!(kept.trim() == "0", "{text} is in {kept} files");
    }
    traces::end(scene.stage).await
}

#[tokio::test]
async fn what_is_wrong_with_the_bucket_is_told_before_a_job_needs_it_and_fails_none() -> Result<()> {
    let scene = Scene::start("cache-wrong", json!({ "cache": { "s3": { "region": "us-west-2" } } })).await?;
    let stage = &scene.stage;
    let message = told_as(&scene, "WrongRegion", json!({ "s3": { "region": "us-west-2" } })).await?;
    ensure!(message.contains("set it to \"eu-central-1\""), "{message}");
    let runs = stage.run(leaving("in another region")).await?;
    ensure!(
        runs.state == JobState::Success && runs.log_contains("WARNING: Failed to create cache k"),
        "{}",
        told(&runs)
    );
    let missing = told_as(&scene, "BucketMissing", json!({ "s3": { "bucket": "no-such" } })).await?;
    ensure!(missing.contains("\"no-such\""), "{missing}");
    let gone =
        told_as(&scene, "SecretMissing", json!({ "s3": { "credentialsSecretRef": { "name": "gone" } } }))
            .await?;
    ensure!(gone.contains("spec.cache.s3.credentialsSecretRef") && gone.contains("\"gone\""), "{gone}");
    let without = stage.run(job("without", json!({}), &["echo ran."])).await?;
    ensure!(
        without.state == JobState::Success && without.log_contains("caches are skipped"),
        "{}",
        told(&without)
    );
    keys(stage, ACCESS_KEY, "another", &[]).await?;
    let refused = told_as(&scene, "CredentialsRefused", json!({})).await?;
    ensure!(refused.contains("SignatureDoesNotMatch") && !refused.contains("another"), "{refused}");
    traces::end(scene.stage).await
}

#[tokio::test]
async fn a_bucket_that_refuses_a_job_or_is_away_fails_none() -> Result<()> {
    let scene = Scene::start("cache-refuses", json!({})).await?;
    let stage = &scene.stage;
    stage.until_condition("runnerpool", POOL, "CacheReady").await?;
    let runs = async |name: &str| -> Result<JobView> {
        let done = stage.run(job(name, json!({}), &["mkdir -p deps; echo left > deps/x; echo ran."])).await?;
        ensure!(done.state == JobState::Success && done.log_contains("\nran.\n"), "{}", told(&done));
        for warning in ["WARNING: Failed to extract cache k: ", "WARNING: Failed to create cache k: "] {
            ensure!(done.log_contains(warning), "{warning:?} is not in {}", told(&done));
        }
        ensure!(!done.log_contains("Created cache"), "{}", told(&done));
        Ok(done)
    };
    // The keys were taken back after the pool had been found good.
    scene.bucket.lab(json!({ "revoked": [ACCESS_KEY] })).await?;
    let refused = runs("refused").await?;
    ensure!(refused.log_contains("the bucket answers 403 InvalidAccessKeyId"), "{}", told(&refused));
    scene.bucket.stop().await?;
    let away = runs("away").await?;
    ensure!(away.log_contains("the connection to 127.0.0.1 failed"), "{}", told(&away));
    traces::end(scene.stage).await
}

#[tokio::test]
async fn a_bucket_in_trouble_is_asked_again_and_a_slow_one_is_not_waited_for_for_ever() -> Result<()> {
    let scene = Scene::start("cache-slow", json!({ "cache": { "requestTimeout": "3s" } })).await?;
    let stage = &scene.stage;
    stage.until_condition("runnerpool", POOL, "CacheReady").await?;
    scene.bucket.fault("PUT", 1, json!({ "answer": 503, "code": "SlowDown" })).await?;
    let left = stage.run(leaving("leaves")).await?;
    ensure!(left.log_contains("503 SlowDown; again in"), "{}", told(&left));
    ensure!(left.state == JobState::Success && left.log_contains("Created cache"), "{}", told(&left));
    // A job may have more patience than its pool.
    scene.bucket.fault("GET", 1, json!({ "delay": 6 })).await?;
    let patient = job("patient", json!({ "policy": "pull" }), &["cat deps/x"]);
    let patient = stage.run(patient.variable("CACHE_REQUEST_TIMEOUT", "1")).await?;
    ensure!(patient.log_contains("Successfully extracted cache"), "{}", told(&patient));
    ensure!(!patient.log_contains("again in"), "{}", told(&patient));
    scene.bucket.fault("GET", 9, json!({ "delay": 20 })).await?;
    let slow = stage.run(job("slow", json!({ "policy": "pull" }), &["echo ran."])).await?;
    ensure!(slow.state == JobState::Success && slow.log_contains("\nran.\n"), "{}", told(&slow));
    ensure!(slow.log_contains("longer than spec.cache.requestTimeout"), "{}", told(&slow));
    traces::end(scene.stage).await
}

#[tokio::test]
async fn keys_that_end_are_followed_by_newer_addresses_while_somebody_is_attached() -> Result<()> {
    let scene = Scene::start("cache-renewed", json!({})).await?;
    let stage = &scene.stage;
    stage.until_condition("runnerpool", POOL, "CacheReady").await?;
    // Keys that end, and then others.
    let end = |seconds: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds)).to_string();
    let first = json!({ "id": "AKIAFIRST", "secret": "s1", "token": "t1" });
    let second = json!({ "id": "AKIASECOND", "secret": "s2", "token": "t2" });
    scene.bucket.lab(json!({ "keys": [first, second] })).await?;
    keys(stage, "AKIAFIRST", "s1", &[("AWS_SESSION_TOKEN", "t1"), ("AWS_CREDENTIAL_EXPIRATION", &end(3600))])
        .await?;
    stage.apply_pool(json!({ "cache": scene.bucket.spec(), "outputLimit": 5001 })).await?;
    scene.bucket.until_asked_with("AKIAFIRST").await?;
    let script =
        ["mkdir deps; echo left > deps/x; echo ready.", "until [ -e /tmp/go-on ]; do sleep 0.2; done"];
    let id = stage.gitlab.enqueue(job("renewed", json!({ "policy": "push" }), &script));
    stage.until_log(id, "ready.").await?;
    keys(
        stage,
        "AKIASECOND",
        "s2",
        &[("AWS_SESSION_TOKEN", "t2"), ("AWS_CREDENTIAL_EXPIRATION", &end(3600))],
    )
    .await?;
    stage.apply_pool(json!({ "cache": scene.bucket.spec(), "outputLimit": 5002 })).await?;
    scene.bucket.until_asked_with("AKIASECOND").await?;
    let host = stage.hosts.first().context("a host")?;
    traces::until_on(host, "ls /var/lib/dormouse/environments/*/jobs/*/cache-urls 2>/dev/null | wc -l", "1")
        .await?;
    traces::until_on(
        host,
        "grep -c AKIASECOND /var/lib/dormouse/environments/*/jobs/*/cache-urls 2>/dev/null | head -1",
        "1",
    )
    .await?;
    scene.bucket.lab(json!({ "revoked": ["AKIAFIRST"] })).await?;
    traces::on(host, "touch /tmp/go-on").await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success && over.log_contains("Created cache"), "{}", told(&over));
    let kept = traces::on(host, "grep -rl X-Amz /var/lib/dormouse 2>/dev/null | wc -l").await?;
    ensure!(kept.trim() == "0", "addresses are left on the host");
    traces::end(scene.stage).await
}

#[tokio::test]
async fn with_nobody_attached_an_expired_upload_is_skipped_with_a_word() -> Result<()> {
    let scene = Scene::start("cache-expired", json!({})).await?;
    let stage = &scene.stage;
    stage.until_condition("runnerpool", POOL, "CacheReady").await?;
    scene.bucket.lab(json!({ "keys": [{ "id": "AKIASHORT", "secret": "s", "token": "t" }] })).await?;
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(40);
    let more = [("AWS_SESSION_TOKEN", "t"), ("AWS_CREDENTIAL_EXPIRATION", &end.to_string()[..])];
    keys(stage, "AKIASHORT", "s", &more).await?;
    stage.apply_pool(json!({ "cache": scene.bucket.spec(), "outputLimit": 5000 })).await?;
    scene.bucket.until_asked_with("AKIASHORT").await?;
    let script = ["mkdir deps; echo left > deps/x; echo ready.", "sleep 45"];
    let id = stage.gitlab.enqueue(job("expired", json!({ "policy": "push" }), &script));
    stage.until_log(id, "ready.").await?;
    let operator = stage.operator()?;
    operator.kill()?;
    stage.gitlab.client_restarted();
    let host = stage.hosts.first().context("a host")?;
    traces::until_on(host, "grep -l Finished /var/lib/dormouse/environments/*/jobs/*/job.json | wc -l", "1")
        .await?;
    operator.start_again().await?;
    let over = stage.gitlab.wait_until_over(id, Duration::from_secs(90)).await?;
    ensure!(over.state == JobState::Success, "{}", told(&over));
    ensure!(over.log_contains("its signed address has expired"), "{}", told(&over));
    traces::end(scene.stage).await
}
