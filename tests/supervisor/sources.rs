//! Sources come from git as the job wishes, and its credentials stay out of every file.

use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse::gitlab::wire::Hook;
use dormouse::spool::order::JobOrder;
use dormouse::spool::record::{Outcome, ScriptEnd};
use dormouse::spool::verb::Answer;

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

#[test]
fn a_repository_that_is_damaged_is_fetched_anew_and_one_whose_ref_is_gone_is_kept() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    host.run(&with_sources(&host, "env1", 1, &["true"], &commits[0]));
    host.release("env1");
    let objects = host.workspace().join(".git/objects");
    let mut missing = with_sources(&host, "env2", 2, &["true"], &commits[0]);
    missing.job.git_info.refspecs.push("+refs/heads/gone:refs/remotes/origin/gone".into());
    let kept = std::fs::metadata(&objects).unwrap().created().unwrap();
    let text = host.run(&missing).text();
    assert!(text.contains("The server has no refs/heads/gone."), "{text}");
    assert_eq!(std::fs::metadata(&objects).unwrap().created().unwrap(), kept);
    host.release("env2");
    for (number, damage) in ["HEAD", "index", "objects", "refs"].iter().enumerate() {
        let path = host.workspace().join(".git").join(damage);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
            std::fs::write(&path, "no folder").unwrap();
        } else {
            std::fs::write(&path, "broken").unwrap();
        }
        let environment = format!("env3{number}");
        let ran =
            host.run(&with_sources(&host, &environment, 30 + number as u64, &["cat file"], &commits[2]));
        assert!(ran.text().contains("01O 3\n"), "{damage}: {}", ran.text());
        host.release(&environment);
    }
}

#[test]
fn hooks_and_settings_that_an_earlier_job_has_left_start_nothing() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let trap = &[
        "printf '#!/bin/sh\\ntouch %s/caught\\n' \"$PWD/..\" > ../trap; chmod 755 ../trap",
        "mkdir -p .git/hooks; cp ../trap .git/hooks/post-checkout; cp ../trap .git/hooks/reference-transaction",
        "git config core.fsmonitor \"$PWD/../trap\"; git config filter.trap.smudge \"$PWD/../trap\"",
        "git config url.file:///nowhere/.insteadOf file:///; echo '* filter=trap' > .git/info/attributes",
        "git config diff.external \"$PWD/../trap\"; git config core.sshCommand \"$PWD/../trap\"",
    ];
    host.run(&with_sources(&host, "env1", 1, trap, &commits[0]));
    host.release("env1");
    let next = with_sources(&host, "env2", 2, &["cat file; ls ..; git config --list --local"], &commits[2]);
    let text = host.run(&next).text();
    assert!(text.contains("01O 3\n") && text.contains("01O trap\n"), "{text}");
    assert!(!text.contains("01O caught") && !text.contains("fsmonitor"), "{text}");
}

#[test]
fn stale_locks_are_removed_wherever_they_are() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let locks =
        &["touch .git/{index,shallow,HEAD,config,packed-refs}.lock .git/refs/remotes/origin/main.lock"];
    host.run(&with_sources(&host, "env1", 1, locks, &commits[0]));
    host.release("env1");
    let next = with_sources(&host, "env2", 2, &["cat file; find .git -name '*.lock'"], &commits[2]);
    let text = host.run(&next).text();
    assert!(text.contains("01O 3\n"), "{text}");
    assert!(!text.contains("01O .git") && !text.contains("anew"), "{text}");
}

#[test]
fn hooks_around_the_sources_are_shown_and_a_failing_one_fails_the_job() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let hook = |name: &str, line: &str| Hook { name: name.into(), script: vec![line.into()] };
    let mut order = with_sources(&host, "env1", 1, &["cat made"], &commits[2]);
    order.job.hooks = vec![
        hook("pre_get_sources_script", "ls -d .git || echo before"),
        hook("post_get_sources_script", "echo after $(cat file) > made; type -t git"),
    ];
    let text = host.run(&order).text();
    for wanted in ["$ ls -d .git || echo before", "01O before", "01O after 3", "01O file\n"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    host.release("env1");
    let mut failing = with_sources(&host, "env2", 2, &["echo never"], &commits[2]);
    failing.job.hooks = vec![hook("post_get_sources_script", "exit 7")];
    let ran = host.run(&failing);
    let result = ran.record().result.clone().unwrap();
    assert_eq!((result.outcome, result.exit_code), (Outcome::ScriptFailure, 7));
    assert!(!ran.text().contains("01O never"), "{}", ran.text());
}

