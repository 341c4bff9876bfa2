//! Failure reasons: ours, and what is left of them on a server that does not list them.

use crate::spool::record::Outcome;

/// Why a job failed, as the runner API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// The user's script failed.
    ScriptFailure,
    /// Something of ours or of the host failed.
    RunnerSystemFailure,
    /// The job ran out of time.
    JobExecutionTimeout,
    /// The job is configured in a way that cannot run here.
    RunnerConfigurationError,
    /// Somebody canceled the job.
    JobCanceled,
    /// The environment to resume cannot be had.
    RuntimeEnvironmentUnavailable,
}

impl FailureReason {
    const ALL: [Self; 6] = [
        Self::ScriptFailure,
        Self::RunnerSystemFailure,
        Self::JobExecutionTimeout,
        Self::RunnerConfigurationError,
        Self::JobCanceled,
        Self::RuntimeEnvironmentUnavailable,
    ];

    /// The name on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScriptFailure => "script_failure",
            Self::RunnerSystemFailure => "runner_system_failure",
            Self::JobExecutionTimeout => "job_execution_timeout",
            Self::RunnerConfigurationError => "runner_configuration_error",
            Self::JobCanceled => "job_canceled",
            Self::RuntimeEnvironmentUnavailable => "runtime_environment_unavailable",
        }
    }

    /// The reason of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The name to send to a server that lists these reasons. The first three are understood by every server.
    pub fn for_server(self, listed: &[String]) -> &'static str {
        let always = match self {
            Self::ScriptFailure | Self::RunnerSystemFailure | Self::JobExecutionTimeout => true,
            Self::RunnerConfigurationError | Self::JobCanceled | Self::RuntimeEnvironmentUnavailable => false,
        };
        if always || listed.iter().any(|reason| reason == self.as_str()) {
            return self.as_str();
        }
        match self {
            Self::ScriptFailure => "script_failure",
            Self::RunnerSystemFailure | Self::RuntimeEnvironmentUnavailable => "runner_system_failure",
            Self::JobExecutionTimeout => "job_execution_timeout",
            Self::RunnerConfigurationError => "script_failure",
            Self::JobCanceled => "unknown_failure",
        }
    }

    /// The reason that goes with an outcome on the host; `None` for success.
    pub fn of(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Success => None,
            Outcome::ScriptFailure => Some(Self::ScriptFailure),
            Outcome::SystemFailure => Some(Self::RunnerSystemFailure),
            Outcome::ConfigurationError => Some(Self::RunnerConfigurationError),
            Outcome::Timeout => Some(Self::JobExecutionTimeout),
            Outcome::Canceled => Some(Self::JobCanceled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_the_server_does_not_list_is_narrowed() {
        let listed = vec!["runtime_environment_unavailable".to_owned()];
        let reason = FailureReason::RuntimeEnvironmentUnavailable;
        assert_eq!(reason.for_server(&listed), "runtime_environment_unavailable");
        assert_eq!(reason.for_server(&[]), "runner_system_failure");
        assert_eq!(FailureReason::JobCanceled.for_server(&[]), "unknown_failure");
        assert_eq!(FailureReason::RunnerConfigurationError.for_server(&[]), "script_failure");
    }
}
