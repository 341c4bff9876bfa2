//! Labels, annotations and finalizers on our objects.

/// The pool an object belongs to.
pub const POOL: &str = "dormouse.dev/pool";
/// GitLab project id.
pub const PROJECT_ID: &str = "dormouse.dev/project-id";
/// GitLab job id.
pub const JOB_ID: &str = "dormouse.dev/job-id";
/// Environment id.
pub const ENVIRONMENT_ID: &str = "dormouse.dev/environment-id";
/// On the Lease by which a replica announces itself: the namespace it watches, empty for all of them.
pub const REPLICA: &str = "dormouse.dev/replica";
/// Standard label naming us as the manager of an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`], and the field manager of our writes.
pub const MANAGER: &str = "dormouse";

/// Accepts that what an environment keeps on its host is left behind: its finalizer is removed at once.
pub const FORCE_RELEASE: &str = "dormouse.dev/force-release";

/// On an environment whose object was made again from tags: what carried them. Until the object has a status its adoption
/// is not over.
pub const ADOPTED_FROM: &str = "dormouse.dev/adopted-from";

/// The finalizer on each of our kinds.
pub const FINALIZER: &str = "dormouse.dev/release";

/// On the Secret of a runner that a pool has made: the GitLab it is of.
pub const RUNNER_URL: &str = "dormouse.dev/gitlab-url";
/// The same: the marker of the try that made it.
pub const RUNNER_MARKER: &str = "dormouse.dev/runner-marker";
/// The same: its id.
pub const RUNNER_ID: &str = "dormouse.dev/runner-id";
/// The same: what of the spec was last applied.
pub const RUNNER_APPLIED: &str = "dormouse.dev/runner-applied";
/// The same: when its token was issued.
pub const TOKEN_OBTAINED_AT: &str = "dormouse.dev/token-obtained-at";
/// The same: when its token expires.
pub const TOKEN_EXPIRES_AT: &str = "dormouse.dev/token-expires-at";
/// The same: its token is being replaced.
pub const TOKEN_ROTATION: &str = "dormouse.dev/token-rotation";