#[test]
fn a_failed_attempt_is_cleared_away_and_repeated_until_it_works() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let mut order = with_sources(&host, "env1", 1, &["cat file; ls"], &commits[2]);
    order.job.variables.push(variable("GET_SOURCES_ATTEMPTS", "2"));
    let tries = host.path("tries");
    order.job.hooks = vec![Hook {
        name: "post_get_sources_script".into(),
        script: vec![format!("echo try >> {0}; touch left; [ $(wc -l < {0}) = 2 ]", tries.display())],
    }];
    order.job.variables.push(variable("GIT_CLEAN_FLAGS", "none"));
    let ran = host.run(&order);
    let text = ran.text();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{text}");
    assert_eq!(std::fs::read_to_string(tries).unwrap(), "try\ntry\n");
    assert!(text.contains("WARNING: fetching the sources failed: exit code 1; 1 more to try"), "{text}");
}

#[test]
fn a_cancel_between_two_attempts_ends_the_wait() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    let mut order = with_sources(&host, "env1", 1, &["echo never"], &commits[0]);
    order.job.git_info.repo_url = format!("file://{}", host.path("nowhere").display());
    order.job.variables.push(variable("GET_SOURCES_ATTEMPTS", "10"));
    let mut following = host.start(&order);
    following.until_log("more to try");
    assert_eq!(host.ask("cancel --environment env1 --job 1 --epoch 1 --graceful"), Answer::Done);
    let ran = following.into_end();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Canceled, "{}", ran.text());
    assert_eq!(ran.text().matches("more to try").count(), 1, "{}", ran.text());
}

#[test]
fn attempts_that_are_no_number_from_one_to_ten_are_reported() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    for (number, wanted) in ["11", "0", "many"].iter().enumerate() {
        let environment = format!("env{number}");
        let mut order = with_sources(&host, &environment, 1 + number as u64, &["cat file"], &commits[0]);
        order.job.variables.push(variable("GET_SOURCES_ATTEMPTS", wanted));
        let text = host.run(&order).text();
        let warning = format!("WARNING: GET_SOURCES_ATTEMPTS \"{wanted}\" is no number from 1 to 10");
        assert!(text.contains(&warning) && text.contains("01O 1\n"), "{text}");
        host.release(&environment);
    }
}

#[test]
fn a_repository_of_sha256_is_fetched_again_and_again() {
    let host = Host::new();
    let path = host.path("repository");
    std::fs::create_dir(&path).unwrap();
    git(&path, &["init", "--quiet", "--object-format=sha256", "--initial-branch=main"]);
    for round in 1..3 {
        std::fs::write(path.join("file"), format!("{round}\n")).unwrap();
        git(&path, &["add", "."]);
        git(&path, &["commit", "--quiet", "-m", "x"]);
        let sha = git(&path, &["rev-parse", "HEAD"]);
        let environment = format!("env{round}");
        let script =
            &["cat file; echo ${#CI_COMMIT_SHA}; git rev-parse HEAD; git rev-parse --show-object-format"];
        let mut order = with_sources(&host, &environment, round, script, &sha);
        order.job.git_info.repo_object_format = "sha256".into();
        let text = host.run(&order).text();
        for wanted in [format!("01O {round}\n"), format!("01O {sha}"), "01O sha256".to_owned()] {
            assert!(text.contains(&wanted), "{wanted}: {text}");
        }
        assert!(!text.contains("anew"), "{text}");
        host.release(&environment);
    }
}

#[test]
fn flags_of_clone_and_fetch_reach_git() {
    let host = Host::new();
    let (path, commits) = repository(&host);
    git(&path, &["config", "uploadpack.allowFilter", "true"]);
    git(&path, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
    let partial =
        &["git config remote.origin.partialclonefilter; git config remote.origin.promisor; cat file"];
    let mut cloned = with_sources(&host, "env1", 1, partial, &commits[2]);
    cloned.job.git_info.depth = 0;
    cloned.job.variables.push(variable("GIT_STRATEGY", "clone"));
    cloned.job.variables.push(variable("GIT_CLONE_EXTRA_FLAGS", "--filter=blob:none"));
    let text = host.run(&cloned).text();
    assert!(text.contains("01O blob:none\n") && text.contains("01O 3\n"), "{text}");
    host.release("env1");
    // What is fetched next goes on being partial.
    let mut fetched = with_sources(&host, "env2", 2, partial, &commits[1]);
    fetched.job.variables.push(variable("GIT_FETCH_EXTRA_FLAGS", "--no-tags"));
    let text = host.run(&fetched).text();
    assert!(text.contains("01O blob:none\n") && text.contains("01O 2\n"), "{text}");
    assert!(!text.contains("anew"), "{text}");
}

#[test]
fn without_a_checkout_the_work_tree_stays_as_it_was() {
    let host = Host::new();
    let (_, commits) = repository(&host);
    host.run(&with_sources(&host, "env1", 1, &["true"], &commits[0]));
    host.release("env1");
    let mut order = with_sources(&host, "env2", 2, &["cat file; git rev-parse origin/main"], &commits[2]);
    order.job.variables.push(variable("GIT_CHECKOUT", "false"));
    let text = host.run(&order).text();
    assert!(text.contains("01O 1\n") && text.contains(&format!("01O {}", commits[2])), "{text}");
}
