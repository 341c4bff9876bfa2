//! What every handler shares: the world, the settings and the ways to wait for a change.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::{Notify, watch};

use super::{Options, world::World};

/// The server without its listener.
#[derive(Debug)]
pub(super) struct Server {
    pub options: Options,
    pub url: String,
    /// Who waits: handlers, the control side and the lease keeper, each for lines.
    world: Mutex<World>,
    /// Counts what may give a polling runner something to do.
    queue: watch::Sender<u64>,
    /// Told when a lease began. A refreshed one is found when its first end is reached.
    pub leases: Notify,
    /// Told when a request was recorded or is held from now on.
    pub requests: Notify,
}

impl Server {
    pub fn new(options: Options, url: String) -> Self {
        let world = Mutex::new(World::new(options.update_interval));
        Self {
            options,
            url,
            world,
            queue: watch::Sender::new(0),
            leases: Notify::new(),
            requests: Notify::new(),
        }
    }

    /// The world, for lines and never across an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the requests that are held.
    pub fn queue_changed(&self) {
        self.queue.send_modify(|changes| *changes += 1);
    }

    /// Follows the queue.
    pub fn follow_queue(&self) -> watch::Receiver<u64> {
        self.queue.subscribe()
    }
}

/// Drops jobs whose acknowledgement lease runs out; ends with its task.
pub(super) async fn keep_leases(server: Arc<Server>) {
    let grace = server.options.drop_after_lease;
    loop {
        let changed = server.leases.notified();
        let next = server.world().next_lease_end().map(|end| end + grace);
        match next {
            None => changed.await,
            Some(end) => {
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(end.into()) => {}
                }
            }
        }
        let retry = server.options.retry_unacknowledged;
        if server.world().expire_leases(Instant::now(), grace, retry) {
            server.queue_changed();
        }
    }
}
