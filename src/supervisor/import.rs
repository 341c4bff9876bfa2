//! `import`: an environment that slept on another host sleeps on this one, its workspace mounted already.
//!
//! 1. under the host's lock: the caller is admitted, the slot is free, its volume is mounted
//! 2. the workspace is where it was, on that volume, and carries the environment's marker
//! 3. the context is written, then the holdings: no processes, and the folder as this host's file system knows it
//! 4. last the record, which makes the environment known and asleep
//!
//! A death before the last step leaves a folder without a record, which is nobody; the next call writes it anew. An
//! environment that is here already, as its last job left it, is imported already.

use std::io::{self, Read};
use std::path::Path;

use super::arguments::{SlotPlace, is_environment_id};
use super::claim::{self, Caller};
use super::context;
use super::holdings::Holdings;
use super::process;
use super::refuse::{OrRefuse, refusal, unsupported};
use super::state::{Durability, StateFolder, make_private};
use super::volume::note::{self, SlotVolume};
use super::workspace::{Identity, Workspace};
use crate::spool::FORMAT;
use crate::spool::export::{EnvironmentExport, LONGEST_EXPORT};
use crate::spool::order::Isolation;
use crate::spool::record::{EnvironmentPhase, EnvironmentRecord};
use crate::spool::verb::{Refusal, RefusalReason};

/// Reads the document on standard input.
///
/// # Errors
/// A refusal when it is cut short, longer than an export may be, or of a format that is not known here.
pub fn read_export(from: impl Read) -> Result<EnvironmentExport, Refusal> {
    let longest = LONGEST_EXPORT as u64;
    let mut bytes = Vec::new();
    from.take(longest + 1).read_to_end(&mut bytes).or_refuse("failed to read the export")?;
    if bytes.len() as u64 > longest {
        return Err(unsupported(format!("the export is longer than {longest} bytes, which none is")));
    }
    let export: EnvironmentExport = serde_json::from_slice(&bytes)
        .map_err(|error| unsupported(format!("the export cannot be read: {error}")))?;
    let format = export.format.max(export.environment.format);
    if format > FORMAT {
        let message =
            format!("the export is of format {format}, this supervisor knows formats up to {FORMAT}");
        return Err(unsupported(message));
    }
    if !is_environment_id(&export.environment.environment) {
        return Err(unsupported(format!("{:?} is no environment id", export.environment.environment)));
    }
    if export.environment.phase != EnvironmentPhase::Suspended {
        return Err(unsupported(format!("environment {} does not sleep", export.environment.environment)));
    }
    Ok(export)
}

/// Makes an exported environment sleep here.
///
/// # Errors
/// A refusal: `SlotTaken` where the slot or the environment is another one, `WorkspaceMismatch` where the workspace
/// is not the environment's.
pub fn import(
    state: &StateFolder,
    place: &SlotPlace,
    epoch: u64,
    export: EnvironmentExport,
) -> Result<EnvironmentRecord, Refusal> {
    let EnvironmentExport { format: _, environment: record, context } = export;
    let _lock = state.lock().or_refuse("failed to lock the state folder")?;
    claim::admit(state, Caller { pool_uid: Some(&record.pool_uid), pool: None, epoch })?;
    let folder = state.environment(&record.environment);
    if let Some(known) = folder.read().or_refuse("failed to read the environment's record")? {
        return already_here(known, &record);
    }
    check_slot(state, place, &record)?;
    if record.isolation == Isolation::PerSlotUser && !rustix::process::geteuid().is_root() {
        return Err(unsupported(
            "isolation PerSlotUser needs root on the host: connect as root or allow sudo without a password",
        ));
    }
    let workspace = find_workspace(state, place, &record)?;

    let attempt = "failed to write the environment's state";
    make_private(&folder.path().join("jobs")).or_refuse(attempt)?;
    if let Some(context) = context {
        context::write_draft(&folder, &context).or_refuse(attempt)?;
        context::save(&folder).or_refuse(attempt)?;
    }
    Holdings { format: FORMAT, trees: Vec::new(), workspace: Some(workspace) }
        .write(&folder, Durability::Durable)
        .or_refuse(attempt)?;
    let asleep = EnvironmentRecord {
        format: FORMAT,
        context: record.context.map(|context| context.without_processes()),
        boot_id: process::boot_id().or_refuse("failed to read the boot id")?,
        ..record
    };
    folder.write(&asleep).or_refuse(attempt)?;
    Ok(asleep)
}

