//! Decides whether a job may start here, and writes it down before anything runs.
//!
//! Under the host's lock. Numbered writes and who finishes them:
//! 1. `holdings.json`, `environment.json` (Active, this job): a start that died here is started again by the same
//!    order, or released; there is no job folder, so nothing has run.
//! 2. the job's folder, by rename with record and empty log in it: from here on the job exists, and starting it
//!    again only attaches.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Gid, Mode, Uid};

use crate::clock;
use crate::spool::FORMAT;
use crate::spool::order::{Isolation, JobOrder, ResumeOrder};
use crate::spool::record::{EnvironmentPhase, EnvironmentRecord, JobRecord, JobState};
use crate::spool::verb::{Refusal, RefusalReason};
use crate::supervisor::arguments::is_environment_id;
use crate::supervisor::claim::{self, Caller};
use crate::supervisor::counter;
use crate::supervisor::holdings::Holdings;
use crate::supervisor::log::file::LogFile;
use crate::supervisor::process;
use crate::supervisor::quiesce;
use crate::supervisor::refuse::{OrRefuse, not_found, refusal, unsupported};
use crate::supervisor::state::{Durability, EnvironmentFolder, JobFolder, StateFolder, gone, make_private};
use crate::supervisor::tree::Tree;
use crate::supervisor::user::{self, JobUser};
use crate::supervisor::volume::note;
use crate::supervisor::workspace::{self, Workspace};

/// What became of an order.
#[derive(Debug)]
pub enum Admission {
    /// The job is written down and is run by this process.
    Admitted(Box<Admitted>),
    /// The job is known already; it is not run again.
    Known(Box<JobRecord>),
}

/// A job that may run.
#[derive(Debug)]
pub struct Admitted {
    /// The environment's folder.
    pub folder: EnvironmentFolder,
    /// The job's folder.
    pub job: JobFolder,
    /// The environment.
    pub environment: EnvironmentRecord,
    /// The job.
    pub record: JobRecord,
    /// The user the job runs as, when it is another one.
    pub user: Option<JobUser>,
    /// Processes and workspace.
    pub holdings: Holdings,
    /// How the environment's processes were lost since it was put to sleep, if they were.
    pub processes_lost: Option<Loss>,
    /// Where the host keeps caches, unless the order names another folder.
    pub caches: PathBuf,
}

/// How processes that slept were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The host was restarted.
    Restart,
    /// The environment's volume left its host, and so many processes stayed behind.
    Move(u32),
}

/// Admits a job or refuses it.
///
/// # Errors
/// A refusal; nothing has been started then.
pub fn admit(state: &StateFolder, order: &JobOrder) -> Result<Admission, Refusal> {
    check_order(order)?;
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: Some(&order.pool_uid), pool: None, epoch: order.epoch })?;
    let folder = state.environment(&order.environment);
    let job = folder.job(order.job.id);
    if let Some(record) = job.read().or_refuse("failed to read the job's record")? {
        return Ok(Admission::Known(Box::new(record)));
    }
    note::check_ready(state, order.slot)?;
    let user = job_user(order)?;
    let known = folder.read().or_refuse("failed to read the environment's record")?;
    let mut holdings = Holdings::read(&folder).or_refuse("failed to read the environment's holdings")?;
    let (environment, processes_lost) = match &order.resume {
        Some(resume) => resumed(order, resume, known, &holdings)?,
        None => (fresh(state, order, known, user.as_ref())?, None),
    };

    let attempt = "failed to write the environment's state";
    counter::count(state, order.job.id).or_refuse("failed to count the job")?;
    quiesce::forget(state).or_refuse("failed to say that the host is not at rest any more")?;
    make_private(&folder.path().join("jobs")).or_refuse(attempt)?;
    make_output(&folder, user.as_ref()).or_refuse("failed to make the output pipe")?;
    holdings.forget_other_boots();
    if holdings.trees.iter().all(|tree| tree.job_id != order.job.id) {
        let tree = Tree::create(&order.environment, order.job.id, order.pids_limit()).or_refuse(attempt)?;
        holdings.trees.push(tree);
    }
    holdings.write(&folder, Durability::Relaxed).or_refuse(attempt)?;
    folder.write(&environment).or_refuse(attempt)?;
    let record = write_job(order, &folder, &job).or_refuse("failed to write the job's state")?;
    Ok(Admission::Admitted(Box::new(Admitted {
        folder,
        job,
        environment,
        record,
        user,
        holdings,
        processes_lost,
        caches: state.cache(),
    })))
}

