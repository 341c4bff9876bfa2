//! What goes wrong around an operator, as values: each begins, lasts, and is made good again.
//!
//! `let trouble = Mishap::GitLabDown.begin(&stage).await?; …; trouble.end(&stage).await?`. Several may last at the same
//! time. A kind that needs paths wants [`Setting::paths`](super::stage::Setting::paths); one of the control plane's parts
//! wants [`Cluster::own`](super::stage::Cluster::own), or other tests notice.

use anyhow::{Context, Result};

use super::cloud::Fault as CloudFault;
use super::control_plane::Part;
use super::gitlab::{Action, Fault, FaultId, Target};
use super::hosts::{Host, HostSpec};
use super::operator::Operator;
use super::proxy::Line;
use super::stage::Stage;

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Mishap {
    /// SIGKILL of a replica; at its end it is started again. `gives_up` says whether a Lease it held is given up in its
    /// name: else the next holder waits until it has run out.
    ReplicaKilled { replica: usize, gives_up: bool },
    /// SIGTERM of a replica, and started again at the end.
    ReplicaTerminated(usize),
    /// SIGSTOP of a replica, and SIGCONT at the end.
    ReplicaFrozen(usize),
    /// A replica's clock is off by so many seconds from its next start on, until it is set anew.
    ClockOff { replica: usize, seconds: i64 },
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
    /// Calls to the cloud go wrong, until its end clears all that do.
    Cloud(CloudFault),
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
        self.excuse(stage);
        let begun = self.inflict(stage).await;
        let fault = begun.with_context(|| format!("{self:?} did not begin"))?;
        Ok(Trouble { mishap: self, fault })
    }

    /// A holder that takes over while it lasts, or after it, does not know what GitLab was told. What GitLab itself or
    /// its own connections do, the stand-in excuses by itself.
    fn excuse(&self, stage: &Stage) {
        match self {
            Self::ReplicaKilled { .. }
            | Self::ReplicaTerminated(_)
            | Self::ReplicaFrozen(_)
            | Self::ApiServerPath(_)
            | Self::GitLabPath(_)
            | Self::PartKilled(_)
            | Self::PartFrozen(_) => stage.gitlab.client_restarted(),
            Self::ClockOff { .. }
            | Self::GitLabDown
            | Self::GitLab(..)
            | Self::HostPath(..)
            | Self::HostReset(_)
            | Self::SshdRestarted(..)
            | Self::SessionsKilled(_)
            | Self::HostFrozen(_)
            | Self::HostOff(_)
            | Self::DiskFull(..)
            | Self::ReadOnly(..)
            | Self::Cloud(_) => {}
        }
    }

    async fn inflict(&self, stage: &Stage) -> Result<Option<FaultId>> {
        match self {
            Self::ReplicaKilled { replica, .. } => stage.replica(*replica)?.kill()?,
            Self::ReplicaTerminated(replica) => stage.replica(*replica)?.terminate().await?,
            Self::ReplicaFrozen(replica) => stage.replica(*replica)?.freeze()?,
            Self::ClockOff { replica, seconds } => {
                let replica = stage.replica(*replica)?;
                replica.set_variable("DORMOUSE_CLOCK_OFFSET_SECONDS", Some(&seconds.to_string()));
            }
            Self::ApiServerPath(line) => stage.paths()?.api_server.set(*line).await?,
            Self::GitLabPath(line) => stage.paths()?.gitlab.set(*line).await?,
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
            Self::Cloud(fault) => stage.cloud()?.cloud.fault(fault.clone()).await?,
        }
        Ok(None)
    }
}

impl Trouble {
    /// What it is.
    pub fn mishap(&self) -> &Mishap {
        &self.mishap
    }

    /// Makes it good again.
    pub async fn end(self, stage: &Stage) -> Result<()> {
        self.mishap.excuse(stage);
        self.heal(stage).await.with_context(|| format!("{:?} did not end", self.mishap))
    }

    async fn heal(&self, stage: &Stage) -> Result<()> {
        match &self.mishap {
            Mishap::ReplicaKilled { replica, gives_up } => {
                if *gives_up {
                    stage.give_up_lease_of(stage.replica(*replica)?.name()).await?;
                }
                start_again(stage.replica(*replica)?).await
            }
            Mishap::ReplicaTerminated(replica) => start_again(stage.replica(*replica)?).await,
            Mishap::ReplicaFrozen(replica) => {
                let replica = stage.replica(*replica)?;
                // It may have been killed meanwhile, and is started again where that ends.
                if replica.pid().is_some() { replica.thaw() } else { Ok(()) }
            }
            Mishap::ApiServerPath(_) => stage.paths()?.api_server.set(Line::Up).await,
            Mishap::GitLabPath(_) => stage.paths()?.gitlab.set(Line::Up).await,
            Mishap::PartKilled(part) => stage.cluster.control_plane.restart(*part).await,
            Mishap::PartFrozen(part) => {
                stage.cluster.control_plane.thaw(*part)?;
                stage.cluster.control_plane.until_ready().await
            }
            Mishap::GitLabDown => stage.gitlab.up(),
            Mishap::GitLab(..) => {
                self.fault.into_iter().for_each(|fault| stage.gitlab.remove_fault(fault));
                Ok(())
            }
            Mishap::HostPath(index, _) => host(stage, *index)?.heal().await,
            Mishap::ClockOff { .. } | Mishap::HostReset(_) | Mishap::SessionsKilled(_) => Ok(()),
            Mishap::SshdRestarted(index, _) => host(stage, *index)?.restart_sshd(&HostSpec::default()).await,
            Mishap::HostFrozen(index) => host(stage, *index)?.thaw().await,
            Mishap::HostOff(index) => host(stage, *index)?.start().await,
            Mishap::DiskFull(index, folder) => host(stage, *index)?.make_room(folder).await,
            Mishap::ReadOnly(index, folder) => host(stage, *index)?.allow_writes(folder).await,
            Mishap::Cloud(_) => stage.cloud()?.cloud.clear_faults().await,
        }
    }
}

/// Starts a replica, unless the end of another mishap has done so.
async fn start_again(replica: &Operator) -> Result<()> {
    if replica.pid().is_none() { replica.start_again().await } else { Ok(()) }
}

fn host(stage: &Stage, index: usize) -> Result<&Host> {
    stage.hosts.get(index).with_context(|| format!("the stage has no host {index}"))
}
