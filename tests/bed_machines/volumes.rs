//! Volumes are block devices and disks to boot from; snapshots are copies of them.

use anyhow::{Result, ensure};
use aws_sdk_ec2::types::{EbsInstanceBlockDeviceSpecification, InstanceBlockDeviceMappingSpecification};

use super::{Lab, SOON, said};
use crate::testbed::wait::until;

const FORMAT: &str = "mkfs.ext4 -q /dev/sdf && mount /dev/sdf /mnt";

#[tokio::test]
async fn a_volume_is_a_block_device_that_moves_with_what_was_written() -> Result<()> {
    let Some(lab) = Lab::open("volume").await? else { return Ok(()) };
    let ((one, first), (two, second)) = (lab.boot().await?, lab.boot().await?);
    let volume = lab.volume(0, None).await?;
    lab.attach(&volume, &one, "/dev/sdf").await?;
    let by_id = format!("/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{}", volume.replace('-', ""));
    ensure!(said(&first, &format!("readlink -f {by_id}; test -b /dev/sdf")).await? == "/dev/sdf");
    ensure!(said(&first, "blockdev --getsize64 /dev/sdf").await? == (2_u64 << 30).to_string());
    said(&first, &format!("{FORMAT} && echo mine >/mnt/mark")).await?;
    ensure!(said(&second, "ls /dev/sdf").await.is_err(), "another instance has it too");

    lab.detach(&volume, false).await?;
    lab.looked_at().await?;
    ensure!(
        lab.attachment(&volume, &one).await?.as_deref() == Some("detaching"),
        "it went while it was mounted"
    );
    said(&first, "cat /mnt/mark && umount /mnt").await?;
    lab.until_free(&volume).await?;
    ensure!(said(&first, "ls /dev/sdf").await.is_err(), "the device is still there");
    ensure!(lab.devices()?.is_empty());

    lab.attach(&volume, &two, "/dev/xvdg").await?;
    ensure!(said(&second, "mount /dev/xvdg /mnt && cat /mnt/mark").await? == "mine");

    // A stop unmounts it, a start has it as a device again.
    lab.stop(&two, false).await?;
    ensure!(lab.devices()?.is_empty());
    let second = lab.start(&two).await?;
    ensure!(said(&second, "mount /dev/xvdg /mnt && cat /mnt/mark").await? == "mine");
    Ok(())
}

impl Lab {
    /// Waits until the machines have done what they could of what the cloud says now: they do things in order, a new
    /// volume's among them.
    async fn looked_at(&self) -> Result<()> {
        let probe = self.volume(0, None).await?;
        self.cloud.ec2().delete_volume().volume_id(&probe).send().await?;
        until("the probe is gone", SOON, async || Ok((!self.machines.volume(&probe)?.exists()).then_some(())))
            .await
    }
}

#[tokio::test]
async fn a_forced_detach_pulls_the_disk_out() -> Result<()> {
    let Some(lab) = Lab::open("forced").await? else { return Ok(()) };
    let (id, host) = lab.boot().await?;
    let volume = lab.volume(0, None).await?;
    lab.attach(&volume, &id, "/dev/sdf").await?;
    said(&host, &format!("{FORMAT} && echo safe >/mnt/mark && sync")).await?;
    lab.detach(&volume, true).await?;
    lab.until_free(&volume).await?;
    until("the disk is pulled out", SOON, async || {
        Ok(said(&host, "echo more >/mnt/more").await.is_err().then_some(()))
    })
    .await?;

    lab.attach(&volume, &id, "/dev/sdg").await?;
    ensure!(said(&host, "mkdir /srv/w && mount /dev/sdg /srv/w && cat /srv/w/mark").await? == "safe");
    lab.terminate(&id).await?;
    ensure!(lab.devices()?.is_empty(), "the disk that was pulled out is held still");
    Ok(())
}

/// Opens a device, and writes to it when it is told to.
const WRITE_LATE: &str = r#"
import os
device = os.open("/dev/sdf", os.O_WRONLY | os.O_SYNC)
open("/run/opened", "w").close()
open("/run/go").read()
os.pwrite(device, b"late", 0)
open("/run/written", "w").close()
"#;