fn check_order(order: &JobOrder) -> Result<(), Refusal> {
    if order.format > FORMAT {
        return Err(unsupported(format!(
            "format {} is newer than {FORMAT}, which this supervisor reads",
            order.format
        )));
    }
    if !is_environment_id(&order.environment) {
        return Err(unsupported(format!("{:?} is no environment id", order.environment)));
    }
    if order.job.id == 0 {
        return Err(unsupported("the order names no job"));
    }
    Ok(())
}

fn job_user(order: &JobOrder) -> Result<Option<JobUser>, Refusal> {
    match order.isolation {
        Isolation::PerSlotUser if !rustix::process::geteuid().is_root() => Err(unsupported(
            "isolation PerSlotUser needs root on the host: connect as root or allow sudo without a password",
        )),
        Isolation::PerSlotUser => {
            user::of_slot(order.slot).map(Some).or_refuse("failed to make the slot's user")
        }
        Isolation::Single | Isolation::Shared => {
            user::behind_sudo().or_refuse("failed to read the host's users")
        }
    }
}

/// The record of an environment that begins with this job.
fn fresh(
    state: &StateFolder,
    order: &JobOrder,
    known: Option<EnvironmentRecord>,
    user: Option<&JobUser>,
) -> Result<EnvironmentRecord, Refusal> {
    if let Some(known) = known.filter(|known| known.job_id != order.job.id) {
        let message = format!("environment {} belongs to job {}", known.environment, known.job_id);
        return Err(refusal(RefusalReason::InUse, message));
    }
    check_slot(state, order)?;
    let workspace = workspace::path(&order.builds_dir, order.slot, &order.job).map_err(unsupported)?;
    workspace::make_slot(&order.builds_dir, order.slot, user)
        .or_refuse(format!("failed to make slot {} in {}", order.slot, order.builds_dir))?;
    Ok(EnvironmentRecord {
        format: FORMAT,
        environment: order.environment.clone(),
        pool_uid: order.pool_uid.clone(),
        slot: order.slot,
        isolation: order.isolation,
        project_id: order.job.job_info.project_id,
        project_path: order.job.project_path(),
        workspace,
        phase: EnvironmentPhase::Active,
        job_id: order.job.id,
        resumes: 0,
        context: None,
        boot_id: process::boot_id().or_refuse("failed to read the boot id")?,
        since: clock::now(),
    })
}

/// A slot that holds another environment takes no job, whatever that environment does: only the operator knows
/// whether its log has been read.
fn check_slot(state: &StateFolder, order: &JobOrder) -> Result<(), Refusal> {
    for (_, other) in state.in_slot(order.slot).or_refuse("failed to look for the slot's environment")? {
        if other.environment != order.environment {
            let message = format!(
                "slot {} holds environment {} ({:?}, job {}); release it first",
                order.slot, other.environment, other.phase, other.job_id
            );
            return Err(refusal(RefusalReason::SlotTaken, message));
        }
    }
    Ok(())
}

