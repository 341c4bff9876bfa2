//! What goes wrong around an operator, as values: each begins, lasts, and is made good again.
//!
//! `let trouble = Mishap::GitLabDown.begin(&stage).await?; …; trouble.end(&stage).await?`. Several may last at the same
//! time. A kind that needs paths wants [`Setting::paths`](super::stage::Setting::paths); one of the control plane's parts
//! wants [`Cluster::own`](super::stage::Cluster::own), or other tests notice.

use anyhow::{Context, Result};

use super::control_plane::Part;
use super::gitlab::{Action, Fault, FaultId, Target};
use super::hosts::{Host, HostSpec};
use super::proxy::Line;
use super::stage::Stage;

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Mishap {
    /// SIGKILL of the stage's operator; at its end it is started again. `gives_up` says whether its Lease is given up
    /// in its name: else the next holder waits until it has run out.
    OperatorKilled { gives_up: bool },
    /// SIGTERM, and started again at the end.
    OperatorTerminated,
    /// SIGSTOP, and SIGCONT at the end.
    OperatorFrozen,
    /// The operator's clock is off by so many seconds from its next start on, until it is set anew.
    ClockOff(i64),
    /// The operators' way to the API server.
    ApiServerPath(Line),
    /// The operators' way to GitLab.
    GitLabPath(Line),
    /// A part of the control plane is killed, and started again on its port and data at the end.
    PartKilled(Part),
    /// A part of the control plane stands still.
    PartFrozen(Part),
    /// GitLab's port refuses connections, open ones are cut.
    GitLabDown,
    /// GitLab does this to every such request.
    GitLab(Target, Action),
    /// The network of the host with this index.
    HostPath(usize, Line),
    /// Every connection to the host is reset once.
    HostReset(usize),
    /// Its sshd begins anew with these settings, and with the usual ones at the end.
    SshdRestarted(usize, HostSpec),
    /// Every process of its sshd that serves a connection is killed.
    SessionsKilled(usize),
    /// All its processes stand still.
    HostFrozen(usize),
    /// It loses its power, and boots at the end.
    HostOff(usize),
    /// A folder of it, which [`Host::limit`] was called for, is full.
    DiskFull(usize, String),
    /// A folder of it cannot be written to.
    ReadOnly(usize, String),
}

/// A mishap that lasts.
#[must_use = "it lasts until its end is asked for"]
#[derive(Debug)]
pub struct Trouble {
    mishap: Mishap,
    fault: Option<FaultId>,
}

impl Mishap {
    /// Lets it happen.
    pub async fn begin(self, stage: &Stage) -> Result<Trouble> {
        let begun = self.inflict(stage).await;
        let fault = begun.with_context(|| format!("{self:?} did not begin"))?;
        Ok(Trouble { mishap: self, fault })
    }

    async fn inflict(&self, stage: &Stage) -> Result<Option<FaultId>> {
        match self {
            Self::OperatorKilled { .. } => stage.operator()?.kill()?,
            Self::OperatorTerminated => stage.operator()?.terminate().await?,
            Self::OperatorFrozen => stage.operator()?.freeze()?,
            Self::ClockOff(seconds) => {
                stage.operator()?.set_variable("DORMOUSE_CLOCK_OFFSET_SECONDS", Some(&seconds.to_string()));
            }
            Self::ApiServerPath(line) => stage.paths()?.api_server.set(*line).await?,
            Self::GitLabPath(line) => {
                stage.gitlab.client_restarted();
                stage.paths()?.gitlab.set(*line).await?;
            }
            Self::PartKilled(part) => stage.cluster.control_plane.kill(*part)?,
            Self::PartFrozen(part) => stage.cluster.control_plane.freeze(*part)?,
            Self::GitLabDown => stage.gitlab.down().await?,
            Self::GitLab(target, action) => {
                return Ok(Some(stage.gitlab.inject(Fault::on(target.clone(), action.clone()))));
            }
            Self::HostPath(index, line) => host(stage, *index)?.cut(*line).await?,
            Self::HostReset(index) => host(stage, *index)?.reset_connections().await?,
            Self::SshdRestarted(index, spec) => host(stage, *index)?.restart_sshd(spec).await?,
            Self::SessionsKilled(index) => host(stage, *index)?.kill_sessions().await?,
            Self::HostFrozen(index) => host(stage, *index)?.freeze().await?,
            Self::HostOff(index) => host(stage, *index)?.stop().await?,
            Self::DiskFull(index, folder) => host(stage, *index)?.fill(folder).await?,
            Self::ReadOnly(index, folder) => host(stage, *index)?.forbid_writes(folder).await?,
        }
        Ok(None)
    }
}

impl Trouble {
    /// What it is.
    pub fn mishap(&self) -> &Mishap {
        &self.mishap
    }

    /// Makes it good again. An operator that may have stopped, or lost the pool, may tell GitLab again what the one
    /// before it has told.
    pub async fn end(self, stage: &Stage) -> Result<()> {
        self.heal(stage).await.with_context(|| format!("{:?} did not end", self.mishap))
    }

    async fn heal(&self, stage: &Stage) -> Result<()> {
        match &self.mishap {
            Mishap::OperatorKilled { gives_up } => {
                stage.gitlab.client_restarted();
                if *gives_up {
                    stage.give_up_lease().await?;
                }
                start_again(stage).await
            }
            Mishap::OperatorTerminated => {
                stage.gitlab.client_restarted();
                start_again(stage).await
            }
            Mishap::OperatorFrozen => {
                stage.gitlab.client_restarted();
                // It may have been killed meanwhile, and is started again where that ends.
                if stage.operator()?.pid().is_some() { stage.operator()?.thaw() } else { Ok(()) }
            }
            Mishap::ApiServerPath(_) => {
                stage.gitlab.client_restarted();
                stage.paths()?.api_server.set(Line::Up).await
            }
            Mishap::GitLabPath(_) => {
                stage.gitlab.client_restarted();
                stage.paths()?.gitlab.set(Line::Up).await
            }
            Mishap::PartKilled(part) => {
                stage.gitlab.client_restarted();
                stage.cluster.control_plane.restart(*part).await
            }
            Mishap::PartFrozen(part) => {
                stage.gitlab.client_restarted();
                stage.cluster.control_plane.thaw(*part)?;
                stage.cluster.control_plane.until_ready().await
            }
            Mishap::GitLabDown => stage.gitlab.up(),
            Mishap::GitLab(..) => {
                self.fault.into_iter().for_each(|fault| stage.gitlab.remove_fault(fault));
                Ok(())
            }
            Mishap::HostPath(index, _) => host(stage, *index)?.heal().await,
            Mishap::ClockOff(_) | Mishap::HostReset(_) | Mishap::SessionsKilled(_) => Ok(()),
            Mishap::SshdRestarted(index, _) => host(stage, *index)?.restart_sshd(&HostSpec::default()).await,
            Mishap::HostFrozen(index) => host(stage, *index)?.thaw().await,
            Mishap::HostOff(index) => host(stage, *index)?.start().await,
            Mishap::DiskFull(index, folder) => host(stage, *index)?.make_room(folder).await,
            Mishap::ReadOnly(index, folder) => host(stage, *index)?.allow_writes(folder).await,
        }
    }
}

/// Starts the operator, unless the end of another mishap has done so.
async fn start_again(stage: &Stage) -> Result<()> {
    let operator = stage.operator()?;
    if operator.pid().is_none() { operator.start_again().await } else { Ok(()) }
}

fn host(stage: &Stage, index: usize) -> Result<&Host> {
    stage.hosts.get(index).with_context(|| format!("the stage has no host {index}"))
}
