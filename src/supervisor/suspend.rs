//! `suspend`: holds an environment's processes still and writes down what the next job gets back.
//!
//! In order: processes frozen, leftovers with secrets deleted, marker in the workspace, holdings, context, and last
//! the record, which makes the environment asleep. Each step can be done again; a death in between is finished by
//! the next call. Nothing here depends on the workspace's size.

use std::io;

use super::arguments::JobName;
use super::claim::{self, Caller};
use super::context;
use super::holdings::Holdings;
use super::process;
use super::refuse::{OrRefuse, not_found, refusal};
use super::state::{Durability, EnvironmentFolder, StateFolder};
use super::tree::Tree;
use super::user::{self, JobUser};
use super::workspace::{self, Workspace};
use crate::clock;
use crate::spool::order::Isolation;
use crate::spool::record::{Context, EnvironmentPhase, EnvironmentRecord, Freezer, JobState};
use crate::spool::verb::{Refusal, RefusalReason};

/// Puts an environment to sleep.
///
/// # Errors
/// A refusal while its job runs, or when the host fails.
pub fn suspend(state: &StateFolder, name: &JobName, epoch: u64) -> Result<EnvironmentRecord, Refusal> {
    let folder = state.environment(&name.environment);
    let unknown = || not_found(format!("the host knows no environment {}", name.environment));
    {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
        folder.read().or_refuse("failed to read the environment's record")?.ok_or_else(unknown)?;
    }
    let _lock = folder.lock().or_refuse("failed to lock the environment")?;
    let record = folder.read().or_refuse("failed to read the environment's record")?.ok_or_else(unknown)?;
    check(&folder, &record, name)?;
    if record.phase == EnvironmentPhase::Suspended {
        return Ok(record);
    }
    let user = owner(&record).or_refuse("failed to read the host's users")?;
    let mut holdings = Holdings::read(&folder).or_refuse("failed to read the environment's holdings")?;
    holdings.forget_other_boots();
    // What a job that died left running is not the environment's: only what an earlier job kept is held still.
    if died_before_its_end(&folder, name)? {
        let own = holdings.trees.iter().filter(|tree| tree.job_id == name.id);
        for tree in own {
            tree.kill().or_refuse("failed to end the processes of the job that died")?;
        }
    }
    let attempt = "failed to hold the processes still";
    let (processes, freezer) = freeze(&holdings.trees).or_refuse(attempt)?;
    holdings.forget_empty().or_refuse(attempt)?;
    workspace::remove(&workspace::temporary(&record.workspace), user.as_ref())
        .or_refuse("failed to delete the job's file variables")?;

    let attempt = format!("failed to mark the workspace {}", record.workspace);
    let place = Workspace::of(&record).or_refuse(&attempt)?;
    place.mark(&record.environment).or_refuse(&attempt)?;
    holdings.workspace = Some(place.identity().or_refuse(&attempt)?);
    holdings.write(&folder, Durability::Durable).or_refuse("failed to write the environment's holdings")?;
    let saved = context::save(&folder).or_refuse("failed to save the context")?.unwrap_or_default();
    let asleep = EnvironmentRecord {
        phase: EnvironmentPhase::Suspended,
        context: Some(Context {
            variables: u32::try_from(saved.variables.len()).unwrap_or(u32::MAX),
            cwd: saved.cwd,
            processes,
            freezer,
            processes_lost: 0,
            workspace_bytes: None,
        }),
        boot_id: process::boot_id().or_refuse("failed to read the boot id")?,
        since: clock::now(),
        ..record
    };
    folder.write(&asleep).or_refuse("failed to write the environment's record")?;
    Ok(asleep)
}

fn check(folder: &EnvironmentFolder, record: &EnvironmentRecord, name: &JobName) -> Result<(), Refusal> {
    if record.job_id != name.id {
        let message =
            format!("environment {} is job {}'s, not job {}'s", name.environment, record.job_id, name.id);
        return Err(refusal(RefusalReason::InUse, message));
    }
    if record.phase == EnvironmentPhase::Releasing {
        return Err(not_found(format!("environment {} is being removed", name.environment)));
    }
    let job = folder.job(name.id).read().or_refuse("failed to read the job's record")?;
    if job.is_some_and(|job| job.state != JobState::Finished && process::is_alive(&job.runner)) {
        return Err(refusal(RefusalReason::InUse, format!("job {} still runs", name.id)));
    }
    Ok(())
}

/// Freezes every tree; how many processes there are, and how they are held.
fn freeze(trees: &[Tree]) -> io::Result<(u32, Freezer)> {
    let mut processes = 0;
    let mut freezer = Freezer::Nothing;
    for tree in trees {
        tree.freeze()?;
        let count = tree.processes()?.len();
        if count > 0 {
            freezer = tree.freezer();
        }
        processes += u32::try_from(count).unwrap_or(u32::MAX);
    }
    Ok((processes, freezer))
}

/// Whether the environment's last job has no end: its supervisor was killed.
fn died_before_its_end(folder: &EnvironmentFolder, name: &JobName) -> Result<bool, Refusal> {
    let job = folder.job(name.id).read().or_refuse("failed to read the job's record")?;
    Ok(job.is_some_and(|job| job.state != JobState::Finished))
}

/// The user an environment's files belong to, when it is another one.
///
/// # Errors
/// When the user list cannot be read.
pub fn owner(record: &EnvironmentRecord) -> io::Result<Option<JobUser>> {
    match record.isolation {
        Isolation::PerSlotUser => user::of_slot(record.slot).map(Some),
        Isolation::Single | Isolation::Shared => user::behind_sudo(),
    }
}
