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

/// The finalizer on each of our kinds.
pub const FINALIZER: &str = "dormouse.dev/release";
