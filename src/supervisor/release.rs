//! `release`: ends an environment: its processes, its state, and its workspace if it has ever slept.
//!
//! The record says Releasing before anything is deleted and the state folder goes last, by rename, so a death in
//! between is finished by the next call, and an environment that is gone is released already. The workspace of an
//! environment that never slept stays for the next job of the project to fetch into.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::claim::{self, Caller};
use super::holdings::Holdings;
use super::process;
use super::refuse::{OrRefuse, refusal};
use super::state::{EnvironmentFolder, StateFolder, is_full};
use super::suspend::owner;
use super::volume::note;
use super::workspace;
use crate::spool::record::{EnvironmentPhase, EnvironmentRecord, JobState, ProcessIdentity};
use crate::spool::verb::{Refusal, RefusalReason};

/// How long a supervisor may take to die.
const PATIENCE: Duration = Duration::from_secs(5);

/// Releases an environment.
///
/// # Errors
/// A refusal while a job runs, unless forced, or when the host fails.
pub fn release(state: &StateFolder, id: &str, force: bool, epoch: u64) -> Result<(), Refusal> {
    let folder = state.environment(id);
    {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
        state.sweep().or_refuse("failed to finish an interrupted deletion")?;
        if !folder.path().is_dir() {
            return Ok(());
        }
    }
    let _lock = folder.lock().or_refuse("failed to lock the environment")?;
    let Some(record) = folder.read().or_refuse("failed to read the environment's record")? else {
        return state.delete(&folder, id).or_refuse("failed to delete the environment's state");
    };
    if !force {
        // What is not mounted would count as deleted.
        note::check_ready(state, record.slot)?;
    }
    end_job(&folder, &record, force)?;
    let releasing = EnvironmentRecord { phase: EnvironmentPhase::Releasing, ..record };
    match folder.job(releasing.job_id).with_room(|| folder.write(&releasing)) {
        // Deleting is what makes room. Without the mark a death in between leaves an environment whose workspace is
        // gone, which no job can resume, and which the next release removes.
        Err(error) if is_full(&error) => {}
        written => written.or_refuse("failed to write the environment's record")?,
    }
    let holdings = Holdings::read(&folder).or_refuse("failed to read the environment's holdings")?;
    holdings.kill().or_refuse("failed to end the environment's processes")?;
    let user = owner(&releasing).or_refuse("failed to read the host's users")?;
    let has_slept = releasing.context.is_some();
    if has_slept || force {
        workspace::remove(&releasing.workspace, user.as_ref()).or_refuse("failed to delete the workspace")?;
    }
    workspace::remove(&workspace::temporary(&releasing.workspace), user.as_ref())
        .or_refuse("failed to delete the job's file variables")?;
    state.delete(&folder, id).or_refuse("failed to delete the environment's state")
}

/// Ends a job that still runs, if that is wanted.
fn end_job(folder: &EnvironmentFolder, record: &EnvironmentRecord, force: bool) -> Result<(), Refusal> {
    let job = folder.job(record.job_id).read().or_refuse("failed to read the job's record")?;
    let Some(job) = job.filter(|job| job.state != JobState::Finished && process::is_alive(&job.runner))
    else {
        return Ok(());
    };
    if !force {
        let message = format!("job {} still runs; cancel it first", job.job_id);
        return Err(refusal(RefusalReason::InUse, message));
    }
    kill_supervisor(&job.runner)
}

fn kill_supervisor(runner: &ProcessIdentity) -> Result<(), Refusal> {
    let attempt = "failed to end the job's process";
    let Some(pid) = Pid::from_raw(runner.pid) else { return Ok(()) };
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error).or_refuse(attempt),
    }
    let deadline = Instant::now() + PATIENCE;
    while process::is_alive(runner) {
        if Instant::now() >= deadline {
            return Err(refusal(RefusalReason::HostFailure, format!("{attempt}: it does not vanish")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
