//! Which files of a project go into an archive.

use std::collections::BTreeSet;
use std::io;
use std::process::{Command, Stdio};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use super::project::ProjectFolder;
use super::shown;
use crate::spool::MARKER;

/// What a job wants in an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Files, folders and patterns.
    pub paths: Vec<String>,
    /// Patterns of what is left out again.
    pub exclude: Vec<String>,
    /// Whether everything that git does not track belongs to it.
    pub untracked: bool,
}

impl Choice {
    /// The same with each text expanded; what comes to nothing is no path.
    pub fn expanded(&self, expand: &dyn Fn(&str) -> String) -> Self {
        let all = |texts: &[String]| {
            texts.iter().map(|text| expand(text)).filter(|text| !text.is_empty()).collect()
        };
        Self { paths: all(&self.paths), exclude: all(&self.exclude), untracked: self.untracked }
    }

    /// Its texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> + Clone {
        self.paths.iter().chain(&self.exclude).map(String::as_str)
    }
}

/// Finds the files of a choice whose texts are expanded; what was found by which path is said line by line. `kind` is what they are of, `artifact` or
/// `cache`. The names are in order, each folder before what is in it.
///
/// # Errors
/// When the host lets us open no more files.
pub fn select(
    project: &ProjectFolder,
    choice: &Choice,
    kind: &str,
    say: &mut dyn FnMut(&str),
) -> io::Result<Vec<Vec<u8>>> {
    let root = project.path().to_string_lossy().into_owned();
    let mut found = BTreeSet::new();
    for path in &choice.paths {
        let Some(pattern) = Pattern::read(path, &root) else {
            say(&warning(&format!(
                "{path}: it is not below the project's folder ({root}), nothing of it is taken"
            )));
            continue;
        };
        let before = found.len();
        search(project, &pattern, &mut found, say)?;
        let count = found.len() - before;
        if count == 0 {
            say(&warning(&format!(
                "{path}: no matching files. Make sure that the path is relative to the project's folder ({root})"
            )));
        } else {
            say(&format!("{path}: found {count} matching {kind} files and directories"));
        }
    }
    if choice.untracked {
        match untracked(project) {
            Ok(paths) => {
                let before = found.len();
                for path in paths {
                    take(project, &path, &mut found, say)?;
                }
                say(&format!("untracked: found {} files", found.len() - before));
            }
            // A project without a repository, or a host without git: the paths are still there.
            Err(error) => say(&warning(&format!("untracked: {error}"))),
        }
    }
    for path in &choice.exclude {
        let Some(pattern) = Pattern::read(path, &root) else { continue };
        let before = found.len();
        found.retain(|name| !pattern.matches(name));
        say(&format!("{path}: excluded {} files", before - found.len()));
    }
    Ok(found.into_iter().collect())
}

fn search(
    project: &ProjectFolder,
    pattern: &Pattern,
    found: &mut BTreeSet<Vec<u8>>,
    say: &mut dyn FnMut(&str),
) -> io::Result<()> {
    let base = pattern.base.as_bytes().to_vec();
    if pattern.is_plain() {
        return take(project, &base, found, say);
    }
    let mut open = vec![base];
    while let Some(folder) = open.pop() {
        let Some(names) = list(project, &folder, say)? else { continue };
        for name in names {
            let path = joined(&folder, &name);
            if pattern.matches(&path) {
                take(project, &path, found, say)?;
            } else if is_folder(project, &path) && pattern.reaches(depth(&path)) {
                open.push(path);
            }
        }
    }
    Ok(())
}

/// Takes a path; a folder with all that is in it.
fn take(
    project: &ProjectFolder,
    path: &[u8],
    found: &mut BTreeSet<Vec<u8>>,
    say: &mut dyn FnMut(&str),
) -> io::Result<()> {
    match project.stat(path) {
        Ok(_) => {}
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => {
            say(&warning(&format!("{}: left out: {error}", shown(path))));
            return Ok(());
        }
    }
    let mut open = vec![path.to_vec()];
    while let Some(path) = open.pop() {
        // The marker is ours, not the project's.
        let is_taken = path == MARKER.as_bytes() || !path.is_empty() && !found.insert(path.clone());
        if is_taken {
            continue;
        }
        if path.is_empty() || is_folder(project, &path) {
            let names = list(project, &path, say)?.unwrap_or_default();
            open.extend(names.iter().map(|name| joined(&path, name)));
        }
    }
    Ok(())
}

