//! The faults that cases have to find, as far as it shows without building the product: their patches fit the sources, and
//! what they break is there. `run-faults.sh` builds and plays them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use super::case;

/// Faults that there are at least.
const LEAST: usize = 188;

/// The patches by name.
fn patches() -> Result<BTreeMap<String, PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/faults");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a fault's file has no name")?;
        ensure!(path.extension().is_some_and(|end| end == "patch"), "{} is no patch", path.display());
        found.insert(stem.to_owned(), path.clone());
    }
    ensure!(found.len() >= LEAST, "there are {} faults, not {LEAST}", found.len());
    Ok(found)
}

/// The cases that a fault says it breaks.
fn broken(head: &str) -> impl Iterator<Item = &str> {
    head.lines().filter_map(|line| line.strip_prefix("Breaks: "))
}

fn git(arguments: &[&str]) -> Result<Output> {
    let mut git = Command::new("git");
    git.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments);
    git.output().context("start git")
}

#[test]
fn every_fault_names_cases_that_are_there() -> Result<()> {
    let mut wrong = Vec::new();
    for (name, path) in patches()? {
        let text = fs::read_to_string(&path)?;
        let (head, _) =
            text.split_once("\ndiff --git ").with_context(|| format!("{name} changes nothing"))?;
        let what = head.lines().next().unwrap_or_default();
        if !what.ends_with('.') {
            wrong.push(format!("{name}: its first line is no sentence: {what:?}"));
        }
        let programs = head.lines().filter_map(|line| line.strip_prefix("Program: "));
        wrong.extend(programs.filter(|program| *program != "operator").map(|program| {
            format!("{name}: there is no program {program}; without the line it is the supervisor")
        }));
        let breaks: Vec<&str> = broken(head).collect();
        if breaks.is_empty() {
            wrong.push(format!("{name}: it names no case"));
        }
        let missing = breaks.iter().filter(|case| !case::folder().join(format!("{case}.yaml")).is_file());
        wrong.extend(missing.map(|case| format!("{name}: there is no case {case}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn every_case_is_named_by_a_fault() -> Result<()> {
    let mut unnamed = BTreeSet::new();
    for area in super::AREAS {
        unnamed.extend(case::read_area(area)?.into_iter().map(|case| case.name));
    }
    for path in patches()?.values() {
        let text = fs::read_to_string(path)?;
        let named: BTreeSet<&str> = broken(&text).collect();
        unnamed.retain(|case: &String| !named.contains(case.as_str()));
    }
    ensure!(unnamed.is_empty(), "nothing shows that these can fail: {unnamed:?}");
    Ok(())
}

#[test]
fn every_fault_fits_the_sources() -> Result<()> {
    // Elsewhere git takes the paths for ones of the repository around the sources, and passes over them.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let top = PathBuf::from(String::from_utf8_lossy(&top.stdout).trim());
    if top.canonicalize().ok() != Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok() {
        eprintln!("skipped: {} is no work tree of git", env!("CARGO_MANIFEST_DIR"));
        return Ok(());
    }
    let mut wrong = Vec::new();
    for (name, path) in patches()? {
        let path = path.to_str().context("a path that is no text")?;
        let checked = git(&["apply", "--check", path])?;
        if !checked.status.success() {
            wrong.push(format!("{name}: {}", String::from_utf8_lossy(&checked.stderr).trim()));
        }
    }
    ensure!(wrong.is_empty(), "patches that do not fit any more:\n{}", wrong.join("\n"));
    Ok(())
}
