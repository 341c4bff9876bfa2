//! The labels of upstream's metrics.

use prometheus_client::encoding::EncodeLabelSet;

/// Who a pool is to GitLab: the labels that all of these metrics have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct RunnerLabels {
    /// First characters of the runner's token.
    pub runner: String,
    /// The pool's name.
    pub runner_name: String,
    /// The pool's system id.
    pub system_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct JobLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) state: &'static str,
    pub(super) stage: String,
    pub(super) executor_stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FailureLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) failure_reason: &'static str,
    pub(super) mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ModeLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StageLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) stage: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ExecutionLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) mode: &'static str,
    pub(super) executor: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct QueueLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) project_jobs_running: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StatusLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) endpoint: &'static str,
    pub(super) status: u16,
    pub(super) method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) endpoint: &'static str,
    pub(super) status_class: &'static str,
    pub(super) method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RetryLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) path: &'static str,
    pub(super) method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OperationLabels {
    #[prometheus(flatten)]
    pub(super) runner: RunnerLabels,
    pub(super) operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LevelLabel {
    pub(super) level: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VersionLabels {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    pub(super) revision: &'static str,
    pub(super) os: &'static str,
    pub(super) architecture: &'static str,
}
