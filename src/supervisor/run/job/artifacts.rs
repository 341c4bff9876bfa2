//! The stages that bring artifacts of other jobs and hand over the job's own.

use std::path::PathBuf;

use super::sources::wait_before;
use super::{Ended, Failure, Job, JobError, canceled, job_status};
use crate::spool::record::{Outcome, ScriptEnd};
use crate::supervisor::archive::extract::{Bounds, MOST_BYTES, MOST_ENTRIES};
use crate::supervisor::artifacts::download::Download;
use crate::supervisor::artifacts::plan::{due, sources};
use crate::supervisor::artifacts::upload::Upload;
use crate::supervisor::errand::Errand;
use crate::supervisor::expansion::Given;
use crate::supervisor::http::proxy::ProxySettings;
use crate::supervisor::http::{HttpSettings, Shown};
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::run::stage::StageEnd;

impl Job {
    /// `download_artifacts`. A dependency that cannot be had fails the job before its script.
    pub(super) fn download_artifacts(&mut self) -> Result<Ended, JobError> {
        let jobs = sources(&self.order.job.dependencies);
        if jobs.is_empty() {
            return Ok(Ok(()));
        }
        self.enter("download_artifacts", "Downloading artifacts")?;
        let attempts = self.attempts("ARTIFACT_DOWNLOAD_ATTEMPTS")?;
        let errand = Errand::DownloadArtifacts(Download {
            project: PathBuf::from(&self.admitted.environment.workspace),
            temporary: PathBuf::from(&self.temporary),
            gitlab: self.order.runner.gitlab_url.clone(),
            http: self.gitlab_settings(),
            bounds: self.unpack_bounds()?,
            jobs,
        });
        let mut end = self.errand(&errand, CancelWish::Graceful)?;
        for attempt in 1..attempts {
            if !matches!(end, StageEnd::Exited(code) if code != 0) {
                break;
            }
            self.warn(&format!("downloading artifacts failed; {} more to try", attempts - attempt))?;
            end = match self.pause(wait_before(attempt))? {
                Some(end) => end,
                None => self.errand(&errand, CancelWish::Graceful)?,
            };
        }
        self.leave("download_artifacts")?;
        Ok(match end {
            StageEnd::Exited(0) => Ok(()),
            StageEnd::Exited(code) => {
                Err(transfer_failed("downloading artifacts failed", ScriptEnd::NotEnded, code))
            }
            StageEnd::Canceled(_) => Err(canceled(ScriptEnd::NotEnded)),
            StageEnd::TimedOut | StageEnd::JobTimedOut => Err(self.out_of_time()),
        })
    }

    /// `upload_artifacts_on_success`, or `upload_artifacts_on_failure` after a failure. The answer is why a job that
    /// had succeeded fails here. A mild cancel does not stop it: what a canceled job has to show is still wanted.
    pub(super) fn upload_artifacts(
        &mut self,
        failure: Option<&Failure>,
    ) -> Result<Option<Failure>, JobError> {
        let succeeded = failure.is_none();
        let entries = due(&self.order.job.artifacts, succeeded);
        if entries.is_empty() {
            return Ok(None);
        }
        let (stage, title) = if succeeded {
            ("upload_artifacts_on_success", "Uploading artifacts for successful job")
        } else {
            ("upload_artifacts_on_failure", "Uploading artifacts for failed job")
        };
        self.enter(stage, title)?;
        let (mut items, mut refused) = (Vec::new(), None);
        for entry in entries {
            match entry {
                Ok(item) => items.push(item),
                Err(why) => {
                    self.say(&format!("\x1b[31;1mERROR: {why}\x1b[0;m"))?;
                    refused = Some(Failure {
                        outcome: Outcome::ConfigurationError,
                        script: ScriptEnd::Failure,
                        exit_code: 1,
                        message: why,
                    });
                }
            }
        }
        let texts = items.iter().flat_map(|item| item.choice.texts().chain([item.name.as_str()]));
        let errand = Errand::UploadArtifacts(Upload {
            given: Given::of(&self.variables, job_status(failure), texts),
            project: PathBuf::from(&self.admitted.environment.workspace),
            gitlab: self.order.runner.gitlab_url.clone(),
            job: self.order.job.id,
            token: self.order.job.token.clone(),
            http: self.gitlab_settings(),
            compression: self.variables.setting("ARTIFACT_COMPRESSION_LEVEL").unwrap_or_default().to_owned(),
            items,
        });
        let end = self.errand(&errand, CancelWish::Abort)?;
        self.leave(stage)?;
        Ok(match end {
            StageEnd::Exited(0) => refused,
            // The script has ended; the job fails after it, and its environment sleeps if that is wanted then.
            StageEnd::Exited(code) => {
                refused.or(Some(transfer_failed("uploading artifacts failed", ScriptEnd::Failure, code)))
            }
            StageEnd::Canceled(_) => Some(canceled(ScriptEnd::NotEnded)),
            StageEnd::TimedOut | StageEnd::JobTimedOut => Some(self.out_of_time()),
        })
    }

    /// How the errands of this job speak to GitLab, which is shown the pool's certificate where it asks for one.
    fn gitlab_settings(&self) -> HttpSettings {
        let runner = &self.order.runner;
        let shown = runner.client.clone().map(|identity| Shown { to: runner.gitlab_url.clone(), identity });
        HttpSettings { shown, ..self.http_settings() }
    }

    /// How the errands of this job make requests.
    pub(super) fn http_settings(&self) -> HttpSettings {
        let base = &self.shell.base;
        HttpSettings {
            ca_bundle: self.order.runner.ca_bundle.clone(),
            shown: None,
            // A job's own variables win over the host's, as in its scripts.
            proxy: ProxySettings::read(|name| {
                self.variables.value(name).map(str::to_owned).or_else(|| base.get(name).cloned())
            }),
        }
    }

    /// How much may come out of an archive, as the job says; what is no number is said and not heeded.
    pub(super) fn unpack_bounds(&mut self) -> Result<Bounds, JobError> {
        let mut bounds = Bounds::default();
        for (name, bound) in [(MOST_ENTRIES, &mut bounds.entries), (MOST_BYTES, &mut bounds.bytes)] {
            let Some(text) = self.variables.setting(name) else { continue };
            match text.parse() {
                Ok(number) => *bound = number,
                Err(_) => {
                    let message = format!("{name} {text:?} is no number, it is ignored");
                    self.warn(&message)?;
                }
            }
        }
        Ok(bounds)
    }
}

fn transfer_failed(what: &str, script: ScriptEnd, code: i32) -> Failure {
    Failure {
        outcome: Outcome::ScriptFailure,
        script,
        exit_code: code,
        message: format!("{what}: exit code {code}"),
    }
}