#[tokio::test]
async fn a_device_that_is_open_at_a_forced_detach_is_not_written_to_after_it() -> Result<()> {
    let Some(lab) = Lab::open("open").await? else { return Ok(()) };
    let (id, host) = lab.boot().await?;
    let volume = lab.volume(0, None).await?;
    lab.attach(&volume, &id, "/dev/sdf").await?;
    said(&host, &format!("mkfifo /run/go; setsid python3 -c '{WRITE_LATE}' >/dev/null 2>&1 &")).await?;
    let exists = async |file: &str| Ok(host.disk().join(file).exists().then_some(()));
    until("the device is open", SOON, async || exists("run/opened").await).await?;
    lab.detach(&volume, true).await?;
    lab.until_free(&volume).await?;
    lab.attach(&volume, &id, "/dev/sdg").await?;
    said(&host, "echo >/run/go").await?;
    until("it has written", SOON, async || exists("run/written").await).await?;
    ensure!(said(&host, "cmp -n 4 /dev/zero /dev/sdg").await.is_ok(), "a write came after the detach");
    Ok(())
}

#[tokio::test]
async fn a_snapshot_holds_what_was_written_and_becomes_a_volume_of_another_zone() -> Result<()> {
    let Some(lab) = Lab::open("snapshot").await? else { return Ok(()) };
    let (id, host) = lab.boot().await?;
    let volume = lab.volume(0, None).await?;
    lab.attach(&volume, &id, "/dev/sdf").await?;
    said(&host, &format!("{FORMAT} && echo kept >/mnt/mark && sync")).await?;
    let snapshot = lab.snapshot(&volume).await?;
    said(&host, "echo later >/mnt/mark; sync").await?;
    lab.terminate(&id).await?;
    lab.until_free(&volume).await?;
    // The cloud lets a volume be deleted that it has not copied yet.
    let late = lab.cloud.ec2().create_snapshot().volume_id(&volume).send().await?;
    lab.cloud.ec2().delete_volume().volume_id(&volume).send().await?;

    let restored = lab.volume(1, Some(&snapshot)).await?;
    let other = lab.launch(1).await?;
    let host = lab.running(&other).await?;
    lab.attach(&restored, &other, "/dev/sdf").await?;
    ensure!(said(&host, "mount /dev/sdf /mnt && cat /mnt/mark").await? == "kept");

    lab.cloud.ec2().delete_snapshot().snapshot_id(&snapshot).send().await?;
    let late = late.snapshot_id.unwrap_or_default();
    until("only what is told of is kept", SOON, async || {
        let (kept, gone) = (lab.machines.snapshot(&late)?, lab.machines.snapshot(&snapshot)?);
        Ok((kept.exists() && !gone.exists() && !lab.machines.volume(&volume)?.exists()).then_some(()))
    })
    .await
}

/// Writes numbers at both ends of a device, the first end always first.
const COUNT: &str = r#"
import os
device = os.open("/dev/sdf", os.O_WRONLY | os.O_SYNC)
number = 0
while True:
    number += 1
    for place in (0, 1 << 30):
        os.pwrite(device, number.to_bytes(8, "big"), place)
"#;
/// Says how far the first end is ahead of the other, and whether anything was written at all.
const COMPARE: &str = r#"
import os
device = os.open("/dev/sdg", os.O_RDONLY)
first, last = (int.from_bytes(os.pread(device, 8, place), "big") for place in (0, 1 << 30))
print(first - last, last > 0)
"#;

