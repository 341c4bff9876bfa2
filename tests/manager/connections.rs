//! The way to GitLab: certificates that are trusted, shown and replaced, and proxies.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::testbed::gitlab::{GitRepo, JobSpec, JobState, JobView};
use crate::testbed::stage::{POOL, Setting, Stage};
use crate::testbed::tls::{Authority, Issued, TlsFront, self_signed};
use crate::traces::next_job_runs;

/// Where its GitLab listens.
pub fn address(stage: &Stage) -> Result<SocketAddr> {
    Ok(stage.gitlab.url().rsplit('/').next().context("an empty URL")?.parse()?)
}

/// Puts certificates to trust where the pool looks for them.
pub async fn trust(stage: &Stage, authorities: &[&Authority]) -> Result<()> {
    let pem: Vec<String> = authorities.iter().map(|known| known.certificate()).collect::<Result<_>>()?;
    stage
        .apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "gitlab-ca", "namespace": stage.namespace },
            "data": { "ca.pem": pem.join("\n") },
        }))
        .await
}

/// Puts the certificate to show where the pool looks for it.
pub async fn show(stage: &Stage, issued: &Issued) -> Result<()> {
    stage
        .apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": { "name": "gitlab-client", "namespace": stage.namespace },
            "stringData": { "tls.crt": issued.certificate, "tls.key": issued.key },
        }))
        .await
}

/// Changes of a pool that lead it to GitLab by a relay, and more.
pub fn over(front: &TlsFront, more: Value) -> Value {
    let mut pool = json!({ "gitlab": { "url": front.url() } });
    crate::testbed::stage::merge(&mut pool, more);
    pool
}

/// What a pool names of both.
pub fn certificates() -> Value {
    json!({ "gitlab": {
        "caBundle": { "name": "gitlab-ca", "key": "ca.pem" },
        "clientCertificateSecretRef": { "name": "gitlab-client" },
    } })
}

/// Runs a job that hands an artifact over.
async fn hands_over(stage: &Stage) -> Result<JobView> {
    let entry = json!({ "name": "a", "paths": ["a"], "artifact_type": "archive", "artifact_format": "zip" });
    let hands_over =
        JobSpec::new("hands over").script(["echo content > a"]).payload_field("artifacts", json!([entry]));
    let done = stage.run(hands_over).await?;
    ensure!(done.state == JobState::Success && done.log_contains("201"), "{}", done.log_text());
    Ok(done)
}

/// Runs a job that gets it.
async fn gets(stage: &Stage, from: &JobView) -> Result<()> {
    let dependency = json!({ "id": from.id.0, "token": from.token, "name": from.name,
        "artifacts_file": { "filename": "artifacts.zip", "size": 1 } });
    let gets = JobSpec::new("gets").script(["cat a"]).payload_field("dependencies", json!([dependency]));
    let done = stage.run(gets).await?;
    ensure!(done.state == JobState::Success && done.log_contains("content"), "{}", done.log_text());
    Ok(())
}

/// Runs a job whose sources come from there, by the real git, and whose script is shown whom to trust and what to show.
async fn fetches(stage: &Stage, front: &TlsFront) -> Result<()> {
    let repo = GitRepo::create("group/secured")?;
    repo.commit("first", &[("tracked", "fetched over TLS\n")])?;
    let (plain, secured) = (stage.gitlab.url(), front.url());
    let [plain, secured] =
        [plain.as_str(), secured.as_str()].map(|url| url.rsplit('/').next().unwrap_or(url));
    let (from, to) = (format!("@{plain}/"), format!("@{secured}/"));
    let fetches = JobSpec::new("fetches").git(&repo, "main").edit_payload(move |payload| {
        let url = payload["git_info"]["repo_url"].as_str().unwrap_or_default();
        let url = url.replace("http://", "https://").replace(&from, &to);
        payload["git_info"]["repo_url"] = json!(url);
    });
    let script = [
        "cat tracked",
        "git ls-remote origin HEAD > /dev/null && echo 'the script reaches it too'",
        "for file in CA CERT KEY; do name=CI_SERVER_TLS_${file}_FILE; test -s \"${!name}\"; done",
        "openssl verify -CAfile \"$CI_SERVER_TLS_CA_FILE\" \"$CI_SERVER_TLS_CERT_FILE\"",
    ];
    let done = stage.run(fetches.script(script)).await?;
    ensure!(done.state == JobState::Success, "{}", done.log_text());
    for line in ["fetched over TLS", "01O the script reaches it too", "CI_SERVER_TLS_CERT_FILE: OK"] {
        ensure!(done.log_contains(line), "{line:?} is not in {}", done.log_text());
    }
    ensure!(!done.fetches.is_empty() && !done.log_contains("PRIVATE KEY"), "{}", done.log_text());
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_not_spoken_to_and_a_bundle_makes_it_so() -> Result<()> {
    let mut stage = Stage::without_operator("tls", &Setting::pool(json!({}))).await?;
    let authority = Authority::new(&stage.folder().join("ca")).await?;
    let front = TlsFront::start(address(&stage)?, &authority.issue("gitlab").await?, None).await?;
    stage.raise(over(&front, json!({}))).await?;
    let message = stage.until_finding("CredentialsValid", "Unknown", "GitLabUnreachable").await?;
    ensure!(message.contains("certificate"), "{message}");
    ensure!(stage.gitlab.requests().is_empty(), "a token was sent to a server that is not trusted");

    trust(&stage, &[&authority]).await?;
    let bundle = json!({ "gitlab": { "caBundle": { "name": "gitlab-ca", "key": "ca.pem" } } });
    stage.apply_pool(over(&front, bundle)).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    next_job_runs(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn a_certificate_that_signs_itself_is_trusted_where_the_bundle_names_it() -> Result<()> {
    let mut stage = Stage::without_operator("selfsigned", &Setting::pool(json!({}))).await?;
    let folder = stage.folder().join("own");
    std::fs::create_dir_all(&folder)?;
    // It says that it is an authority, as openssl makes them.
    let names = ["-days", "2", "-subj", "/CN=gitlab", "-addext", "subjectAltName=IP:127.0.0.1"];
    self_signed(&folder, "gitlab", &names).await?;
    let own = Issued {
        certificate: std::fs::read_to_string(folder.join("gitlab.crt"))?,
        key: std::fs::read_to_string(folder.join("gitlab.key"))?,
    };
    let front = TlsFront::start(address(&stage)?, &own, None).await?;
    stage
        .apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "gitlab-ca", "namespace": stage.namespace },
            "data": { "ca.pem": own.certificate },
        }))
        .await?;
    let bundle = json!({ "gitlab": { "caBundle": { "name": "gitlab-ca", "key": "ca.pem" } } });
    stage.raise(over(&front, bundle)).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    // The host speaks to it as well.
    hands_over(&stage).await?;
    stage.end().await
}

