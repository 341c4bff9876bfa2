//! Sources come from git as the job wishes, and its credentials stay out of every file.

use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse::spool::order::JobOrder;
use dormouse::spool::record::{Outcome, ScriptEnd};

use super::{Host, TOKEN, order, variable};

fn git(folder: &Path, words: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@127.0.0.1", "-C"])
        .arg(folder)
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A repository with three commits; the file holds the number of the commit.
fn repository(host: &Host) -> (PathBuf, Vec<String>) {
    let path = host.path("repository");
    std::fs::create_dir(&path).unwrap();
    git(&path, &["init", "--quiet", "--initial-branch=main"]);
    let commits = (1..=3)
        .map(|number| {
            std::fs::write(path.join("file"), format!("{number}\n")).unwrap();
            git(&path, &["add", "."]);
            git(&path, &["commit", "--quiet", "-m", "x"]);
            git(&path, &["rev-parse", "HEAD"])
        })
        .collect();
    (path, commits)
}

fn with_sources(host: &Host, environment: &str, job: u64, script: &[&str], sha: &str) -> JobOrder {
    let mut order = order(host, environment, job, script);
    order.job.variables.retain(|variable| variable.key != "GIT_STRATEGY");
    order.job.allow_git_fetch = true;
    order.job.git_info.repo_url = format!("file://{}", host.path("repository").display());
    order.job.git_info.sha = sha.into();
    order.job.git_info.ref_name = "main".into();
    order.job.git_info.refspecs = vec!["+refs/heads/main:refs/remotes/origin/main".into()];
    order.job.git_info.depth = 20;
    order
}

#[test]
fn a_fetch_updates_what_is_there_and_cleans_it() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let ran = host.run(&with_sources(
        &host,
        "env1",
        1,
        &["cat file", "echo mess > mess", "touch .git/index.lock"],
        &commits[0],
    ));
    assert!(ran.text().contains("01O 1\n"), "{}", ran.text());
    assert!(ran.text().contains("Checking out"), "{}", ran.text());
    host.release("env1");
    let ran = host.run(&with_sources(
        &host,
        "env2",
        2,
        &["cat file", "ls -A", "git log --oneline | wc -l"],
        &commits[2],
    ));
    let text = ran.text();
    assert!(text.contains("01O 3\n"), "{text}");
    assert!(text.contains("Removing mess"), "{text}");
}

#[test]
fn depth_and_clean_flags_are_kept() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let mut shallow =
        with_sources(&host, "env1", 1, &["echo commits $(git rev-list HEAD | wc -l)"], &commits[2]);
    shallow.job.git_info.depth = 1;
    assert!(host.run(&shallow).text().contains("commits 1"));
    host.release("env1");
    let mut deep = with_sources(
        &host,
        "env2",
        2,
        &["echo commits $(git rev-list HEAD | wc -l); echo x > mess"],
        &commits[2],
    );
    deep.job.git_info.depth = 0;
    assert!(host.run(&deep).text().contains("commits 3"));
    host.release("env2");
    let mut dirty = with_sources(&host, "env3", 3, &["ls"], &commits[2]);
    dirty.job.variables.push(variable("GIT_CLEAN_FLAGS", "none"));
    assert!(host.run(&dirty).text().contains("01O mess"));
    host.release("env3");
    let mut cloned = with_sources(&host, "env4", 4, &["ls"], &commits[2]);
    cloned.job.variables.push(variable("GIT_STRATEGY", "clone"));
    assert!(!host.run(&cloned).text().contains("01O mess"));
}

#[test]
fn sources_that_cannot_be_had_fail_the_job_before_its_script() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let mut lost = with_sources(&host, "env1", 1, &["echo never"], &commits[0]);
    lost.job.git_info.repo_url = format!("file://{}", host.path("nowhere").display());
    let ran = host.run(&lost);
    let result = ran.record().result.clone().unwrap();
    assert_eq!((result.outcome, result.script), (Outcome::ScriptFailure, ScriptEnd::NotEnded));
    assert!(!ran.text().contains("01O never"));
}

#[test]
fn credentials_reach_git_and_no_file() {
    let host = Host::new();
    repository(&host);
    // An address that nobody listens on: what matters is what git is told, and what is left on the disk.
    let mut order = with_sources(&host, "env1", 1, &["true"], "0000");
    order.job.git_info.repo_url = format!("http://gitlab-ci-token:{TOKEN}@127.0.0.1:9/group/project.git");
    order.job.variables.push(variable("GIT_TRACE", "1"));
    let ran = host.run(&order);
    assert!(!ran.text().contains(TOKEN), "{}", ran.text());
    assert!(ran.text().contains("127.0.0.1"), "{}", ran.text());
    let config = std::fs::read_to_string(host.workspace().join(".git/config")).unwrap();
    assert!(config.contains("url = http://127.0.0.1:9/group/project.git"), "{config}");
    for folder in ["state", "builds"] {
        assert_eq!(host.files_with(folder, TOKEN), Vec::<PathBuf>::new());
    }
}

#[test]
fn an_empty_strategy_gives_an_empty_folder_of_its_own() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, &["pwd; ls -A | wc -l; touch left"]);
    order.job.variables.push(variable("GIT_STRATEGY", "empty"));
    for round in 1..3 {
        order.job.id = round;
        order.environment = format!("env{round}");
        let text = host.run(&order).text();
        assert!(text.contains("/project-empty\n"), "{text}");
        assert!(text.contains("01O 0\n"), "{text}");
        host.release(&order.environment);
    }
}