/// The record of an environment that this job wakes, and how its processes were lost, if they were.
fn resumed(
    order: &JobOrder,
    resume: &ResumeOrder,
    known: Option<EnvironmentRecord>,
    holdings: &Holdings,
) -> Result<(EnvironmentRecord, Option<Loss>), Refusal> {
    let id = &order.environment;
    let known = known.ok_or_else(|| not_found(format!("the host knows no environment {id}")))?;
    let started_before = known.phase == EnvironmentPhase::Active && known.job_id == order.job.id;
    match known.phase {
        EnvironmentPhase::Suspended => {}
        EnvironmentPhase::Active if started_before => {}
        EnvironmentPhase::Active => {
            let message = format!("environment {id} is used by job {}", known.job_id);
            return Err(refusal(RefusalReason::InUse, message));
        }
        EnvironmentPhase::Releasing => return Err(not_found(format!("environment {id} is being removed"))),
    }
    if known.project_id != order.job.job_info.project_id || known.project_id != resume.project_id {
        let message = format!("environment {id} belongs to another project than the job");
        return Err(refusal(RefusalReason::ProjectMismatch, message));
    }
    let mismatch = |message: String| refusal(RefusalReason::WorkspaceMismatch, message);
    if known.workspace != resume.workspace || known.slot != order.slot {
        return Err(mismatch(format!(
            "environment {id} lives at {} in slot {}, not at {} in slot {}",
            known.workspace, known.slot, resume.workspace, order.slot
        )));
    }
    if known.isolation != order.isolation {
        return Err(unsupported(format!(
            "environment {id} was made with isolation {:?}, the pool now says {:?}",
            known.isolation, order.isolation
        )));
    }
    let folder = Workspace::of(&known).map_err(|error| mismatch(format!("{}: {error}", known.workspace)))?;
    folder.verify(id, holdings.workspace.as_ref()).map_err(|error| mismatch(error.to_string()))?;
    let boot_id = process::boot_id().or_refuse("failed to read the boot id")?;
    let left_behind = known.context.as_ref().map_or(0, |context| context.processes_lost);
    let lost = match left_behind {
        0 => (known.boot_id != boot_id).then_some(Loss::Restart),
        count => Some(Loss::Move(count)),
    };
    Ok((
        EnvironmentRecord {
            phase: EnvironmentPhase::Active,
            job_id: order.job.id,
            resumes: known.resumes + u32::from(!started_before),
            since: clock::now(),
            ..known
        },
        lost,
    ))
}

/// Makes the named pipe that the environment's processes write to. It outlives the job, so that a process that
/// sleeps and wakes can go on writing.
fn make_output(folder: &EnvironmentFolder, user: Option<&JobUser>) -> io::Result<()> {
    let path = folder.output();
    match rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(user) = user {
        // A script may open /dev/stdout, which asks for the right to the pipe itself.
        rustix::fs::chown(&path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    }
    Ok(())
}

fn write_job(order: &JobOrder, folder: &EnvironmentFolder, job: &JobFolder) -> io::Result<JobRecord> {
    let record = JobRecord {
        format: FORMAT,
        job_id: order.job.id,
        environment: order.environment.clone(),
        state: JobState::Starting,
        stage: None,
        suspend: order.suspend,
        timestamps: has_timestamps(order),
        started_at: clock::now(),
        finished_at: None,
        result: None,
        sealed: false,
        runner: process::own_identity()?,
    };
    let draft = folder.path().join("jobs").join(format!(".{}", order.job.id));
    gone(fs::remove_dir_all(&draft))?;
    make_private(&draft)?;
    LogFile::open(&draft.join("log"))?;
    JobFolder::at(draft.clone()).set_room_aside()?;
    crate::supervisor::state::write_json(&draft.join("job.json"), &record, Durability::Durable)?;
    fs::rename(&draft, job.path())?;
    Ok(record)
}

/// Timestamps are on unless the job turns them off.
fn has_timestamps(order: &JobOrder) -> bool {
    !matches!(order.job.variable("FF_TIMESTAMPS").map(str::trim), Some("false" | "0" | "off" | "no"))
}
