//! The GitLab stand-in itself, driven by a plain HTTP client that knows the protocol by heart.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::testbed::gitlab::{
    Action, Commit, Fault, GitLab, GitRepo, HoldEnd, JobId, JobSpec, JobState, KeySpelling, Options,
    Restarts, Routing, Runner, Target,
};

/// Long enough that only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(20);
const SYSTEM_ID: &str = "s_0123456789ab";

/// A stand-in and a client that makes correct calls, for tests to spoil.
struct Bed {
    gitlab: GitLab,
    runner: Runner,
    http: reqwest::Client,
    system_id: String,
}

/// A job as the client got it.
struct Assigned {
    id: JobId,
    token: String,
    payload: Value,
}

async fn bed() -> Bed {
    bed_with(Options { commit: Commit::Legacy, ..Options::default() }).await
}

async fn bed_with(options: Options) -> Bed {
    let gitlab = GitLab::start(options).await.unwrap();
    let runner = gitlab.register_runner(&["linux"]);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    Bed { gitlab, runner, http, system_id: SYSTEM_ID.to_owned() }
}

fn info() -> Value {
    json!({
        "name": "dormouse",
        "version": "0.1.0",
        "revision": "abcdef12",
        "platform": "linux",
        "architecture": "amd64",
        "executor": "instance",
        "shell": "bash",
        "features": {
            "variables": true, "refspecs": true, "masking": true, "raw_variables": true,
            "return_exit_code": true, "trace_checksum": true, "trace_size": true, "cancelable": true,
            "cancel_gracefully": true, "two_phase_job_commit": true,
        },
        "config": {},
    })
}

