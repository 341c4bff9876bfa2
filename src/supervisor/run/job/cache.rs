//! The stages that restore and save caches.
//!
//! Whatever goes wrong with a cache is a warning in the log and no more; only a cancel and the job's own time-out end a job
//! here. A cache that is saved on the host is written as a draft, which is put in its place by this process: the errand that
//! writes it has an open file and no way to any other.

use std::path::{Path, PathBuf};

use super::sources::wait_before;
use super::{Ended, Failure, Job, JobError, canceled, job_status};
use crate::gitlab::cache::CachePlan;
use crate::spool::cache::{CacheOrder, CacheStore, CacheUrl};
use crate::spool::record::ScriptEnd;
use crate::supervisor::archive::selection::Choice;
use crate::supervisor::cache::folder::{CacheFolder, ProjectCaches};
use crate::supervisor::cache::restore::Restore;
use crate::supervisor::cache::save::Save;
use crate::supervisor::cache::{NOTHING, Place};
use crate::supervisor::errand::Errand;
use crate::supervisor::expansion::Given;
use crate::supervisor::run::cancel::CancelWish;
use crate::supervisor::run::stage::StageEnd;
use crate::supervisor::state::read_json;

/// Minutes that a request may take, by the job's own word.
const REQUEST_TIMEOUT: &str = "CACHE_REQUEST_TIMEOUT";

/// Where this job's caches are.
enum Store {
    Host(ProjectCaches),
    Bucket(Vec<CacheUrl>),
}

/// How one look for a cache ended.
enum Look {
    Found,
    NotThere,
    Failed,
    Stopped(StageEnd),
}

impl Job {
    /// `restore_cache`. A cache that cannot be had is said in the log; only a cancel or the job's time-out fails here.
    pub(super) fn restore_cache(&mut self) -> Result<Ended, JobError> {
        let Some(order) = self.order.cache.clone() else { return Ok(Ok(())) };
        if !order.plans.iter().any(|plan| plan.pulls || !plan.notes.is_empty()) {
            return Ok(Ok(()));
        }
        self.enter("restore_cache", "Restoring cache")?;
        for note in order.plans.iter().flat_map(|plan| &plan.notes) {
            self.warn(note)?;
        }
        let attempts = self.attempts("RESTORE_CACHE_ATTEMPTS")?;
        let store = if order.plans.iter().any(|plan| plan.pulls) { self.store(&order)? } else { None };
        let mut stopped = None;
        if let Some(store) = store {
            for (index, plan) in order.plans.iter().enumerate().filter(|(_, plan)| plan.pulls) {
                stopped = self.restore(&order, &store, index, plan, attempts)?;
                if stopped.is_some() {
                    break;
                }
            }
        }
        self.leave("restore_cache")?;
        Ok(stopped.map_or(Ok(()), |end| Err(self.stopped_at(end))))
    }

    /// `archive_cache`, or `archive_cache_on_failure` after a failure. The answer is why a job that had succeeded fails
    /// here: a cancel or its time-out, and nothing else.
    pub(super) fn archive_cache(&mut self, failure: Option<&Failure>) -> Result<Option<Failure>, JobError> {
        let Some(order) = self.order.cache.clone() else { return Ok(None) };
        let succeeded = failure.is_none();
        let is_due = |plan: &CachePlan| plan.pushes && plan.when.holds(succeeded);
        if !order.plans.iter().any(is_due) {
            return Ok(None);
        }
        let (stage, title) = if succeeded {
            ("archive_cache", "Saving cache for successful job")
        } else {
            ("archive_cache_on_failure", "Saving cache for failed job")
        };
        self.enter(stage, title)?;
        let mut stopped = None;
        if let Some(store) = self.store(&order)? {
            for (index, plan) in order.plans.iter().enumerate().filter(|(_, plan)| is_due(plan)) {
                self.log.line(&format!("Creating cache {}...", plan.key())).map_err(JobError::Log)?;
                match self.save(&order, &store, index, plan, job_status(failure))? {
                    StageEnd::Exited(_) => {}
                    end @ (StageEnd::TimedOut | StageEnd::JobTimedOut | StageEnd::Canceled(_)) => {
                        stopped = Some(end);
                        break;
                    }
                }
            }
        }
        self.leave(stage)?;
        Ok(stopped.map(|end| self.stopped_at(end)))
    }

