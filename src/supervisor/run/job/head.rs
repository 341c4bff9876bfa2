//! The log's first lines, and the stage before anything of the user's runs.

use super::{Ended, Job, JobError, host};
use crate::gitlab::wire::{LIKE, PolicyOptions, REVISION};
use crate::spool::closing::resumed_line;
use crate::supervisor::archive::write::{LEVELS, named_level};
use crate::supervisor::run::admission::Loss;
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::workspace::Workspace;

/// The variable by which a job wishes for a statement of where its artifacts come from.
const METADATA: &str = "RUNNER_GENERATE_ARTIFACTS_METADATA";

impl Job {
    /// The first lines of the log.
    pub(super) fn write_head(&mut self) -> Result<(), JobError> {
        let runner = &self.order.runner;
        let first = format!("Running with gitlab-runner {LIKE} ({REVISION} {})", runner.version);
        let second = format!("  on {} {}, system ID: {}", runner.name, runner.short_token, runner.system_id);
        self.say(&first)?;
        self.say(&second)?;
        if let Some(flags) = self.feature_flags() {
            self.say(&flags)?;
        }
        for line in policy(&self.order.job.policy_options) {
            self.say(&line)?;
        }
        for notice in self.order.notices.clone() {
            self.warn(&notice)?;
        }
        for key in self.variables.unexportable().to_vec() {
            self.warn(&format!("variable {key:?} is not exported: a shell cannot have that name"))?;
        }
        for warning in self.oddities() {
            self.warn(&warning)?;
        }
        if self.order.job.image_name().is_some() || !self.order.job.services.is_empty() {
            self.warn("image and services are ignored: the job runs directly on the instance")?;
        }
        Ok(())
    }

    /// What of the job is not taken as it is.
    fn oddities(&self) -> Vec<String> {
        let mut odd = Vec::new();
        if self.order.job.runner_info.timeout <= 0 {
            odd.push("GitLab names no time-out for the job: it may take 2h".to_owned());
        }
        for variable in self.variables.exports() {
            let key = &variable.key;
            if self.variables.is_shell_only(key) {
                odd.push(format!(
                    "variable {key} is longer than Linux hands to a program: only the script's own shell sees it"
                ));
            }
            if variable.content.as_ref().unwrap_or(&variable.value).contains('\0') {
                odd.push(format!("variable {key} has NUL bytes, which no shell can hold: they are left out"));
            }
        }
        let steps = self.order.job.steps.iter();
        for step in steps.filter(|step| step.script.iter().any(|line| line.contains('\0'))) {
            odd.push(format!("step {} has NUL bytes, which no shell can hold: they are left out", step.name));
        }
        odd.extend(self.compression());
        if self.variables.flag(METADATA, false) && !self.order.job.artifacts.is_empty() {
            odd.push(format!("{METADATA} is ignored: no metadata of artifacts is made"));
        }
        odd
    }

    /// What of the wishes for archives is not done.
    fn compression(&self) -> Vec<String> {
        const FORMAT: &str = "CACHE_COMPRESSION_FORMAT";
        let mut odd = Vec::new();
        if let Some(format) = self.variables.setting(FORMAT).filter(|format| *format != "zip") {
            odd.push(format!("{FORMAT} {format:?} is not written here: caches are zip archives"));
        }
        for key in ["ARTIFACT_COMPRESSION_LEVEL", "CACHE_COMPRESSION_LEVEL"] {
            if let Some(word) = self.variables.setting(key).filter(|word| named_level(word).is_none()) {
                let known = LEVELS.map(|(known, _)| known).join(", ");
                odd.push(format!("{key} {word:?} is none of {known}: using default"));
            }
        }
        odd
    }

    /// The flags that the job sets, as people look for them in a log.
    fn feature_flags(&self) -> Option<String> {
        const FLAGS: [(&str, bool); 3] =
            [("FF_TIMESTAMPS", true), ("FF_SCRIPT_SECTIONS", false), ("FF_SUSPENDABLE_ENVIRONMENTS", false)];
        let changed = FLAGS.into_iter().filter(|(flag, usual)| self.variables.flag(flag, *usual) != *usual);
        let changed: Vec<String> = changed.map(|(flag, usual)| format!("{flag}:{}", !usual)).collect();
        (!changed.is_empty()).then(|| format!("  feature flags: {}", changed.join(", ")))
    }

    /// Before anything of the user's runs.
    pub(super) fn prepare(&mut self) -> Result<Ended, JobError> {
        self.enter("prepare_executor", "Preparing the \"instance\" executor")?;
        self.resumed()?;
        self.leave("prepare_executor")?;
        self.enter("prepare_script", "Preparing environment")?;
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.log.line(&format!("Running on {host_name}, slot {}", self.order.slot)).map_err(JobError::Log)?;
        self.leave("prepare_script")?;
        if !self.shell.has_bash() {
            return Err(JobError::NoShell);
        }
        Ok(self.stopped(CancelWish::Graceful)?.map_or(Ok(()), Err))
    }

    /// Says that the environment was asleep, and what it lacks since.
    fn resumed(&mut self) -> Result<(), JobError> {
        if let Some(resume) = &self.order.resume {
            self.log.line(&resumed_line(&resume.key)).map_err(JobError::Log)?;
            let gone = match self.admitted.processes_lost {
                None => None,
                Some(Loss::Restart) => Some(
                    "the host has been restarted since: the environment's background processes are gone"
                        .to_owned(),
                ),
                Some(Loss::Move(count)) => Some(format!(
                    "the environment has left its instance since: its background processes ({count}) are gone"
                )),
            };
            if let Some(gone) = gone {
                self.warn(&gone)?;
            }
            self.unmark()?;
        }
        Ok(())
    }

    /// The marker was for the time the environment slept.
    fn unmark(&mut self) -> Result<(), JobError> {
        Workspace::of(&self.admitted.environment)
            .and_then(|workspace| workspace.unmark())
            .map_err(host("failed to take the marker out of the workspace"))
    }
}

/// What the log says of the policy that put a job into its pipeline.
fn policy(options: &PolicyOptions) -> Vec<String> {
    if !options.execution_policy_job {
        return Vec::new();
    }
    let except = match options.policy_variables_override_exceptions.as_slice() {
        [] => String::new(),
        names => format!(", except {}", names.join(", ")),
    };
    let variables = match options.policy_variables_override_allowed {
        Some(true) => format!("users' variables count beside the policy's{except}"),
        Some(false) => format!("users' variables do not count{except}"),
        None => "the policy's variables win over users' of the same name".to_owned(),
    };
    vec![format!("Job triggered by policy \"{}\": {variables}", options.policy_name)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_told_with_what_becomes_of_variables() {
        let named = |allowed, exceptions: &[&str]| {
            policy(&PolicyOptions {
                execution_policy_job: true,
                policy_name: "scan".into(),
                policy_variables_override_allowed: allowed,
                policy_variables_override_exceptions: exceptions
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect(),
            })
            .join("")
        };
        assert!(named(None, &[]).contains("\"scan\": the policy's variables win"));
        assert!(named(Some(true), &["A", "B"]).ends_with("count beside the policy's, except A, B"));
        assert!(named(Some(false), &[]).ends_with("do not count"));
        assert!(policy(&PolicyOptions::default()).is_empty());
    }
}
