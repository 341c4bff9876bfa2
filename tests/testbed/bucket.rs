//! A bucket to run against: S3 as a process on loopback, strict where the real one is.
//!
//! Owns the server of `aws/bucket.py` (Python: moto's S3 behind a door of ours that checks signatures, regions and
//! expiry). May assume what `build-cloud.sh` brings. It has no memory: started again, it is empty.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cloud::python;
use super::ports::free_port;
use super::process::Server;
use super::tools::sources;
use super::wait::until;

/// The region it is in.
pub const REGION: &str = "eu-central-1";
/// Its name.
pub const BUCKET: &str = "ci-cache";
/// The key it takes.
pub const ACCESS_KEY: &str = "AKIADORMOUSECACHE001";
/// What goes with that key.
pub const SECRET_KEY: &str = "the-bucket-knows-this-key-and-no-other";

const READY: Duration = Duration::from_secs(60);

/// A running bucket. Dropping it ends it.
pub struct Bucket {
    server: Server,
    endpoint: String,
    http: reqwest::Client,
}

/// A request that it was asked.
#[derive(Debug, Clone, Deserialize)]
pub struct Asked {
    /// Its method.
    pub method: String,
    /// `/<bucket>/<object>`.
    pub path: String,
    /// What it was answered with.
    pub status: u16,
    /// The id of the key it was signed with.
    pub key: String,
}

impl Bucket {
    /// Starts one; its log goes to `bucket.log` in `dir`.
    pub async fn start(dir: &Path) -> Result<Self> {
        let python = python().await?.join("bin/python");
        let port = free_port()?;
        let args = [
            "-B".to_owned(),
            sources().join("aws/bucket.py").display().to_string(),
            format!("--port={port}"),
            format!("--region={REGION}"),
            format!("--bucket={BUCKET}"),
            format!("--access-key={ACCESS_KEY}"),
            format!("--secret-key={SECRET_KEY}"),
        ];
        let server = Server::start("bucket", &python, args, dir)?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
        let bucket = Self { server, endpoint: format!("http://127.0.0.1:{port}"), http };
        until("the bucket answers", READY, async || {
            bucket.server.check()?;
            Ok(bucket.asked().await.ok())
        })
        .await?;
        Ok(bucket)
    }

    /// Where it is, without a slash at the end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// `spec.cache` of a pool that uses it, with the keys of Secret `bucket`.
    pub fn spec(&self) -> Value {
        json!({ "type": "S3", "s3": {
            "bucket": BUCKET, "region": REGION, "endpointUrl": self.endpoint,
            "credentialsSecretRef": { "name": "bucket" },
        } })
    }

    /// Everything it was asked so far.
    pub async fn asked(&self) -> Result<Vec<Asked>> {
        let answer = self.http.get(format!("{}/lab", self.endpoint)).send().await?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// Waits until somebody has asked with a key.
    pub async fn until_asked_with(&self, key: &str) -> Result<()> {
        until(&format!("the bucket is asked with {key}"), READY, async || {
            Ok(self.asked().await?.iter().any(|asked| asked.key == key).then_some(()))
        })
        .await
    }

    /// Answers so many requests of a method in another way: a status, or after some seconds.
    pub async fn fault(&self, method: &str, times: u32, how: Value) -> Result<()> {
        let mut fault = json!({ "method": method, "times": times });
        super::stage::merge(&mut fault, how);
        self.lab(json!({ "faults": [fault] })).await
    }

    /// Ends it, as one that is away.
    pub async fn stop(&self) -> Result<()> {
        self.server.stop().await
    }

    /// Takes another key from now on, or not any more.
    pub async fn lab(&self, order: Value) -> Result<()> {
        let answer = self.http.post(format!("{}/lab", self.endpoint)).body(order.to_string()).send().await?;
        ensure!(answer.status().is_success(), "the bucket answers {}", answer.status());
        Ok(())
    }
}