    /// Looks under each key of a cache until one has something.
    fn restore(
        &mut self,
        order: &CacheOrder,
        store: &Store,
        index: usize,
        plan: &CachePlan,
        attempts: u32,
    ) -> Result<Option<StageEnd>, JobError> {
        for (number, key) in plan.keys.iter().enumerate() {
            self.log.line(&format!("Checking cache for {key}...")).map_err(JobError::Log)?;
            let mut attempt = 1;
            loop {
                match self.look(order, store, (index, number), plan, key)? {
                    Look::Found => return Ok(None),
                    Look::NotThere => break,
                    Look::Stopped(end) => return Ok(Some(end)),
                    Look::Failed if attempt >= attempts => break,
                    Look::Failed => {}
                }
                self.warn(&format!("restoring cache {key} failed; {} more to try", attempts - attempt))?;
                if let Some(end) = self.pause(wait_before(attempt))? {
                    return Ok(Some(end));
                }
                attempt += 1;
            }
        }
        Ok(None)
    }

    fn look(
        &mut self,
        order: &CacheOrder,
        store: &Store,
        (index, number): (usize, usize),
        plan: &CachePlan,
        key: &str,
    ) -> Result<Look, JobError> {
        let (from, file) = match store {
            Store::Host(caches) => match caches.archive(key) {
                Ok(Some(file)) => (Place::File, Some(file)),
                Ok(None) => {
                    self.log.line(&format!("There is no cache under {key}")).map_err(JobError::Log)?;
                    return Ok(Look::NotThere);
                }
                Err(error) => {
                    self.warn(&format!("cache {key} cannot be read: {error}"))?;
                    return Ok(Look::Failed);
                }
            },
            Store::Bucket(urls) => match urls.get(index).and_then(|urls| urls.get.get(number)) {
                Some(address) => (Place::Address(address.clone()), None),
                None => {
                    self.warn(&format!("cache {key} is skipped: the operator has signed no address for it"))?;
                    return Ok(Look::NotThere);
                }
            },
        };
        let choice = choice(plan);
        let errand = Errand::RestoreCache(Restore {
            project: PathBuf::from(&self.admitted.environment.workspace),
            temporary: PathBuf::from(&self.temporary),
            key: key.to_owned(),
            own: (number == 0).then_some(index),
            from,
            given: Given::of(&self.variables, "running", choice.texts()),
            choice,
            http: self.http_settings(),
            seconds: self.request_seconds(order)?,
            bounds: self.unpack_bounds()?,
        });
        Ok(match self.errand_with(&errand, file.as_ref(), CancelWish::Graceful)? {
            StageEnd::Exited(0) => Look::Found,
            StageEnd::Exited(code) if code == i32::from(NOTHING) => Look::NotThere,
            StageEnd::Exited(_) => Look::Failed,
            end @ (StageEnd::TimedOut | StageEnd::JobTimedOut | StageEnd::Canceled(_)) => Look::Stopped(end),
        })
    }

