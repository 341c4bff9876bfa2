//! Which processes use a file system, for refusals: whoever has to free it must know whom to ask.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::supervisor::mounts;
use crate::supervisor::process;

/// How many processes a refusal names.
const NAMED: usize = 3;

/// The processes that use the file system of a device, as a clause for people.
pub fn of(device: u64) -> String {
    let processes = process::all().unwrap_or_default();
    let mut users = processes.iter().map(|stat| stat.pid).filter(|pid| uses(*pid, device));
    let named: Vec<String> =
        users.by_ref().take(NAMED).map(|pid| format!("{pid} ({})", name_of(pid))).collect();
    match (named.is_empty(), users.count()) {
        (true, _) => "no process that can be seen uses it".to_owned(),
        (false, 0) => format!("it is used by {}", named.join(", ")),
        (false, more) => format!("it is used by {} and {more} more", named.join(", ")),
    }
}

/// Whether a process stands in a file system, has a file of it open, or sees it mounted where we do not.
fn uses(pid: i32, device: u64) -> bool {
    let folder = format!("/proc/{pid}");
    let folder = Path::new(&folder);
    let is_of_it = |path: &Path| fs::metadata(path).is_ok_and(|found| found.dev() == device);
    if ["cwd", "root", "exe"].into_iter().any(|link| is_of_it(&folder.join(link))) {
        return true;
    }
    let open = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    if open.map(|entry| entry.path()).any(|path| is_of_it(&path)) {
        return true;
    }
    let elsewhere = fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
    sees_other_mounts(pid) && mounts::parse(&elsewhere).iter().any(|mount| mount.device == device)
}

fn sees_other_mounts(pid: i32) -> bool {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    of(&pid.to_string()) != of("self")
}

fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_the_file_system_it_stands_in_and_not_one_that_is_nowhere() {
        let here = fs::metadata("/proc/self/cwd").unwrap().dev();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(uses(own, here) && !uses(own, u64::MAX));
        assert!(of(here).starts_with("it is used by "), "{}", of(here));
        assert_eq!(of(u64::MAX), "no process that can be seen uses it");
    }
}
