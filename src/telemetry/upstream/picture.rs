//! What the operator tells of a pool, in upstream's states and operations.

/// What a pool looks like to a dashboard.
#[derive(Debug, Clone, Default)]
pub struct PoolPicture {
    /// Jobs it may have.
    pub concurrency: u32,
    /// Its slots.
    pub tasks: Tasks,
    /// Its instances by state.
    pub instances: Instances,
    /// Instances it may have; 0 is no limit.
    pub max_instances: u32,
    /// Instances it is to have.
    pub desired_instances: u32,
    /// Slots of an instance.
    pub capacity_per_instance: u32,
    /// Jobs of an instance before it is replaced; 0 is no limit.
    pub max_use_count: u32,
}

/// A pool's slots, as taskscaler's states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Free.
    pub idle: usize,
    /// Of jobs that wait for one.
    pub pending: usize,
    /// Free ones for which GitLab is being asked.
    pub reserved: usize,
    /// In use by jobs.
    pub acquired: usize,
    /// Kept by sleeping environments.
    pub unavailable: usize,
    /// In quarantine.
    pub unhealthy: usize,
}

/// A pool's instances, as fleeting's states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Instances {
    /// Asked for and not seen yet.
    pub requested: u32,
    /// Launching.
    pub creating: u32,
    /// Running.
    pub running: u32,
    /// Stopped with a sleeping environment.
    pub suspended: u32,
    /// On their way out.
    pub deleting: u32,
}

/// What was done with instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceOperation {
    /// Some were launched.
    Create,
    /// One was terminated.
    Delete,
    /// One was stopped.
    Suspend,
    /// One was started again.
    Resume,
}

impl InstanceOperation {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }

    pub(super) fn scale(self) -> Option<&'static str> {
        match self {
            Self::Create => Some("up"),
            Self::Delete => Some("down"),
            Self::Suspend | Self::Resume => None,
        }
    }
}

/// What was done with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskOperation {
    /// GitLab is asked for a job.
    Reserve,
    /// It had none.
    Unreserve,
    /// A job took it.
    Acquire,
    /// A job is over.
    Release,
    /// An environment went to sleep on it.
    Suspend,
    /// An environment woke.
    Resume,
}

impl TaskOperation {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Unreserve => "unreserve",
            Self::Acquire => "acquire",
            Self::Release => "release",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }
}

/// How the requests for jobs of a pool stand.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Requests {
    /// Open now.
    pub open: usize,
    /// Allowed by the spec.
    pub hard_limit: u32,
    /// Allowed by the answers.
    pub adaptive_limit: f64,
    /// Allowed by both.
    pub used_limit: u32,
}