    fn save(
        &mut self,
        order: &CacheOrder,
        store: &Store,
        index: usize,
        plan: &CachePlan,
        job_status: &str,
    ) -> Result<StageEnd, JobError> {
        let key = plan.key();
        let (to, draft) = match store {
            Store::Host(caches) => match caches.begin(key, self.order.job.id) {
                Ok(draft) => (Place::File, Some(draft)),
                Err(error) => {
                    self.warn(&format!("cache {key} cannot be saved: {error}"))?;
                    return Ok(StageEnd::Exited(1));
                }
            },
            Store::Bucket(urls) => match urls.get(index).and_then(|urls| urls.put.clone()) {
                Some(address) => (Place::Address(address), None),
                None => {
                    self.warn(&format!("cache {key} is skipped: the operator has signed no address for it"))?;
                    return Ok(StageEnd::Exited(1));
                }
            },
        };
        let choice = choice(plan);
        let errand = Errand::SaveCache(Save {
            project: PathBuf::from(&self.admitted.environment.workspace),
            temporary: PathBuf::from(&self.temporary),
            key: key.to_owned(),
            index,
            to,
            given: Given::of(&self.variables, job_status, choice.texts()),
            choice,
            compression: self.variables.setting("CACHE_COMPRESSION_LEVEL").unwrap_or_default().to_owned(),
            largest: order.largest_archive,
            http: self.http_settings(),
            seconds: self.request_seconds(order)?,
        });
        let file = draft.as_ref().map(|draft| draft.file());
        // A mild cancel has ended the script; what it has made is still of use.
        let end = self.errand_with(&errand, file, CancelWish::Abort)?;
        if let (StageEnd::Exited(0), Some(draft)) = (end, draft)
            && let Err(error) = draft.keep()
        {
            self.warn(&format!("cache {key} cannot be put in its place: {error}"))?;
        }
        Ok(end)
    }

    /// Where caches are now; nothing, with a word in the log, where they cannot be had.
    fn store(&mut self, order: &CacheOrder) -> Result<Option<Store>, JobError> {
        let opened = match &order.store {
            CacheStore::Nowhere { why } => Err(why.clone()),
            CacheStore::Bucket(urls) => {
                // Newer ones come while the job runs, if these end before it may.
                let newer = read_json(&self.admitted.job.cache_urls()).ok().flatten();
                Ok(Store::Bucket(newer.unwrap_or_else(|| urls.clone()).caches))
            }
            CacheStore::Host { folder } => self.host_caches(folder.as_deref()).map(Store::Host),
        };
        match opened {
            Ok(store) => Ok(Some(store)),
            Err(why) => {
                self.warn(&format!("caches are skipped: {why}"))?;
                Ok(None)
            }
        }
    }

    fn host_caches(&self, folder: Option<&str>) -> Result<ProjectCaches, String> {
        let path = folder.map_or_else(|| self.admitted.caches.clone(), PathBuf::from);
        open(
            &path,
            self.admitted.user.is_some(),
            &self.admitted.environment.project_path,
            self.order.job.job_info.project_id,
        )
        .map_err(|error| format!("the cache folder {} cannot be used: {error}", path.display()))
    }

    /// Seconds that a request may take.
    fn request_seconds(&mut self, order: &CacheOrder) -> Result<u64, JobError> {
        let Some(text) = self.variables.setting(REQUEST_TIMEOUT) else { return Ok(order.request_timeout) };
        match text.parse::<u64>() {
            Ok(minutes) if minutes > 0 => Ok(minutes.saturating_mul(60)),
            Ok(_) | Err(_) => {
                let message = format!("{REQUEST_TIMEOUT} {text:?} is no number of minutes, it is ignored");
                self.warn(&message)?;
                Ok(order.request_timeout)
            }
        }
    }

    fn stopped_at(&self, end: StageEnd) -> Failure {
        match end {
            StageEnd::Canceled(_) => canceled(ScriptEnd::NotEnded),
            StageEnd::Exited(_) | StageEnd::TimedOut | StageEnd::JobTimedOut => self.out_of_time(),
        }
    }
}

/// What belongs to a cache, as the job wrote it.
fn choice(plan: &CachePlan) -> Choice {
    Choice { paths: plan.paths.clone(), exclude: Vec::new(), untracked: plan.untracked }
}

fn open(path: &Path, others: bool, project: &str, id: u64) -> std::io::Result<ProjectCaches> {
    CacheFolder::open(path, others)?.project(project, id)
}
