//! The part of a RunnerPool that says where the caches of its jobs are kept.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::Duration;
use super::runner_pool::ObjectRef;

/// Where the caches of jobs are kept.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(has(self.type) && self.type == 'S3') == has(self.s3)").message("spec.cache.s3 must be given with type S3, and only then"),
    validation = Rule::new("has(self.s3) || (!has(self.path) && (!has(self.shared) || !self.shared))").message("spec.cache.path and shared are for type S3: on a host, the folder is spec.cacheDir"),
    validation = Rule::new("!has(self.path) || !self.path.split('/').exists(part, part == '' || part == '.' || part == '..')").message("spec.cache.path must be plain parts with slashes between them, such as ci/cache"),
    validation = Rule::new("!has(self.requestTimeout) || duration(self.requestTimeout) >= duration('1s')").message("spec.cache.requestTimeout must be at least 1s")
)]
pub struct CacheSpec {
    /// Local keeps them in spec.cacheDir of each host: a job finds what jobs before it have left on the same host. S3
    /// keeps them in a bucket, for all hosts. Default: Local.
    #[serde(default, rename = "type")]
    pub type_: CacheType,
    /// The bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Cache>,
    /// What names in the bucket begin with, such as ci/cache. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\x00-\x1f\\]+$"), length(max = 200))]
    pub path: Option<String>,
    /// Whether runners that use the same bucket and path share caches. A cache is its project's alone either way.
    /// Default: false.
    #[serde(default)]
    pub shared: bool,
    /// Bytes of the largest archive that is saved; a larger one is skipped with a line in the job's log. 0 is no limit.
    /// Default: 0.
    #[serde(default)]
    #[schemars(range(max = 5_497_558_138_880u64))]
    pub max_uploaded_archive_size: u64,
    /// How long one download or upload may take; a variable CACHE_REQUEST_TIMEOUT of the job, in minutes, is used
    /// instead. Default: 10m.
    #[serde(default = "default_request_timeout")]
    pub request_timeout: Duration,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self {
            type_: CacheType::default(),
            s3: None,
            path: None,
            shared: false,
            max_uploaded_archive_size: 0,
            request_timeout: default_request_timeout(),
        }
    }
}

/// Where caches are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheType {
    /// In a folder of each host.
    #[default]
    Local,
    /// In a bucket of S3 or something that speaks like it.
    S3,
}

/// A bucket. Hosts get addresses that are signed for one job, and no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3Cache {
    /// Its name.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"))]
    pub bucket: String,
    /// The region it is in, such as eu-central-1.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9-]*$"), length(max = 63))]
    pub region: String,
    /// Address of the service, such as https://minio.example.com. Hosts must reach it too. Default: AWS's own for the
    /// region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/?#]+/?$"), length(max = 2048))]
    pub endpoint_url: Option<String>,
    /// Whether the bucket is part of the path and not of the host name. Default: true with endpointUrl, else false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// A Secret in this namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN and
    /// AWS_CREDENTIAL_EXPIRATION (a time such as 2026-01-02T15:04:05Z). Default: what the operator's pod has: IRSA, pod
    /// identity, instance role, environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<ObjectRef>,
}

fn default_request_timeout() -> Duration {
    Duration::from_seconds(10 * 60)
}
