//! A cloud to run against: EC2 and Auto Scaling as a process on loopback, strict where the real ones are.
//!
//! Owns the server of `aws/` (Python: moto and an overlay of ours), its port and what is made in it. May assume Python 3
//! with venv, and a package index for the first build. Must never show an address outside 127.0.0.0/8. It has no
//! memory: stopped and started again, it is an empty account. Where it differs from AWS is told in
//! `docs/testbed-aws.md`.

#![allow(unused_imports, reason = "the tests and the bed that stays up use different parts")]

mod act;
mod fault;
mod group;
mod network;
mod template;
mod view;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use self::act::{Act, Reclaim, Session, User};
pub use self::fault::Fault;
pub use self::group::{Group, Hook, Warm, Way};
pub use self::network::{Network, Subnet};
pub use self::template::{Market, Template};
pub use self::view::{Attachment, Call, Instance, Key, Snapshot, SpotAction, State, Volume, VolumeState};
use super::ports::free_port;
use super::process::Server;
use super::tools::sources;
use super::wait::until;

/// Where everything is.
pub const REGION: &str = "eu-central-1";
/// The one image.
pub const IMAGE: &str = "ami-0d0a0000000000001";
const ACCESS_KEY: &str = "AKIADORMOUSELAB00001";
const SECRET_KEY: &str = "the-stand-in-takes-any-secret-key-at-all";
/// The server is up in a second and a half on an idle machine.
const READY: Duration = Duration::from_secs(60);

/// A running stand-in. Dropping it ends it.
pub struct Cloud {
    server: Server,
    endpoint: String,
    http: reqwest::Client,
    ec2: aws_sdk_ec2::Client,
    scaling: aws_sdk_autoscaling::Client,
}

impl Cloud {
    /// Starts one; its log goes to `cloud.log` in `dir`.
    pub async fn start(dir: &Path) -> Result<Self> {
        let python = python().await?.join("bin/python");
        let port = free_port()?;
        let args = [
            "-B".to_owned(), // No bytecode into the sources.
            sources().join("aws/cloud.py").display().to_string(),
            format!("--port={port}"),
            format!("--region={REGION}"),
        ];
        let server = Server::start("cloud", &python, args, dir)?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let config = sdk(&endpoint, ACCESS_KEY, SECRET_KEY).await;
        let cloud = Self {
            server,
            endpoint,
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?,
            ec2: aws_sdk_ec2::Client::new(&config),
            scaling: aws_sdk_autoscaling::Client::new(&config),
        };
        until("the cloud answers", READY, async || {
            cloud.server.check()?;
            Ok(cloud.state().await.ok())
        })
        .await?;
        Ok(cloud)
    }

