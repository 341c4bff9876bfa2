//! Projects' repositories, made by the real git in a folder of their own.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// A bare repository with its project's path. Clones share it; the last one removes it.
#[derive(Clone, Debug)]
pub struct GitRepo {
    project: String,
    folder: Arc<TempDir>,
    object_format: &'static str,
    deploy_token: Option<String>,
    /// Large files by the id of their content.
    large_files: Arc<Mutex<BTreeMap<String, Bytes>>>,
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
        Self::with_format(project, "sha1")
    }

    /// An empty repository whose objects are named by `sha1` or `sha256`.
    pub fn with_format(project: impl Into<String>, object_format: &'static str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gitlab-project-").tempdir()?;
        let folder = Arc::new(folder);
        let (project, deploy_token, large_files) = (project.into(), None, Arc::default());
        let repo = Self { project, folder, object_format, deploy_token, large_files };
        let format = format!("--object-format={object_format}");
        repo.git(&["init", "--quiet", "--bare", "--initial-branch=main", &format, "."], &[])?;
        // A runner fetches the job's commit by its id, which GitLab allows.
        repo.git(&["config", "uploadpack.allowAnySHA1InWant", "true"], &[])?;
        // And a clone without the contents it does not need.
        repo.git(&["config", "uploadpack.allowFilter", "true"], &[])?;
        Ok(repo)
    }

    /// From here on only these credentials, `user:password`, open it: no job's token does.
    pub fn with_deploy_token(mut self, credentials: &str) -> Self {
        self.deploy_token = Some(credentials.to_owned());
        self
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

    /// Adds a commit to `main` with files of any bytes, which are made one at a time: it may be larger than memory.
    /// They are kept as they come, for bytes that do not get smaller.
    pub fn commit_large(
        &self,
        message: &str,
        files: impl Iterator<Item = (String, Vec<u8>)>,
    ) -> anyhow::Result<String> {
        let arguments = ["-c", "core.compression=0", "fast-import", "--quiet", "--depth=0"];
        self.git_with(&arguments, |git| {
            write!(
                git,
                "commit refs/heads/main\n\
                 committer Developer <developer@example.com> 1700000000 +0000\n\
                 data {}\n{message}\n",
                message.len(),
            )?;
            for (path, content) in files {
                write!(git, "M 100644 inline {path}\ndata {}\n", content.len())?;
                git.write_all(&content)?;
                git.write_all(b"\n")?;
            }
            Ok(())
        })?;
        self.tip()
    }

    /// Names a commit with a tag.
    pub fn tag(&self, name: &str, commit: &str) -> anyhow::Result<()> {
        self.git(&["tag", name, commit], &[]).map(drop)
    }

    /// Adds a commit to `main` with a submodule at `path`.
    pub fn commit_submodule(&self, path: &str, url: &str, commit: &str) -> anyhow::Result<String> {
        self.commit_submodule_of(path, url, None, commit)
    }

    /// The same with a branch that the submodule follows.
    pub fn commit_submodule_of(
        &self,
        path: &str,
        url: &str,
        branch: Option<&str>,
        commit: &str,
    ) -> anyhow::Result<String> {
        let known = self.git(&["show", "refs/heads/main:.gitmodules"], &[]).unwrap_or_default();
        let follows = branch.map(|branch| format!("\tbranch = {branch}\n")).unwrap_or_default();
        let modules = format!("{known}\n[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n{follows}");
        let parent = self.git(&["rev-parse", "refs/heads/main"], &[])?;
        let stream = format!(
            "commit refs/heads/main\n\
             committer Developer <developer@example.com> 1700000000 +0000\n\
             data 9\nsubmodule\nfrom {parent}\n\
             M 160000 {commit} {path}\n\
             M 100644 inline .gitmodules\ndata {}\n{modules}\n",
            modules.len(),
        );
        self.git(&["fast-import", "--quiet"], stream.as_bytes())?;
        self.git(&["rev-parse", "refs/heads/main"], &[])
    }

    /// The commit `main` is at.
    pub fn tip(&self) -> anyhow::Result<String> {
        self.git(&["rev-parse", "refs/heads/main"], &[])
    }

    /// Makes any reference stand for a commit.
    pub fn set_ref(&self, name: &str, commit: &str) -> anyhow::Result<()> {
        self.git(&["update-ref", name, commit], &[]).map(drop)
    }

    /// Keeps a large file beside the repository; returns what is committed in its place.
    pub fn large_file(&self, content: &str) -> String {
        let id: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let pointer =
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{id}\nsize {}\n", content.len());
        let mut all = self.large_files.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, Bytes::copy_from_slice(content.as_bytes()));
        pointer
    }

    /// A large file by the id of its content.
    pub(super) fn large_content(&self, id: &str) -> Option<Bytes> {
        self.large_files.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// How objects are named.
    pub(super) fn object_format(&self) -> &'static str {
        self.object_format
    }

    /// The only credentials that open it.
    pub(super) fn deploy_token(&self) -> Option<&str> {
        self.deploy_token.as_deref()
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
        self.git_with(arguments, |git| git.write_all(input))
    }

    fn git_with(
        &self,
        arguments: &[&str],
        write: impl FnOnce(&mut ChildStdin) -> std::io::Result<()>,
    ) -> anyhow::Result<String> {
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
            write(&mut stdin).context("write to git")?;
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