#[tokio::test]
async fn a_snapshot_of_a_volume_that_is_written_to_is_of_one_moment() -> Result<()> {
    let Some(lab) = Lab::open("moment").await? else { return Ok(()) };
    let (id, host) = lab.boot().await?;
    let volume = lab.volume(0, None).await?;
    lab.attach(&volume, &id, "/dev/sdf").await?;
    // What a copy reads between the two ends.
    said(&host, "head -c 200M /dev/urandom | dd of=/dev/sdf bs=1M seek=64 conv=fsync status=none").await?;
    said(&host, &format!("setsid python3 -c '{COUNT}' >/dev/null 2>&1 &")).await?;
    let written = "cmp -n 8 -s /dev/zero /dev/sdf || echo yes";
    until("it writes", SOON, async || Ok((said(&host, written).await? == "yes").then_some(()))).await?;
    let snapshot = lab.snapshot(&volume).await?;

    let restored = lab.volume(0, Some(&snapshot)).await?;
    lab.attach(&restored, &id, "/dev/sdg").await?;
    let ahead = said(&host, &format!("python3 -c '{COMPARE}'")).await?;
    ensure!(["0 True", "1 True"].contains(&ahead.as_str()), "the first end is ahead by {ahead}");
    ensure!(said(&host, "pgrep -c python3").await? == "1", "the machine was not let go on");
    Ok(())
}

#[tokio::test]
async fn a_root_volume_moves_by_a_snapshot_and_by_itself() -> Result<()> {
    let Some(lab) = Lab::open("root").await? else { return Ok(()) };
    let (one, host) = lab.boot().await?;
    let key = host.host_key()?;
    said(&host, "echo moved >/root/mark; rm /etc/motd 2>/dev/null; touch -h /root/mark").await?;
    let root = lab.root_of(&one).await?;
    let snapshot = lab.snapshot(&root).await?;
    let copy = lab.volume(1, Some(&snapshot)).await?;

    lab.stop(&one, false).await?;
    lab.detach(&root, false).await?;
    lab.until_free(&root).await?;
    for (zone, volume) in [(0, &root), (1, &copy)] {
        let id = lab.launch(zone).await?;
        let fresh = lab.running(&id).await?;
        ensure!(fresh.host_key()? != key && said(&fresh, "cat /root/mark").await.is_err());
        lab.stop(&id, false).await?;
        let own = lab.root_of(&id).await?;
        lab.detach(&own, false).await?;
        lab.until_free(&own).await?;
        lab.attach(volume, &id, "/dev/sda1").await?;
        let host = lab.start(&id).await?;
        ensure!(said(&host, "cat /root/mark; hostname").await? == format!("moved\n{id}"));
        ensure!(host.host_key()? == key, "the host key is not on the disk");
    }
    Ok(())
}

#[tokio::test]
async fn an_address_comes_back_with_another_host_key() -> Result<()> {
    let Some(lab) = Lab::open("address").await? else { return Ok(()) };
    lab.reuse_addresses().await?;
    let (id, host) = lab.boot().await?;
    let key = host.host_key()?;
    lab.terminate(&id).await?;
    let (_, next) = lab.boot().await?;
    ensure!(next.address() == host.address(), "{} and {}", next.address(), host.address());
    ensure!(next.host_key()? != key);
    Ok(())
}

#[tokio::test]
async fn a_root_volume_outlives_its_instance_only_when_told_to() -> Result<()> {
    let Some(lab) = Lab::open("outlive").await? else { return Ok(()) };
    let ((kept, _), (gone, _)) = (lab.boot().await?, lab.boot().await?);
    let (kept_root, gone_root) = (lab.root_of(&kept).await?, lab.root_of(&gone).await?);
    let stays = EbsInstanceBlockDeviceSpecification::builder().delete_on_termination(false).build();
    let mapping =
        InstanceBlockDeviceMappingSpecification::builder().device_name("/dev/sda1").ebs(stays).build();
    let modify = lab.cloud.ec2().modify_instance_attribute().instance_id(&kept);
    modify.block_device_mappings(mapping).send().await?;
    lab.terminate(&kept).await?;
    lab.terminate(&gone).await?;
    until("one root volume is gone", SOON, async || {
        Ok((!lab.machines.volume(&gone_root)?.exists()).then_some(()))
    })
    .await?;
    ensure!(lab.machines.volume(&kept_root)?.join("upper/root").exists(), "the other is gone too");
    Ok(())
}
