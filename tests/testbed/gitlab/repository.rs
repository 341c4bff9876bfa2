//! Projects' repositories, made by the real git in a folder of their own.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// A bare repository with its project's path. Clones share it; the last one removes it.
#[derive(Clone, Debug)]
pub struct GitRepo {
    project: String,
    folder: Arc<TempDir>,
}

/// What a name in a repository stands for.
#[derive(Debug)]
pub(super) struct Resolved {
    pub sha: String,
    pub is_tag: bool,
}

impl GitRepo {
    /// An empty repository for the project, for example `group/project`.
    pub fn create(project: impl Into<String>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gitlab-project-").tempdir()?;
        let repo = Self { project: project.into(), folder: Arc::new(folder) };
        repo.git(&["init", "--quiet", "--bare", "--initial-branch=main", "."], &[])?;
        // A runner fetches the job's commit by its id, which GitLab allows.
        repo.git(&["config", "uploadpack.allowAnySHA1InWant", "true"], &[])?;
        Ok(repo)
    }

    /// Path of the project.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// Adds a commit to `main` that sets these files; returns its id.
    pub fn commit(&self, message: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        self.commit_to("main", message, files)
    }

    /// Adds a commit to `branch`, which starts from `main` when it is new.
    pub fn commit_to(&self, branch: &str, message: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let parent = [branch, "main"].into_iter().find_map(|name| {
            self.git(&["rev-parse", "--verify", "--quiet", &format!("refs/heads/{name}")], &[]).ok()
        });
        let mut stream = format!(
            "commit refs/heads/{branch}\n\
             committer Developer <developer@example.com> 1700000000 +0000\n\
             data {}\n{message}\n",
            message.len(),
        );
        if let Some(parent) = parent {
            stream.push_str(&format!("from {parent}\n"));
        }
        for (path, content) in files {
            stream.push_str(&format!("M 100644 inline {path}\ndata {}\n{content}\n", content.len()));
        }
        self.git(&["fast-import", "--quiet"], stream.as_bytes())?;
        self.git(&["rev-parse", &format!("refs/heads/{branch}")], &[])
    }

    /// Names a commit with a tag.
    pub fn tag(&self, name: &str, commit: &str) -> anyhow::Result<()> {
        self.git(&["tag", name, commit], &[]).map(drop)
    }

    /// The bare repository's folder.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The commit of a branch, a tag or a commit id.
    pub(super) fn resolve(&self, reference: &str) -> Option<Resolved> {
        let candidates = [
            (format!("refs/heads/{reference}"), false),
            (format!("refs/tags/{reference}"), true),
            (reference.to_owned(), false),
        ];
        candidates.into_iter().find_map(|(name, is_tag)| {
            let commit = format!("{name}^{{commit}}");
            let sha = self.git(&["rev-parse", "--verify", "--quiet", &commit], &[]).ok()?;
            Some(Resolved { sha, is_tag })
        })
    }

    fn git(&self, arguments: &[&str], input: &[u8]) -> anyhow::Result<String> {
        let mut child = Command::new("git")
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(clean_environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start git")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input).context("write to git")?;
        }
        let output = child.wait_with_output().context("wait for git")?;
        if !output.status.success() {
            bail!("git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The environment git runs in here: nothing of the person who runs the tests.
pub(super) fn clean_environment() -> Vec<(&'static str, PathBuf)> {
    vec![
        ("PATH", std::env::var_os("PATH").unwrap_or_default().into()),
        ("HOME", "/nonexistent".into()),
        ("GIT_CONFIG_NOSYSTEM", "1".into()),
        ("GIT_CONFIG_GLOBAL", "/dev/null".into()),
    ]
}
