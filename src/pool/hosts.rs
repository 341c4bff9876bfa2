//! The pool's hosts: one keeper task each, restarted when what it needs to know changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::machines::{Connection, Machine};
use super::settings::Settings;
use crate::api::runner_pool::{HostStatus, Isolation, ProxyJump};
use crate::bounds::Bound;
use crate::host::connection::Target;
use crate::host::install::{Supervisors, Wanted};
use crate::host::keeper::{self, HostOrder, HostState, Owner, Trust};
use crate::host::link::{Caller, Link};
use crate::host::trust::{self, Expected};

/// The hosts of one pool while it is held.
#[derive(Default)]
pub struct Hosts {
    /// Locked for lines only; taken by the pool's driver and by lease drivers that look for a link.
    known: Mutex<BTreeMap<String, Known>>,
}

struct Known {
    slots: u32,
    state: watch::Receiver<HostState>,
    /// What is expected of its key, for the keeper.
    trust: watch::Sender<Trust>,
    /// What the keeper was started with; another one starts another keeper.
    order: String,
    cancel: CancellationToken,
}

/// What a look at one host shows.
pub struct HostView {
    /// The host's name.
    pub name: String,
    /// Its slots.
    pub slots: u32,
    /// How it is.
    pub state: HostState,
}

impl Hosts {
    /// Starts, restarts and stops keepers so that they match the settings. `wake` is called on every change of a
    /// host's state.
    #[expect(clippy::too_many_arguments, reason = "one call site; each is a different kind of thing")]
    pub fn adjust<O: Owner>(
        &self,
        settings: &Settings,
        machines: &[Machine],
        recorded: &[HostStatus],
        caller: &Caller,
        supervisors: &Supervisors,
        dials: &Bound,
        owner: &Arc<O>,
        tasks: &TaskTracker,
        ended: &CancellationToken,
        wake: &Arc<tokio::sync::Notify>,
    ) {
        let mut known = self.lock();
        let wanted: BTreeMap<&str, &Machine> = machines
            .iter()
            .filter(|machine| machine.connection == Connection::Wanted)
            .map(|machine| (machine.name.as_str(), machine))
            .collect();
        known.retain(|name, host| {
            let stays = wanted.contains_key(name.as_str());
            if !stays {
                host.cancel.cancel();
            }
            stays
        });
        let recorded: BTreeMap<&str, &HostStatus> =
            recorded.iter().map(|status| (status.name.as_str(), status)).collect();
        for host in wanted.into_values() {
            let slots = host.slots;
            let trusted = trust::expected(
                host.host_key.as_deref(),
                recorded.get(host.name.as_str()).and_then(|status| recorded_key(status, host)),
                settings.spec.ssh.host_key_policy,
            );
            let order = order(settings, host, caller, dials);
            let mark = mark(settings, host);
            if let Some(running) = known.get_mut(&host.name)
                && running.order == mark
            {
                running.slots = slots;
                running.trust.send_if_modified(|known| {
                    let changes = *known != trusted;
                    *known = trusted;
                    changes
                });
                continue;
            }
            let (trust, watched_trust) = watch::channel(trusted);
            let (sender, state) = watch::channel(HostState::Connecting);
            let cancel = ended.child_token();
            match order {
                Ok(order) => {
                    let keeper = keeper::keep(
                        host.name.clone(),
                        order,
                        watched_trust,
                        supervisors.clone(),
                        Arc::clone(owner),
                        sender,
                        cancel.clone(),
                    );
                    tasks.spawn(keeper);
                    tasks.spawn(tell(state.clone(), Arc::clone(wake), cancel.clone()));
                }
                Err(error) => {
                    sender.send_replace(HostState::KeyRefused(error.to_string()));
                }
            }
            let entry = Known { slots, state, trust, order: mark, cancel };
            if let Some(old) = known.insert(host.name.clone(), entry) {
                old.cancel.cancel();
            }
        }
    }

