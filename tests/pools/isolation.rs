//! Whom a job runs as, and what it can do to its neighbour.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::testbed::gitlab::{JobSpec, JobState};
use crate::testbed::stage::{Setting, Stage};

#[tokio::test]
async fn a_job_of_a_single_slot_needs_no_rights_on_the_host() -> Result<()> {
    let mut stage = Stage::without_operator("plainuser", &Setting::pool(json!({}))).await?;
    let Ok(user) = stage.hosts[0].unprivileged() else {
        eprintln!("skipped: an account of the host's own takes root");
        return Ok(());
    };
    stage.raise(json!({ "ssh": { "username": user } })).await?;
    stage.until_hosts("Ready").await?;
    let script = ["id -un", "pwd", "(sleep 300 &)", "exit 4"];
    let over = stage.run(JobSpec::new("plain").script(script)).await?;
    ensure!(over.state == JobState::Failed && over.exit_code == Some(4), "{}", over.log_text());
    ensure!(over.log_contains("/home/ci/builds/0/group/project"), "{}", over.log_text());
    let text = over.log_text();
    ensure!(text.lines().any(|line| line.trim_end().ends_with(user)), "{text}");
    stage.lease_over(over.id).await?;
    let left = stage.hosts[0].ssh("pgrep -u ci sleep; ls -d /var/lib/dormouse 2>/dev/null").await?;
    ensure!(left.stdout.is_empty(), "left behind: {}", String::from_utf8_lossy(&left.stdout));
    stage.end().await
}

#[tokio::test]
async fn a_user_per_slot_cannot_be_had_without_root() -> Result<()> {
    let mut stage = Stage::without_operator("noroot", &Setting::pool(json!({}))).await?;
    let Ok(user) = stage.hosts[0].unprivileged() else {
        eprintln!("skipped: an account of the host's own takes root");
        return Ok(());
    };
    stage.hosts[0].remove_program("sudo").await?;
    let isolation = json!({ "isolation": "PerSlotUser", "capacityPerInstance": 2 });
    let mut changes = isolation;
    changes["ssh"] = json!({ "username": user });
    stage.raise(changes).await?;
    let message = stage.until_host("alder", "Unsupported").await?;
    ensure!(message.contains("PerSlotUser needs root") && message.contains("sudo -n"), "{message}");
    stage.until_finding("HostsCapable", "False", "HostsLackSomething").await?;
    stage.until_finding("Polling", "False", "NoReachableHost").await?;
    stage.end().await
}

#[tokio::test]
async fn shared_slots_are_a_standing_warning() -> Result<()> {
    let stage =
        Stage::start("shared", Setting::pool(json!({ "isolation": "Shared", "capacityPerInstance": 2 })))
            .await?;
    let message = stage.until_finding("HostsCapable", "False", "SlotsShared").await?;
    ensure!(message.contains("can read and signal each other"), "{message}");
    stage.end().await
}

#[tokio::test]
async fn a_job_can_neither_read_nor_signal_nor_forge_anything_of_its_neighbour() -> Result<()> {
    let pool = json!({ "isolation": "PerSlotUser", "capacityPerInstance": 2 });
    let mut stage = Stage::without_operator("neighbours", &Setting::pool(json!({}))).await?;
    if !stage.bed.are_isolated() {
        eprintln!("skipped: a user per slot takes root");
        return Ok(());
    }
    stage.raise(pool).await?;
    stage.until_hosts("Ready").await?;
    let victim = stage.gitlab.enqueue(
        JobSpec::new("victim").masked_variable("DEPLOY_KEY", "0123456789abcdef").script([
            "echo private > private",
            "sleep 600 & echo victim-pid=$!",
            "while [ ! -e /tmp/go ]; do sleep 0.05; done",
            "kill -0 $! && cat private",
        ]),
    );
    let view = stage.until_log(victim, "victim-pid=").await?;
    let view = match pid_of(&view.log_text()) {
        Some(_) => view,
        None => stage.until_log(victim, "while [").await?,
    };
    let pid = pid_of(&view.log_text()).with_context(|| view.log_text())?;
    let attack = [
        "id -un".to_owned(),
        "cat /builds/0/group/project/private && echo LEAK read".to_owned(),
        "ls -R /builds/0 && echo LEAK list".to_owned(),
        "echo forged > /builds/0/group/project/forged && echo LEAK write".to_owned(),
        format!("kill -CONT {pid} && echo LEAK signal"),
        format!("tr '\\0' '\\n' < /proc/{pid}/environ && echo LEAK variables"),
        "ls -R /var/lib/dormouse/environments && echo LEAK state".to_owned(),
        "echo x > /var/lib/dormouse/forged && echo LEAK forge".to_owned(),
        "find /tmp /var/tmp /run /dev/shm -not -user $(id -u) -type f -readable 2>/dev/null | grep -i -E 'ci-|dormouse' && echo LEAK files".to_owned(),
        "echo attack over".to_owned(),
    ];
    // Each by itself: a refused one must not end the script.
    let script: Vec<String> = attack.into_iter().map(|line| format!("({line}) || true")).collect();
    let attacker = stage.gitlab.enqueue(JobSpec::new("attacker").script(script));
    let attacker = stage.until_over(attacker).await?;
    let text = attacker.log_text();
    ensure!(attacker.state == JobState::Success && attacker.log_contains("attack over"), "{text}");
    let leaks: Vec<&str> =
        text.lines().filter(|line| line.contains("LEAK") && !line.contains("echo LEAK")).collect();
    ensure!(leaks.is_empty(), "{leaks:?} in:\n{text}");
    ensure!(stage.lease_over(attacker.id).await?["status"]["slot"] == 1);

    stage.touch("/tmp/go").await?;
    let victim = stage.until_over(victim).await?;
    ensure!(victim.state == JobState::Success && victim.log_contains("private"), "{}", victim.log_text());
    ensure!(stage.lease_over(victim.id).await?["status"]["slot"] == 0);
    stage.end().await
}

/// The number the victim has said.
fn pid_of(log: &str) -> Option<u32> {
    log.split("victim-pid=").skip(1).find_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
}