    /// Where its APIs are, without a slash at the end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The region everything is in.
    pub fn region(&self) -> &'static str {
        REGION
    }

    /// What a process needs to find it: where, and any keys.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment_of(ACCESS_KEY, SECRET_KEY)
    }

    /// The same with the keys of a user.
    pub fn environment_of(&self, access_key: &str, secret_key: &str) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", access_key),
            ("AWS_SECRET_ACCESS_KEY", secret_key),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// A client that never tries again, so that a test sees each answer.
    pub fn ec2(&self) -> &aws_sdk_ec2::Client {
        &self.ec2
    }

    /// A client that never tries again, so that a test sees each answer.
    pub fn scaling(&self) -> &aws_sdk_autoscaling::Client {
        &self.scaling
    }

    /// For clients of one's own, as another user.
    pub async fn sdk(&self, access_key: &str, secret_key: &str) -> SdkConfig {
        sdk(&self.endpoint, access_key, secret_key).await
    }

    /// What there is, whole. Fails if the stand-in has found a bug in itself.
    pub async fn state(&self) -> Result<State> {
        let state: State = self.get("state").await?;
        ensure!(state.bugs.is_empty(), "the cloud stand-in failed:\n{}", state.bugs.join("\n"));
        Ok(state)
    }

    /// An instance of [`Cloud::state`].
    pub async fn instance(&self, id: &str) -> Result<Instance> {
        let state = self.state().await?;
        state.instances.into_iter().find(|one| one.id == id).with_context(|| format!("there is no {id}"))
    }

    /// Changes settings of `aws/world.py` by name.
    pub async fn config(&self, settings: Value) -> Result<()> {
        self.post("config", &settings).await.map(drop)
    }

    /// Lets something happen to the account.
    pub async fn act(&self, act: Act) -> Result<Value> {
        self.post("act", &act.to_json()).await
    }

    /// Makes a user of IAM with a policy; IAM checks nothing until `config(json!({"iam": true}))`.
    pub async fn user(&self, name: &str, policy: Value) -> Result<User> {
        Ok(serde_json::from_value(self.act(Act::AddUser { name: name.to_owned(), policy }).await?)?)
    }

    /// Makes a role of IAM with a policy, and gives the keys of a session of it.
    pub async fn role(&self, name: &str, policy: Value) -> Result<Session> {
        Ok(serde_json::from_value(self.act(Act::AddRole { name: name.to_owned(), policy }).await?)?)
    }

    /// Spoils calls to come.
    pub async fn fault(&self, fault: Fault) -> Result<()> {
        self.post("faults", &json!([fault.to_json()])).await.map(drop)
    }

    /// Spoils no more calls.
    pub async fn clear_faults(&self) -> Result<()> {
        let response = self.http.delete(format!("{}/lab/faults", self.endpoint)).send().await?;
        read::<Value>(response).await.map(drop)
    }

    /// The calls from number `since` on, and what the cloud did by itself, in order.
    pub async fn calls(&self, since: u64) -> Result<Vec<Call>> {
        #[derive(serde::Deserialize)]
        struct Calls {
            calls: Vec<Call>,
        }
        let calls: Calls = self.get(&format!("calls?since={since}")).await?;
        Ok(calls.calls)
    }

    /// The number the next call will have.
    pub async fn calls_so_far(&self) -> Result<u64> {
        #[derive(serde::Deserialize)]
        struct Next {
            next: u64,
        }
        let next: Next = self.get(&format!("calls?since={}", u32::MAX)).await?;
        Ok(next.next)
    }

    /// Tells it what machines have carried out: see `acknowledge` in `aws/lab.py`.
    pub async fn acknowledge(&self, done: &Value) -> Result<()> {
        self.post("ack", done).await.map(drop)
    }

    /// Stops it where it is: connections hang.
    pub fn freeze(&self) -> Result<()> {
        self.server.freeze()
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.server.thaw()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        read(self.http.get(format!("{}/lab/{path}", self.endpoint)).send().await?).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        read(self.http.post(format!("{}/lab/{path}", self.endpoint)).json(body).send().await?).await
    }
}

async fn read<T: DeserializeOwned>(response: reqwest::Response) -> Result<T> {
    let (status, url) = (response.status(), response.url().clone());
    let text = response.text().await?;
    ensure!(status.is_success(), "{url} answered {status}: {text}");
    serde_json::from_str(&text).with_context(|| format!("{url} answered {text}"))
}

async fn sdk(endpoint: &str, access_key: &str, secret_key: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test bed"))
        .retry_config(RetryConfig::disabled())
        .load()
        .await
}

/// The Python environment, made if need be: half a minute the first time.
pub(super) async fn python() -> Result<PathBuf> {
    let script = sources().join("build-cloud.sh");
    let mut build = Command::new(&script);
    build.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || build.output())
        .await?
        .with_context(|| format!("failed to run {}", script.display()))?;
    ensure!(output.status.success(), "{} failed, see its messages above", script.display());
    let stdout = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(stdout.lines().last().context("build-cloud.sh named no folder")?))
}
