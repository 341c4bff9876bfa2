//! Where a job works on its host. Pure, and the same for both programs: what a cache is called may hang on it.

use crate::gitlab::variables::expand;
use crate::gitlab::wire::JobPayload;
use crate::spool::order::JobOrder;

/// The workspace of an order: that of the environment it resumes, or the job's own.
///
/// # Errors
/// When there is none.
pub fn of_order(order: &JobOrder) -> Result<String, String> {
    match &order.resume {
        Some(resume) => Ok(resume.workspace.clone()),
        None => path(&order.builds_dir, order.slot, &order.job),
    }
}

/// Path of a job's workspace, or why there is none: `<builds>/<slot>/<group>/<project>`, or where the job wants it in
/// its slot's folder.
///
/// # Errors
/// Why there is none.
pub fn path(builds_dir: &str, slot: u32, job: &JobPayload) -> Result<String, String> {
    let project = job.project_path();
    if !builds_dir.starts_with('/') || builds_dir.contains('\0') {
        return Err(format!("the builds folder {builds_dir:?} is no absolute path"));
    }
    if project.is_empty() || !project.split('/').all(is_plain) {
        return Err(format!("the project path {project:?} cannot be a folder"));
    }
    let empty = if job.variable("GIT_STRATEGY") == Some("empty") { "-empty" } else { "" };
    let own = own_path(builds_dir, slot, job).ok().flatten();
    let path = own.unwrap_or_else(|| format!("{}/{slot}/{project}", builds_dir.trim_end_matches('/')));
    Ok(format!("{path}{empty}"))
}

/// Where a job wants its workspace (`GIT_CLONE_PATH`), if it says.
///
/// # Errors
/// A sentence for people when that is not in the folder of the job's slot, where no other job works.
pub fn own_path(builds_dir: &str, slot: u32, job: &JobPayload) -> Result<Option<String>, String> {
    let Some(wanted) = job.variable("GIT_CLONE_PATH").map(str::trim).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let builds_dir = builds_dir.trim_end_matches('/');
    let path = expand(wanted, |name| match name {
        "CI_BUILDS_DIR" => builds_dir.to_owned(),
        "CI_CONCURRENT_ID" | "CI_CONCURRENT_PROJECT_ID" => slot.to_string(),
        other => job.variable(other).unwrap_or_default().to_owned(),
    });
    let folder = format!("{builds_dir}/{slot}/");
    match path.strip_prefix(&folder).map(|below| below.trim_end_matches('/')) {
        Some(below) if below.split('/').all(is_plain) => Ok(Some(format!("{folder}{below}"))),
        Some(_) | None => Err(format!(
            "GIT_CLONE_PATH is {path:?}, which is not in the folder of the job's slot, {folder}: begin it with \
             $CI_BUILDS_DIR/$CI_CONCURRENT_ID/, or remove it"
        )),
    }
}

/// Whether a part of a path is a name.
fn is_plain(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.contains('\0')
}

/// Folder of file variables, beside the workspace.
pub fn temporary(workspace: &str) -> String {
    format!("{workspace}.tmp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::wire::{JobInfo, Variable};

    fn job(project: &str) -> JobPayload {
        let job_info = JobInfo { project_full_path: project.into(), ..JobInfo::default() };
        JobPayload { job_info, ..JobPayload::default() }
    }

    #[test]
    fn the_path_cannot_leave_the_slot() {
        assert_eq!(path("/builds/", 1, &job("g/sub/p")).unwrap(), "/builds/1/g/sub/p");
        for project in ["", "g/../../x", "/etc", "g//p", "."] {
            assert!(path("/builds", 0, &job(project)).is_err(), "{project}");
        }
        assert!(path("builds", 0, &job("g/p")).is_err());
    }

    #[test]
    fn a_path_of_the_jobs_own_is_in_its_slots_folder_or_refused() {
        let wants = |path: &str| {
            let variables = [("NAME", "tree"), ("GIT_CLONE_PATH", path)];
            let variables = variables.map(|(key, value)| Variable {
                key: key.into(),
                value: value.into(),
                ..Variable::default()
            });
            let job = JobPayload { variables: variables.to_vec(), ..job("g/p") };
            (own_path("/builds/", 3, &job), super::path("/builds", 3, &job).unwrap())
        };
        let own = Ok(Some("/builds/3/src/tree".to_owned()));
        assert_eq!(
            wants("$CI_BUILDS_DIR/$CI_CONCURRENT_ID/src/${NAME}/"),
            (own, "/builds/3/src/tree".to_owned())
        );
        assert_eq!(wants("").0, Ok(None));
        for path in
            ["/elsewhere", "$CI_BUILDS_DIR/4/x", "/builds/3/../4/x", "/builds/3/", "/builds/3//x", "x"]
        {
            let (own, usual) = wants(path);
            assert!(own.unwrap_err().contains("/builds/3/"), "{path}");
            assert_eq!(usual, "/builds/3/g/p", "{path}");
        }
    }
}
