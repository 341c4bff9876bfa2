//! `export`: what an environment that sleeps is, apart from its workspace, in one document. Changes nothing.

use super::claim::{self, Caller};
use super::context;
use super::refuse::{OrRefuse, not_found, refusal, unsupported};
use super::state::StateFolder;
use crate::spool::FORMAT;
use crate::spool::export::{EnvironmentExport, LONGEST_EXPORT};
use crate::spool::record::EnvironmentPhase;
use crate::spool::verb::{Refusal, RefusalReason};

/// Tells all about an environment that sleeps.
///
/// # Errors
/// A refusal when it does not sleep, or when what it has kept is too long to be taken along.
pub fn export(state: &StateFolder, id: &str, epoch: u64) -> Result<EnvironmentExport, Refusal> {
    let folder = state.environment(id);
    let unknown = || not_found(format!("the host knows no environment {id}"));
    let reading = "failed to read the environment's record";
    {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
        folder.read().or_refuse(reading)?.ok_or_else(unknown)?;
    }
    let _lock = folder.lock().or_refuse("failed to lock the environment")?;
    let environment = folder.read().or_refuse(reading)?.ok_or_else(unknown)?;
    match environment.phase {
        EnvironmentPhase::Suspended => {}
        EnvironmentPhase::Active => {
            let message = format!("environment {id} is awake (job {}); suspend it first", environment.job_id);
            return Err(refusal(RefusalReason::InUse, message));
        }
        EnvironmentPhase::Releasing => return Err(not_found(format!("environment {id} is being removed"))),
    }
    let context = context::read(&folder).or_refuse("failed to read the saved context")?;
    let export = EnvironmentExport { format: FORMAT, environment, context };
    check_length(&export)?;
    Ok(export)
}

fn check_length(export: &EnvironmentExport) -> Result<(), Refusal> {
    let json =
        serde_json::to_vec(export).map_err(std::io::Error::other).or_refuse("failed to write the export")?;
    if json.len() <= LONGEST_EXPORT {
        return Ok(());
    }
    let context = export.context.clone().unwrap_or_default();
    let variables: usize = context.variables.iter().map(|(key, value)| key.len() + value.len()).sum();
    Err(unsupported(format!(
        "environment {} cannot leave this host: as a document it takes {} bytes, of which its {} exported variables \
         are {variables} and its shell history {}, and {LONGEST_EXPORT} may be; have its jobs export less",
        export.environment.environment,
        json.len(),
        context.variables.len(),
        context.history.len(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::export::SavedContext;
    use crate::spool::order::Isolation;
    use crate::spool::record::EnvironmentRecord;

    #[test]
    fn what_is_too_long_is_refused_with_what_makes_it_so() {
        let environment = EnvironmentRecord {
            format: FORMAT,
            environment: "env1".into(),
            pool_uid: "u".into(),
            slot: 0,
            isolation: Isolation::Single,
            project_id: 7,
            project_path: "g/p".into(),
            workspace: "/b/0/g/p".into(),
            phase: EnvironmentPhase::Suspended,
            job_id: 1,
            resumes: 0,
            context: None,
            boot_id: "b".into(),
            since: crate::clock::now(),
        };
        let with = |length: usize| EnvironmentExport {
            format: FORMAT,
            environment: environment.clone(),
            context: Some(SavedContext {
                variables: vec![("KEY".into(), "x".repeat(length))],
                ..SavedContext::default()
            }),
        };
        check_length(&with(LONGEST_EXPORT / 2)).unwrap();
        let refused = check_length(&with(LONGEST_EXPORT)).unwrap_err();
        assert_eq!(refused.reason, RefusalReason::Unsupported);
        assert!(refused.message.contains("1 exported variables are 786435"), "{}", refused.message);
        assert!(!refused.message.contains("xx"), "{}", refused.message);
    }
}