    /// A look at every host.
    pub fn view(&self) -> Vec<HostView> {
        self.lock()
            .iter()
            .map(|(name, host)| HostView {
                name: name.clone(),
                slots: host.slots,
                state: host.state.borrow().clone(),
            })
            .collect()
    }

    /// The link to a host that is ready.
    pub fn link(&self, name: &str) -> Option<Arc<Link>> {
        self.lock().get(name).and_then(|host| host.state.borrow().link())
    }

    /// Why a host is not ready, if it is not.
    pub fn message(&self, name: &str) -> Option<String> {
        self.lock().get(name).and_then(|host| host.state.borrow().message())
    }

    /// A signal that moves with every change of a host's state; `None` when the pool has no such host.
    pub fn watch(&self, name: &str) -> Option<watch::Receiver<HostState>> {
        self.lock().get(name).map(|host| host.state.clone())
    }

    /// How many slots a host has.
    pub fn slots(&self, name: &str) -> u32 {
        self.lock().get(name).map_or(1, |host| host.slots)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn tell(
    mut state: watch::Receiver<HostState>,
    wake: Arc<tokio::sync::Notify>,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                wake.notify_one();
            }
            () = cancel.cancelled() => return,
        }
    }
}

fn order(
    settings: &Settings,
    host: &Machine,
    caller: &Caller,
    dials: &Bound,
) -> Result<HostOrder, trust::TrustError> {
    let ssh = &settings.spec.ssh;
    let dial_timeout = ssh.dial_timeout.std();
    let jump = match &ssh.proxy_jump {
        Some(jump) => Some(Box::new(jump_target(settings, jump, dials)?)),
        None => None,
    };
    let port = host.port.unwrap_or(ssh.port);
    Ok(HostOrder {
        target: Target {
            address: host.address.clone(),
            port,
            username: ssh.username.clone(),
            // Told by the keeper's own channel before each connection.
            expected: Expected::FirstUse,
            dial_timeout,
            key: Arc::clone(&settings.ssh_key),
            jump,
            dials: dials.clone(),
        },
        wanted: Wanted {
            state_dir: settings.spec.state_dir.clone(),
            needs_root: settings.spec.isolation == Some(Isolation::PerSlotUser),
        },
        ready_command: settings.spec.instance_ready_command.clone(),
        caller: caller.clone(),
    })
}

/// The key recorded for a host, if it was recorded for what it is now: an instance id is never given twice, a host of
/// one's own may be another machine at another address.
fn recorded_key<'a>(status: &'a HostStatus, host: &Machine) -> Option<&'a str> {
    let is_same = host.is_known_by_name || status.recorded_address.as_deref() == Some(&host.address);
    status.recorded_host_key.as_deref().filter(|_| is_same)
}

fn jump_target(settings: &Settings, jump: &ProxyJump, dials: &Bound) -> Result<Target, trust::TrustError> {
    let ssh = &settings.spec.ssh;
    // The jump host only carries bytes that are encrypted end to end; its own key is checked when it is pinned.
    let expected = match &jump.host_key {
        Some(key) => trust::expected(Some(key), None, ssh.host_key_policy)?,
        None => trust::expected(None, None, ssh.host_key_policy)?,
    };
    Ok(Target {
        address: jump.address.clone(),
        port: jump.port,
        username: jump.username.clone(),
        expected,
        dial_timeout: ssh.dial_timeout.std(),
        key: Arc::clone(&settings.ssh_key),
        jump: None,
        dials: dials.clone(),
    })
}

/// What a keeper depends on, as text, but for the host's key: that is told to the running keeper.
fn mark(settings: &Settings, host: &Machine) -> String {
    let ssh = &settings.spec.ssh;
    format!(
        "{}:{} {:?} {:?} {:?} {:?} {:?}",
        host.address,
        host.port.unwrap_or(ssh.port),
        ssh,
        settings.spec.state_dir,
        settings.spec.isolation,
        settings.spec.instance_ready_command,
        trust::fingerprint(settings.ssh_key.public_key()),
    )
}
