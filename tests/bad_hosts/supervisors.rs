//! The supervisor that runs a job: killed, or of an older version than the operator that came meanwhile.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{counting, ensure_counted, ensure_next_job_runs, ensure_system_failure};
use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::operator::{SUPERVISOR_DIR, supervisor_folder};
use crate::testbed::stage::{Setting, Stage, condition};
use crate::traces::{self, on, told, until_on};

#[tokio::test]
async fn a_killed_supervisor_fails_its_job_and_leaves_nothing_of_it() -> Result<()> {
    let stage = Stage::start("killed", Setting::pool(json!({}))).await?;
    let host = &stage.hosts[0];
    let script = ["setsid sleep 4321 & setsid -f sleep 4321; echo begun; sleep 4321"];
    let id = stage.gitlab.enqueue(JobSpec::new("killed").script(script));
    stage.until_log(id, "begun").await?;
    on(host, "pkill -KILL -f '[/]proc/self/exe run'").await?;
    let killed = stage.until_over(id).await?;
    ensure_system_failure(&killed, "the supervisor that ran the job was killed")?;
    let over = stage.lease_over(id).await?;
    ensure!(condition(&over, "SlotClean").0.is_empty(), "the host has answered: {over:#}");
    ensure_next_job_runs(&stage).await?;
    until_on(host, "pgrep -fc '[s]leep 4321' || true", "0").await?;
    traces::end(stage).await
}

/// A folder with a supervisor that does the same and is another file: its name on a host is another one.
async fn another_version(stage: &Stage) -> Result<std::path::PathBuf> {
    let folder = stage.folder().join("other-supervisors");
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(supervisor_folder().await?)? {
        let (from, name) = (entry?, folder.clone());
        let to = name.join(from.file_name());
        fs::copy(from.path(), &to)?;
        // What follows the last section of a program is not loaded.
        fs::File::options().append(true).open(&to)?.write_all(b"another version")?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    Ok(folder)
}

#[tokio::test]
async fn a_job_keeps_its_supervisor_through_an_upgrade_and_the_new_one_sees_to_the_rest() -> Result<()> {
    let pool = json!({ "capacityPerInstance": 3, "isolation": "Shared" });
    let stage = Stage::start("upgrade", Setting::pool(pool)).await?;
    let host = &stage.hosts[0];
    let go = "while [ ! -e /tmp/go ]; do sleep 0.1; done";
    let sleeper = JobSpec::new("sleeper").suspendable().suspend_on_success();
    let plain = stage.gitlab.enqueue(counting("plain"));
    let sleeps =
        stage.gitlab.enqueue(sleeper.script(["echo begun; echo kept > file; sleep 5432 & disown", go]));
    let canceled = stage
        .gitlab
        .enqueue(JobSpec::new("canceled").script(["echo begun; while :; do echo tick; sleep 0.5; done"]));
    stage.until_log(plain, "line 3").await?;
    stage.until_log(sleeps, "begun").await?;
    stage.until_log(canceled, "begun").await?;
    let running =
        "readlink $(for id in $(pgrep -f '[/]proc/self/exe run'); do echo /proc/$id/exe; done) | sort -u";
    let before = on(host, running).await?;

    let operator = stage.operator()?;
    operator.kill()?;
    stage.gitlab.client_restarted();
    stage.give_up_lease().await?;
    operator.set_variable(SUPERVISOR_DIR, Some(another_version(&stage).await?.to_str().context("a path")?));
    operator.start_again().await?;
    until_on(host, "ls /var/lib/dormouse/bin ~/.dormouse/bin 2>/dev/null | grep -c supervisor-", "2").await?;
    ensure!(on(host, running).await? == before, "the jobs changed their supervisor");

    // Each verb of the newer one on what the older one keeps.
    stage.gitlab.cancel(canceled);
    let over = stage.until_over(canceled).await?;
    ensure!(over.state == JobState::Canceled, "{}", told(&over));
    stage.touch("/tmp/go").await?;
    ensure_counted(&stage.until_over(plain).await?)?;
    let slept = stage.until_over(sleeps).await?;
    let key = slept.environment_key.clone().unwrap_or_default();
    ensure!(slept.log_contains("Job environment suspended:"), "{}", told(&slept));
    let asleep = stage.asleep(&key).await?;
    ensure!(asleep["status"]["processes"].as_u64().is_some_and(|count| count > 0), "{asleep:#}");
    let resume = JobSpec::new("wake").suspendable().environment_key(&key);
    let woken = stage.run(resume.script(["cat file; pgrep -f 'sleep 543[2]'", running])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    ensure!(!woken.log_contains(&before), "the old supervisor ran a new job: {}", told(&woken));
    traces::end(stage).await
}

#[tokio::test]
async fn files_of_a_format_that_is_not_known_yet_are_refused_in_words_and_left_alone() -> Result<()> {
    let stage = Stage::start("newer", Setting::pool(json!({}))).await?;
    let host = &stage.hosts[0];
    let spec = JobSpec::new("first").suspendable().suspend_on_success();
    let first = stage.run(spec.script(["echo kept > file"])).await?;
    let key = first.environment_key.clone().unwrap_or_default();
    stage.asleep(&key).await?;
    let record =
        "$(ls -d /var/lib/dormouse/environments/* ~/.dormouse/environments/* 2>/dev/null)/environment.json";
    on(host, &format!("sed -i 's/\"format\":1/\"format\":99,\"new\":{{}}/' {record}")).await?;
    // As after a rollback over two versions: the host says so as soon as it is greeted.
    stage.crash_operator().await?;
    let message = stage.until_host("alder", "NotReady").await?;
    ensure!(message.contains("is of format 99") && message.contains("newer version"), "{message}");
    on(host, &format!("sed -i 's/\"format\":99,\"new\":{{}}/\"format\":1/' {record}")).await?;
    stage.until_hosts("Ready").await?;
    let woken =
        stage.run(JobSpec::new("wake").suspendable().environment_key(&key).script(["cat file"])).await?;
    ensure!(woken.state == JobState::Success && woken.log_contains("kept"), "{}", told(&woken));
    traces::end(stage).await
}