fn merged(mut base: Value, extra: Value) -> Value {
    for (key, value) in extra.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

fn output(log: &[u8]) -> Value {
    json!({ "checksum": format!("crc32:{:08x}", crc32fast::hash(log)), "bytesize": log.len() })
}

impl Bed {
    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}/api/v4/{path}", self.gitlab.url()))
            .header("x-request-id", "0123456789abcdef0123456789abcdef")
            .header("user-agent", "dormouse 0.1.0 (main; rustc; linux/amd64)")
            .header("accept", "application/json")
    }

    fn runner_body(&self) -> Value {
        json!({ "token": self.runner.token, "system_id": self.system_id, "info": info() })
    }

    fn runner_call(&self, method: Method, path: &str, body: &Value) -> RequestBuilder {
        self.call(method, path).header("runner-token", &self.runner.token).json(body)
    }

    async fn verify(&self) -> Response {
        self.runner_call(Method::POST, "runners/verify", &self.runner_body()).send().await.unwrap()
    }

    async fn ask(&self, last_update: &str) -> Response {
        let body = merged(self.runner_body(), json!({ "last_update": last_update }));
        self.runner_call(Method::POST, "jobs/request", &body).send().await.unwrap()
    }

    async fn take(&self) -> Assigned {
        let answer = self.ask("").await;
        assert_eq!(answer.status(), 201);
        let payload: Value = answer.json().await.unwrap();
        Assigned {
            id: JobId(payload["id"].as_u64().unwrap()),
            token: payload["token"].as_str().unwrap().to_owned(),
            payload,
        }
    }

    /// Queues a job and takes it.
    async fn run(&self, spec: JobSpec) -> Assigned {
        self.gitlab.enqueue(spec);
        self.take().await
    }

    fn put_call(&self, job: &Assigned, body: Value) -> RequestBuilder {
        let body = merged(json!({ "token": job.token, "info": info() }), body);
        self.call(Method::PUT, &format!("jobs/{}", job.id)).header("job-token", &job.token).json(&body)
    }

    async fn put(&self, job: &Assigned, body: Value) -> Response {
        self.put_call(job, body).send().await.unwrap()
    }

    fn patch_call(&self, job: &Assigned, first: usize, log: &[u8]) -> RequestBuilder {
        self.call(Method::PATCH, &format!("jobs/{}/trace?debug_trace=false", job.id))
            .header("job-token", &job.token)
            .header("content-type", "text/plain")
            .header("content-range", format!("{first}-{}", (first + log.len()).saturating_sub(1)))
            .body(log.to_vec())
    }

    async fn patch(&self, job: &Assigned, first: usize, log: &[u8]) -> Response {
        self.patch_call(job, first, log).send().await.unwrap()
    }

    /// The names of the rules that were broken since the last look.
    fn broken(&self) -> Vec<&'static str> {
        self.gitlab.take_violations().iter().map(|violation| violation.rule).collect()
    }

    fn key(&self) -> String {
        format!("{}/{SYSTEM_ID}/acquisition-key=abcdefghij", self.runner.id)
    }
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_correct_runner_leaves_no_violation() {
    let bed = bed_with(Options::default()).await;
    let verified: Value = bed.verify().await.json().await.unwrap();
    assert_eq!(verified["id"], bed.runner.id.0);
    let nothing = bed.ask("").await;
    assert_eq!(nothing.status(), 204);
    let value = header(&nothing, "x-gitlab-last-update").to_owned();
    bed.gitlab.enqueue(JobSpec::new("build").script(["echo hi"]));
    let answer = bed.ask(&value).await;
    assert_eq!(answer.status(), 201);
    assert_eq!(header(&answer, "x-request-id"), "0123456789abcdef0123456789abcdef");
    let payload: Value = answer.json().await.unwrap();
    let job = Assigned {
        id: JobId(payload["id"].as_u64().unwrap()),
        token: payload["token"].as_str().unwrap().to_owned(),
        payload,
    };
    assert_eq!(bed.put(&job, json!({ "state": "pending" })).await.status(), 200);
    let running = bed.put(&job, json!({ "state": "running" })).await;
    assert_eq!((running.status(), header(&running, "job-status")), (StatusCode::OK, "running"));
    assert_eq!(header(&running, "x-gitlab-trace-update-interval"), "1");
    let first = bed.patch(&job, 0, b"hello ").await;
    assert_eq!((first.status(), header(&first, "range")), (StatusCode::ACCEPTED, "0-6"));
    let touch = json!({ "state": "running", "output": output(b"hello ") });
    assert_eq!(bed.put(&job, touch).await.status(), 200);
    assert_eq!(header(&bed.patch(&job, 6, b"dormouse\n").await, "range"), "0-15");
    let end = json!({
        "state": "failed", "failure_reason": "script_failure", "exit_code": 3,
        "output": output(b"hello dormouse\n"),
    });
    assert_eq!(bed.put(&job, end).await.status(), 200);
    let seen = bed.gitlab.wait_until_over(job.id, DEADLINE).await.unwrap();
    assert_eq!((seen.state, seen.exit_code), (JobState::Failed, Some(3)));
    assert_eq!(seen.failure_reason.as_deref(), Some("script_failure"));
    assert_eq!(seen.log_text(), "hello dormouse\n");
    assert_eq!(seen.machine.as_deref(), Some(SYSTEM_ID));
    assert!(seen.arrived_at("dormouse") > seen.first_byte_at);
    assert_eq!((seen.puts.len(), seen.patches.len()), (4, 2));
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_payload_is_shaped_as_a_server_shapes_it() {
    let bed = bed().await;
    let spec = JobSpec::new("deploy")
        .script(["true"])
        .after_script(["echo bye"])
        .masked_variable("SECRET", "s3cr3t")
        .file_variable("KUBECONFIG", "text")
        .suspendable()
        .suspend_on_failure()
        .environment_key("9/other/acquisition-key=x")
        .timeout(Duration::from_secs(60))
        .project(42, "a/b/c")
        .protected(true);
    let job = bed.run(spec).await;
    let p = &job.payload;
    assert_eq!(p["runner_info"]["timeout"], 60);
    assert_eq!(p["job_info"]["project_id"], 42);
    assert_eq!(p["job_info"]["project_full_path"], "a/b/c");
    assert_eq!(p["git_info"]["protected"], true);
    assert_eq!(p["steps"][1]["name"], "after_script");
    assert_eq!(p["image"], Value::Null);
    assert_eq!(
        p["suspend_options"],
        json!({
            "suspend_on_success": false, "suspend_on_failure": true,
            "runtime_environment_key": "9/other/acquisition-key=x",
        })
    );
    let variables = p["variables"].as_array().unwrap();
    let variable = |key: &str| variables.iter().find(|variable| variable["key"] == key).unwrap();
    assert_eq!(variable("CI_JOB_TOKEN")["value"], job.token.as_str());
    assert_eq!(variable("CI_JOB_TOKEN")["masked"], true);
    assert_eq!(variable("CI_PROJECT_PATH")["value"], "a/b/c");
    assert_eq!(variable("KUBECONFIG")["file"], true);
    assert_eq!(variable("FF_SUSPENDABLE_ENVIRONMENTS")["value"], "true");
    assert_eq!(variable("GIT_STRATEGY")["value"], "none");
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn an_old_server_spells_the_key_its_way() {
    let bed = bed().await;
    let spec = JobSpec::new("resume").environment_key("1/x/y=z").key_spelling(KeySpelling::Old);
    let options = bed.run(spec).await.payload["suspend_options"].clone();
    assert_eq!(options["environment_key"], "1/x/y=z");
    assert!(options.get("runtime_environment_key").is_none());
}

#[tokio::test]
async fn a_payload_can_be_spoiled_in_any_way() {
    let bed = bed().await;
    bed.gitlab.enqueue(JobSpec::new("broken").raw_payload(r#"{"id": @ID@, "token": ["#));
    assert_eq!(bed.ask("").await.text().await.unwrap(), r#"{"id": 1, "token": ["#);
    let spec = JobSpec::new("odd").payload_field("surprise", json!([1])).edit_payload(|payload| {
        payload["variables"] = Value::Null;
    });
    let payload = bed.run(spec).await.payload;
    assert_eq!((&payload["surprise"], &payload["variables"]), (&json!([1]), &Value::Null));
}

#[tokio::test]
async fn a_wrong_runner_token_is_refused_without_blame_but_polling_with_it_is_a_violation() {
    let mut bed = bed().await;
    bed.runner.token = "glrt-wrong".to_owned();
    assert_eq!(bed.verify().await.status(), 403);
    assert_eq!(bed.broken(), [""; 0]);
    assert_eq!(bed.ask("").await.status(), 403);
    assert_eq!(bed.broken(), ["token_verified_first"]);
}

#[tokio::test]
async fn every_header_of_every_call_is_judged() {
    let bed = bed().await;
    let url = format!("{}/api/v4/runners/verify", bed.gitlab.url());
    bed.http.post(url).header("accept", "*/*").body(bed.runner_body().to_string()).send().await.unwrap();
    assert_eq!(
        bed.broken(),
        ["request_id", "user_agent", "json_content_type", "accepts_json", "runner_token_header"]
    );
    bed.call(Method::POST, "jobs/1/unknown").send().await.unwrap();
    assert_eq!(bed.broken(), ["known_call"]);
}

#[tokio::test]
async fn the_body_of_a_runner_call_is_judged() {
    let bed = bed().await;
    let missing_shell = merged(info(), json!({ "shell": "" }));
    let odd_feature = merged(info(), json!({ "features": { "telepathy": true } }));
    let cases = [
        (json!({ "surprise": 1 }), vec!["runner_fields"]),
        (json!({ "token": "" }), vec!["runner_token_in_body", "runner_token_header"]),
        (json!({ "system_id": "s_short" }), vec!["system_id"]),
        (json!({ "system_id": "x_0123456789ab" }), vec!["system_id"]),
        (json!({ "info": null }), vec!["info", "features"]),
        (json!({ "info": missing_shell }), vec!["info"]),
        (json!({ "info": odd_feature }), vec!["features"]),
    ];
    for (spoiled, rules) in cases {
        let body = merged(bed.runner_body(), spoiled.clone());
        bed.runner_call(Method::POST, "runners/verify", &body).send().await.unwrap();
        assert_eq!(bed.broken(), rules, "{spoiled}");
    }
    let garbage = bed.call(Method::POST, "runners/verify").header("content-type", "application/json");
    assert_eq!(garbage.body("{").send().await.unwrap().status(), 400);
    assert_eq!(bed.broken(), ["json_body"]);
}

#[tokio::test]
async fn asking_for_jobs_without_the_features_every_job_needs_is_a_violation() {
    let bed = bed().await;
    let features = merged(info()["features"].clone(), json!({ "trace_checksum": false }));
    let info = merged(info(), json!({ "features": features }));
    let body = merged(bed.runner_body(), json!({ "info": info, "last_update": "" }));
    bed.runner_call(Method::POST, "jobs/request", &body).send().await.unwrap();
    assert_eq!(bed.broken(), ["required_features"]);
}

#[tokio::test]
async fn a_job_that_needs_more_than_the_runner_can_fails_on_the_server() {
    let bed = bed().await;
    let id = bed.gitlab.enqueue(JobSpec::new("reports").needs_feature("upload_multiple_artifacts"));
    assert_eq!(bed.ask("").await.status(), 204);
    let job = bed.gitlab.job(id).unwrap();
    assert_eq!(job.failure_reason.as_deref(), Some("runner_unsupported"));
}

#[tokio::test]
async fn a_job_goes_only_to_a_runner_with_its_tags() {
    let bed = bed().await;
    bed.gitlab.enqueue(JobSpec::new("mac").tag("macos"));
    bed.gitlab.enqueue(JobSpec::new("linux").tag("linux"));
    assert_eq!(bed.take().await.payload["job_info"]["name"], "linux");
    assert_eq!(bed.ask("").await.status(), 204);
}

#[tokio::test]
async fn last_update_has_to_be_echoed() {
    let bed = bed().await;
    let value = header(&bed.ask("").await, "x-gitlab-last-update").to_owned();
    bed.ask("").await;
    assert_eq!(bed.broken(), ["last_update_echoed"]);
    bed.ask("made up").await;
    assert_eq!(bed.broken(), ["last_update_echoed"]);
    bed.ask(&value).await;
    bed.gitlab.client_restarted();
    bed.ask("").await;
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_client_that_was_announced_as_gone_and_goes_on_echoes_what_it_knows() {
    let mut bed = bed().await;
    let value = header(&bed.ask("").await, "x-gitlab-last-update").to_owned();
    bed.gitlab.client_restarted();
    let another_process = reqwest::Client::builder().no_proxy().build().unwrap();
    let first = std::mem::replace(&mut bed.http, another_process);
    bed.ask("").await;
    bed.gitlab.assert_clean();
    // The first one opens a connection as new as that.
    drop(first);
    bed.http = reqwest::Client::builder().no_proxy().build().unwrap();
    bed.ask(&value).await;
    bed.gitlab.assert_clean();
    bed.ask("made up").await;
    assert_eq!(bed.broken(), ["last_update_echoed"]);
}

#[tokio::test]
async fn a_held_request_ends_with_the_job_that_appears() {
    let options = Options { hold: DEADLINE * 3, commit: Commit::Legacy, ..Options::default() };
    let bed = bed_with(options).await;
    let value = header(&bed.ask("").await, "x-gitlab-last-update").to_owned();
    let at = Instant::now();
    let enqueue = async {
        bed.gitlab.wait_until_polled(DEADLINE).await.unwrap();
        bed.gitlab.enqueue(JobSpec::new("late"))
    };
    let (answer, _) = tokio::join!(bed.ask(&value), enqueue);
    assert_eq!(answer.status(), 201);
    assert!(at.elapsed() < DEADLINE);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_hold_ends_by_itself() {
    let hold = Duration::from_millis(200);
    let bed = bed_with(Options { hold, ..Options::default() }).await;
    let value = header(&bed.ask("").await, "x-gitlab-last-update").to_owned();
    let at = Instant::now();
    let answer = bed.ask(&value).await;
    assert_eq!((answer.status(), header(&answer, "x-gitlab-last-update")), (StatusCode::NO_CONTENT, &*value));
    assert!(at.elapsed() >= hold);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_front_proxy_may_end_a_hold_with_nothing_when_a_job_appears() {
    let options = Options { hold: DEADLINE * 3, hold_end: HoldEnd::NoContent, ..Options::default() };
    let bed = bed_with(options).await;
    let value = header(&bed.ask("").await, "x-gitlab-last-update").to_owned();
    let enqueue = async {
        bed.gitlab.wait_until_polled(DEADLINE).await.unwrap();
        bed.gitlab.enqueue(JobSpec::new("late"));
    };
    let (answer, ()) = tokio::join!(bed.ask(&value), enqueue);
    assert_eq!((answer.status(), header(&answer, "x-gitlab-last-update")), (StatusCode::NO_CONTENT, ""));
    assert_eq!(bed.ask(&value).await.status(), 201);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn under_two_phase_commit_a_job_waits_for_running() {
    let bed = bed_with(Options::default()).await;
    let job = bed.run(JobSpec::new("build")).await;
    assert_eq!(bed.gitlab.job(job.id).unwrap().state, JobState::Acknowledging);
    assert_eq!(bed.patch(&job, 0, b"early").await.status(), 403);
    assert_eq!(bed.broken(), ["trace_before_running"]);
    let failed = json!({ "state": "failed", "failure_reason": "runner_system_failure" });
    assert_eq!(bed.put(&job, failed).await.status(), 400);
    assert_eq!(bed.broken(), ["running_before_the_end"]);
    bed.gitlab.take_elsewhere(job.id);
    assert_eq!(bed.put(&job, json!({ "state": "pending" })).await.status(), 409);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_job_nobody_acknowledges_is_dropped_and_queued_again() {
    let acknowledge_within = Duration::from_millis(300);
    let bed = bed_with(Options { acknowledge_within, ..Options::default() }).await;
    let job = bed.run(JobSpec::new("build")).await;
    let dropped = bed.gitlab.wait_until_over(job.id, DEADLINE).await.unwrap();
    assert_eq!(dropped.failure_reason.as_deref(), Some("runner_provisioning_timeout"));
    let again = bed.gitlab.wait_for(job.id, |job| job.retried_as.is_some(), DEADLINE).await.unwrap();
    let late = bed.put(&job, json!({ "state": "running" })).await;
    assert_eq!((late.status(), header(&late, "job-status")), (StatusCode::FORBIDDEN, "failed"));
    assert_eq!(bed.take().await.id, again.retried_as.unwrap());
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn pending_keeps_the_lease_alive() {
    let acknowledge_within = Duration::from_millis(900);
    let bed = bed_with(Options { acknowledge_within, ..Options::default() }).await;
    let job = bed.run(JobSpec::new("build")).await;
    let at = Instant::now();
    while at.elapsed() < acknowledge_within * 2 {
        assert_eq!(bed.put(&job, json!({ "state": "pending" })).await.status(), 200);
    }
    assert_eq!(bed.put(&job, json!({ "state": "running" })).await.status(), 200);
    assert_eq!(bed.put(&job, json!({ "state": "pending" })).await.status(), 400);
    assert_eq!(bed.broken(), ["pending_after_running"]);
}

#[tokio::test]
async fn a_legacy_server_starts_the_job_at_once_and_refuses_pending() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    assert_eq!(bed.gitlab.job(job.id).unwrap().state, JobState::Running);
    assert_eq!(bed.put(&job, json!({ "state": "pending" })).await.status(), 400);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_log_that_may_show_secrets_has_to_be_told_as_one() {
    let bed = bed().await;
    for (key, value, is_debugged) in [
        ("CI_DEBUG_TRACE", "true", true),
        ("CI_DEBUG_TRACE", "1", true),
        ("CI_DEBUG_SERVICES", "Yes", true),
        ("CI_DEBUG_TRACE", "$WANTED", true),
        ("CI_DEBUG_TRACE", "${WANTED}", true),
        ("CI_DEBUG_TRACE", "$MISSING", false),
        ("CI_DEBUG_TRACE", "false", false),
    ] {
        let job = bed.run(JobSpec::new("build").variable(key, value).variable("WANTED", "on")).await;
        bed.put(&job, json!({ "state": "running" })).await;
        bed.patch(&job, 0, b"abc").await;
        let expected: &[&str] = if is_debugged { &["trace_debug_parameter"] } else { &[] };
        assert_eq!(bed.broken(), expected, "{key}={value}");
    }
}

#[tokio::test]
async fn a_chunk_is_judged_by_itself() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    let url = format!("jobs/{}/trace", job.id);
    let patch = |range: &str, body: Vec<u8>| {
        bed.call(Method::PATCH, &format!("{url}?debug_trace=false"))
            .header("job-token", &job.token)
            .header("content-type", "text/plain")
            .header("content-range", range)
            .body(body)
    };
    let bare = bed.call(Method::PATCH, &url).body("abc").send().await.unwrap();
    assert_eq!(bare.status(), 403);
    assert_eq!(
        bed.broken(),
        ["trace_token_header", "trace_content_type", "trace_range_form", "trace_debug_parameter"]
    );
    for garbled in ["bytes 0-2/3", "0", "-", "0-", "a-b", "+0-2"] {
        assert_eq!(patch(garbled, b"abc".to_vec()).send().await.unwrap().status(), 400, "{garbled}");
        assert_eq!(bed.broken(), ["trace_range_form"], "{garbled}");
    }
    patch("0-9", b"abc".to_vec()).send().await.unwrap();
    assert_eq!(bed.broken(), ["trace_range_length"]);
    patch("3-2", Vec::new()).send().await.unwrap();
    assert_eq!(bed.broken(), ["trace_not_empty"]);
    let long = vec![b'x'; (1 << 20) + 1];
    patch(&format!("3-{}", 3 + (1 << 20)), long).send().await.unwrap();
    assert_eq!(bed.broken(), ["trace_not_too_long"]);
}

#[tokio::test]
async fn a_wrong_offset_is_told_the_right_one_and_is_a_violation_without_an_excuse() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    bed.patch(&job, 0, b"0123456789").await;
    let gap = bed.patch(&job, 12, b"xx").await;
    assert_eq!((gap.status(), header(&gap, "range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-10"));
    let overlap = bed.patch(&job, 4, b"xx").await;
    assert_eq!((overlap.status(), header(&overlap, "range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-10"));
    assert_eq!(bed.broken(), ["trace_offset", "trace_offset"]);
    bed.gitlab.client_restarted();
    assert_eq!(bed.patch(&job, 0, b"01").await.status(), 416);
    bed.gitlab.assert_clean();
    bed.patch(&job, 0, b"01").await;
    assert_eq!(bed.broken(), ["trace_offset"]);
    assert_eq!(bed.gitlab.job(job.id).unwrap().log_text(), "0123456789");
}

#[tokio::test]
async fn where_restarts_are_not_told_a_new_connection_excuses() {
    let restarts = Restarts::OnNewConnection;
    let mut bed = bed_with(Options { restarts, commit: Commit::Legacy, ..Options::default() }).await;
    let job = bed.run(JobSpec::new("build")).await;
    bed.patch(&job, 0, b"0123456789").await;
    bed.http = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(bed.patch(&job, 0, b"01").await.status(), 416);
    bed.gitlab.assert_clean();
    bed.patch(&job, 0, b"01").await;
    assert_eq!(bed.broken(), ["trace_offset"]);
}

#[tokio::test]
async fn the_repetition_of_the_last_chunk_is_accepted_and_stored_once() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    bed.gitlab.inject(Fault::on(Target::Trace, Action::CutAfterHandling).once());
    assert!(bed.patch_call(&job, 0, b"once").send().await.is_err());
    let again = bed.patch(&job, 0, b"once").await;
    assert_eq!((again.status(), header(&again, "range")), (StatusCode::ACCEPTED, "0-4"));
    assert_eq!(bed.gitlab.job(job.id).unwrap().log_text(), "once");
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_log_beyond_the_limit_ends_the_job() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("chatty").log_limit(4)).await;
    assert_eq!(bed.patch(&job, 0, b"12345").await.status(), 403);
    let ended = bed.gitlab.job(job.id).unwrap();
    assert_eq!(ended.failure_reason.as_deref(), Some("trace_size_exceeded"));
    assert_eq!(bed.patch(&job, 0, b"12345").await.status(), 403);
    assert_eq!(bed.broken(), ["trace_after_abort"]);
}

#[tokio::test]
async fn an_update_is_judged_by_itself() {
    let bed = bed().await;
    let spec = JobSpec::new("build").failure_reasons(["script_failure"]);
    let job = bed.run(spec).await;
    bed.patch(&job, 0, b"hello").await;
    let cases = [
        (json!({ "surprise": 1 }), vec!["update_fields"]),
        (json!({ "output": { "checksum": "crc32:3610a686", "bytesize": 5, "x": 1 } }), vec!["update_fields"]),
        (json!({ "info": null }), vec!["update_info"]),
        (json!({ "failure_reason": "script_failure" }), vec!["failure_reason_only_with_failed"]),
        (json!({ "exit_code": 1 }), vec!["exit_code_only_with_failed"]),
        (json!({ "exit_code": 0 }), vec!["exit_code_only_with_failed", "exit_code_not_zero"]),
        (json!({ "output": { "checksum": "3610a686", "bytesize": 9 } }), vec!["output_form"]),
        (json!({ "output": { "checksum": "crc32:3610a686", "bytesize": -5 } }), vec!["output_form"]),
        (json!({ "output": { "bytesize": 5 } }), vec!["output_form"]),
        (json!({ "output": { "checksum": "crc32:3610a686" } }), vec!["checksum_of_what_is_stored"]),
        (json!({ "output": { "checksum": "crc32:00000000" } }), vec![]),
        (json!({ "output": {} }), vec![]),
        (json!({ "output": output(b"HELLO") }), vec!["checksum_of_what_is_stored"]),
        (json!({ "checksum": "crc32:0", "output": output(b"hello") }), vec!["deprecated_checksum_agrees"]),
    ];
    for (spoiled, rules) in cases {
        bed.put(&job, merged(json!({ "state": "running" }), spoiled.clone())).await;
        assert_eq!(bed.broken(), rules, "{spoiled}");
    }
    assert_eq!(bed.put(&job, json!({ "state": "asleep" })).await.status(), 400);
    assert_eq!(bed.broken(), ["update_state_known"]);
    let job_2 = Assigned { id: job.id, token: "glcbt-64_wrong".to_owned(), payload: Value::Null };
    assert_eq!(bed.put(&job_2, json!({ "state": "running" })).await.status(), 403);
    assert_eq!(bed.broken(), ["job_token"]);
    let unlisted = json!({ "state": "failed", "failure_reason": "image_pull_failure" });
    bed.put(&job, unlisted).await;
    assert_eq!(bed.broken(), ["failure_reason_listed"]);
}

#[tokio::test]
async fn a_final_update_that_claims_another_log_than_is_stored_is_a_violation() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    bed.patch(&job, 0, b"hello").await;
    let answer = bed.put(&job, json!({ "state": "success", "output": output(b"hello, more") })).await;
    assert_eq!(answer.status(), 200, "a server accepts it all the same");
    assert_eq!(bed.broken(), ["final_output_is_what_is_stored"]);
}

#[tokio::test]
async fn nothing_may_follow_an_accepted_end() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    let end = json!({ "state": "success" });
    assert_eq!(bed.put(&job, end.clone()).await.status(), 200);
    let again = bed.put(&job, end.clone()).await;
    assert_eq!((again.status(), header(&again, "job-status")), (StatusCode::FORBIDDEN, "success"));
    bed.put(&job, json!({ "state": "running" })).await;
    bed.patch(&job, 0, b"more").await;
    assert_eq!(bed.broken(), ["final_update_once", "running_after_final", "trace_after_final"]);
    bed.gitlab.expect_redelivery(job.id);
    bed.put(&job, end).await;
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn an_end_whose_answer_was_lost_may_be_told_again() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    let fault = bed.gitlab.inject(Fault::on(Target::FinalUpdate, Action::CutAfterHandling).once());
    assert!(bed.put_call(&job, json!({ "state": "success" })).send().await.is_err());
    assert_eq!(bed.gitlab.fault_hits(fault), 1);
    assert_eq!(bed.gitlab.job(job.id).unwrap().state, JobState::Success);
    assert_eq!(bed.put(&job, json!({ "state": "success" })).await.status(), 403);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn while_chunks_are_stored_an_end_is_only_noted() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build").chunks_pending(2)).await;
    bed.patch(&job, 0, b"hello").await;
    let end = json!({ "state": "success", "output": output(b"hello") });
    assert_eq!(bed.put(&job, end.clone()).await.status(), 202);
    assert_eq!(bed.put(&job, end.clone()).await.status(), 202);
    assert_eq!(bed.gitlab.job(job.id).unwrap().state, JobState::Running);
    assert_eq!(bed.put(&job, end).await.status(), 200);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn an_end_that_changes_while_it_is_noted_is_a_violation() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build").chunks_pending(1)).await;
    bed.put(&job, json!({ "state": "success", "output": output(b"") })).await;
    bed.put(&job, json!({ "state": "failed", "failure_reason": "script_failure", "output": output(b"") }))
        .await;
    assert_eq!(bed.broken(), ["final_update_kept"]);
}

#[tokio::test]
async fn a_server_that_lost_the_log_gets_it_again_from_the_start() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build").log_resets(1)).await;
    bed.patch(&job, 0, b"hello").await;
    let end = json!({ "state": "success", "output": output(b"hello") });
    assert_eq!(bed.put(&job, end.clone()).await.status(), 412);
    assert_eq!(bed.patch(&job, 0, b"hello").await.status(), 202);
    assert_eq!(bed.put(&job, end).await.status(), 200);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_cancel_is_graceful_where_the_runner_can() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("long")).await;
    assert_eq!(bed.gitlab.cancel(job.id), Some(JobState::Canceling));
    let chunk = bed.patch(&job, 0, b"bye").await;
    assert_eq!((chunk.status(), header(&chunk, "job-status")), (StatusCode::ACCEPTED, "canceling"));
    let end = json!({ "state": "failed", "failure_reason": "job_canceled", "output": output(b"bye") });
    assert_eq!(bed.put(&job, end).await.status(), 200);
    assert_eq!(bed.gitlab.job(job.id).unwrap().state, JobState::Canceled);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn after_a_hard_cancel_each_call_is_refused_and_forgiven_once() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("long")).await;
    assert_eq!(bed.gitlab.cancel_hard(job.id), Some(JobState::Canceled));
    let refused = bed.put(&job, json!({ "state": "running" })).await;
    assert_eq!((refused.status(), header(&refused, "job-status")), (StatusCode::FORBIDDEN, "canceled"));
    assert_eq!(bed.patch(&job, 0, b"x").await.status(), 403);
    bed.gitlab.assert_clean();
    bed.put(&job, json!({ "state": "running" })).await;
    bed.patch(&job, 0, b"x").await;
    assert_eq!(bed.broken(), ["update_after_abort", "trace_after_abort"]);
}

#[tokio::test]
async fn a_forgotten_job_is_404() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("lost")).await;
    bed.gitlab.forget(job.id);
    assert_eq!(bed.patch(&job, 0, b"x").await.status(), 404);
    assert_eq!(bed.put(&job, json!({ "state": "success" })).await.status(), 404);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_key_is_recorded_when_it_is_due_and_a_violation_when_not() {
    let bed = bed().await;
    let key = bed.key();
    let keys = json!({ "runtime_environment_key": key, "environment_key": key });
    let job = bed.run(JobSpec::new("plain").suspend_on_failure()).await;
    bed.put(&job, merged(keys.clone(), json!({ "state": "success" }))).await;
    assert_eq!(bed.broken(), ["key_only_when_due"]);
    assert_eq!(bed.gitlab.job(job.id).unwrap().environment_key, None);
    let job = bed.run(JobSpec::new("sleeper").suspend_on_success()).await;
    bed.put(&job, merged(keys, json!({ "state": "success" }))).await;
    assert_eq!(bed.gitlab.job(job.id).unwrap().environment_key, Some(key));
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_key_has_both_names_and_names_the_machine_that_had_the_job() {
    let bed = bed().await;
    let sleeper = || JobSpec::new("sleeper").suspend_on_success();
    let success =
        |key: &str| json!({ "state": "success", "runtime_environment_key": key, "environment_key": key });
    let job = bed.run(sleeper()).await;
    bed.put(&job, json!({ "state": "success", "runtime_environment_key": bed.key() })).await;
    assert_eq!(bed.broken(), ["key_under_both_names"]);
    for odd in ["99/s_0123456789ab/a=b", "1/s_ffffffffffff/a=b", "1/s_0123456789ab/", "nonsense"] {
        let job = bed.run(sleeper()).await;
        bed.put(&job, success(odd)).await;
        assert_eq!(bed.broken(), ["key_form"], "{odd}");
    }
    let job = bed.run(sleeper().environment_key(format!("1/{SYSTEM_ID}/acquisition-key=old"))).await;
    bed.put(&job, success(&bed.key())).await;
    assert_eq!(bed.broken(), ["key_kept_by_resume"]);
}

/// Suspends a job on the bed's machine; another machine of the runner then asks for its resume.
async fn ask_for_a_resume_from_another_machine(routing: Routing) -> (Bed, StatusCode) {
    let options = Options { routing, commit: Commit::Legacy, ..Options::default() };
    let mut bed = bed_with(options).await;
    let job = bed.run(JobSpec::new("sleeper").suspend_on_success()).await;
    let key = bed.key();
    let end = json!({ "state": "success", "runtime_environment_key": key, "environment_key": key });
    bed.put(&job, end).await;
    bed.gitlab.enqueue(JobSpec::new("resume").environment_key(key));
    bed.system_id = "s_ffffffffffff".to_owned();
    let status = bed.ask("").await.status();
    bed.gitlab.assert_clean();
    (bed, status)
}

#[tokio::test]
async fn a_resume_goes_to_the_machine_that_suspended() {
    let (mut bed, other) = ask_for_a_resume_from_another_machine(Routing::Machine).await;
    assert_eq!(other, 204);
    bed.system_id = SYSTEM_ID.to_owned();
    let job = bed.take().await;
    let answer = bed
        .call(Method::GET, &format!("jobs/{}/runtime_environment_key", job.id))
        .header("job-token", &job.token)
        .send()
        .await
        .unwrap();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["runtime_environment_key"], bed.key());
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_server_that_does_not_route_gives_a_resume_to_anybody() {
    let (_, other) = ask_for_a_resume_from_another_machine(Routing::Anyone).await;
    assert_eq!(other, 201);
}

fn clone(url: &str, into: &std::path::Path) -> std::process::Output {
    Command::new("git")
        .args(["clone", "--quiet", "--depth", "1", url])
        .arg(into)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("NO_PROXY", "*")
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn git_clones_with_the_token_of_a_running_job() {
    let bed = bed().await;
    let repo = GitRepo::create("group/sources").unwrap();
    repo.commit("first", &[("README", "one\n"), ("sub/file", "two\n")]).unwrap();
    let sha = repo.commit("second", &[("README", "three\n")]).unwrap();
    repo.tag("v1", &sha).unwrap();
    let job = bed.run(JobSpec::new("build").git(&repo, "main")).await;
    assert_eq!(job.payload["git_info"]["sha"], sha.as_str());
    let url = job.payload["git_info"]["repo_url"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cloned = clone(url, &folder.path().join("good"));
    assert!(cloned.status.success(), "{cloned:?}");
    let read = |path: &str| std::fs::read_to_string(folder.path().join("good").join(path)).unwrap();
    assert_eq!((read("README"), read("sub/file")), ("three\n".to_owned(), "two\n".to_owned()));
    let fetches = bed.gitlab.job(job.id).unwrap().fetches;
    assert!(fetches.iter().any(|fetch| fetch.request.contains("git-upload-pack")), "{fetches:?}");
    bed.put(&job, json!({ "state": "success" })).await;
    assert!(!clone(url, &folder.path().join("late")).status.success());
    let tagged = bed.run(JobSpec::new("release").git(&repo, "v1")).await;
    assert_eq!(tagged.payload["git_info"]["ref_type"], "tag");
    assert!(bed.gitlab.job(tagged.id).unwrap().fetches.is_empty());
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_refusal_carries_its_status_and_headers_as_often_as_told() {
    let bed = bed().await;
    let refuse = Fault::refuse(Target::Verify, 429).header("retry-after", "1").after(1).times(1);
    let fault = bed.gitlab.inject(refuse);
    assert_eq!(bed.verify().await.status(), 200);
    let refused = bed.verify().await;
    assert_eq!((refused.status(), header(&refused, "retry-after")), (StatusCode::TOO_MANY_REQUESTS, "1"));
    assert_eq!(bed.verify().await.status(), 200);
    assert_eq!(bed.gitlab.fault_hits(fault), 1);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_cut_before_handling_does_nothing_and_a_lost_assignment_does() {
    let bed = bed().await;
    let id = bed.gitlab.enqueue(JobSpec::new("build"));
    let body = merged(bed.runner_body(), json!({ "last_update": "" }));
    let ask = || bed.runner_call(Method::POST, "jobs/request", &body).send();
    bed.gitlab.inject(Fault::on(Target::RequestJob, Action::CutBeforeHandling).once());
    assert!(ask().await.is_err());
    assert_eq!(bed.gitlab.job(id).unwrap().state, JobState::Pending);
    bed.gitlab.inject(Fault::on(Target::Assignment, Action::CutAfterHandling).once());
    assert!(ask().await.is_err());
    assert_eq!(bed.gitlab.job(id).unwrap().state, JobState::Running);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_fault_can_be_for_one_job_delay_it_or_leave_it_half_open() {
    let bed = bed().await;
    let slow = bed.run(JobSpec::new("slow")).await;
    let stuck = bed.run(JobSpec::new("stuck")).await;
    let delay = Duration::from_millis(300);
    bed.gitlab.inject(Fault::on(Target::UpdateTo("running"), Action::Delay(delay)).job(slow.id));
    bed.gitlab.inject(Fault::on(Target::Update, Action::HalfOpen).job(stuck.id));
    let at = Instant::now();
    assert_eq!(bed.put(&slow, json!({ "state": "running" })).await.status(), 200);
    assert!(at.elapsed() >= delay);
    let left = bed.put_call(&stuck, json!({ "state": "running" })).timeout(delay).send().await;
    assert!(left.unwrap_err().is_timeout());
    let path = format!("/api/v4/jobs/{}", stuck.id);
    let entry = bed.gitlab.wait_for_request(|request| request.path == path, DEADLINE).await.unwrap();
    assert_eq!(entry.answer, None);
    bed.gitlab.clear_faults();
    assert_eq!(bed.put(&stuck, json!({ "state": "running" })).await.status(), 200);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn down_refuses_connections_and_up_brings_the_same_server_back() {
    let options = Options { hold: DEADLINE * 3, commit: Commit::Legacy, ..Options::default() };
    let bed = bed_with(options).await;
    let job = bed.run(JobSpec::new("build")).await;
    let value = header(&bed.ask("").await, "x-gitlab-last-update").to_owned();
    let body = merged(bed.runner_body(), json!({ "last_update": value }));
    let held = bed.runner_call(Method::POST, "jobs/request", &body).send();
    let go_down = async {
        bed.gitlab.wait_until_polled(DEADLINE).await.unwrap();
        bed.gitlab.down().await.unwrap();
    };
    let (held, ()) = tokio::join!(held, go_down);
    assert!(held.is_err());
    let refused = bed.put_call(&job, json!({ "state": "running" })).send().await.unwrap_err();
    assert!(refused.is_connect(), "{refused:?}");
    bed.gitlab.up().unwrap();
    assert_eq!(
        bed.gitlab.requests().last().unwrap().answer,
        None,
        "the held request has ended with its connection"
    );
    assert_eq!(bed.put(&job, json!({ "state": "running" })).await.status(), 200);
    bed.gitlab.assert_clean();
}

#[tokio::test]
async fn a_token_can_be_reset_and_machine_and_runner_removed() {
    let mut bed = bed().await;
    bed.verify().await;
    let token = json!({ "token": bed.runner.token });
    let reset = bed.runner_call(Method::POST, "runners/reset_authentication_token", &token);
    let answer: Value = reset.send().await.unwrap().json().await.unwrap();
    assert_eq!(bed.verify().await.status(), 403);
    bed.runner.token = answer["token"].as_str().unwrap().to_owned();
    let token = json!({ "token": bed.runner.token });
    let machine = merged(token.clone(), json!({ "system_id": SYSTEM_ID }));
    let removed = bed.runner_call(Method::DELETE, "runners/managers", &machine).send().await.unwrap();
    assert_eq!(removed.status(), 204);
    let removed = bed.runner_call(Method::DELETE, "runners/managers", &machine).send().await.unwrap();
    assert_eq!(removed.status(), 404);
    let removed = bed.runner_call(Method::DELETE, "runners", &token).send().await.unwrap();
    assert_eq!(removed.status(), 204);
    assert_eq!(bed.verify().await.status(), 403);
    // Whoever was told that a token is dead does not use it again.
    assert_eq!(bed.broken(), ["token_not_retired", "token_not_retired"]);
}

#[tokio::test]
async fn artifacts_are_kept_and_given_back() {
    let bed = bed().await;
    let job = bed.run(JobSpec::new("build")).await;
    let path = format!("jobs/{}/artifacts", job.id);
    let upload = async |query: &str, content: &str| {
        let form = format!(
            "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.zip\"\r\n\r\n{content}\r\n--x--\r\n"
        );
        let call = bed.call(Method::POST, &format!("{path}?{query}")).header("job-token", &job.token);
        call.header("content-type", "multipart/form-data; boundary=x")
            .body(form)
            .send()
            .await
            .unwrap()
            .status()
    };
    let archive = "artifact_type=archive&artifact_format=zip";
    assert_eq!(upload(archive, "PK-file").await, 201);
    assert_eq!(upload(archive, "PK-file").await, 201);
    assert_eq!(upload(archive, "PK-other").await, 400);
    let get = async |path: String, token: bool| {
        let call = bed.call(Method::GET, &path);
        let call = if token { call.header("job-token", &job.token) } else { call };
        call.send().await.unwrap()
    };
    assert_eq!(get(path.clone(), true).await.text().await.unwrap(), "PK-file");
    bed.gitlab.assert_clean();
    assert_eq!(get(path.clone(), false).await.status(), 403);
    assert_eq!(upload("artifact_type=archive&artifact_format=gzip&x=1", "text").await, 400);
    assert_eq!(bed.broken(), ["job_token", "artifact_query", "artifact_content"]);
}

#[tokio::test]
async fn people_steer_it_over_http() {
    let bed = bed().await;
    let control = format!("{}/-/control", bed.gitlab.url());
    let order = json!({ "name": "by hand", "script": ["true"], "suspendable": true });
    let made: Value =
        bed.http.post(format!("{control}/jobs")).json(&order).send().await.unwrap().json().await.unwrap();
    let job = bed.take().await;
    assert_eq!(made["id"], job.id.0);
    bed.patch(&job, 0, b"hello").await;
    let get = async |path: String| bed.http.get(path).send().await.unwrap().text().await.unwrap();
    assert_eq!(get(format!("{control}/jobs/{}/log", job.id)).await, "hello");
    let canceled = bed.http.post(format!("{control}/jobs/{}/cancel", job.id)).send().await.unwrap();
    assert_eq!(canceled.json::<Value>().await.unwrap()["state"], "canceling");
    let jobs: Value = serde_json::from_str(&get(format!("{control}/jobs")).await).unwrap();
    assert_eq!((&jobs[0]["name"], &jobs[0]["state"]), (&json!("by hand"), &json!("canceling")));
    assert_eq!(get(format!("{control}/violations")).await, "[]");
    let unknown = bed.http.post(format!("{control}/jobs")).json(&json!({ "skript": [] }));
    assert!(unknown.send().await.unwrap().status().is_client_error());
}
