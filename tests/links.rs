//! The operator's calls of the supervisor's verbs, over SSH to a real host: what one says the other understands.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dormouse::bounds::Bounds;
use dormouse::deed::{Deed, Point};
use dormouse::host::connection::{Connection, Target};
use dormouse::host::install::{Supervisors, Wanted};
use dormouse::host::link::{Caller, Link, LinkError, VolumeOrder};
use dormouse::host::trust::Expected;
use dormouse::leader::epoch::Epoch;
use dormouse::spool::FORMAT;
use dormouse::spool::export::EnvironmentExport;
use dormouse::spool::order::Isolation;
use dormouse::spool::record::{EnvironmentPhase, EnvironmentRecord};
use dormouse::spool::verb::RefusalReason;
use dormouse::telemetry::Metrics;
use russh::keys::{PrivateKey, PublicKey};

use crate::testbed::hosts::{Host, HostSpec, Hosts};
use crate::testbed::operator::supervisor_folder;
use crate::testbed::scratch::Scratch;

async fn link(hosts: &Hosts, host: &Host) -> Result<Link> {
    let target = Target {
        address: host.address().to_string(),
        port: host.port(),
        username: host.admin()?,
        expected: Expected::Key(PublicKey::from_openssh(&host.host_key()?)?),
        dial_timeout: Duration::from_secs(20),
        key: Arc::new(PrivateKey::from_openssh(std::fs::read_to_string(hosts.client_key())?)?),
        jump: None,
        dials: Bounds::new(&Metrics::new()).dials.clone(),
    };
    let connection = Connection::open(target).await?;
    let supervisors = Supervisors::read(&supervisor_folder().await?)?;
    let installed = supervisors.ensure(&connection, &Wanted { state_dir: None, needs_root: true }).await?;
    let caller = Caller {
        pool: "ns/pool".into(),
        pool_uid: "pool-uid".into(),
        epoch: Epoch::new("ns/pool", 1, Metrics::new()),
        asks_metadata: true,
    };
    Ok(Link::open(connection, installed, caller).await?)
}

/// A deed as good as any: nobody holds a pool here.
fn deed() -> Deed {
    Deed::unfenced(Point::HostGreeted)
}

fn ensure_refused<T: std::fmt::Debug>(
    result: Result<T, LinkError>,
    wanted: &RefusalReason,
    words: &str,
) -> Result<()> {
    let error = result.err().context("it was not refused")?;
    let refusal = error.refusal().with_context(|| format!("no refusal: {error}"))?;
    ensure!(refusal.reason == *wanted && refusal.message.contains(words), "{refusal:?}");
    Ok(())
}

#[tokio::test]
async fn the_verbs_of_an_environments_move_are_understood() -> Result<()> {
    let scratch = Scratch::new("links")?;
    let hosts = Hosts::new(scratch.path()).await?;
    if !hosts.are_isolated() {
        eprintln!("skipped: a host of its own takes root");
        return Ok(());
    }
    let host = hosts.boot("mover", HostSpec::default()).await?;
    host.exec_root("mkdir -p /etc/dormouse && echo http://127.0.0.1:1 > /etc/dormouse/metadata").await?;
    let link = link(&hosts, &host).await?;
    ensure!(link.hello.instance_id.is_none() && link.hello.mounts.is_empty(), "{:?}", link.hello);
    ensure!(link.hello.jobs_started == 0 && link.hello.quiesced.is_none(), "{:?}", link.hello);

    let order = VolumeOrder {
        slot: 1,
        volume: "vol-0123456789abcdef0".into(),
        builds_dir: "~/builds with a blank".into(),
        device: Some("/dev/sdz".into()),
        isolation: Isolation::PerSlotUser,
    };
    ensure_refused(link.volume_mount(deed(), &order).await, &RefusalReason::NotFound, "/dev/xvdz")?;
    let unmounted = link.volume_unmount(deed(), 1, &order.builds_dir).await?;
    ensure!(unmounted.ended == 0);
    ensure_refused(link.export("env1").await.map(drop), &RefusalReason::NotFound, "env1")?;
    link.leave(deed(), "env1").await?;
    let workspace = format!("{}/1/group/project", link.absolute(&order.builds_dir));
    let export = EnvironmentExport {
        format: FORMAT,
        environment: EnvironmentRecord {
            format: FORMAT,
            environment: "env1".into(),
            pool_uid: "pool-uid".into(),
            slot: 1,
            isolation: Isolation::PerSlotUser,
            project_id: 7,
            project_path: "group/project".into(),
            workspace,
            phase: EnvironmentPhase::Suspended,
            job_id: 1,
            resumes: 0,
            context: None,
            boot_id: "another-boot".into(),
            since: "2026-11-25T04:00:00Z".parse()?,
        },
        context: None,
    };
    let imported = link.import(deed(), 1, &order.builds_dir, &export).await;
    ensure_refused(imported, &RefusalReason::WorkspaceMismatch, "slot 1 has no volume")?;
    ensure_refused(link.notices().await, &RefusalReason::HostFailure, "http://127.0.0.1:1")?;
    link.quiesce(deed()).await?;
    let again = self::link(&hosts, &host).await?;
    let quiesced = again.hello.quiesced.context("nothing is said of the quiesce")?;
    ensure!(quiesced.boot_id == again.hello.boot_id);
    Ok(())
}