/// What an environment of the same id means that is here already.
fn already_here(known: EnvironmentRecord, wanted: &EnvironmentRecord) -> Result<EnvironmentRecord, Refusal> {
    let id = &known.environment;
    let is_same = known.job_id == wanted.job_id && known.resumes == wanted.resumes;
    match known.phase {
        EnvironmentPhase::Suspended if is_same => Ok(known),
        EnvironmentPhase::Suspended => Err(refusal(
            RefusalReason::SlotTaken,
            format!(
                "environment {id} sleeps here as job {} left it, not as job {} did; have it leave first",
                known.job_id, wanted.job_id
            ),
        )),
        EnvironmentPhase::Active => {
            let message = format!("environment {id} is awake here, used by job {}", known.job_id);
            Err(refusal(RefusalReason::InUse, message))
        }
        EnvironmentPhase::Releasing => {
            let message = format!("environment {id} is being removed here; finish its release first");
            Err(refusal(RefusalReason::InUse, message))
        }
    }
}

fn check_slot(state: &StateFolder, place: &SlotPlace, record: &EnvironmentRecord) -> Result<(), Refusal> {
    let others = state.in_slot(place.slot).or_refuse("failed to look for the slot's environment")?;
    if let Some((_, other)) = others.first() {
        let message = format!(
            "slot {} holds environment {} ({:?}, job {}); release it first",
            place.slot, other.environment, other.phase, other.job_id
        );
        return Err(refusal(RefusalReason::SlotTaken, message));
    }
    let slot = place.folder();
    let below = Path::new(&record.workspace).strip_prefix(&slot).ok().and_then(Path::to_str);
    let project = &record.project_path;
    if place.slot == record.slot
        && below.is_some_and(|below| below == project || below.strip_suffix("-empty") == Some(project))
    {
        return Ok(());
    }
    let message = format!(
        "environment {} of {project} lives at {} in slot {}, and that path may not change while it lives: it cannot \
         be imported to {} in slot {}; use the same slot and builds folder",
        record.environment,
        record.workspace,
        record.slot,
        slot.display(),
        place.slot
    );
    Err(refusal(RefusalReason::WorkspaceMismatch, message))
}

/// The workspace, on the volume of the slot and marked as the environment's.
fn find_workspace(
    state: &StateFolder,
    place: &SlotPlace,
    record: &EnvironmentRecord,
) -> Result<Identity, Refusal> {
    let mismatch = |message: String| refusal(RefusalReason::WorkspaceMismatch, message);
    let slot = place.folder();
    note::check_ready(state, place.slot)?;
    let volume = SlotVolume::read(state, place.slot).or_refuse(note::READING)?;
    let mount =
        volume.map(|volume| volume.mount()).transpose().or_refuse("failed to read the mounts")?.flatten();
    let Some(mount) = mount else {
        return Err(mismatch(format!(
            "slot {} has no volume at {}; mount the one that carries environment {} first",
            place.slot,
            slot.display(),
            record.environment
        )));
    };
    let workspace = Workspace::of(record)
        .map_err(|error: io::Error| mismatch(format!("the workspace {}: {error}", record.workspace)))?;
    workspace.verify_marker(&record.environment).map_err(|error| mismatch(error.to_string()))?;
    let identity = workspace.identity().or_refuse("failed to look at the workspace")?;
    if identity.device != mount.device {
        let message = format!("the workspace {} is not on {}", record.workspace, mount.source.display());
        return Err(mismatch(message));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_export_is_refused() {
        let longest = vec![b' '; LONGEST_EXPORT + 1];
        for bytes in [&b""[..], b"{}", b"{\"format\":1", &longest] {
            let refused = read_export(bytes).unwrap_err();
            assert_eq!(refused.reason, RefusalReason::Unsupported);
        }
    }
}
