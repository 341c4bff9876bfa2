//! The user a job runs as: a user of its own for each slot, or whoever called `sudo`.
//!
//! Users are read from `/etc/passwd` and `/etc/group` directly: the binary is static and must not load the C
//! library's name services.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// A user that a job's processes become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobUser {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Where `useradd` may be; a connection's PATH often lacks the system folders.
const USERADD: [&str; 3] = ["/usr/sbin/useradd", "/sbin/useradd", "/usr/bin/useradd"];

/// User id of slot 0, and how many slots have one that is the same on every host: files on a volume belong to a number.
/// No distribution hands these out.
const SLOT_IDS: (u32, u32) = (60_800, 384);

/// The user of a slot; made if there is none.
///
/// # Errors
/// When it cannot be made: not root, or no `useradd`.
pub fn of_slot(slot: u32) -> io::Result<JobUser> {
    let name = format!("dormouse-slot{slot}");
    if let Some(user) = by_name(&name)? {
        return Ok(user);
    }
    let program = USERADD
        .iter()
        .find(|path| Path::new(path).exists())
        .ok_or_else(|| io::Error::other("useradd is missing, so no user can be made for a slot"))?;
    let (first, count) = SLOT_IDS;
    let id = (slot < count).then(|| first.saturating_add(slot).to_string());
    if let Some(id) = &id {
        // Somebody else may have the number, which the files on a volume are then changed to.
        let _taken = useradd(program, &["--uid", id, &name])?;
    }
    if let Some(user) = by_name(&name)? {
        return Ok(user);
    }
    let said = useradd(program, &[&name])?;
    let made = by_name(&name)?;
    made.ok_or_else(|| io::Error::other(format!("useradd made no user {name}: {said}")))
}

/// Adds a user; what the program says to it.
fn useradd(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program)
        .args(["--create-home", "--user-group", "--shell", "/bin/bash"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// The user who became root by `sudo`, if this process did.
///
/// # Errors
/// When the user list cannot be read.
pub fn behind_sudo() -> io::Result<Option<JobUser>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    match std::env::var("SUDO_USER") {
        Ok(name) if name != "root" => by_name(&name),
        _ => Ok(None),
    }
}

fn by_name(name: &str) -> io::Result<Option<JobUser>> {
    let users = fs::read_to_string("/etc/passwd")?;
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    Ok(find(&users, &groups, name))
}

fn find(users: &str, groups: &str, name: &str) -> Option<JobUser> {
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [login, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
        if *login != name {
            return None;
        }
        let gid: u32 = gid.parse().ok()?;
        Some(JobUser {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid,
            groups: groups_of(groups, name).filter(|further| *further != gid).collect(),
            home: (*home).to_owned(),
            shell: (*shell).to_owned(),
        })
    })
}

fn groups_of<'a>(groups: &'a str, name: &'a str) -> impl Iterator<Item = u32> + 'a {
    groups.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == name).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_with_its_groups() {
        let users = "root:x:0:0:root:/root:/bin/bash\nci:x:1001:1002:CI,,,:/home/ci:/bin/bash\n";
        let groups = "docker:x:999:ci,other\nci:x:1002:ci\nwheel:x:10:root\n";
        let user = find(users, groups, "ci").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1001, 1002, "/home/ci"));
        assert_eq!(user.groups, [999]);
        assert!(find(users, groups, "c").is_none());
    }
}
