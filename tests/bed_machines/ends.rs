//! What ends leaves nothing behind, neither an instance nor a whole bed.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::{Lab, SOON, said, text};
use crate::testbed::machines::loops;
use crate::testbed::process::Owner;
use crate::testbed::scratch::Scratch;
use crate::testbed::wait::until;

/// With a file system of a volume in use, and a process on it.
const BUSY: &str = "mkfs.ext4 -q /dev/sdf && mount /dev/sdf /mnt && cd /mnt || exit 1
    setsid sleep 1000 >/dev/null 2>&1 &
    readlink /proc/self/ns/pid";

impl Lab {
    /// An instance that uses a volume: its id, and the name of its process space.
    async fn busy(&self) -> Result<(String, String)> {
        let (id, host) = self.boot().await?;
        let volume = self.volume(0, None).await?;
        self.attach(&volume, &id, "/dev/sdf").await?;
        let space = said(&host, BUSY).await?;
        ensure!(processes_in(&space)? > 1 && self.devices()?.len() == 1);
        Ok((id, space))
    }
}

#[tokio::test]
async fn a_termination_leaves_no_process_mount_device_cgroup_or_disk() -> Result<()> {
    let Some(lab) = Lab::open("terminate").await? else { return Ok(()) };
    let (id, space) = lab.busy().await?;
    let (root, cgroups) = (lab.root_of(&id).await?, cgroups(&id)?);
    ensure!(!cgroups.is_empty());
    lab.terminate(&id).await?;
    // A device that is gone has no mount, in no name space.
    ensure!(lab.devices()?.is_empty(), "loop devices are left");
    ensure!(cgroups.iter().all(|path| !path.exists()), "cgroups are left: {cgroups:?}");
    // Whoever inherits its dead reaps them a moment later.
    until("its processes are gone", SOON, async || Ok((processes_in(&space)? == 0).then_some(()))).await?;
    until("its disk is gone", SOON, async || Ok((!lab.machines.volume(&root)?.exists()).then_some(()))).await
}

#[tokio::test]
async fn nothing_outlives_the_bed() -> Result<()> {
    let Some(lab) = Lab::with("bed", |template| template.hibernation = true).await? else { return Ok(()) };
    let (asleep, space) = lab.busy().await?;
    lab.stop(&asleep, true).await?;
    // One that boots while its bed ends, and one that a test still holds.
    let (awake, held) = lab.boot().await?;
    lab.launch(0).await?;
    let (dir, cgroups) = (lab.scratch.path().to_owned(), [cgroups(&asleep)?, cgroups(&awake)?].concat());
    ensure!(cgroups.len() > 1);
    drop(lab);
    ensure!(loops::devices_below(&dir)?.is_empty(), "loop devices are left");
    ensure!(cgroups.iter().all(|path| !path.exists()), "cgroups are left: {cgroups:?}");
    ensure!(!dir.exists(), "{} is left", dir.display());
    ensure!(held.exec_root("true").await.is_err(), "a machine is left");
    until("processes are gone", SOON, async || Ok((processes_in(&space)? == 0).then_some(()))).await
}

#[tokio::test]
async fn nothing_outlives_a_program_that_is_killed() -> Result<()> {
    const ROLE: &str = "DORMOUSE_MACHINES_VICTIM";
    if let Some(dir) = std::env::var_os(ROLE) {
        let dir = Path::new(&dir);
        let Some(lab) = Lab::open("victim").await? else { return Ok(()) };
        let (_, space) = lab.busy().await?;
        std::fs::write(dir.join("mark.new"), format!("{space}\n{}", lab.scratch.path().display()))?;
        std::fs::rename(dir.join("mark.new"), dir.join("mark"))?;
        return std::future::pending().await;
    }
    let Some(lab) = Lab::open("killer").await? else { return Ok(()) };
    let mut victim = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "bed_machines::ends::nothing_outlives_a_program_that_is_killed"])
        .env(ROLE, lab.scratch.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mark = until("the victim's machine is busy", SOON, async || {
        Ok(std::fs::read_to_string(lab.scratch.path().join("mark")).ok())
    })
    .await?;
    let (space, dir) = mark.split_once('\n').context("two lines")?;
    ensure!(processes_in(space)? > 1 && loops::devices_below(Path::new(dir))?.len() == 1);
    victim.kill().await?;
    until("nothing of the victim is left", SOON, async || {
        let is_gone = processes_in(space)? == 0 && loops::devices_below(Path::new(dir))?.is_empty();
        Ok(is_gone.then_some(()))
    })
    .await
}

#[tokio::test]
async fn devices_of_a_bed_that_is_gone_are_taken_down() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: loop devices take root");
        return Ok(());
    }
    let scratch = Scratch::new("orphans")?;
    // Of process 1 of another boot of the machine, and of this one.
    for (bed, is_left) in
        [("1-0.0.dead".to_owned(), false), (format!("{}.0.alive", Owner::this_process()?), true)]
    {
        let dir = scratch.path().join(bed);
        std::fs::create_dir(&dir)?;
        std::fs::File::create(dir.join("volume"))?.set_len(1 << 20)?;
        let mut losetup = std::process::Command::new("losetup");
        text(losetup.args(["--find", "--show"]).arg(dir.join("volume")).output()?)?;
        // As the folder of a dead bed, which goes first.
        std::fs::remove_file(dir.join("volume"))?;
        loops::remove_orphans(scratch.path()).await?;
        ensure!(loops::devices_below(&dir)?.len() == usize::from(is_left), "{}", dir.display());
        loops::detach_below(&dir)?;
    }
    Ok(())
}

/// The folders of an instance's processes, of beds of this program.
fn cgroups(id: &str) -> Result<Vec<PathBuf>> {
    let found = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "/run", "-type", "d", "-path"])
        .arg(format!("*/dormouse-bed/{}.*/{id}", Owner::this_process()?))
        .output()?;
    Ok(String::from_utf8(found.stdout)?.lines().map(Into::into).collect())
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