#[tokio::test]
async fn replaced_certificates_are_followed_by_a_job_that_runs() -> Result<()> {
    let mut stage = Stage::without_operator("mtls", &Setting::pool(json!({}))).await?;
    let old = Authority::new(&stage.folder().join("old")).await?;
    let new = Authority::new(&stage.folder().join("new")).await?;
    let front = TlsFront::start(address(&stage)?, &old.issue("gitlab").await?, Some(&old)).await?;
    trust(&stage, &[&old]).await?;
    // Without a certificate of its own GitLab does not speak to it.
    stage
        .raise(over(&front, json!({ "gitlab": { "caBundle": { "name": "gitlab-ca", "key": "ca.pem" } } })))
        .await?;
    stage.until_finding("CredentialsValid", "Unknown", "GitLabUnreachable").await?;
    stage.apply_pool(over(&front, certificates())).await?;
    let message = stage.until_finding("CredentialsValid", "False", "SecretMissing").await?;
    ensure!(message.contains("spec.gitlab.clientCertificateSecretRef"), "{message}");
    show(&stage, &Issued { certificate: "nothing".to_owned(), key: "secret words".to_owned() }).await?;
    let message = stage.until_finding("CredentialsValid", "False", "ClientCertificateUnreadable").await?;
    ensure!(message.contains("tls.key") && !message.contains("secret words"), "{message}");
    show(&stage, &old.issue("pool").await?).await?;
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    stage.until_hosts("Ready").await?;

    let script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo ended";
    let id = stage.gitlab.enqueue(JobSpec::new("runs").script([script]));
    stage.until_log(id, "begun").await?;
    let pid = stage.operator()?.pid();
    // Both sides replace their certificates by those of another authority, and every connection is cut.
    trust(&stage, &[&new]).await?;
    show(&stage, &new.issue("pool").await?).await?;
    front.change(&new.issue("gitlab").await?, Some(&new))?;
    stage.gitlab.down().await?;
    stage.gitlab.up()?;
    // Secrets are not watched: any change of the pool has them read again, as a minute would.
    let mut pool = certificates();
    crate::testbed::stage::merge(&mut pool, json!({ "concurrency": 9 }));
    stage.apply_pool(over(&front, pool)).await?;
    stage.touch("/tmp/go").await?;
    let over = stage.until_over(id).await?;
    ensure!(over.state == JobState::Success && over.log_contains("ended"), "{}", over.log_text());
    ensure!(stage.operator()?.pid() == pid, "the operator was started again");
    // The host shows GitLab the certificate too.
    let done = hands_over(&stage).await?;
    gets(&stage, &done).await?;
    fetches(&stage, &front).await?;
    stage.end().await
}

#[tokio::test]
async fn gitlab_is_reached_through_the_proxy_of_the_environment() -> Result<()> {
    let mut stage = Stage::without_operator("proxied", &Setting::pool(json!({}))).await?;
    // A name that nobody can look up: only the proxy, which is the stand-in itself, can know where it leads.
    stage.apply_pool(json!({ "gitlab": { "url": "http://gitlab.behind.invalid" } })).await?;
    let operator = stage.new_operator("operator-a").await?;
    operator.set_variable("HTTP_PROXY", Some(&stage.gitlab.url()));
    operator.start_again().await?;
    stage.operator = Some(operator);
    stage.until_condition("runnerpool", POOL, "Ready").await?;
    next_job_runs(&stage).await?;
    stage.end().await
}
