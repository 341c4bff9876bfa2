//! The hosts of the test bed behave as the machines they stand for.
//!
//! What takes root is left out without it, and the test says so.

use std::net::TcpStream;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::testbed::hosts::{Host, HostSpec, Hosts, Line};
use crate::testbed::scratch::Scratch;
use crate::testbed::wait::until;

const SOON: Duration = Duration::from_secs(20);

async fn said(host: &Host, command: &str) -> Result<String> {
    text(host.ssh(command).await?)
}

fn text(output: Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Hosts that behave as machines, or None and a word about it.
async fn isolated(scratch: &Scratch) -> Result<Option<Hosts>> {
    let hosts = Hosts::new(scratch.path()).await?;
    if hosts.are_isolated() {
        return Ok(Some(hosts));
    }
    eprintln!("skipped: hosts with processes and disks of their own take root");
    Ok(None)
}

#[tokio::test]
async fn a_host_takes_the_key_of_the_bed_and_shows_its_own() -> Result<()> {
    let scratch = Scratch::new("hosts")?;
    let hosts = Hosts::new(scratch.path()).await?;
    let host = hosts.boot("alone", HostSpec::default()).await?;
    ensure!(said(&host, "id -un").await? == host.admin()?);
    ensure!(host.host_key()?.starts_with("ssh-ed25519 "));

    host.stop().await?;
    ensure!(TcpStream::connect((host.address(), host.port())).is_err(), "a host that is off accepts");
    host.start().await?;
    said(&host, "true").await?;
    Ok(())
}

#[tokio::test]
async fn hosts_are_apart_from_each_other_and_from_the_machine() -> Result<()> {
    let scratch = Scratch::new("apart")?;
    let Some(hosts) = isolated(&scratch).await? else { return Ok(()) };
    let booted = hosts.boot_all(&["left", "right"]).await?;
    let [left, right] = booted.as_slice() else { anyhow::bail!("two hosts were asked for") };

    ensure!(said(left, "hostname").await? == "left");
    said(left, "echo mine >/srv/mark; sleep 1000 >/dev/null 2>&1 & ").await?;
    ensure!(said(right, "ls -A /srv /home /root /mnt | grep -v :; pgrep sleep || true").await? == "ci");
    ensure!(
        !std::path::Path::new("/work").exists() || said(right, "ls /work").await.is_err(),
        "/work is there"
    );
    ensure!(std::fs::read_to_string(left.disk().join("srv/mark"))? == "mine\n");
    ensure!(
        said(left, "cat /proc/sys/kernel/random/boot_id").await?
            != said(right, "cat /proc/sys/kernel/random/boot_id").await?
    );

    ensure!(said(left, "cat /proc/self/cgroup | grep ^0:").await? == "0::/system.slice/ssh.service");
    said(left, "git init -q /srv/repository && bash -c true && test -c /dev/null && test -w /tmp").await?;

    let person = left.unprivileged()?;
    let ci = async |command: &str| text(left.ssh_as(person, command).await?);
    ensure!(ci("id -un; pwd; echo $HOME").await? == "ci\n/home/ci\n/home/ci");
    ensure!(ci("cat /root/x /etc/shadow").await.is_err());
    ensure!(ci("touch ~/x /tmp/y && rm /tmp/y").await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_cgroup_made_on_a_host_freezes_and_kills() -> Result<()> {
    let scratch = Scratch::new("cgroup")?;
    let Some(hosts) = isolated(&scratch).await? else { return Ok(()) };
    let host = hosts.boot("one", HostSpec::default()).await?;
    let seen = said(
        &host,
        "cd /sys/fs/cgroup && mkdir job && { setsid sleep 1000 >/dev/null 2>&1 & } && echo $! >job/cgroup.procs
         echo 1 >job/cgroup.freeze; while ! grep -q 'frozen 1' job/cgroup.events; do :; done
         echo 1 >job/cgroup.kill; while grep -q 'populated 1' job/cgroup.events; do :; done
         rmdir job && echo gone",
    )
    .await?;
    ensure!(seen == "gone", "saw: {seen}");
    Ok(())
}

#[tokio::test]
async fn a_reboot_keeps_the_disk_and_nothing_else() -> Result<()> {
    let scratch = Scratch::new("reboot")?;
    let Some(hosts) = isolated(&scratch).await? else { return Ok(()) };
    let host = hosts.boot("one", HostSpec::default()).await?;
    let boot_id = said(&host, "cat /proc/sys/kernel/random/boot_id").await?;
    said(&host, "echo kept >/root/mark; echo lost >/tmp/mark; setsid sleep 1000 >/dev/null 2>&1 &").await?;
    let key = host.host_key()?;

    host.reboot().await?;
    ensure!(said(&host, "cat /root/mark; ls /tmp; pgrep sleep || true").await? == "kept");
    ensure!(said(&host, "cat /proc/sys/kernel/random/boot_id").await? != boot_id);
    ensure!(host.host_key()? == key);

    host.stop().await?;
    ensure!(std::fs::read_to_string(host.disk().join("root/mark"))? == "kept\n");
    Ok(())
}

#[tokio::test]
async fn a_frozen_host_accepts_and_says_nothing_until_it_is_thawed() -> Result<()> {
    let scratch = Scratch::new("frozen")?;
    let Some(hosts) = isolated(&scratch).await? else { return Ok(()) };
    let host = hosts.boot("one", HostSpec::default()).await?;
    host.freeze().await?;
    let started = Instant::now();
    let mut asked = host.ssh_command(&host.admin()?)?;
    let mut asked = asked.arg("-oConnectTimeout=60").args(["echo", "late"]).stdout(Stdio::piped()).spawn()?;
    let banner = tokio::time::timeout(Duration::from_millis(300), asked.wait()).await;
    ensure!(banner.is_err(), "it answered after {:?}", started.elapsed());
    host.thaw().await?;
    ensure!(text(asked.wait_with_output().await?)? == "late");
    Ok(())
}

#[tokio::test]
async fn a_silent_cut_holds_back_and_loses_nothing() -> Result<()> {
    let scratch = Scratch::new("silent")?;
    let hosts = Hosts::new(scratch.path()).await?;
    let host = hosts.boot("one", HostSpec::default()).await?;
    let mut session = Session::open(&host).await?;
    host.cut(Line::Silent).await?;
    session.input.write_all(b"over\n").await?;
    let early = tokio::time::timeout(Duration::from_millis(300), session.lines.next_line()).await;
    ensure!(early.is_err(), "the cut let through: {early:?}");
    host.heal().await?;
    ensure!(session.lines.next_line().await?.as_deref() == Some("over"));
    ensure!(session.client.wait().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_refusing_cut_breaks_sessions_until_it_heals() -> Result<()> {
    let scratch = Scratch::new("refused")?;
    let hosts = Hosts::new(scratch.path()).await?;
    let host = hosts.boot("one", HostSpec::default()).await?;
    let mut session = Session::open(&host).await?;
    host.cut(Line::Refused).await?;
    ensure!(session.client.wait().await?.code() == Some(255));
    ensure!(TcpStream::connect((host.address(), host.port())).is_err(), "a refused line accepts");
    host.heal().await?;
    said(&host, "true").await?;
    Ok(())
}

/// A shell on a host that repeats one line.
struct Session {
    client: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Session {
    async fn open(host: &Host) -> Result<Self> {
        let mut client = host
            .ssh_command(&host.admin()?)?
            .arg("echo started; read word; echo $word")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let input = client.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(client.stdout.take().context("stdout")?).lines();
        ensure!(lines.next_line().await?.as_deref() == Some("started"));
        Ok(Self { client, input, lines })
    }
}

#[tokio::test]
async fn a_new_host_key_is_another_and_sessions_go_on() -> Result<()> {
    let scratch = Scratch::new("key")?;
    let hosts = Hosts::new(scratch.path()).await?;
    let host = hosts.boot("one", HostSpec::default()).await?;
    let old = host.host_key()?;
    host.new_host_key().await?;
    ensure!(host.host_key()? != old);
    said(&host, "true").await?;
    Ok(())
}

#[tokio::test]
async fn a_removed_program_is_gone_on_that_host_only() -> Result<()> {
    let scratch = Scratch::new("programs")?;
    let Some(hosts) = isolated(&scratch).await? else { return Ok(()) };
    let booted = hosts.boot_all(&["poor", "rich"]).await?;
    let [poor, rich] = booted.as_slice() else { anyhow::bail!("two hosts were asked for") };
    for program in ["git", "bash"] {
        poor.remove_program(program).await?;
        ensure!(!poor.ssh(&format!("command -v {program}")).await?.status.success());
        said(rich, &format!("command -v {program}")).await?;
    }
    poor.reboot().await?;
    ensure!(!poor.ssh("command -v git").await?.status.success(), "a reboot brought git back");
    Ok(())
}

#[tokio::test]
async fn hosts_die_with_a_program_that_is_killed() -> Result<()> {
    const ROLE: &str = "DORMOUSE_BED_VICTIM";
    if let Some(dir) = std::env::var_os(ROLE) {
        let dir = std::path::Path::new(&dir);
        let hosts = Hosts::new(&dir.join("hosts")).await?;
        let host = hosts.boot("one", HostSpec::default()).await?;
        let mark = said(&host, "setsid sleep 1000 >/dev/null 2>&1 & readlink /proc/self/ns/pid").await?;
        std::fs::write(dir.join("mark.new"), mark)?;
        std::fs::rename(dir.join("mark.new"), dir.join("mark"))?;
        return std::future::pending().await;
    }
    let scratch = Scratch::new("victim")?;
    let Some(_) = isolated(&scratch).await? else { return Ok(()) };
    let mut victim = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "bed_hosts::hosts_die_with_a_program_that_is_killed"])
        .env(ROLE, scratch.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mark = until("the victim's host runs", SOON, async || {
        Ok(std::fs::read_to_string(scratch.path().join("mark")).ok())
    })
    .await?;
    ensure!(processes_in(&mark)? > 1, "the host runs where nobody can see it");
    victim.kill().await?;
    until("the victim's host is gone", SOON, async || Ok((processes_in(&mark)? == 0).then_some(()))).await
}

/// How many processes are in a process space, named as in `/proc/<pid>/ns/pid`.
fn processes_in(space: &str) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")? {
        let link = std::fs::read_link(entry?.path().join("ns/pid"));
        found += usize::from(link.is_ok_and(|link| link.as_os_str() == space));
    }
    Ok(found)
}

#[tokio::test]
async fn a_slow_line_is_slow_and_loses_nothing() -> Result<()> {
    let scratch = Scratch::new("slow")?;
    let hosts = Hosts::new(scratch.path()).await?;
    let host = hosts.boot("one", HostSpec::default()).await?;
    let fetch = async || {
        let begun = Instant::now();
        anyhow::Ok((said(&host, "head -c 400000 /dev/zero | tr '\\0' x").await?.len(), begun.elapsed()))
    };
    let (fast, soon) = fetch().await?;
    host.cut(Line::Slow { bytes_per_second: 200_000, latency: Duration::from_millis(10) }).await?;
    let (slow, late) = fetch().await?;
    ensure!((fast, slow) == (400_000, 400_000), "{fast} and {slow} bytes");
    ensure!(late > Duration::from_secs(2) && late > 2 * soon, "{soon:?}, then {late:?}");
    Ok(())
}

#[tokio::test]
async fn connections_end_by_a_reset_by_their_processes_death_and_by_a_new_sshd() -> Result<()> {
    let scratch = Scratch::new("sessions")?;
    let Some(hosts) = isolated(&scratch).await? else { return Ok(()) };
    let host = hosts.boot("one", HostSpec::default()).await?;
    let mut session = Session::open(&host).await?;
    host.reset_connections().await?;
    ensure!(session.client.wait().await?.code() == Some(255));

    let mut session = Session::open(&host).await?;
    host.kill_sessions().await?;
    ensure!(session.client.wait().await?.code() == Some(255));

    let mut session = Session::open(&host).await?;
    host.restart_sshd(&HostSpec { max_sessions: 1, ..HostSpec::default() }).await?;
    session.input.write_all(b"over\n").await?;
    ensure!(session.lines.next_line().await?.as_deref() == Some("over"), "the old session did not go on");
    ensure!(host.exec_root("sshd -T -f /etc/ssh/bed_sshd_config").await?.contains("maxsessions 1\n"));
    said(&host, "true").await?;
    Ok(())
}

#[tokio::test]
async fn a_folder_of_a_host_fills_up_and_refuses_writes() -> Result<()> {
    let scratch = Scratch::new("room")?;
    let Some(hosts) = isolated(&scratch).await? else { return Ok(()) };
    let host = hosts.boot("one", HostSpec::default()).await?;
    said(&host, "mkdir -m 700 /srv/state; echo before >/srv/state/file").await?;
    host.limit("/srv/state", 1).await?;
    ensure!(said(&host, "cat /srv/state/file; stat -c %a /srv/state").await? == "before\n700");
    host.fill("/srv/state").await?;
    ensure!(said(&host, "echo more >>/srv/state/other").await.is_err(), "there is room left");
    host.make_room("/srv/state").await?;
    said(&host, "echo more >>/srv/state/other").await?;

    host.forbid_writes("/root").await?;
    ensure!(said(&host, "touch /root/file").await.is_err(), "it can be written to");
    host.allow_writes("/root").await?;
    said(&host, "touch /root/file").await?;
    Ok(())
}
