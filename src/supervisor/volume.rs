//! Workspace volumes: block devices that carry a slot's workspaces and outlive the instance.
//!
//! ```text
//! device      which block device a volume is here
//! filesystem  what it carries, made and grown where that is ours to do
//! note        <state folder>/volumes/<slot>.json: which volume a slot has, and how far it is mounted
//! settle      what a new holder finds half done
//! mount, unmount   the verbs; they hold the slot's lock throughout, and the host's only while they look and note
//! ```
//!
//! Takes root. Never formats what is not blank, and never unmounts from under a job.

pub mod device;
pub mod filesystem;
pub mod mount;
pub mod note;
pub mod settle;
pub mod unmount;
mod users;

use rustix::process::geteuid;

use super::refuse::unsupported;
use crate::spool::verb::Refusal;

/// What only root can do.
fn check_root(what: &str) -> Result<(), Refusal> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(unsupported(format!(
        "{what} needs root on the host: connect as root or allow sudo without a password"
    )))
}
