//! Container images without a container engine: what `image.py` assembles.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::tools;

/// An image in a file, as `ctr images import` reads it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The OCI archive.
    pub archive: PathBuf,
    /// Its name without the tag.
    pub repository: String,
    /// Its tag.
    pub tag: String,
}

/// The operator's image, as it ships but for the profile its programs were built with.
pub async fn operator(dir: &Path, operator: &Path, supervisor: &Path, tag: &str) -> Result<Image> {
    let root = dir.join("operator-root");
    let mut assemble = image_py();
    assemble.arg("rootfs").arg(&root).arg("--operator").arg(operator).arg("--supervisor").arg(supervisor);
    run(assemble).await?;
    pack(dir, &root, "/usr/bin/dormouse", "dormouse", tag).await
}

/// The supervisor as it is put on hosts, but for the optimiser: static, built without any of the operator.
pub async fn supervisor() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/supervisor");
    let mut build = Command::new(env!("CARGO"));
    build
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // Naming the target keeps the flag away from build scripts and macros, which cannot be static.
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .args(["build", "--locked", "--no-default-features", "--features=supervisor", "--bin=dormouse-supervisor"])
        .arg(format!("--target={target}"))
        .arg("--target-dir")
        .arg(&folder);
    run(build).await?;
    Ok(folder.join(target).join("debug/dormouse-supervisor"))
}

/// The image of the process that holds a pod's namespaces.
pub async fn pause(dir: &Path) -> Result<Image> {
    let root = dir.join("pause-root");
    fs::create_dir_all(&root)?;
    let mut compile = Command::new("rustc");
    compile
        .args(["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-o"])
        .arg(root.join("pause"))
        .arg(tools::sources().join("node/pause.rs"));
    run(compile).await?;
    pack(dir, &root, "/pause", "pause", "1").await
}

async fn pack(dir: &Path, root: &Path, entrypoint: &str, name: &str, tag: &str) -> Result<Image> {
    let image = Image {
        archive: dir.join(format!("{name}-{tag}.tar")),
        repository: format!("dormouse.test/{name}"),
        tag: tag.to_owned(),
    };
    let mut archive = image_py();
    archive
        .arg("archive")
        .arg(&image.archive)
        .args(["--name", &image.name(), "--entrypoint", entrypoint, "--version", tag, "--root"])
        .arg(root);
    run(archive).await?;
    Ok(image)
}

impl Image {
    /// Name and tag.
    pub fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }
}

fn image_py() -> Command {
    Command::new(tools::sources().join("image.py"))
}

async fn run(mut command: Command) -> Result<()> {
    let shown = format!("{:?}", command.as_std());
    let output = command.output().await.with_context(|| format!("failed to run {shown}"))?;
    ensure!(output.status.success(), "{shown} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