/// The names in a folder; one that may not be read, or is gone meanwhile, is said and left out.
fn list(
    project: &ProjectFolder,
    folder: &[u8],
    say: &mut dyn FnMut(&str),
) -> io::Result<Option<Vec<Vec<u8>>>> {
    match project.list(folder) {
        Ok(names) => Ok(Some(names)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => Err(error),
        Err(error) => {
            say(&warning(&format!("{}: the folder is left out: {error}", shown(folder))));
            Ok(None)
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_folder(project: &ProjectFolder, path: &[u8]) -> bool {
    project.stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') }
}

fn depth(path: &[u8]) -> usize {
    path.split(|byte| *byte == b'/').count()
}

/// What git does not track, ignored files too.
fn untracked(project: &ProjectFolder) -> io::Result<Vec<Vec<u8>>> {
    let output = Command::new("git")
        .args(["-c", "core.fsmonitor=false", "ls-files", "--others", "-z"])
        .current_dir(project.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("failed to start git ls-files: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("git ls-files failed: {}", said.trim())));
    }
    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    // A repository within the repository comes as its folder, with a slash.
    Ok(names.map(|name| name.strip_suffix(b"/").unwrap_or(name).to_vec()).collect())
}

/// A warning as the log shows it.
pub fn warning(text: &str) -> String {
    format!("\x1b[33;1mWARNING: {text}\x1b[0;m")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn chosen(folder: &Path, paths: &[&str], exclude: &[&str]) -> (Vec<String>, Vec<String>) {
        let project = ProjectFolder::open(folder).unwrap();
        let owned = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
        let choice = Choice { paths: owned(paths), exclude: owned(exclude), untracked: false };
        let mut lines = Vec::new();
        let names = select(&project, &choice, "artifact", &mut |line| lines.push(line.to_owned())).unwrap();
        (names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect(), lines)
    }

    fn project() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in ["dist/a.js", "dist/sub/b.js", "dist/sub/c.css", "src/a.js", ".env"] {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        std::fs::write(folder.path().join(MARKER), "ours").unwrap();
        folder
    }

    #[test]
    fn a_folder_is_taken_whole_and_a_pattern_as_it_matches() {
        let folder = project();
        let (names, lines) = chosen(folder.path(), &["dist/"], &[]);
        assert_eq!(names, ["dist", "dist/a.js", "dist/sub", "dist/sub/b.js", "dist/sub/c.css"]);
        assert_eq!(lines, ["dist/: found 5 matching artifact files and directories"]);
        let (names, _) = chosen(folder.path(), &["**/*.js"], &[]);
        assert_eq!(names, ["dist/a.js", "dist/sub/b.js", "src/a.js"]);
        let (names, _) = chosen(folder.path(), &["d*"], &["**/*.css"]);
        assert_eq!(names, ["dist", "dist/a.js", "dist/sub", "dist/sub/b.js"]);
    }

    #[test]
    fn everything_is_everything_but_our_own_marker() {
        let folder = project();
        let (names, _) = chosen(folder.path(), &["."], &[]);
        assert!(names.contains(&".env".to_owned()) && !names.contains(&MARKER.to_owned()));
        let (by_pattern, _) = chosen(folder.path(), &["**"], &[]);
        assert_eq!(names, by_pattern);
    }

    #[test]
    fn what_is_missing_or_outside_is_said() {
        let folder = project();
        let (names, lines) = chosen(folder.path(), &["nothing/*", "../up", "/etc/passwd"], &[]);
        assert!(names.is_empty());
        assert!(lines[0].contains("no matching files"), "{lines:?}");
        assert!(lines[1].contains("not below the project's folder"), "{lines:?}");
        assert!(lines[2].contains("/etc/passwd"), "{lines:?}");
    }

    #[test]
    fn a_link_is_taken_as_a_link_and_not_walked_through_outwards() {
        let folder = project();
        std::os::unix::fs::symlink("..", folder.path().join("up")).unwrap();
        std::os::unix::fs::symlink("dist", folder.path().join("latest")).unwrap();
        let (names, _) = chosen(folder.path(), &["up", "latest"], &[]);
        assert_eq!(names, ["latest", "up"]);
        let (names, _) = chosen(folder.path(), &["latest/a.js"], &[]);
        assert_eq!(names, ["latest/a.js"]);
        let (names, lines) = chosen(folder.path(), &["up/anything"], &[]);
        assert!(names.is_empty() && lines[0].contains("leads out"), "{lines:?}");
    }

    #[test]
    fn untracked_files_are_gits_word() {
        let folder = project();
        let git = |words: &[&str]| {
            let done = Command::new("git").args(words).current_dir(folder.path()).output().unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        git(&["init", "--quiet"]);
        std::fs::write(folder.path().join(".gitignore"), "*.css\n").unwrap();
        git(&["add", "src", ".gitignore"]);
        std::fs::write(folder.path().join("new\nline"), "").unwrap();
        let project = ProjectFolder::open(folder.path()).unwrap();
        let choice = Choice { untracked: true, ..Choice::default() };
        let mut lines = Vec::new();
        let names = select(&project, &choice, "cache", &mut |line| lines.push(line.to_owned())).unwrap();
        let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
        assert_eq!(names, [".env", "dist/a.js", "dist/sub/b.js", "dist/sub/c.css", "new\nline"]);
        assert_eq!(lines, ["untracked: found 5 files"]);
    }
}
