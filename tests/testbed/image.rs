//! Container images without a container engine: what `image.py` assembles.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::{operator, tools};

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

/// The operator's image as `make image` writes it, but of programs from the profile that tests are built with.
pub async fn operator(dir: &Path, tag: &str) -> Result<Image> {
    let image = Image::new(dir, "dormouse", tag);
    let supervisor = format!("dormouse-supervisor-{}", std::env::consts::ARCH);
    let mut build = Command::new(tools::sources().join("build-image.sh"));
    build.args(["--name", &image.name()]);
    for (option, path) in [
        ("--operator", operator::binary()?),
        ("--supervisor", operator::supervisor_folder().await?.join(supervisor)),
        ("--archive", image.archive.clone()),
        ("--rootfs", dir.join("operator-root")),
    ] {
        build.arg(option).arg(path);
    }
    run(build).await?;
    Ok(image)
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
    let image = Image::new(dir, "pause", "1");
    let mut archive = Command::new(tools::sources().join("image.py"));
    archive
        .arg("archive")
        .arg(&image.archive)
        .args(["--name", &image.name(), "--entrypoint", "/pause", "--root"])
        .arg(&root);
    run(archive).await?;
    Ok(image)
}

impl Image {
    fn new(dir: &Path, name: &str, tag: &str) -> Self {
        Self {
            archive: dir.join(format!("{name}-{tag}.tar")),
            repository: format!("dormouse.test/{name}"),
            tag: tag.to_owned(),
        }
    }

    /// Name and tag.
    pub fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }
}

async fn run(mut command: Command) -> Result<()> {
    let shown = format!("{:?}", command.as_std());
    let output = command.output().await.with_context(|| format!("failed to run {shown}"))?;
    ensure!(output.status.success(), "{shown} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
